"""The encoder of sound: convolutions from a wave to frames, positions by convolution, and post-norm blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lightning.networks.attention_bias import Alibi
from jepa_lightning.networks.linear import linear
from jepa_lightning.networks.tokens import check_sizes
from jepa_lightning.networks.transformer import Transformer

# Of each layer channels, steps of the kernel, and steps that it moves by: 400 steps a frame, 320 from one to the next.
WAV2VEC2 = ((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2)


class WaveEmbed(nn.Module):
    """Convolutions, each with a norm over the channels and GELU, from a wave to frames, and a linear map of these.

    Frames overlap: one of the published front end sees 25 ms of 16 kHz, and there is one every 20 ms.

    Args:
        embed_dim: width D of the tokens.
        convolutions: `(channels, kernel, stride)` of each layer.
        mask_token: whether there is a token that stands for frames that are hidden.

    Raises:
        ValueError: a layer that has not three positive sizes.

    Source: wav2vec 2.0 (arXiv 2006.11477), section 2; with norms in all layers as in its large model and in data2vec.

    >>> WaveEmbed(8, [(4, 10, 5), (4, 3, 2)])(torch.zeros(3, 400, 1)).shape
    torch.Size([3, 39, 8])
    """

    def __init__(
        self, embed_dim: int, convolutions: Sequence[Sequence[int]] = WAV2VEC2, mask_token: bool = True
    ) -> None:
        super().__init__()
        check_sizes(embed_dim=embed_dim)
        if not convolutions or any(len(layer) != 3 for layer in convolutions):
            raise ValueError(f"convolutions are layers of (channels, kernel, stride), got {convolutions}")
        for channels, kernel, stride in convolutions:
            check_sizes(channels=channels, kernel=kernel, stride=stride)
        self.embed_dim, self.layers = embed_dim, [(kernel, stride) for _, kernel, stride in convolutions]
        widths = [1, *(channels for channels, _, _ in convolutions)]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, channels, kernel, stride, bias=False)
            for width, (channels, kernel, stride) in zip(widths, convolutions, strict=False)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths[1:])
        self.norm = nn.LayerNorm(widths[-1])
        self.proj = nn.Linear(widths[-1], embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(embed_dim)) if mask_token else None

    @property
    def receptive_field(self) -> int:
        """Steps that a frame sees."""
        steps = 1
        for kernel, stride in reversed(self.layers):
            steps = (steps - 1) * stride + kernel
        return steps

    def init_weights(self) -> None:
        """Draw the weights anew, those of the convolutions for GELUs, and a mask token between 0 and 1."""
        for convolution in self.convolutions:
            nn.init.kaiming_normal_(convolution.weight)  # type: ignore[arg-type]
        self.proj.reset_parameters()
        if self.mask_token is not None:
            nn.init.uniform_(self.mask_token)

    def grid_of(self, x: Tensor) -> tuple[int, ...]:
        """The number of frames of waves.

        Raises:
            ValueError: what are no waves of one channel, or waves shorter than a frame.
        """
        if x.ndim != 3 or x.shape[2] != 1 or x.shape[1] < self.receptive_field:
            raise ValueError(
                f"expected waves [B, L, 1] of one channel, of {self.receptive_field} steps or more, got {list(x.shape)}"
            )
        length = x.shape[1]
        for kernel, stride in self.layers:
            length = (length - kernel) // stride + 1
        return (length,)

    def valid(self, valid: Tensor) -> Tensor:
        """Which frames `[B, N]` there are: those all of whose steps `[B, L]` there are."""
        missing = (~valid).float().unsqueeze(1)
        for kernel, stride in self.layers:
            missing = F.max_pool1d(missing, kernel, stride)
        return missing.squeeze(1) == 0

    def forward(self, x: Tensor) -> Tensor:
        """Waves `[B, L, 1]` to tokens `[B, N, D]`."""
        self.grid_of(x)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.gelu(norm(convolution(x.mT).mT))
        return linear(self.proj, self.norm(x))

    def masked(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Tokens `[B, N, D]` with the mask token at the places `hidden`, a BoolTensor `[B, N]`.

        Raises:
            ValueError: a tokenizer without mask token.
        """
        if self.mask_token is None:
            raise ValueError("this WaveEmbed has no mask token: build it with mask_token=True")
        return torch.where(hidden.unsqueeze(-1), self.mask_token.to(tokens.dtype), tokens)


class ConvPositions(nn.ModuleList):
    """What tells a token its place by what is around it: grouped convolutions, each with a norm and GELU.

    Args:
        embed_dim: width D of the tokens, a multiple of `groups`.
        kernel_size: tokens that a convolution sees.
        groups: those of the convolutions' channels.
        depth: number of convolutions.

    Raises:
        ValueError: a width that the groups do not divide.

    Source: data2vec (arXiv 2202.03555), section 4.2: five layers in place of wav2vec 2.0's one.
    """

    def __init__(self, embed_dim: int, kernel_size: int = 19, groups: int = 16, depth: int = 5) -> None:
        check_sizes(kernel_size=kernel_size, groups=groups, depth=depth)
        if embed_dim % groups:
            raise ValueError(f"a width of {embed_dim} cannot be split into {groups} groups of positions")
        super().__init__(
            nn.Conv1d(embed_dim, embed_dim, kernel_size, padding=kernel_size // 2, groups=groups) for _ in range(depth)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `[B, N, D]` to what is added to them, `[B, N, D]`."""
        length = tokens.shape[1]
        for layer in self:
            tokens = layer(tokens.mT)[..., :length].mT  # an even kernel gives one more
            tokens = F.gelu(F.layer_norm(tokens, tokens.shape[-1:]))
        return tokens


class WaveTransformer(Transformer):
    """The encoder of data2vec (1 and 2.0) on waves.

    What is hidden, and what is not there, is zero before the positions are computed, so that no token sees it. As in
    the official code, convolutions of positions still find more frames behind a wave that is filled up than behind one
    that ends: of the last frames of a wave, features depend a little on how much follows.

    Args:
        num_steps: length of the waves that it is built for; others are fine too.
        embed_dim: width D of the tokens, a multiple of `num_heads` and `position_groups`.
        depth: number of blocks.
        num_heads: attention heads a block.
        mlp_ratio: width of the MLPs over `embed_dim`.
        convolutions: `(channels, kernel, stride)` of each layer of the front end, see `WaveEmbed`.
        position_kernel: tokens that a convolution of the positions sees, see `ConvPositions`.
        position_groups: groups of its channels.
        position_depth: number of these convolutions.
        mask_token: whether there is one, as in data2vec 1.
        alibi: whether a bias of attention grows with the distance, as in data2vec 2.0 (see `Alibi`).
        eps: epsilon of the norms.

    Raises:
        ValueError: a size that does not fit.

    Source: data2vec (arXiv 2202.03555), section 4.2; data2vec 2.0 (arXiv 2212.07525), section 4.2.

    >>> encoder = WaveTransformer(800, 16, depth=1, num_heads=2, convolutions=[(4, 10, 5), (4, 3, 2)])
    >>> encoder.grid_of(torch.zeros(3, 400, 1)), encoder(torch.zeros(3, 400, 1)).shape
    ((39,), torch.Size([3, 39, 16]))
    """

    def __init__(
        self,
        num_steps: int = 320000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        convolutions: Sequence[Sequence[int]] = WAV2VEC2,
        position_kernel: int = 19,
        position_groups: int = 16,
        position_depth: int = 5,
        mask_token: bool = True,
        alibi: bool = False,
        eps: float = 1e-5,
    ) -> None:
        check_sizes(num_steps=num_steps)
        tokenizer, self.num_steps = WaveEmbed(embed_dim, convolutions, mask_token), num_steps
        grid = tokenizer.grid_of(self.example())
        bias = Alibi(num_heads) if alibi else None
        super().__init__(tokenizer, grid, depth, num_heads, mlp_ratio, "none", norm_first=False, eps=eps, bias=bias)
        self.num_steps = num_steps
        self.conv_positions = ConvPositions(embed_dim, position_kernel, position_groups, position_depth)

    def example(self) -> Tensor:
        """A wave of the length that it is built for, of which only the shape matters."""
        return torch.empty(1, self.num_steps, 1, device="meta")

    def init_weights(self) -> None:
        """Draw the weights anew."""
        super().init_weights()
        for layer in getattr(self, "conv_positions", ()):  # the base draws when there are none yet
            layer.reset_parameters()

    def _placed(self, tokens: Tensor, grid: tuple[int, ...], indices: Tensor | None, valid: Tensor | None) -> Tensor:
        """Tokens and what tells them their places by those that are seen."""
        if valid is not None:
            tokens = tokens.masked_fill(~valid.unsqueeze(-1), 0.0)
        seen = tokens
        if indices is not None:
            visible = torch.zeros_like(tokens[..., 0]).scatter(1, indices, 1.0)
            seen = tokens * visible.unsqueeze(-1)
        return tokens + self.conv_positions(seen)

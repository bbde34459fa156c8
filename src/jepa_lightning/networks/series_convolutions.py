"""An encoder of series by convolutions of many scales: what ROCKET draws at random, to be trained on."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lightning.networks.tokens import check_sizes, gather_tokens

SHARPNESS = 4.0  # of the soft threshold, in numbers of a standardised series


class SeriesConvolutions(nn.Module):
    """Says of each stretch of a series at which share of its steps each of many convolutions is above zero.

    The mean over the tokens is the share of the whole series, which MiniRocket classifies by. Kernels are dilated by
    1, 2, 4 and so on, as far as they fit into `num_steps`; they start as ROCKET draws them, with a mean of zero and a
    threshold from -1 to 1, for series that are standardised. The threshold is soft, so that they can be trained.

    Convolutions reach beyond their stretch. What is hidden is zero before them, so that no visible token sees it.

    Args:
        num_steps: length of the series that it is built for; others are fine too.
        patch_size: steps that a token spans.
        in_channels: number of channels.
        num_kernels: convolutions a dilation; the tokens' width is that times the number of dilations.
        kernel_size: steps of a kernel, an odd number.
        max_dilation: the longest one at most.

    Raises:
        ValueError: a size that does not fit.

    Source: ROCKET (arXiv 1910.13051), section 3.1; the share of positive values as the only feature: MiniRocket (arXiv
    2012.08791), section 3.2.

    >>> encoder = SeriesConvolutions(40, patch_size=4, num_kernels=8)
    >>> encoder.dilations, encoder(torch.zeros(3, 40, 1)).shape
    ([1, 2, 4], torch.Size([3, 10, 24]))
    """

    def __init__(
        self,
        num_steps: int = 320,
        patch_size: int = 32,
        in_channels: int = 1,
        num_kernels: int = 64,
        kernel_size: int = 9,
        max_dilation: int = 64,
    ) -> None:
        super().__init__()
        check_sizes(num_steps=num_steps, patch_size=patch_size, in_channels=in_channels, num_kernels=num_kernels)
        check_sizes(kernel_size=kernel_size, max_dilation=max_dilation)
        if kernel_size % 2 == 0 or kernel_size > num_steps:
            raise ValueError(f"kernel_size={kernel_size} must be odd, and no longer than num_steps={num_steps}")
        self.patch_size, self.in_channels, self.kernel_size = patch_size, in_channels, kernel_size
        powers = [2**power for power in range(max_dilation.bit_length())]
        self.dilations = [each for each in powers if (kernel_size - 1) * each < num_steps]
        self.embed_dim = num_kernels * len(self.dilations)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(in_channels, num_kernels, kernel_size, padding=(kernel_size - 1) // 2 * each, dilation=each)
            for each in self.dilations
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Draw kernels and thresholds anew."""
        convolution: Any
        for convolution in self.convolutions:
            with torch.no_grad():
                weight = torch.randn_like(convolution.weight)
                convolution.weight.copy_((weight - weight.mean(2, keepdim=True)) / self.in_channels**0.5)
                nn.init.uniform_(convolution.bias, -1, 1)

    def grid_of(self, x: Tensor) -> tuple[int, ...]:
        """The token grid of series `[B, L, C]`.

        Raises:
            ValueError: a length that the patches do not divide, or another number of channels.
        """
        if x.ndim != 3 or x.shape[2] != self.in_channels or x.shape[1] % self.patch_size:
            wanted = f"[B, L, {self.in_channels}] with L a multiple of {self.patch_size}"
            raise ValueError(f"expected series {wanted}, got {list(x.shape)}")
        return (x.shape[1] // self.patch_size,)

    def forward(self, x: Tensor, indices: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """Encode the tokens at `indices`, which see one another's steps and nothing else.

        Args:
            x: series `[B, L, C]`.
            indices: LongTensor `[B, K]`, the tokens to keep; all without.
            valid: BoolTensor `[B, N]`, which tokens there are; all without.

        Returns:
            Tokens `[B, K, D]`, in (0, 1).
        """
        (tokens,) = self.grid_of(x)
        seen = torch.ones(len(x), tokens, dtype=torch.bool, device=x.device)
        if indices is not None:
            seen = torch.zeros_like(seen).scatter(1, indices, torch.ones_like(indices, dtype=torch.bool))
        if valid is not None:
            seen = seen & valid
        steps = (x * seen.repeat_interleave(self.patch_size, 1).unsqueeze(-1)).mT
        found = torch.cat([convolution(steps) for convolution in self.convolutions], 1)
        shares = F.avg_pool1d(torch.sigmoid(SHARPNESS * found), self.patch_size).mT
        return shares if indices is None else gather_tokens(shares, indices)

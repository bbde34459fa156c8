"""The encoder of V-JEPA and V-JEPA 2: a vision transformer on tubelets that embeds a subset of a clip's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from jepa_lightning.networks.rotary import RotaryBlock, rotation
from jepa_lightning.networks.tokens import (
    check_sizes,
    gather_tokens,
    init_transformer,
    rescale_residuals,
    sincos_positions,
)

Positions = Literal["sincos", "rope", "tiled_rope"]


class TubeletEmbed(nn.Module):
    """The tokens `[B, N, D]` of clips `[B, C, T, H, W]`: a linear map of each tubelet `(frames, rows, columns)`."""

    def __init__(self, tubelet: tuple[int, int, int], in_channels: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_channels, embed_dim, tubelet, stride=tubelet)

    def forward(self, x: Tensor) -> Tensor:
        """In raster order: frames, then rows, then columns."""
        return self.proj(x).flatten(2).mT


class VideoTransformer(nn.Module):
    """A ViT on tubelets (patches that span a few frames), whose hidden tokens are dropped before the first block.

    Parameter names are the official ones. An image is a clip that stands still: it is taken as the frames of one
    tubelet.

    Args:
        image_size: `(rows, columns)` in pixels, multiples of the patch size.
        num_frames: frames of a clip, a multiple of the tubelet size.
        patch_size: `(rows, columns)` of a patch in pixels.
        tubelet_size: frames that a token spans.
        in_channels: number of channels.
        embed_dim: width D of the tokens, a multiple of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads a block.
        mlp_ratio: width of the MLPs over `embed_dim`.
        positions: how a token knows its place: `sincos`, fixed and added (V-JEPA); `rope`, rotary in every block
            (V-JEPA 2); or `tiled_rope`, the same with the frequencies in the order that V-JEPA 2's code has them in and
            its published weights need (see `rotation`).

    Source: V-JEPA (arXiv 2404.08471), section 3.2; V-JEPA 2 (arXiv 2506.09985), section 2.1.

    >>> encoder = VideoTransformer((32, 48), 4, (16, 16), 2, embed_dim=12, depth=1, num_heads=2, positions="rope")
    >>> encoder.grid, encoder(torch.zeros(5, 3, 4, 32, 48)).shape
    ((2, 2, 3), torch.Size([5, 12, 12]))
    >>> encoder(torch.zeros(5, 3, 32, 48), torch.tensor([[0, 4]]).expand(5, -1)).shape
    torch.Size([5, 2, 12])
    """

    def __init__(
        self,
        image_size: Sequence[int] = (224, 224),
        num_frames: int = 16,
        patch_size: Sequence[int] = (16, 16),
        tubelet_size: int = 2,
        in_channels: int = 3,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        positions: Positions = "sincos",
    ) -> None:
        super().__init__()
        check_sizes(in_channels=in_channels, embed_dim=embed_dim, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio)
        check_sizes(patch_rows=patch_size[0], patch_columns=patch_size[1], tubelet_size=tubelet_size)
        check_sizes(rows=image_size[0], columns=image_size[1], num_frames=num_frames)
        size, cell = (num_frames, *image_size), (tubelet_size, *patch_size)
        if any(length % part for length, part in zip(size, cell, strict=True)):
            raise ValueError(f"a clip of {size} (frames, rows, columns) cannot be cut into tubelets of {cell}")
        if embed_dim % num_heads:
            raise ValueError(f"a width of {embed_dim} cannot be split among {num_heads} heads")
        self.tubelet: tuple[int, int, int] = (tubelet_size, patch_size[0], patch_size[1])
        self.grid = (num_frames // tubelet_size, image_size[0] // patch_size[0], image_size[1] // patch_size[1])
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.positions = positions
        self.patch_embed = TubeletEmbed(self.tubelet, in_channels, embed_dim)
        if positions == "sincos":  # a parameter, since it stands in the official checkpoints and parameter counts
            self.pos_embed = nn.Parameter(sincos_positions(self.grid, embed_dim), requires_grad=False)
        self.blocks = nn.ModuleList(RotaryBlock(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the weights anew."""
        self.apply(init_transformer)
        if self.positions != "sincos":
            rescale_residuals(self.blocks)
        # So that what a token shows starts level with where it is, whatever the size of the tubelets.
        nn.init.trunc_normal_(self.patch_embed.proj.weight, std=self.patch_embed.proj.weight[0].numel() ** -0.5)

    def grid_of(self, x: Tensor) -> tuple[int, int, int]:
        """The token grid of clips `[B, C, T, H, W]` or images `[B, C, H, W]`.

        Raises:
            ValueError: a size that the tubelets do not divide, or another number of channels.
        """
        channels = self.patch_embed.proj.in_channels
        size = (self.tubelet[0], *x.shape[2:]) if x.ndim == 4 else tuple(x.shape[2:])
        if len(size) != 3 or x.shape[1] != channels or any(s % p for s, p in zip(size, self.tubelet, strict=True)):
            frames, rows, columns = self.tubelet
            raise ValueError(
                f"expected clips [B, {channels}, T, H, W] or images [B, {channels}, H, W] with T a multiple of "
                f"{frames}, H of {rows} and W of {columns}, got {list(x.shape)}"
            )
        return size[0] // self.tubelet[0], size[1] // self.tubelet[1], size[2] // self.tubelet[2]

    def forward(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        """Encode the tokens at `indices`, which see one another and nothing else.

        Args:
            x: clips `[B, C, T, H, W]`, or images `[B, C, H, W]`. Lengths and sizes other than those of the
                constructor are fine as long as tubelets fit.
            indices: LongTensor `[B, K]` into the clip's grid in raster order; all tokens without.

        Returns:
            Tokens `[B, K, D]`, layer-normed.

        Raises:
            ValueError: a size that the tubelets do not divide, or another number of channels.
        """
        grid = self.grid_of(x)
        if x.ndim == 4:
            x = x.unsqueeze(2).expand(-1, -1, self.tubelet[0], -1, -1)
        tokens = self.patch_embed(x)
        if self.positions == "sincos":
            stored = grid == self.grid
            tokens = tokens + (self.pos_embed if stored else sincos_positions(grid, self.embed_dim).to(x.device))
        places = torch.arange(tokens.shape[1], device=x.device).unsqueeze(0)
        if indices is not None:
            tokens, places = gather_tokens(tokens, indices), indices
        by = None
        if self.positions != "sincos":
            by = rotation(places, grid, self.embed_dim // self.num_heads, tiled=self.positions == "tiled_rope")
        for block in self.blocks:
            tokens = block(tokens, by)
        return self.norm(tokens)

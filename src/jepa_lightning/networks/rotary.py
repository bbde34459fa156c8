"""Attention that knows where its tokens are: rotary positions on a grid of frames, rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lightning.networks.linear import Linear, Mlp


class Rotation(NamedTuple):
    """By what the features of queries and keys are rotated.

    Attributes:
        cos: `[B, 1, K, d]`, or `[1, 1, K, d]` for places that are the same in every sample; d is the width of a head.
        sin: the same; negative for the first feature of each pair.
    """

    cos: Tensor
    sin: Tensor


def rotation(places: Tensor, grid: Sequence[int], head_dim: int, tiled: bool = False) -> Rotation:
    """The rotation of tokens at some places of a grid.

    A head's features are shared out evenly among the axes (frame, row, column) and rotated in pairs of neighbours by
    place times frequency, `10000^(-2 i / share)` for the pair i of an axis; features left over stay as they are.

    Args:
        places: LongTensor `[B, K]` into the grid in raster order.
        grid: `(frames, rows, columns)`.
        head_dim: width d of a head, even and at least six.
        tiled: as in V-JEPA 2's code, whose two features of a pair turn at different frequencies: those of feature j are
            `10000^(-2 (j mod share/2) / share)`. Weights trained that way need it.

    Raises:
        ValueError: a head whose features cannot be shared out.

    Source: V-JEPA 2 (arXiv 2506.09985), section 2.1; RoFormer (arXiv 2104.09864), equation 34.
    """
    pairs = head_dim // 3 // 2
    if pairs == 0 or head_dim % 2:
        raise ValueError(f"rotary positions on three axes need heads of an even width of at least 6, got {head_dim}")
    _, rows, columns = grid
    axes = (places // (rows * columns), places // columns % rows, places % columns)
    frequencies = 10000.0 ** (-torch.arange(pairs, device=places.device, dtype=torch.float32) / pairs)
    frequencies = frequencies.repeat(2) if tiled else frequencies.repeat_interleave(2)
    angles = torch.cat([axis.unsqueeze(-1) * frequencies for axis in axes], dim=-1)
    angles = F.pad(angles, (0, head_dim - angles.shape[-1])).unsqueeze(1)
    sign = torch.arange(head_dim, device=places.device) % 2 * 2.0 - 1.0  # -1, 1, -1, 1, ...
    return Rotation(angles.cos(), angles.sin() * sign)


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Rotate queries or keys `[B, heads, K, d]`, in float32 whatever their type."""
    swapped = x.unflatten(-1, (-1, 2)).roll(1, -1).flatten(-2)  # as flip, which takes twice as long
    return (x * by.cos + swapped * by.sin).to(x.dtype)


class RotaryAttention(nn.Module):
    """Multi-head self-attention, with rotated queries and keys. Parameter names are the official (and timm's) ones."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor, by: Rotation | None = None, last: int = 0) -> Tensor:
        """Attend, see `RotaryBlock`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if by is not None:
            q, k = rotate(q, by), rotate(k, by)
        attended = F.scaled_dot_product_attention(q[:, :, -last:], k, v)
        return self.proj(attended.transpose(1, 2).flatten(2))


class RotaryBlock(nn.Module):
    """A pre-norm transformer block, with rotary positions or, without a rotation, none of its own.

    The rotation is the caller's: it depends on the places only, so one serves all blocks of a forward pass.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = RotaryAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, round(dim * mlp_ratio))

    def forward(self, x: Tensor, by: Rotation | None = None, last: int = 0) -> Tensor:
        """Let all tokens attend to all.

        Args:
            x: tokens `[B, K, dim]`.
            by: how queries and keys are rotated; not at all where the tokens hold their positions themselves.
            last: how many of the last tokens are wanted, where nobody reads the others: these save their MLP. All with
                zero.

        Returns:
            `[B, K, dim]`, or `[B, last, dim]`.
        """
        x = x[:, -last:] + self.attn(self.norm1(x), by, last)
        return x + self.mlp(self.norm2(x))

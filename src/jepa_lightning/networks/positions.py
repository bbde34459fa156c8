"""How tokens know where they are, on grids of one to three axes: positions that are added, and rotations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# `sincos`: fixed and added (I-JEPA, V-JEPA). `learned`: added, and trained. `rope`: rotary in every block (V-JEPA 2).
# `tiled_rope`: the same with frequencies in the order that V-JEPA 2's code has them in (see `rotation`). `none`: tokens
# know by themselves, or by a bias of attention.
Positions = Literal["sincos", "learned", "rope", "tiled_rope", "none"]
ADDED = ("sincos", "learned")
ROTARY = ("rope", "tiled_rope")


def sincos_positions(grid: Sequence[int], dim: int) -> Tensor:
    """Fixed sine-cosine position embeddings in the layouts of the official code.

    Every axis has its own share of the features, `[sin | cos]` at frequencies `10000^(-2 i / share)`. On two axes (as
    in I-JEPA and MAE) the first half encodes the column and the second the row. On three (V-JEPA's `uniform_power`)
    frame, row and column have equal shares in this order, rounded up to even, and what goes beyond `dim` is cut off.

    Args:
        grid: `(length,)`, `(rows, columns)` or `(frames, rows, columns)` of the token grid.
        dim: width of the embedding; a multiple of four on two axes, even on one and three.

    Returns:
        `[1, N, dim]`, float32.

    Raises:
        ValueError: a `dim` that cannot be shared out.
    """
    multiple = {1: 2, 2: 4, 3: 2}[len(grid)]
    if dim % multiple:
        raise ValueError(
            f"{len(grid)}-D sine-cosine positions need a width that is a multiple of {multiple}, not {dim}"
        )
    share = 2 * math.ceil(dim / (2 * len(grid)))
    # In float64 until the end, as the official code: at 32 rows float32 angles already differ in the last digits.
    frequencies = 10000.0 ** (-torch.arange(share // 2, dtype=torch.float64) / (share / 2))
    axes = torch.meshgrid(*(torch.arange(length) for length in grid), indexing="ij")
    parts = []
    for place in reversed(axes) if len(grid) == 2 else axes:
        angles = place.reshape(-1, 1) * frequencies
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=1)[:, :dim].float().unsqueeze(0)


class Rotation(NamedTuple):
    """By what the features of queries and keys are rotated.

    Attributes:
        cos: `[B, 1, K, d]`, or `[1, 1, K, d]` for places that are the same in every sample; d is the width of a head.
        sin: the same; negative for the first feature of each pair.
    """

    cos: Tensor
    sin: Tensor

    def after(self, count: int) -> Rotation:
        """The same behind so many tokens that are not rotated."""
        return Rotation(F.pad(self.cos, (0, 0, count, 0), value=1.0), F.pad(self.sin, (0, 0, count, 0)))


def rotation(places: Tensor, grid: Sequence[int], head_dim: int, tiled: bool = False) -> Rotation:
    """The rotation of tokens at some places of a grid.

    A head's features are shared out evenly among the axes and rotated in pairs of neighbours by place times frequency,
    `10000^(-2 i / share)` for the pair i of an axis; features left over stay as they are.

    Args:
        places: LongTensor `[B, K]` into the grid in raster order.
        grid: of one to three axes, such as `(frames, rows, columns)`.
        head_dim: width d of a head, even and at least twice the number of axes.
        tiled: as in V-JEPA 2's code, whose two features of a pair turn at different frequencies: those of feature j are
            `10000^(-2 (j mod share/2) / share)`. Weights trained that way need it.

    Raises:
        ValueError: a head whose features cannot be shared out.

    Source: V-JEPA 2 (arXiv 2506.09985), section 2.1; RoFormer (arXiv 2104.09864), equation 34.
    """
    pairs = head_dim // len(grid) // 2
    if pairs == 0 or head_dim % 2:
        raise ValueError(
            f"rotary positions on {len(grid)} axes need heads of an even width of at least {2 * len(grid)}, "
            f"got {head_dim}"
        )
    axes: list[Tensor] = []
    for length in reversed(grid):
        axes.insert(0, places % length)
        places = places // length
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

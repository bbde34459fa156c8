"""Rectangles of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Blocks(NamedTuple):
    """Rectangles of tokens: whole numbers, in floating point, in tensors of one shape."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor

    def sides(self, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The rows `[..., rows]` and the columns `[..., columns]` that each block takes, as BoolTensors."""
        row = torch.arange(grid[0], device=self.top.device)
        column = torch.arange(grid[1], device=self.left.device)
        # One comparison instead of two: how far a row is from the block's middle against half its height.
        middle, centre = self.top + (self.height - 1) / 2, self.left + (self.width - 1) / 2
        rows = (row - middle[..., None]).abs() < self.height[..., None] / 2
        columns = (column - centre[..., None]).abs() < self.width[..., None] / 2
        return rows, columns

    def cover(self, grid: Sequence[int]) -> Tensor:
        """BoolTensor `[..., rows * columns]`: the tokens that lie in each block."""
        rows, columns = self.sides(grid)
        return (rows[..., :, None] & columns[..., None, :]).flatten(-2)


def block_sides(area: Tensor, aspect: Tensor, grid: Sequence[int], min_tokens: int) -> tuple[Tensor, Tensor]:
    """Height and width of blocks of an area and aspect ratio that fit the grid and hold `min_tokens` or more."""
    height = (area * aspect).sqrt().round().clamp(1, grid[0])
    width = (area / aspect).sqrt().round().clamp(1, grid[1])
    # Rounding down both sides may leave too few tokens: then the width grows, and where the grid ends, the height.
    width = torch.maximum(width, (min_tokens / height).ceil()).clamp(max=grid[1])
    height = torch.maximum(height, (min_tokens / width).ceil())
    return height, width


def frame_sides(scale: Tensor, aspect: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Height and width of blocks, at least one token and at most the frame."""
    area = (scale * (grid[1] * grid[2])).floor()
    height = (area * aspect).sqrt().round().clamp(1, grid[1])
    return height, (area / aspect).sqrt().round().clamp(1, grid[2])


def union_of_blocks(sides: Sequence[Tensor], of_start: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
    """Which tokens lie in any of some blocks of given sides and numbers for their starts: BoolTensor `[..., N]`."""
    axes = []
    for side, number, cells in zip(sides, of_start, grid, strict=True):
        start = (number * (cells - side + 1)).floor().unsqueeze(-1)
        cell = torch.arange(cells, device=side.device)
        axes.append(((cell >= start) & (cell < start + side.unsqueeze(-1))).float())
    frames, rows, columns = axes
    places = (rows.unsqueeze(-1) * columns.unsqueeze(-2)).flatten(-2)
    return (frames.mT @ places > 0).flatten(-2)  # a product of matrices counts the blocks that a token lies in

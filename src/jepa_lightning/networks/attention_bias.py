"""How tokens know where others are by what is added to the logits of attention: a table of offsets, and slopes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lightning.networks.tokens import check_sizes


class RelativePositionBias(nn.Module):
    """A trained number for each head and offset of two places of an image, and three for those with the class token.

    All blocks of an encoder share them. They start at zero.

    Args:
        grid: `(rows, columns)` of the token grid.
        num_heads: attention heads.

    Source: BEiT (arXiv 2106.08254), appendix; the offsets of Swin Transformer (arXiv 2103.14030), section 3.2.

    >>> RelativePositionBias((2, 3), num_heads=4)(torch.arange(6).unsqueeze(0), (2, 3)).shape
    torch.Size([1, 4, 7, 7])
    """

    def __init__(self, grid: Sequence[int], num_heads: int) -> None:
        super().__init__()
        self.grid = rows, columns = grid[0], grid[1]
        self.offsets = (2 * rows - 1) * (2 * columns - 1)
        # After the offsets: of the class token as query, as key, and as both.
        self.table = nn.Parameter(torch.zeros(self.offsets + 3, num_heads))

    def forward(self, places: Tensor, grid: Sequence[int]) -> Tensor:
        """What is added to the logits.

        Args:
            places: LongTensor `[B, K]` into the grid in raster order.
            grid: `(rows, columns)`, at most those of the constructor.

        Returns:
            `[B, heads, 1 + K, 1 + K]`, the class token first.

        Raises:
            ValueError: a larger grid.
        """
        if grid[0] > self.grid[0] or grid[1] > self.grid[1]:
            raise ValueError(f"there are offsets within a grid of {self.grid} tokens, and not within one of {grid}")
        row, column = places.div(grid[1], rounding_mode="floor"), places % grid[1]
        down = row.unsqueeze(-1) - row.unsqueeze(-2) + self.grid[0] - 1
        right = column.unsqueeze(-1) - column.unsqueeze(-2) + self.grid[1] - 1
        offset = F.pad(down * (2 * self.grid[1] - 1) + right, (1, 0, 1, 0), value=self.offsets)
        query = torch.arange(offset.shape[-1], device=places.device) > 0
        offset = torch.where(query.unsqueeze(-1) & ~query, self.offsets + 1, offset)
        offset = torch.where(~query.unsqueeze(-1) & ~query, self.offsets + 2, offset)
        return F.embedding(offset, self.table).movedim(-1, 1)


class Alibi(nn.Module):
    """Minus the distance of two places of a sequence, times a slope for each head, times a trained scale.

    The scales start at one and count as zero below zero.

    Args:
        num_heads: attention heads.

    Source: ALiBi (arXiv 2108.12409), section 3, in both directions; the scales are those of data2vec 2.0 (arXiv
    2212.07525), section 4.2.

    >>> Alibi(2)(torch.tensor([[0, 1, 3]]), (4,))[0, 0]
    tensor([[ 0.0000, -0.0625, -0.1875],
            [-0.0625,  0.0000, -0.1250],
            [-0.1875, -0.1250,  0.0000]], grad_fn=<SelectBackward0>)
    """

    slopes: Tensor

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        check_sizes(num_heads=num_heads)
        self.scale = nn.Parameter(torch.ones(num_heads))
        self.register_buffer("slopes", torch.tensor(alibi_slopes(num_heads)), persistent=False)

    def forward(self, places: Tensor, grid: Sequence[int]) -> Tensor:
        """What is added to the logits, `[B, heads, K, K]`, of places `[B, K]`."""
        distance = (places.unsqueeze(-1) - places.unsqueeze(-2)).abs().unsqueeze(1)
        return -distance * (self.slopes * self.scale.clamp(min=0)).view(-1, 1, 1)


def alibi_slopes(num_heads: int) -> list[float]:
    """Those of the paper: of n heads, a power of two, the powers of `2^(-8 / n)`; of others, further ones in between.

    >>> alibi_slopes(4), alibi_slopes(3)
    ([0.25, 0.0625, 0.015625, 0.00390625], [0.0625, 0.00390625, 0.25])
    """
    power = 2 ** int(math.log2(num_heads))
    slopes = [2.0 ** (-8 * number / power) for number in range(1, power + 1)]
    between = [2.0 ** (-4 * number / power) for number in range(1, 2 * power + 1, 2)]
    return slopes + between[: num_heads - power]

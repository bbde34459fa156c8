"""Masks of images by blocks: those of BEiT, which hide blocks, and inverse ones, which keep them (data2vec)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_lightning.draws import Rng
from jepa_lightning.masking.blocks import Blocks, block_sides
from jepa_lightning.masking.masks import Masks, between, checked


class BlockwiseMasking:
    """Hide a share of an image's tokens in blocks; one set of targets (M = 1).

    Blocks are drawn one after another until the share is hidden: each of an area from `min_tokens` to all that is to be
    hidden, of an aspect ratio, and at a place of its own. They may overlap, and the last one loses rows. All images
    hide as many tokens; the official code hides a few less than asked for, 70 to 75 of 75.

    Args:
        ratio: share of the tokens that is hidden, and predicted; at least one of each kind.
        min_tokens: tokens of a block at least; of grids that have less to hide, all that is to be hidden.
        aspect: range of a block's height over its width, uniform in its logarithm.

    Raises:
        ValueError: a ratio outside (0, 1), an empty block, or a range that is none.

    Source: BEiT (arXiv 2106.08254), algorithm 1.

    >>> masks = BlockwiseMasking()(2, (14, 14), rng=Rng(0, batch_size=2))
    >>> masks.context.shape, masks.targets.shape
    (torch.Size([2, 78]), torch.Size([2, 1, 118]))
    """

    def __init__(self, ratio: float = 0.6, min_tokens: int = 16, aspect: tuple[float, float] = (0.3, 1 / 0.3)) -> None:
        _check(ratio, min_tokens)
        if not 0 < aspect[0] <= aspect[1]:
            raise ValueError(f"aspect must be a range of positive numbers, got {tuple(aspect)}")
        self.ratio, self.min_tokens, self.aspect = ratio, min_tokens, aspect

    def __call__(
        self, batch_size: int, grid: Sequence[int], lengths: Tensor | None = None, rng: Rng | None = None
    ) -> Masks:
        """Draw the masks of a batch, on the device of `rng`.

        Args:
            batch_size: number of images B.
            grid: `(rows, columns)` of the token grid.
            lengths: not of images, which all have the whole grid.
            rng: source of all randomness; without it, one seeded by torch's default generator.

        Raises:
            ValueError: a grid of another number of axes, or of a single token.
        """
        rng, tokens = checked(rng, batch_size, lengths), _tokens(grid)
        hidden = _hidden(self.ratio, tokens)
        smallest = min(self.min_tokens, hidden)
        several = 4 * math.ceil(hidden / smallest)  # blocks, more than it takes: what they leave is hidden at random
        of_area, of_aspect, of_top, of_left = rng.sample(4, several).unbind(1)
        aspect = between(of_aspect, math.log(self.aspect[0]), math.log(self.aspect[1])).exp()
        height, width = block_sides(between(of_area, smallest, hidden), aspect, grid, 1)
        top, left = (
            (u * (side - s + 1)).floor() for u, side, s in ((of_top, grid[0], height), (of_left, grid[1], width))
        )
        covered = Blocks(top, left, height, width).cover(grid)
        # A token goes with the first block that it lies in; of the last, rows are lost from the top or the bottom.
        first = torch.where(covered.any(1), covered.int().argmax(1), several).double()
        place = torch.arange(tokens, device=rng.device) / tokens
        within = torch.where(rng.sample(1) < 0.5, place, 1 - place)
        turn = first + 0.5 * torch.where(first < several, within, rng.sample(tokens))
        order = turn.argsort(1)
        return Masks(order[:, hidden:], order[:, None, :hidden])


class InverseBlockMasking:
    """Keep square blocks of an image's tokens, and hide the rest; one set of targets (M = 1).

    Middles of blocks are drawn, each anywhere, in such a number that together the blocks, if none overlapped, would
    keep the share `1 - ratio + adjust`. Tokens that are kept too many are then hidden at random, and of too few others
    kept, so that all images keep as many.

    Args:
        ratio: share of the tokens that is hidden, and predicted; at least one of each kind.
        block_size: tokens of a block's side.
        adjust: share that blocks may keep beyond, since some overlap.

    Raises:
        ValueError: a ratio outside (0, 1), an empty block, or a share that is negative.

    Source: data2vec 2.0 (arXiv 2212.07525), section 3.4.

    >>> masks = InverseBlockMasking()(2, (14, 14), rng=Rng(0, batch_size=2))
    >>> masks.context.shape, masks.targets.shape
    (torch.Size([2, 39]), torch.Size([2, 1, 157]))
    """

    def __init__(self, ratio: float = 0.8, block_size: int = 3, adjust: float = 0.07) -> None:
        _check(ratio, block_size)
        if adjust < 0:
            raise ValueError(f"adjust must not be negative, got {adjust}")
        self.ratio, self.block_size, self.adjust = ratio, block_size, adjust

    def __call__(
        self, batch_size: int, grid: Sequence[int], lengths: Tensor | None = None, rng: Rng | None = None
    ) -> Masks:
        """Draw the masks of a batch, on the device of `rng`.

        Args:
            batch_size: number of images B.
            grid: `(rows, columns)` of the token grid.
            lengths: not of images, which all have the whole grid.
            rng: source of all randomness; without it, one seeded by torch's default generator.

        Raises:
            ValueError: a grid of another number of axes, or of a single token.
        """
        rng, tokens, size = checked(rng, batch_size, lengths), _tokens(grid), self.block_size
        kept = tokens - _hidden(self.ratio, tokens)
        several = max(1, int(tokens * (1 - self.ratio + self.adjust) / size**2))
        middles = torch.zeros(batch_size, tokens, device=rng.device)
        middles.scatter_(1, (rng.sample(several) * tokens).long(), 1.0)
        # A block reaches further down and right if its side is even; what is beyond the border is lost.
        before, after = size - 1 - size // 2, size // 2
        reach = F.pad(middles.view(batch_size, 1, *grid), (after, before, after, before))
        blocks = F.max_pool2d(reach, size, stride=1).flatten(1)
        order = (blocks + 0.5 * rng.sample(tokens)).argsort(1, descending=True)
        return Masks(order[:, :kept], order[:, None, kept:])


def _check(ratio: float, tokens: int) -> None:
    if not 0 < ratio < 1:
        raise ValueError(f"ratio must lie in (0, 1), got {ratio}")
    if tokens < 1:
        raise ValueError(f"a block has at least one token, got {tokens}")


def _tokens(grid: Sequence[int]) -> int:
    if len(grid) != 2 or math.prod(grid) < 2:
        raise ValueError(f"blocks are of images of two tokens or more, got a grid of {tuple(grid)}")
    return math.prod(grid)


def _hidden(ratio: float, tokens: int) -> int:
    return min(max(1, round(ratio * tokens)), tokens - 1)

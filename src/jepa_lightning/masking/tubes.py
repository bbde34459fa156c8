"""Masks of clips: blocks that run through all frames (V-JEPA, section 3.1), and random tubes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jepa_lightning.draws import Rng
from jepa_lightning.masking import official
from jepa_lightning.masking.blocks import frame_sides, union_of_blocks
from jepa_lightning.masking.masks import Masks, between, checked, on_device

ATTEMPTS = 4  # sets of blocks drawn for a clip that is to have room for its context and enough to predict


class TubeMasking:
    """Draw `num_blocks` blocks a clip whose union is to be predicted from what they leave.

    Every block draws its own scale, aspect ratio and place, and runs through all frames unless `temporal_scale` says
    otherwise. The numbers of context and target tokens are fixed shares of the grid, and so do not depend on the batch:
    the context is a random choice among the tokens outside the blocks, the target (one set, M = 1) among those inside,
    no frame more often than another where blocks run through all. Of `ATTEMPTS` sets of blocks a clip takes the first
    that has enough of both; should none have, tokens of the other kind fill up. No token is ever both context and
    target.

    With `official=True` the masks are those of the official code, faults included: one block size a batch, and the
    tokens of all clips cut to the fewest in the batch by dropping the last frames, so that the task changes with the
    batch size and the end of a clip is hardly ever seen or predicted.

    Args:
        num_blocks: blocks a clip.
        spatial_scale: range of a block's share of a frame.
        temporal_scale: range of a block's share of the clip's length.
        aspect: range of a block's height over its width.
        context_ratio: share of the grid that is context (not used by `official`).
        target_ratio: share of the grid that is predicted (not used by `official`).
        official: reproduce the official sampler.

    The defaults are V-JEPA's short-range masks; its long-range ones are two blocks of scale 0.7, with shares of 0.07
    and 0.7. The shares are close to those of the official sampler at the published 24 clips a GPU.

    Raises:
        ValueError: a range that is empty or leaves (0, 1], shares that do not fit into one grid, or no block.

    Source: V-JEPA (arXiv 2404.08471), section 3.1 and appendix B.

    >>> masks = TubeMasking()(4, (8, 14, 14), rng=Rng(0, batch_size=4))
    >>> masks.context.shape, masks.targets.shape
    (torch.Size([4, 376]), torch.Size([4, 1, 745]))
    """

    def __init__(
        self,
        num_blocks: int = 8,
        spatial_scale: tuple[float, float] = (0.15, 0.15),
        temporal_scale: tuple[float, float] = (1.0, 1.0),
        aspect: tuple[float, float] = (0.75, 1.5),
        context_ratio: float = 0.24,
        target_ratio: float = 0.475,
        official: bool = False,
    ) -> None:
        for name, (low, high) in {"spatial_scale": spatial_scale, "temporal_scale": temporal_scale}.items():
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} must be a range within (0, 1], got {(low, high)}")
        if not 0 < aspect[0] <= aspect[1]:
            raise ValueError(f"aspect must be a range of positive numbers, got {tuple(aspect)}")
        if not (context_ratio > 0 and target_ratio > 0 and context_ratio + target_ratio <= 1):
            raise ValueError(
                "context_ratio and target_ratio must be positive shares of one grid, "
                f"got {context_ratio} and {target_ratio}"
            )
        if num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, got {num_blocks}")
        self.num_blocks = num_blocks
        self.spatial_scale = spatial_scale
        self.temporal_scale = temporal_scale
        self.aspect = aspect
        self.context_ratio = context_ratio
        self.target_ratio = target_ratio
        self.official = official

    def __call__(
        self, batch_size: int, grid: Sequence[int], lengths: Tensor | None = None, rng: Rng | None = None
    ) -> Masks:
        """Draw the masks of a batch, on the device of `rng`.

        Args:
            batch_size: number of clips B.
            grid: `(frames, rows, columns)` of the token grid.
            lengths: not of clips, which all have the whole grid.
            rng: source of all randomness; without it, one seeded by torch's default generator.

        Raises:
            ValueError: a grid too small for a token of each kind.
        """
        rng = checked(rng, batch_size, lengths)
        if self.official:
            scales = self.spatial_scale, self.temporal_scale, self.aspect
            return on_device(official.tubes(batch_size, grid, rng.generator(), self.num_blocks, *scales), rng)
        context_tokens, target_tokens = self.token_counts(grid)
        per_block = 6  # numbers: length, scale, aspect, and where it starts on each axis
        counts = (ATTEMPTS * self.num_blocks * per_block, math.prod(grid))
        of_blocks, of_order = rng.sample(sum(counts)).split(counts, dim=1)
        covered = self._cover(of_blocks.unflatten(1, (ATTEMPTS, self.num_blocks, per_block)), grid)
        inside = covered.sum(2)
        enough = (inside >= target_tokens) & (math.prod(grid) - inside >= context_tokens)
        first = enough.int().argmax(1)  # the first set where none will do
        covered = covered[torch.arange(batch_size, device=first.device), first]
        # Outside first, inside last, at random among the same: the context comes from one end, the target from the
        # other.
        order = (covered + of_order).argsort(1)
        return Masks(order[:, :context_tokens], order[:, None, -target_tokens:])

    def token_counts(self, grid: Sequence[int]) -> tuple[int, int]:
        """`(context_tokens, target_tokens)` on a grid.

        Raises:
            ValueError: a grid too small for a token of each kind.
        """
        tokens = math.prod(grid)
        context, target = (max(1, round(ratio * tokens)) for ratio in (self.context_ratio, self.target_ratio))
        if context + target > tokens:
            raise ValueError(f"a {tuple(grid)} grid is too small for {context} context and {target} target tokens")
        return context, target

    def _cover(self, numbers: Tensor, grid: Sequence[int]) -> Tensor:
        """Which tokens lie in any of some blocks of six numbers each, `[..., blocks, 6]`: BoolTensor `[..., N]`."""
        of_length, of_scale, of_aspect, *of_start = numbers.unbind(-1)
        length = (between(of_length, *self.temporal_scale) * grid[0]).floor().clamp(min=1)
        height, width = frame_sides(between(of_scale, *self.spatial_scale), between(of_aspect, *self.aspect), grid)
        return union_of_blocks((length, height, width), of_start, grid)


class RandomTubeMasking:
    """Hide a random choice of places through all frames: the baseline that V-JEPA's blocks are measured against.

    Args:
        ratio: share of the places that is hidden, and predicted.

    Raises:
        ValueError: a ratio outside (0, 1).

    Source: V-JEPA (arXiv 2404.08471), table 4, after VideoMAE (arXiv 2203.12602).

    >>> RandomTubeMasking()(2, (4, 6, 6), rng=Rng(0, batch_size=2)).context.shape
    torch.Size([2, 16])
    """

    def __init__(self, ratio: float = 0.9) -> None:
        if not 0 < ratio < 1:
            raise ValueError(f"ratio must lie in (0, 1), got {ratio}")
        self.ratio = ratio

    def __call__(
        self, batch_size: int, grid: Sequence[int], lengths: Tensor | None = None, rng: Rng | None = None
    ) -> Masks:
        """Draw the masks of a batch, on the device of `rng`; the arguments are those of `TubeMasking`."""
        rng = checked(rng, batch_size, lengths)
        places = grid[1] * grid[2]
        visible = min(max(1, round((1 - self.ratio) * places)), places - 1)
        if visible < 1:
            raise ValueError(f"a {tuple(grid)} grid has no two places, one to see and one to hide")
        order = rng.sample(places).argsort(1).unsqueeze(1)
        frames = torch.arange(grid[0], device=order.device).view(-1, 1) * places
        return Masks(
            (frames + order[..., :visible]).flatten(1), (frames + order[..., visible:]).flatten(1).unsqueeze(1)
        )


class MaskingList(list[Any]):
    """Several maskings, of which each makes a prediction: V-JEPA's short-range and long-range masks."""

    def __call__(
        self, batch_size: int, grid: Sequence[int], lengths: Tensor | None = None, rng: Rng | None = None
    ) -> list[Masks]:
        """The masks of each."""
        rng = rng or Rng.fresh(batch_size)
        return [masking(batch_size, grid, lengths, rng) for masking in self]

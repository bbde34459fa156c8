"""Masks of tracks: for each of several targets random points or a stretch, and the context without them (T-JEPA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jepa_lightning.draws import Rng
from jepa_lightning.masking.masks import between, checked


class PointMasks(NamedTuple):
    """Which points are seen and which are sought, of M targets a track, each with a context of its own.

    Attributes:
        context: BoolTensor `[B, M, L]`.
        targets: BoolTensor `[B, M, L]`.
    """

    context: Tensor
    targets: Tensor


class PointMasking:
    """Of each track some targets: with probability `span_share` a stretch of points in a row, else points at random.

    How many points a target has is a share of the track's, the same for all in a step, drawn from `ratios`; at least
    one, and never all. A context is a share of the points, drawn from `context_scale` for each track and the same
    points for all of its targets, without those of the target.

    Args:
        num_targets: targets a track, M.
        ratios: shares of a track's points that a target may have.
        span_share: how often a target is a stretch, in [0, 1].
        context_scale: range of the share of points that a context keeps.

    Raises:
        ValueError: a value out of its range.

    Source: T-JEPA (arXiv 2406.12913), section 4.3. The official code draws the context's share from a number in [0, 1)
    that it clamps to the range, so that most are the lower end; here they are uniform.

    >>> masks = PointMasking()(2, (20,), rng=Rng(0, batch_size=2))
    >>> masks.targets.shape, bool((masks.context & masks.targets).any())
    (torch.Size([2, 4, 20]), False)
    """

    def __init__(
        self,
        num_targets: int = 4,
        ratios: Sequence[float] = (0.1, 0.2, 0.3),
        span_share: float = 0.5,
        context_scale: tuple[float, float] = (0.85, 1.0),
    ) -> None:
        if num_targets < 1:
            raise ValueError(f"num_targets must be at least 1, got {num_targets}")
        if not ratios or not all(0 < ratio < 1 for ratio in ratios):
            raise ValueError(f"target_ratios must lie in (0, 1), got {tuple(ratios)}")
        if not 0 <= span_share <= 1:
            raise ValueError(f"span_share must lie in [0, 1], got {span_share}")
        low, high = context_scale
        if not max(ratios) < low <= high <= 1:
            raise ValueError(
                f"context_scale must rise within ({max(ratios)}, 1], as a target hides up to {max(ratios)} of the "
                f"points, got {tuple(context_scale)}"
            )
        self.num_targets, self.ratios, self.span_share = num_targets, ratios, span_share
        self.context_scale = low, high

    def __call__(
        self, batch_size: int, grid: Sequence[int], lengths: Tensor | None = None, rng: Rng | None = None
    ) -> PointMasks:
        """Draw the masks of a batch, on the device of `rng`.

        Args:
            batch_size: number of tracks B.
            grid: `(L,)`, the points of the longest track.
            lengths: LongTensor `[B]`, how many points each track has, its first ones; L without.
            rng: source of all randomness; without it, one seeded by torch's default generator.
        """
        rng, points, targets = checked(rng, batch_size), grid[0], self.num_targets
        place = torch.arange(points, device=rng.device)
        lengths = torch.full((batch_size,), points, device=rng.device) if lengths is None else lengths.to(rng.device)
        there = place < lengths.unsqueeze(1)
        chosen = (rng.shared(1) * len(self.ratios)).long()
        ratio = sum((chosen == number) * each for number, each in enumerate(self.ratios))
        hidden = (ratio * lengths).round().long().clamp(min=1).minimum(lengths - 1).clamp(min=0).view(-1, 1, 1)
        # Those with the smallest numbers are hidden: of a stretch, which starts anywhere, its distance from the start.
        first = (rng.sample(targets, 1) * (lengths.view(-1, 1, 1) - hidden + 1)).long()
        stretch = (place >= first) & (place < first + hidden)
        turn = rng.sample(targets, points).masked_fill(~there.unsqueeze(1), 2.0)
        random = turn.argsort(-1).argsort(-1) < hidden
        sought = torch.where(rng.sample(targets, 1) < self.span_share, stretch, random)
        kept = (between(rng.sample(1), *self.context_scale) * lengths.unsqueeze(1)).round()
        turn = rng.sample(points).masked_fill(~there, 2.0)
        seen = there & (turn.argsort(-1).argsort(-1) < kept)
        return PointMasks(seen.unsqueeze(1) & ~sought, sought)

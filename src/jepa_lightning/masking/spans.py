"""Masks of series: a random choice of stretches, one by one or in spans (TS-JEPA, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_lightning.draws import Rng
from jepa_lightning.masking.masks import Masks, checked


class SpanMasking:
    """Hide a share of the tokens of a series, in spans of `span_length` tokens; one set of targets (M = 1).

    Spans start anywhere, also before the first token, so that every token lies in as many of them; they are drawn one
    after another until the share is hidden, may overlap, and the last one is cut short at either end. With
    `span_length=1` that is a random choice of tokens, the published masking.

    Of a shorter series the same share of its own tokens is hidden; the places that are left over in `Masks` are of
    tokens that are not there.

    Args:
        ratio: share of the tokens that is hidden, and predicted; at least one of each kind.
        span_length: tokens of a span.

    Raises:
        ValueError: a ratio outside (0, 1), or an empty span.

    Source: TS-JEPA (arXiv 2509.25449), section 3; spans as in wav2vec 2.0 (arXiv 2006.11477), section 3.1.

    >>> masks = SpanMasking()(2, (10,), rng=Rng(0, batch_size=2))
    >>> masks.context.shape, masks.targets.shape
    (torch.Size([2, 3]), torch.Size([2, 1, 7]))
    """

    def __init__(self, ratio: float = 0.7, span_length: int = 1) -> None:
        if not 0 < ratio < 1:
            raise ValueError(f"ratio must lie in (0, 1), got {ratio}")
        if span_length < 1:
            raise ValueError(f"span_length must be at least 1, got {span_length}")
        self.ratio, self.span_length = ratio, span_length

    def __call__(
        self, batch_size: int, grid: Sequence[int], lengths: Tensor | None = None, rng: Rng | None = None
    ) -> Masks:
        """Draw the masks of a batch, on the device of `rng`.

        Args:
            batch_size: number of series B.
            grid: `(N,)`, the tokens of the longest series.
            lengths: LongTensor `[B]`, how many tokens each series has; N without.
            rng: source of all randomness; without it, one seeded by torch's default generator.

        Raises:
            ValueError: a grid of a single token, or of several axes.
        """
        rng = checked(rng, batch_size)
        if len(grid) != 1 or grid[0] < 2:
            raise ValueError(f"spans are of series of two tokens or more, got a grid of {tuple(grid)}")
        tokens, span = grid[0], self.span_length
        place = torch.arange(tokens, device=rng.device)
        lengths = torch.full((batch_size,), tokens, device=rng.device) if lengths is None else lengths.to(rng.device)
        # A number for each span; the spans with the largest come first, and a token goes with the first it lies in.
        turn = F.max_pool1d(rng.sample(tokens + span - 1).unsqueeze(1), span, stride=1).squeeze(1)
        # Within a span they are in order, from the one end or the other: there the last span is cut. In float64, where
        # this does not change the order of the spans.
        forward = torch.where(rng.sample(1) < 0.5, 2.0**-40, -(2.0**-40))
        turn = (turn.double() + forward * place).masked_fill(place >= lengths.unsqueeze(1), -1.0)
        rank = turn.argsort(dim=1, descending=True).argsort(1)
        hidden = rank < self._hidden(lengths).unsqueeze(1)
        # First what is seen, then what is not there, which fills up the one or the other, then what is hidden.
        kind = torch.where(hidden, 2, (place >= lengths.unsqueeze(1)).long())
        order, seen = kind.argsort(dim=1, stable=True), tokens - min(max(1, round(self.ratio * tokens)), tokens - 1)
        return Masks(order[:, :seen], order[:, None, seen:])

    def _hidden(self, lengths: Tensor) -> Tensor:
        """How many tokens are hidden of so many; in float64, which rounds as Python does."""
        return (self.ratio * lengths.double()).round().long().clamp(min=1).minimum(lengths - 1).clamp(min=0)

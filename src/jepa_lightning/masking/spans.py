"""Masks of series, sounds and texts: a random choice of tokens, one by one or in spans."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_lightning.draws import Rng
from jepa_lightning.masking.masks import Masks, checked


class SpanMasking:
    """Hide a share of the tokens of a sequence, in spans of `span_length` tokens; one set of targets (M = 1).

    Spans start anywhere, also before the first token, so that every token lies in as many of them; they are drawn one
    after another until the share is hidden, may overlap, and the last one is cut short at either end. With
    `span_length=1` that is a random choice of tokens, the published masking.

    With `start_probability` p their number is drawn first, as in wav2vec 2.0 and data2vec: p N / `span_length` spans of
    N tokens, rounded up or down at random, start at different places and lie within the sequence. They overlap, and
    hide about 1 − exp(−p) of the tokens, of one sequence more than of another. Where that is more than `ratio`, tokens
    chosen at random are seen after all; where it is less, further spans are hidden. So every batch has the same number
    of hidden tokens; the official code cuts all sequences to the fewest in their batch, which needs more time, and
    makes the task depend on the size of the batch.

    | published | `ratio` | `span_length` | `start_probability` |
    |---|---|---|---|
    | data2vec, sound | 0.41 | 10 | 0.65 |
    | data2vec 2.0, sound | 0.37 | 5 | 0.5 |
    | data2vec, text | 0.3 | 4 | 0.35 |
    | data2vec 2.0, text | 0.48 | 1 | – |

    The ratios are those that the official code leaves of the published batches.

    Of a shorter sequence the same share of its own tokens is hidden; the places that are left over in `Masks` are of
    tokens that are not there.

    Args:
        ratio: share of the tokens that is hidden, and predicted; at least one of each kind.
        span_length: tokens of a span.
        start_probability: spans that are drawn, times their length, over the number of tokens; without, as many as it
            takes.

    Raises:
        ValueError: a ratio outside (0, 1), an empty span, or a `start_probability` that is not positive.

    Source: TS-JEPA (arXiv 2509.25449), section 3; spans as in wav2vec 2.0 (arXiv 2006.11477), section 3.1, and data2vec
    (arXiv 2202.03555), section 4.

    >>> masks = SpanMasking()(2, (10,), rng=Rng(0, batch_size=2))
    >>> masks.context.shape, masks.targets.shape
    (torch.Size([2, 3]), torch.Size([2, 1, 7]))
    """

    def __init__(self, ratio: float = 0.7, span_length: int = 1, start_probability: float | None = None) -> None:
        if not 0 < ratio < 1:
            raise ValueError(f"ratio must lie in (0, 1), got {ratio}")
        if span_length < 1:
            raise ValueError(f"span_length must be at least 1, got {span_length}")
        if start_probability is not None and not 0 < start_probability < float("inf"):
            raise ValueError(f"start_probability must be positive, got {start_probability}")
        self.ratio, self.span_length, self.start_probability = ratio, span_length, start_probability

    def __call__(
        self, batch_size: int, grid: Sequence[int], lengths: Tensor | None = None, rng: Rng | None = None
    ) -> Masks:
        """Draw the masks of a batch, on the device of `rng`.

        Args:
            batch_size: number of sequences B.
            grid: `(N,)`, the tokens of the longest sequence.
            lengths: LongTensor `[B]`, how many tokens each sequence has; N without.
            rng: source of all randomness; without it, one seeded by torch's default generator.

        Raises:
            ValueError: a grid of a single token, or of several axes.
        """
        rng = checked(rng, batch_size)
        if len(grid) != 1 or grid[0] < 2:
            raise ValueError(f"spans are of sequences of two tokens or more, got a grid of {tuple(grid)}")
        tokens, span = grid[0], self.span_length
        place = torch.arange(tokens, device=rng.device)
        lengths = torch.full((batch_size,), tokens, device=rng.device) if lengths is None else lengths.to(rng.device)
        # A number for each span; the spans with the largest come first, and a token goes with the first it lies in.
        spans = rng.sample(tokens + span - 1)
        if self.start_probability is not None:
            start = torch.arange(1 - span, tokens, device=rng.device)
            spans = spans.masked_fill((start < 0) | (start > (lengths - span).clamp(min=0).unsqueeze(1)), -1.0)
        turn = _of_tokens(spans, span)
        # Within a span they are in order, from the one end or the other: there the last span is cut. In float64, where
        # this does not change the order of the spans.
        forward = torch.where(rng.sample(1) < 0.5, 2.0**-40, -(2.0**-40))
        turn = turn.double() + forward * place
        if self.start_probability is not None:
            # Before all others come the tokens of the spans drawn first, one by one at random.
            number = (self.start_probability / span * lengths + rng.sample(1).squeeze(1)).long().clamp(min=1)
            most = min(int(self.start_probability / span * tokens) + 1, tokens)
            drawn = _largest(spans, number.clamp(max=most), most) & (spans >= 0)
            own_turn = 2.0 + (rng.sample(tokens).double() + 2.0**-40 * place)  # no two the same
            turn = torch.where(_of_tokens(drawn.float(), span) > 0, own_turn, turn)
        turn = turn.masked_fill(place >= lengths.unsqueeze(1), -2.0)
        most = min(max(1, round(self.ratio * tokens)), tokens - 1)
        hidden = _largest(turn, self._hidden(lengths), most)
        # First what is seen, then what is not there, which fills up the one or the other, then what is hidden.
        before = hidden.cumsum(1)
        rank = torch.where(hidden, tokens - before[:, -1:] + before - 1, place - before)
        order = torch.empty_like(rank).scatter_(1, rank, place.expand_as(rank))
        return Masks(order[:, : tokens - most], order[:, None, tokens - most :])

    def _hidden(self, lengths: Tensor) -> Tensor:
        """How many tokens are hidden of so many; in float64, which rounds as Python does."""
        return (self.ratio * lengths.double()).round().long().clamp(min=1).minimum(lengths - 1).clamp(min=0)


def _of_tokens(spans: Tensor, length: int) -> Tensor:
    """The largest number of a span that each token lies in, `[B, N]`, of spans `[B, N + length - 1]` in their order."""
    return F.max_pool1d(spans.unsqueeze(1), length, stride=1).squeeze(1)


def _largest(numbers: Tensor, counts: Tensor, most: int) -> Tensor:
    """Which numbers `[B, N]` are among the `counts` `[B]` largest of their row, of at most so many."""
    least = numbers.topk(most, dim=1).values.gather(1, (counts - 1).clamp(min=0).unsqueeze(1))
    return (numbers >= least) & (counts > 0).unsqueeze(1)

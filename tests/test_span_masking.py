"""Masks of spans: by brute force, one sequence at a time, and the distribution that data2vec's official code draws."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from jepa_lightning.draws import Rng
from jepa_lightning.masking import SpanMasking


def hidden_of(masking: SpanMasking, count: int, tokens: int, seed: int = 0) -> Tensor:
    """Which tokens are hidden, `[count, tokens]` of zeros and ones."""
    masks = masking(count, (tokens,), None, Rng(seed, count))
    return torch.zeros(count, tokens).scatter(1, masks.targets[:, 0], 1.0)


def runs(hidden: Tensor) -> float:
    """The mean number of stretches in a row that are hidden or seen."""
    return float(1 + (hidden.diff(dim=1) != 0).sum(1).float().mean())


def spans_by_hand(numbers: list[float], tokens: int, span: int, hidden: int, forward: bool) -> set[int]:
    """Span after span, those with the largest numbers first, until so many tokens are hidden."""
    found: list[int] = []
    for start in sorted(range(len(numbers)), key=lambda each: -numbers[each]):
        for token in sorted(range(start - span + 1, start + 1), reverse=forward):
            if 0 <= token < tokens and token not in found and len(found) < hidden:
                found.append(token)
    return set(found)


@pytest.mark.parametrize(("ratio", "span"), [(0.7, 1), (0.5, 4), (0.6, 20)])
def test_masks_by_brute_force(ratio: float, span: int) -> None:
    """Of series of all lengths, without and with tokens that are not there."""
    tokens, lengths = 12, torch.arange(13).repeat(4)
    masks = SpanMasking(ratio, span)(len(lengths), (tokens,), lengths, Rng(3, len(lengths)))
    rng = Rng(3, len(lengths))
    numbers, forward = rng.sample(tokens + span - 1), rng.sample(1).view(-1) < 0.5
    for i, length in enumerate(lengths.tolist()):
        context, targets = masks.context[i].tolist(), masks.targets[i, 0].tolist()
        assert sorted(context + targets) == list(range(tokens))
        hidden = max(0, min(max(1, round(ratio * length)), length - 1))
        expected = spans_by_hand(numbers[i, : length + span - 1].tolist(), length, span, hidden, bool(forward[i]))
        assert {token for token in targets if token < length} == expected
    whole = SpanMasking(ratio, span)(4, (tokens,), None, Rng(3, 4))
    assert whole.targets.shape == (4, 1, round(ratio * tokens))


def test_every_token_is_hidden_as_often() -> None:
    hidden = hidden_of(SpanMasking(0.5, 3), 20_000, 10)
    shares = hidden.mean(0)
    assert shares.sum() == pytest.approx(5)
    assert shares.min() > 0.48
    assert shares.max() < 0.52
    assert runs(hidden) < 0.75 * runs(hidden_of(SpanMasking(0.5), 20_000, 10))


def started_by_hand(
    numbers: list[float], turns: list[float], length: int, span: int, count: int, forward: bool
) -> list[int]:
    """The tokens in the order in which they are hidden: at random those of the first spans, then span after span."""
    starts = sorted(range(span - 1, span - 1 + max(1, length - span + 1)), key=lambda each: -numbers[each])
    drawn = {token for start in starts[:count] for token in range(start - span + 1, start + 1) if token < length}
    found = sorted(drawn, key=lambda token: -turns[token])
    for start in starts:
        found += [
            t for t in sorted(range(start - span + 1, start + 1), reverse=forward) if t < length and t not in found
        ]
    return found


@pytest.mark.parametrize(
    ("ratio", "span", "probability"), [(0.4, 3, 0.6), (0.7, 2, 0.3), (0.3, 1, 0.5), (0.5, 20, 2.0)]
)
def test_spans_that_start_by_a_probability_by_brute_force(ratio: float, span: int, probability: float) -> None:
    tokens, lengths = 12, torch.arange(13).repeat(4)
    masks = SpanMasking(ratio, span, probability)(len(lengths), (tokens,), lengths, Rng(3, len(lengths)))
    rng = Rng(3, len(lengths))
    numbers, forward, of_count, turns = rng.sample(tokens + span - 1), rng.sample(1), rng.sample(1), rng.sample(tokens)
    for i, length in enumerate(lengths.tolist()):
        context, targets = masks.context[i].tolist(), masks.targets[i, 0].tolist()
        assert sorted(context + targets) == list(range(tokens))
        number = max(1, math.floor(probability * length / span + float(of_count[i])))
        # A span starts at a place of the sequence; the numbers before that one are of spans that start before it.
        order = started_by_hand(numbers[i].tolist(), turns[i].tolist(), length, span, number, bool(forward[i] < 0.5))
        assert {token for token in targets if token < length} == set(
            order[: max(0, min(max(1, round(ratio * length)), length - 1))]
        )


@pytest.mark.parametrize(("ratio", "span", "probability", "tokens"), [(0.41, 10, 0.65, 500), (0.37, 5, 0.5, 500)])
def test_spans_are_those_of_the_official_code(ratio: float, span: int, probability: float, tokens: int) -> None:
    """As many, as long, and at the ends as often as where so many starts are drawn and the rest is shown at random.

    The official code is restated for a sequence alone: starts without repetition, from which spans go on, and tokens
    chosen at random until so many are hidden (of sequences that have enough).
    """
    ours, generator, expected = (
        hidden_of(SpanMasking(ratio, span, probability), 1500, tokens),
        np.random.default_rng(0),
        [],
    )
    wanted = round(ratio * tokens)
    while len(expected) < 1500:
        count = int(probability * tokens / span + generator.random())
        starts = generator.choice(tokens - span + 1, count, replace=False)
        covered = np.unique(starts[:, None] + np.arange(span))
        if len(covered) >= wanted:
            expected.append(np.bincount(generator.choice(covered, wanted, replace=False), minlength=tokens))
    theirs = torch.tensor(np.array(expected)).float()
    assert (ours.sum(1) == wanted).all()
    assert runs(ours) == pytest.approx(runs(theirs), rel=0.02)
    for edge in (slice(0, span), slice(-span, None)):
        torch.testing.assert_close(ours.mean(0)[edge], theirs.mean(0)[edge], rtol=0.1, atol=0.04)
    assert ours[:, span:-span].mean() == pytest.approx(float(theirs[:, span:-span].mean()), rel=0.01)


def test_masks_that_cannot_be() -> None:
    wrong = (({"ratio": 1.0}, "1.0"), ({"span_length": 0}, "0"), ({"start_probability": 0.0}, "start_probability.*0.0"))
    for options, named in wrong:
        with pytest.raises(ValueError, match=named):
            SpanMasking(**options)
    for grid in ((1,), (4, 4)):
        with pytest.raises(ValueError, match="grid"):
            SpanMasking()(2, grid)

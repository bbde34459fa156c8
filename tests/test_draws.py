"""Random numbers of a step: what they depend on, and that they look random.

That methods draw by them, in training and on held-out data, is in test_contracts.py.
"""

import pytest
import torch
from torch import Tensor

from jepa_lightning.draws import Rng

MASK = 2**64 - 1


def by_hand(*state: int, place: int, count: int) -> list[float]:
    """The numbers of one sample at the first call, in whole numbers without end."""

    def mix(value: int) -> int:
        value &= MASK
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
        return value ^ (value >> 31)

    golden, key = 0x9E3779B97F4A7C15, 0
    for part in state:
        key = mix(key + part * golden)
    key = mix(place * golden + mix(key + golden))
    return [(mix(key + number * 0x94D049BB133111EB) >> 40) / 2**24 for number in range(1, count + 1)]


@pytest.mark.parametrize("state", [(0, 0, 0), (2**62 + 5, -1, 10**6)])
def test_numbers_by_hand(state: tuple[int, int, int]) -> None:
    """In Python's integers, which do not wrap around by themselves."""
    rng = Rng(state[0], 5, *state[1:], rank=1, ranks=3)
    assert rng.sample(4).tolist() == [by_hand(*state, place=1 + 3 * sample, count=4) for sample in range(5)]


def test_what_they_depend_on() -> None:
    def drawn(**options: int) -> Tensor:
        return Rng(**{"seed": 1, "batch_size": 64, "epoch": 2, "batch": 3} | options).sample(8)

    assert torch.equal(drawn(), drawn())
    others = [drawn(**{name: 9}) for name in ("seed", "epoch", "batch")] + [drawn(rank=1, ranks=2), drawn(epoch=-1)]
    for number, one in enumerate([drawn(), *others]):
        assert not any(torch.equal(one, other) for other in others[number:])
    rng = Rng(0, 4)
    assert not torch.equal(rng.sample(3), rng.sample(3))
    # A call does not depend on how much the one before has asked for.
    a, b = Rng(0, 4), Rng(0, 4)
    a.sample(1), b.sample(100)
    assert torch.equal(a.sample(2), b.sample(2))


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_draw_for_their_own_samples(ranks: int) -> None:
    one = Rng(7, 8, epoch=1, batch=2)
    several = [Rng(7, 8 // ranks, 1, 2, rank, ranks) for rank in range(ranks)]
    for shape in ((3,), (2, 5), ()):
        expected = one.sample(*shape)
        assert expected.shape == (8, *shape)
        assert torch.equal(torch.stack([rng.sample(*shape) for rng in several], 1).flatten(0, 1), expected)
        shared = one.shared(*shape)
        assert shared.shape == shape
        assert all(torch.equal(rng.shared(*shape), shared) for rng in several)
    # Generators of ranks are their own, for samplers that draw one number after another.
    assert len({rng.generator().initial_seed() for rng in several}) == ranks


def test_numbers_are_uniform_and_independent() -> None:
    """Along samples, along a sample's numbers, and from batch to batch, epoch to epoch and seed to seed."""
    size = 1024
    columns = [Rng(0, size).sample(8), Rng(0, size, batch=1).sample(2), Rng(0, size, epoch=1).sample(2)]
    columns += [Rng(1, size).sample(2), Rng(0, 8).shared(size, 2), Rng(0, size).sample(8).roll(1, 0)]
    columns.append(torch.stack([Rng(seed, 1).sample(2)[0] for seed in range(size)]))
    columns.append(torch.stack([Rng(0, 1, batch=batch).sample(2)[0] for batch in range(size)]))
    columns.append(torch.stack([Rng(0, 1, epoch=epoch).shared(2) for epoch in range(size)]))
    numbers = torch.cat(columns, dim=1).double()
    assert 0 <= numbers.min() < 1e-3
    assert 0.999 < numbers.max() < 1
    counts = torch.stack([(numbers * 32).floor().eq(cell).sum(0) for cell in range(32)]).double()
    chi_square = ((counts - size / 32).square() / (size / 32)).sum(0)  # of 31 degrees of freedom
    assert (chi_square - 31).abs().max() < 5 * (2 * 31) ** 0.5
    assert torch.corrcoef(numbers.T).fill_diagonal_(0).abs().max() < 5 / size**0.5


def test_fresh_ones_follow_torchs_generator() -> None:
    torch.manual_seed(5)
    first, second = Rng.fresh(3).sample(4), Rng.fresh(3).sample(4)
    torch.manual_seed(5)
    assert torch.equal(Rng.fresh(3).sample(4), first)
    assert not torch.equal(first, second)

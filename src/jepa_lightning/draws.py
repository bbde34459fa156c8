"""Random numbers of a training step, as functions of where in the training they are asked for."""

from __future__ import annotations

import copy
import math

import torch
from torch import Generator, Tensor

_MASK = 2**64 - 1
# The constants of SplitMix64 as int64: products wrap around alike.
_GOLDEN, _FIRST, _SECOND = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class Rng:
    """Numbers for each sample of a batch, and numbers that all processes share.

    Numbers are hashes of seed, epoch, batch, the call, and, of `sample`, the place of the sample among those of all
    processes. So they do not depend on the number of processes, no process draws for another, and a resumed training
    draws what an uninterrupted one would have. Those of a call do not depend on how many the calls before have asked
    for. On any device they are the same, and none has to be waited for.

    Args:
        seed: any integer, the same in all processes.
        batch_size: samples B of this process.
        epoch: any integer.
        batch: number of the batch in its epoch.
        rank: number of this process, whose samples have the places `rank`, `rank + ranks`, `rank + 2 ranks` and so on,
            as a `DistributedSampler` deals them out.
        ranks: number of processes.
        device: where the numbers are made.

    >>> one, two = Rng(0, batch_size=4), [Rng(0, batch_size=2, rank=rank, ranks=2) for rank in range(2)]
    >>> bool((one.sample(3)[1::2] == two[1].sample(3)).all()), bool((one.shared(5) == two[1].shared(5)).all())
    (True, True)
    """

    def __init__(
        self,
        seed: int,
        batch_size: int,
        epoch: int = 0,
        batch: int = 0,
        rank: int = 0,
        ranks: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.batch_size, self.rank, self.ranks = batch_size, rank, ranks
        self.device = torch.device(device)
        self._key = 0
        for part in (seed, epoch, batch):
            self._key = _mix(self._key + part * _GOLDEN)
        self._calls, self._clones = 0, 1

    @classmethod
    def fresh(cls, batch_size: int, device: torch.device | str = "cpu") -> Rng:
        """One seeded by torch's default generator: for what is drawn outside of a training."""
        return cls(int(torch.randint(2**62, (), device="cpu")), batch_size, device=device)

    def sample(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1) for each sample, `[B, *shape]`, float32."""
        number = torch.arange(self.batch_size, device=self.device)
        places = (self.rank + self.ranks * (number // self._clones)) * self._clones + number % self._clones
        keys = _mixed(places * _GOLDEN + self._next())
        return _uniform(keys.unsqueeze(1), shape)

    def normal(self, *shape: int) -> Tensor:
        """Numbers for each sample of the standard normal distribution, `[B, *shape]`, float32."""
        radius, angle = self.sample(2, *shape).unbind(1)  # Box and Muller's transform
        return (-2 * (1 - radius).log()).sqrt() * (2 * math.pi * angle).cos()

    def clones(self, count: int) -> Rng:
        """One for `count` clones of each sample, which follow one another in a batch of `count * B`."""
        cloned = copy.copy(self)
        cloned._key, cloned._calls = _mix(self._next()), 0
        cloned.batch_size, cloned._clones = self.batch_size * count, self._clones * count
        return cloned

    def shared(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1) that are the same in all processes, `shape`, float32."""
        key = torch.full((1,), self._next(), device=self.device)
        return _uniform(key, shape).view(shape)

    def generator(self) -> Generator:
        """A generator of this process's own, on the CPU: for samplers that look at what they have drawn."""
        return Generator("cpu").manual_seed(_mix(self._next() + self.rank * _GOLDEN) >> 1)

    def _next(self) -> int:
        """The key of a call, an int64."""
        self._calls += 1
        key = _mix(self._key + self._calls * _GOLDEN)
        return key - 2**64 if key >= 2**63 else key


def _uniform(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Numbers `[*keys.shape[:-1], *shape]` from keys `[..., 1]`: the upper 24 bits of hashes of key and counter."""
    counter = torch.arange(1, math.prod(shape) + 1, device=keys.device) * _SECOND
    bits = _mixed(keys + counter) >> 40 & 0xFFFFFF
    return bits.float().mul_(2.0**-24).view((*keys.shape[:-1], *shape))


def _mixed(values: Tensor) -> Tensor:
    """`_mix` of int64 values, whose sums and products wrap around; shifts are made logical by hand."""
    values = (values ^ (values >> 30 & (1 << 34) - 1)) * _FIRST
    values = (values ^ (values >> 27 & (1 << 37) - 1)) * _SECOND
    return values ^ (values >> 31 & (1 << 33) - 1)


def _mix(value: int) -> int:
    """The finaliser of SplitMix64, below 2^64.

    Source: Steele, Lea and Flood (2014), "Fast splittable pseudorandom number generators".
    """
    value &= _MASK
    value = (value ^ value >> 30) * _FIRST & _MASK
    value = (value ^ value >> 27) * _SECOND & _MASK
    return value ^ value >> 31

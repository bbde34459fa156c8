"""Streams of random numbers by hashing: the same on every machine, whatever was drawn before."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

# All of them are float32, but NumPy's stubs take the product of one with a Python float for a float64.
Floats: TypeAlias = NDArray[np.floating[Any]]
Ints: TypeAlias = NDArray[np.int64]


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of splitmix64 (Steele, Lea & Flood, 2014): a bijection of 64-bit integers."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Streams:
    """The splitmix64 streams of a batch of images, one stream each, read in step."""

    GAMMA = np.uint64(0x9E3779B97F4A7C15)

    def __init__(self, seed: int, stream: int, indices: Ints) -> None:
        origin = _mix(_mix(np.array([seed], np.uint64) + self.GAMMA) + np.uint64(stream))
        self.keys = _mix(origin + indices.astype(np.uint64) * self.GAMMA)
        self.used = 0

    def hashes(self, number: int) -> NDArray[np.uint64]:
        """The next `number` hashes of each stream, `[B, number]`."""
        steps = np.arange(self.used + 1, self.used + number + 1, dtype=np.uint64) * self.GAMMA
        self.used += number
        return _mix(self.keys[:, None] + steps)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Floats:
        """Uniform numbers in [low, high), `[B, *shape]`; 24 random bits, which float32 holds exactly."""
        unit = (self.hashes(int(np.prod(shape))) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
        return (unit * np.float32(high - low) + np.float32(low)).reshape(-1, *shape)

"""Draw shapes on cluttered backgrounds, as a pure function of (seed, stream, index): the same bytes on every machine.

* Random numbers are a counter-based integer hash (splitmix64), not a generator with a state.
* Pixels are computed in float32 by `+ - * / sqrt abs min max` alone, one NumPy ufunc at a time. IEEE 754 fixes the
  result of each to the last bit, so there are no differences between CPUs for the final rounding to 8 bits to hide.
  Sines and cosines, which do differ between maths libraries, come from a table rounded to 20 bits, and nothing is
  summed by a reduction, whose order is not fixed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

# All of them are float32, but NumPy's stubs take the product of one with a Python float for a float64.
Floats: TypeAlias = NDArray[np.floating[Any]]
Ints: TypeAlias = NDArray[np.int64]

KINDS = ("disc", "target", "bars", "triangle", "dots", "checkers", "cross", "star")
MAX_COUNT = 4
ABSENT = -1
_NUM_CLUTTER = 2
_STROKE, _BLOB = len(KINDS), len(KINDS) + 1

_ANGLES = 1024
_TURN = 2 * np.pi * np.arange(_ANGLES) / _ANGLES
_DIRECTIONS: Floats = (np.round(np.stack([np.cos(_TURN), np.sin(_TURN)], 1) * 2**20) / 2**20).astype(np.float32)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of splitmix64 (Steele, Lea & Flood, 2014): a bijection of 64-bit integers."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Draws:
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


class Scene(NamedTuple):
    """What is painted: slot 0 is the subject, then come the other shapes, then the clutter. Lengths are in pixels."""

    kind: Ints  # [B, S], or ABSENT
    centre: Floats  # [B, S, 2], (x, y)
    radius: Floats  # [B, S]
    direction: Floats  # [B, S, 2], cosine and sine
    colour: Floats  # [B, S, 3], in [0, 1]
    texture: Floats  # [B, 3, 9, 9], the background's colours on a coarse grid


def _choose(candidates: Floats, score: Floats, enough: float) -> Floats:
    """The first of the candidates `[B, K, D]` whose score `[B, K]` is enough, or else the best."""
    best = np.minimum(score, np.float32(enough)).argmax(1)
    return candidates[np.arange(len(best)), best]


def lay_out(draws: Draws, height: int, width: int) -> Scene:
    """Draw up one scene for each stream."""
    batch, side = len(draws.keys), np.float32(min(height, width))
    count = (draws.uniform(1) * MAX_COUNT).astype(np.int64) + 1
    kind = (draws.uniform(MAX_COUNT) * len(KINDS)).astype(np.int64)
    kind[np.arange(MAX_COUNT) >= count] = ABSENT
    clutter = np.where(draws.uniform(_NUM_CLUTTER) < np.float32(0.6), _STROKE, _BLOB)
    radius = np.concatenate(
        [
            draws.uniform(1, low=0.28, high=0.40),
            draws.uniform(MAX_COUNT - 1, low=0.07, high=0.10),
            draws.uniform(_NUM_CLUTTER, low=0.12, high=0.50),
        ],
        axis=1,
    )

    # The subject may reach beyond the border, by half its radius at most. The smaller shapes lie wholly inside, and
    # keep clear of those before them where there is room.
    extent = np.array([width, height], np.float32) / side
    centre = np.empty((batch, MAX_COUNT + _NUM_CLUTTER, 2), np.float32)
    for slot in range(MAX_COUNT):
        own = radius[:, slot, None, None]
        margin = own if slot else np.float32(0.2)
        candidates = margin + draws.uniform(32, 2) * (extent - 2 * margin)
        clearance = np.ones((batch, 32), np.float32)
        for other in range(slot):
            away = candidates - centre[:, other, None]
            distance = np.sqrt(away[..., 0] * away[..., 0] + away[..., 1] * away[..., 1])
            clearance = np.minimum(clearance, distance - radius[:, other, None] - own[..., 0])
        centre[:, slot] = _choose(candidates, clearance, enough=0.02)
    centre[:, MAX_COUNT:] = draws.uniform(_NUM_CLUTTER, 2) * extent

    # Backgrounds are about grey, and shapes of any colour far from that: an image's mean colour says nothing of its
    # kind, and neighbours in pixel space are images with one colour in one place.
    ground = draws.uniform(3, low=0.45, high=0.55)
    colour = draws.uniform(MAX_COUNT + _NUM_CLUTTER, 3, low=0.2, high=0.8)
    for slot in range(MAX_COUNT):
        colours = draws.uniform(8, 3)
        away = np.abs(colours - ground[:, None])
        colour[:, slot] = _choose(colours, away[..., 0] + away[..., 1] + away[..., 2], enough=0.9)

    coarse = ground[..., None, None] + draws.uniform(3, 3, 3, low=-0.1, high=0.1)
    texture = _upsample(coarse, 9, 9) + draws.uniform(3, 9, 9, low=-0.06, high=0.06)
    direction = _DIRECTIONS[(draws.uniform(MAX_COUNT + _NUM_CLUTTER) * _ANGLES).astype(np.int64)]
    return Scene(np.concatenate([kind, clutter], 1), centre * side, radius * side, direction, colour, texture)


def _upsample(grid: Floats, rows: int, columns: int) -> Floats:
    """Interpolate `[..., R, C]` bilinearly (with smoothed weights) to `[..., rows, columns]`, corners aligned."""
    for axis, size in ((-1, columns), (-2, rows)):
        where = np.arange(size, dtype=np.float32) * (np.float32(grid.shape[axis] - 1) / np.float32(size - 1))
        left = np.minimum(where.astype(np.int64), grid.shape[axis] - 2)
        weight = where - left.astype(np.float32)
        weight = weight * weight * (3 - 2 * weight)
        slope = np.take(np.diff(grid, axis=axis), left, axis)
        slope *= weight if axis == -1 else weight[:, None]
        slope += np.take(grid, left, axis)
        grid = slope
    return grid


def _length(u: Floats, v: Floats) -> Floats:
    return np.sqrt(u * u + v * v)


def _target(u: Floats, v: Floats) -> Floats:
    """A disc in a ring."""
    length = _length(u, v)
    return np.minimum(np.abs(length - 0.7) - 0.14, length - 0.3)


def _bars(u: Floats, v: Floats) -> Floats:
    """Three parallel bars."""
    v = np.abs(v)
    return np.maximum(np.abs(u) - 0.75, np.minimum(v, np.abs(v - 0.55)) - 0.17)


def _triangle(u: Floats, v: Floats) -> Floats:
    return np.maximum(-v, 0.8660254 * np.abs(u) + 0.5 * v) - 0.5


def _dots(u: Floats, v: Floats) -> Floats:
    """Three by three dots."""
    u, v = np.abs(u), np.abs(v)
    return _length(np.minimum(u, np.abs(u - 0.58)), np.minimum(v, np.abs(v - 0.58))) - 0.21


def _checkers(u: Floats, v: Floats) -> Floats:
    """Four by four squares, every other one painted."""
    painted = (np.abs(u) - 0.4) * (np.abs(v) - 0.4) * u * v < 0
    u, v = np.abs(u), np.abs(v)
    edge = np.minimum(np.minimum(u, np.abs(u - 0.4)), np.minimum(v, np.abs(v - 0.4)))
    return np.maximum(np.maximum(u, v) - 0.8, np.where(painted, -edge, edge))


def _cross(u: Floats, v: Floats) -> Floats:
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(u, v) - 0.95, np.minimum(u, v) - 0.22)


def _star(u: Floats, v: Floats) -> Floats:
    """A pentagram: the points beyond at most one of its five lines, so the second largest of their distances counts.

    Mirrored to u >= 0, the line of normal (-cos 18°, sin 18°) is never among the two largest.
    """
    u = np.abs(u)
    a, b = v, 0.9510565 * u + 0.3090170 * v
    c, d = 0.5877853 * u, -0.8090170 * v
    c, d = d + c, d - c
    crossing = np.minimum(np.maximum(a, b), np.maximum(c, d))
    return np.maximum(crossing, np.maximum(np.minimum(a, b), np.minimum(c, d))) - 0.3090170


# Signed distances to the outlines (negative inside), in units of the shape's radius, indexed by kind. All shapes fit
# about into the unit disc and have areas of 1.1 to 1.5: their size gives no hint of their kind.
_DISTANCES: tuple[Callable[[Floats, Floats], Floats], ...] = (
    lambda u, v: _length(u, v) - 0.66,
    _target,
    _bars,
    _triangle,
    _dots,
    _checkers,
    _cross,
    _star,
    lambda u, v: _length(np.maximum(np.abs(u) - 0.95, 0), v) - 0.05,  # a stroke
    lambda u, v: _length(u, v * 2) - 0.5,  # a blob
)


def paint(scene: Scene, draws: Draws, height: int, width: int) -> tuple[NDArray[np.uint8], Ints]:
    """Paint a scene: images `[B, 3, H, W]` and segmentations `[B, H, W]`."""
    batch, slots = scene.kind.shape
    cover = np.zeros((slots, batch, 1, height, width), np.float32)
    x, y = np.arange(width, dtype=np.float32) + 0.5, np.arange(height, dtype=np.float32) + 0.5
    for kind, distance in enumerate(_DISTANCES):
        of_kind = scene.kind == kind
        if not of_kind.any():
            continue
        radius = scene.radius[of_kind][:, None]
        cos, sin = (scene.direction[of_kind] / radius).T[..., None]
        dx, dy = x - scene.centre[of_kind][:, :1], y - scene.centre[of_kind][:, 1:]
        away = distance(
            (dx * cos)[:, None, :] + (dy * sin)[:, :, None], (dy * cos)[:, :, None] - (dx * sin)[:, None, :]
        )
        # Edges are one pixel wide, but a blob fades over its whole extent.
        away *= np.float32(-1.5) if kind == _BLOB else -radius[..., None]
        away += 0.5
        cover.swapaxes(0, 1)[of_kind, 0] = np.clip(away, 0, 1, out=away)

    image = _upsample(scene.texture, height, width)
    segmentation = np.zeros((batch, height, width), np.int64)
    change = np.empty_like(image)
    for slot in reversed(range(slots)):  # the subject comes last, on top
        np.subtract(scene.colour[:, slot, :, None, None], image, out=change)
        change *= cover[slot]
        image += change
        if slot < MAX_COUNT:
            np.copyto(segmentation, scene.kind[:, slot, None, None] + 1, where=cover[slot, :, 0] > 0.5)

    pixels = 3 * height * width
    # Explicitly little-endian: the bytes of a hash come in the same order everywhere.
    noise = draws.hashes(-(-pixels // 8)).astype("<u8", copy=False).view(np.uint8)[:, :pixels].reshape(image.shape)
    image *= 255
    image += noise * np.float32(12 / 255)
    image -= 5.5  # centres the noise, and adds the half that makes truncation round
    return np.clip(image, 0, 255, out=image).astype(np.uint8), segmentation

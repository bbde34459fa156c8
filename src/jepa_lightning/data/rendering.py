"""Draw shapes on cluttered backgrounds, as a pure function of (seed, stream, index): the same bytes on every machine.

* Random numbers are a counter-based integer hash (splitmix64), not a generator with a state.
* Pixels are computed in float32 by `+ - * / sqrt abs floor min max` alone, one NumPy ufunc at a time. IEEE 754 fixes
  the result of each to the last bit, so there are no differences between CPUs for the final rounding to 8 bits to hide.
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

KINDS = ("stripes", "bars", "checkers", "dots", "rings", "grid")
MAX_COUNT = 3
ABSENT = -1
_NUM_CLUTTER = 1
_STROKE, _BLOB = len(KINDS), len(KINDS) + 1
PERIOD = (0.11, 0.14)  # of the stripes, in units of the image's shorter side; the other patterns follow from it
REACH = 1.25  # how far the corners of a square lie from its centre, in radii

_TURN = 2 * np.pi * np.arange(1024) / 1024
HEADINGS: Floats = (np.round(np.stack([np.cos(_TURN), np.sin(_TURN)], 1) * 2**20) / 2**20).astype(np.float32)


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
    square: Ints  # [B, S], 1 for a square outline, 0 for a disc
    centre: Floats  # [B, S, 2], (x, y)
    radius: Floats  # [B, S]
    direction: Floats  # [B, S, 2], cosine and sine
    period: Floats  # [B, S]
    phase: Floats  # [B, S, 2], in periods
    curve: Floats  # [B, S, 2, 3], by how much the squares of the place (u u, u v, v v) displace a pattern, per pixel
    colour: Floats  # [B, S, 2, 3], the two colours of a pattern, in [0, 1]; clutter has the first alone
    bend: Floats  # [B, 2, 6, 6], by how many periods patterns are displaced, on a coarse grid over the image
    texture: Floats  # [B, 3, 9, 9], the background's colours on a coarse grid


def _choose(candidates: Floats, score: Floats, enough: float) -> Floats:
    """The first of the candidates `[B, K, D]` whose score `[B, K]` is enough, or else the best."""
    best = np.minimum(score, np.float32(enough)).argmax(1)
    return candidates[np.arange(len(best)), best]


def draw_ground(draws: Draws) -> Floats:
    """The mean colours `[B, 3]` of backgrounds."""
    return draws.uniform(3, low=0.45, high=0.55)


def draw_texture(draws: Draws, ground: Floats) -> Floats:
    """Backgrounds around a mean colour, on a coarse grid `[B, 3, 9, 9]`."""
    coarse = ground[..., None, None] + draws.uniform(3, 3, 3, low=-0.03, high=0.03)
    return upsample(coarse, 9, 9) + draws.uniform(3, 9, 9, low=-0.03, high=0.03)


def draw_colours(draws: Draws, slots: int, patterned: int) -> Floats:
    """The two colours `[B, slots, 2, 3]` of shapes; the slots after the `patterned` ones are of one brightness.

    A shape has a light and a dark colour, in either order, about as bright together as the grey background is: neither
    brightness nor silhouette gives a kind away, and features that only tell colours cannot tell kinds.
    """
    level = draws.uniform(slots, 1, 1, low=0.44, high=0.56)
    contrast = draws.uniform(slots, 1, low=0.25, high=0.30)
    contrast = np.where(draws.uniform(slots, 1) < 0.5, -contrast, contrast)
    colour = level + np.stack([contrast, -contrast], 2)
    colour[:, patterned:] = level[:, patterned:]
    return colour + draws.uniform(slots, 2, 3, low=-0.03, high=0.03)


def lay_out(draws: Draws, height: int, width: int) -> Scene:
    """Draw up one scene for each stream."""
    batch, side, slots = len(draws.keys), np.float32(min(height, width)), MAX_COUNT + _NUM_CLUTTER
    count = (draws.uniform(1) * MAX_COUNT).astype(np.int64) + 1
    kind = (draws.uniform(MAX_COUNT) * len(KINDS)).astype(np.int64)
    kind[np.arange(MAX_COUNT) >= count] = ABSENT
    clutter = np.where(draws.uniform(_NUM_CLUTTER) < np.float32(0.6), _STROKE, _BLOB)
    radius = np.concatenate(
        [
            draws.uniform(1, low=0.36, high=0.46),
            draws.uniform(MAX_COUNT - 1, low=0.08, high=0.11),
            draws.uniform(_NUM_CLUTTER, low=0.12, high=0.50),
        ],
        axis=1,
    )

    # The subject may reach beyond the border, by half its extent at most. The smaller shapes lie wholly inside, and
    # keep clear of those before them where there is room.
    extent = np.array([width, height], np.float32) / side
    centre = np.empty((batch, slots, 2), np.float32)
    for slot in range(MAX_COUNT):
        own = radius[:, slot, None, None] * np.float32(REACH)
        margin = own if slot else np.float32(0.25)
        candidates = margin + draws.uniform(32, 2) * (extent - 2 * margin)
        clearance = np.ones((batch, 32), np.float32)
        for other in range(slot):
            away = candidates - centre[:, other, None]
            distance = np.sqrt(away[..., 0] * away[..., 0] + away[..., 1] * away[..., 1])
            clearance = np.minimum(clearance, distance - radius[:, other, None] * np.float32(REACH) - own[..., 0])
        centre[:, slot] = _choose(candidates, clearance, enough=0.02)
    centre[:, MAX_COUNT:] = draws.uniform(_NUM_CLUTTER, 2) * extent

    ground = draw_ground(draws)
    colour = draw_colours(draws, slots, patterned=MAX_COUNT)
    texture = draw_texture(draws, ground)
    return Scene(
        kind=np.concatenate([kind, clutter], 1),
        square=(draws.uniform(slots) * 2).astype(np.int64),
        centre=centre * side,
        radius=radius * side,
        direction=HEADINGS[(draws.uniform(slots) * len(HEADINGS)).astype(np.int64)],
        period=draws.uniform(slots, low=PERIOD[0], high=PERIOD[1]) * side,
        phase=draws.uniform(slots, 2),
        curve=draws.uniform(slots, 2, 3, low=-0.8, high=0.8) / side,
        colour=colour,
        bend=draws.uniform(2, 6, 6, low=-0.9, high=0.9),
        texture=texture,
    )


def upsample(grid: Floats, rows: int, columns: int) -> Floats:
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


def _cell(u: Floats) -> Floats:
    """The distance to the middle of the cell that a coordinate lies in, in [0, 0.5]; cells have the length 1."""
    return np.abs(u - np.floor(u) - 0.5)


def _checkers(u: Floats, v: Floats) -> Floats:
    """Squares of length 1."""
    parity = np.floor(u) + np.floor(v)
    edge = 0.5 - np.maximum(_cell(u), _cell(v))
    return np.where(parity == 2 * np.floor(parity * 0.5), edge, -edge)


# How far a point is from the edges of a pattern, in units of the pattern's cells and negative where the second colour
# is, indexed by kind. All have both colours in about equal parts.
_PATTERNS: tuple[Callable[[Floats, Floats], Floats], ...] = (
    lambda u, v: _cell(u) - 0.25,
    lambda u, v: _cell(u * 0.5) - 0.25,
    lambda u, v: _checkers(u * 0.8, v * 0.8),
    lambda u, v: 0.4 - _length(_cell(u), _cell(v)),
    lambda u, v: 0.13 - np.abs(_length(_cell(u * 0.5), _cell(v * 0.5)) - 0.3),
    lambda u, v: np.maximum(_cell(u * 0.5), _cell(v * 0.5)) - 0.354,
)


def rotate(dx: Floats, dy: Floats, direction: Floats) -> tuple[Floats, Floats]:
    """A shape's own coordinates `[..., H, W]` of the places dx `[..., W]` and dy `[..., H]` from its centre."""
    cos, sin = direction[..., :1], direction[..., 1:]
    u = (dx * cos)[..., None, :] + (dy * sin)[..., :, None]
    v = (dy * cos)[..., :, None] - (dx * sin)[..., None, :]
    return u, v


def outline(u: Floats, v: Floats, radius: Floats, square: Ints) -> Floats:
    """How far places are outside of a square or a disc of the same area, in pixels."""
    return np.where(
        square == 1,
        np.maximum(np.abs(u), np.abs(v)) - 0.8862269 * radius,  # sqrt(pi) / 2
        _length(u, v) - radius,
    )


def pattern(kind: int, u: Floats, v: Floats) -> Floats:
    """The share of the second colour at places on a pattern, in [0, 1]; its edges are a quarter of a cell wide."""
    return np.clip(0.5 - 4 * _PATTERNS[kind](u, v), 0, 1)


def lay_over(image: Floats, first: Floats, other: Floats, second: Floats, cover: Floats, change: Floats) -> None:
    """Paint a shape in its two colours over an image, in place; `change` is room to compute in, like the image."""
    np.multiply(other - first, second, out=change)
    change += first
    change -= image
    change *= cover
    image += change


def to_bytes(image: Floats, draws: Draws) -> NDArray[np.uint8]:
    """Round images `[B, ...]` in [0, 1] to 8 bits, with a sensor's noise; overwrites them."""
    pixels = image[0].size
    # Explicitly little-endian: the bytes of a hash come in the same order everywhere.
    noise = draws.hashes(-(-pixels // 8)).astype("<u8", copy=False).view(np.uint8)[:, :pixels].reshape(image.shape)
    image *= 255
    image += noise * np.float32(12 / 255)
    image -= 5.5  # centres the noise, and adds the half that makes truncation round
    return np.clip(image, 0, 255, out=image).astype(np.uint8)


def paint(scene: Scene, draws: Draws, height: int, width: int) -> tuple[NDArray[np.uint8], Ints]:
    """Paint a scene: images `[B, 3, H, W]` and segmentations `[B, H, W]`."""
    batch, slots = scene.kind.shape
    cover = np.zeros((slots, batch, 1, height, width), np.float32)
    second = np.zeros_like(cover)  # the share of the second colour
    bend = upsample(scene.bend, height, width)
    x, y = np.arange(width, dtype=np.float32) + 0.5, np.arange(height, dtype=np.float32) + 0.5
    for kind in range(_BLOB + 1):
        of_kind = scene.kind == kind
        if not of_kind.any():
            continue
        radius, period = scene.radius[of_kind][:, None, None], scene.period[of_kind][:, None, None]
        dx, dy = x - scene.centre[of_kind][:, :1], y - scene.centre[of_kind][:, 1:]
        u, v = rotate(dx, dy, scene.direction[of_kind])
        # Edges are one pixel wide, but a blob fades over its whole extent.
        if kind == _STROKE:
            away = _length(np.maximum(np.abs(u) - 0.95 * radius, 0), v) - 0.05 * radius
        elif kind == _BLOB:
            away = (_length(u, v * 2) - 0.5 * radius) * (1.5 / radius)
        else:
            away = outline(u, v, radius, scene.square[of_kind][:, None, None])
            turns = bend[of_kind.nonzero()[0]].swapaxes(0, 1)
            phase, curve = (part[of_kind].swapaxes(0, 1)[..., None, None] for part in (scene.phase, scene.curve))
            uu, uv, vv = u * u, u * v, v * v
            bent = [
                (place + c[:, 0] * uu + c[:, 1] * uv + c[:, 2] * vv) / period + start + turn
                for place, c, start, turn in zip((u, v), curve, phase, turns, strict=True)
            ]
            second.swapaxes(0, 1)[of_kind, 0] = pattern(kind, *bent)
        cover.swapaxes(0, 1)[of_kind, 0] = np.clip(0.5 - away, 0, 1)

    image = upsample(scene.texture, height, width)
    segmentation = np.zeros((batch, height, width), np.int64)
    change = np.empty_like(image)
    for slot in reversed(range(slots)):  # the subject comes last, on top
        first, other = scene.colour[:, slot, :, :, None, None].swapaxes(0, 1)
        lay_over(image, first, other, second[slot], cover[slot], change)
        if slot < MAX_COUNT:
            np.copyto(segmentation, scene.kind[:, slot, None, None] + 1, where=cover[slot, :, 0] > 0.5)

    return to_bytes(image, draws), segmentation

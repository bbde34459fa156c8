"""Patterned shapes on cluttered backgrounds: what still and moving pictures of them share.

Pixels are computed in float32 by `+ - * / sqrt abs floor min max` alone, one NumPy ufunc at a time. IEEE 754 fixes the
result of each to the last bit, so there are no differences between CPUs for the final rounding to 8 bits to hide. Sines
and cosines, which do differ between maths libraries, come from a table rounded to 20 bits, and nothing is summed by a
reduction, whose order is not fixed.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from jepa_lightning.data.synthetic.streams import Floats, Ints, Streams

KINDS = ("stripes", "bars", "checkers", "dots", "rings", "grid")
PERIOD = (0.11, 0.14)  # of the stripes, in units of the image's shorter side; the other patterns follow from it
REACH = 1.25  # how far the corners of a square lie from its centre, in radii

_TURN = 2 * np.pi * np.arange(1024) / 1024
HEADINGS: Floats = (np.round(np.stack([np.cos(_TURN), np.sin(_TURN)], 1) * 2**20) / 2**20).astype(np.float32)


def draw_ground(draws: Streams) -> Floats:
    """The mean colours `[B, 3]` of backgrounds."""
    return draws.uniform(3, low=0.45, high=0.55)


def draw_texture(draws: Streams, ground: Floats) -> Floats:
    """Backgrounds around a mean colour, on a coarse grid `[B, 3, 9, 9]`."""
    coarse = ground[..., None, None] + draws.uniform(3, 3, 3, low=-0.03, high=0.03)
    return upsample(coarse, 9, 9) + draws.uniform(3, 9, 9, low=-0.03, high=0.03)


def draw_colours(draws: Streams, slots: int, patterned: int) -> Floats:
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


def length(u: Floats, v: Floats) -> Floats:
    """The length of vectors."""
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
    lambda u, v: 0.4 - length(_cell(u), _cell(v)),
    lambda u, v: 0.13 - np.abs(length(_cell(u * 0.5), _cell(v * 0.5)) - 0.3),
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
        length(u, v) - radius,
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


def to_bytes(image: Floats, draws: Streams) -> NDArray[np.uint8]:
    """Round images `[B, ...]` in [0, 1] to 8 bits, with a sensor's noise; overwrites them."""
    pixels = image[0].size
    # Explicitly little-endian: the bytes of a hash come in the same order everywhere.
    noise = draws.hashes(-(-pixels // 8)).astype("<u8", copy=False).view(np.uint8)[:, :pixels].reshape(image.shape)
    image *= 255
    image += noise * np.float32(12 / 255)
    image -= 5.5  # centres the noise, and adds the half that makes truncation round
    return np.clip(image, 0, 255, out=image).astype(np.uint8)

"""Scenes of one to three shapes at rest, and their pictures."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jepa_lightning.data.synthetic.painting import (
    HEADINGS,
    KINDS,
    PERIOD,
    REACH,
    draw_colours,
    draw_ground,
    draw_texture,
    lay_over,
    length,
    outline,
    pattern,
    rotate,
    to_bytes,
    upsample,
)
from jepa_lightning.data.synthetic.streams import Floats, Ints, Streams

MAX_COUNT = 3
ABSENT = -1
_NUM_CLUTTER = 1
_STROKE, _BLOB = len(KINDS), len(KINDS) + 1


class StillScene(NamedTuple):
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


def lay_out(draws: Streams, height: int, width: int) -> StillScene:
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
    return StillScene(
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


def paint(scene: StillScene, draws: Streams, height: int, width: int) -> tuple[NDArray[np.uint8], Ints]:
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
            away = length(np.maximum(np.abs(u) - 0.95 * radius, 0), v) - 0.05 * radius
        elif kind == _BLOB:
            away = (length(u, v * 2) - 0.5 * radius) * (1.5 / radius)
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

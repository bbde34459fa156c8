"""Scenes of shapes that move and turn, and their clips."""

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
    outline,
    pattern,
    rotate,
    to_bytes,
    upsample,
)
from jepa_lightning.data.synthetic.streams import Floats, Ints, Streams

DIRECTIONS = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")
SPEEDS = ("slow", "medium", "fast")
_NUM_SMALL = 3
_SMALL = (0.11, 0.15)  # radii of the smaller shapes, in units of the image's shorter side
_MAX_SPIN = 32  # of 1024 parts of a turn, a frame


class MovingScene(NamedTuple):
    """What is painted: slot 0 is the subject, then come the smaller shapes. Lengths are in pixels."""

    direction: Ints  # [B], of the subject's motion, an index into DIRECTIONS
    speed: Ints  # [B], of the subject, an index into SPEEDS
    kind: Ints  # [B, S]
    square: Ints  # [B, S], 1 for a square outline, 0 for a disc
    in_front: NDArray[np.bool_]  # [B, S - 1], whether a smaller shape is in front of the subject
    centre: Floats  # [B, S, T, 2], (x, y)
    orientation: Floats  # [B, S, T, 2], cosine and sine
    radius: Floats  # [B, S]
    period: Floats  # [B, S]
    phase: Floats  # [B, S, 2], in periods
    wave: Floats  # [B, S, 2, 2], (x, y) wave vectors, in cycles per pixel, of what bends a pattern along u and along v
    start: Floats  # [B, S, 2], of these waves, in cycles
    colour: Floats  # [B, S, 2, 3], the two colours of a pattern, in [0, 1]
    texture: Floats  # [B, 3, 9, 9], the background's colours on a coarse grid


def lay_out(draws: Streams, num_frames: int, height: int, width: int) -> MovingScene:
    """Draw up one scene for each stream."""
    batch, side, slots = len(draws.keys), np.float32(min(height, width)), 1 + _NUM_SMALL
    size = np.array([width, height], np.float32)
    time = np.arange(num_frames)

    def choose(number: int, *shape: int) -> Ints:
        return (draws.uniform(*shape) * number).astype(np.int64)

    radius = np.concatenate(
        [draws.uniform(1, low=0.26, high=0.32), draws.uniform(_NUM_SMALL, low=_SMALL[0], high=_SMALL[1])], axis=1
    )
    radius *= side

    # The subject's directions and speeds leave gaps between their classes: no clip lies on a border. The smaller shapes
    # are as fast, in any direction.
    direction, speed = choose(len(DIRECTIONS), 1), choose(len(SPEEDS), 1)
    heading = direction * (len(HEADINGS) // len(DIRECTIONS)) + choose(97, 1) - 48  # within 17 of 22.5 degrees
    heading = np.concatenate([heading, choose(len(HEADINGS), _NUM_SMALL)], 1) % len(HEADINGS)
    pace = np.concatenate(
        [
            (1 << speed).astype(np.float32) * draws.uniform(1, low=1, high=1.6),
            draws.uniform(_NUM_SMALL, low=1, high=6.4),
        ],
        axis=1,
    )
    velocity = HEADINGS[heading] * (pace * (side / 64))[..., None]

    # The world of the subject is a torus, the picture with its opposite borders joined. There, and nowhere with walls,
    # a place drawn uniformly stays uniform whatever the velocity, so that no frame tells where a subject is going. The
    # smaller shapes go to and fro between the borders, which is half of a round trip.
    margin = np.float32(REACH) * radius[:, 1:, None]
    room = size - 2 * margin
    tour = np.concatenate([np.broadcast_to(size, (batch, 1, 2)), 2 * room], 1)
    place = draws.uniform(slots, 2)[:, :, None] + time.astype(np.float32)[:, None] * (velocity / tour)[:, :, None]
    place -= np.floor(place)
    centre = np.empty_like(place)
    centre[:, 0] = place[:, 0] * size
    centre[:, 1:] = margin[:, :, None] + room[:, :, None] * np.abs(2 * place[:, 1:] - 1)

    spin = choose(2 * _MAX_SPIN + 1, slots) - _MAX_SPIN
    angle = choose(len(HEADINGS), slots)[..., None] + spin[..., None] * time
    ground = draw_ground(draws)
    return MovingScene(
        direction=direction[:, 0],
        speed=speed[:, 0],
        kind=choose(len(KINDS), slots),
        square=choose(2, slots),
        in_front=choose(2, _NUM_SMALL) == 1,
        centre=centre,
        orientation=HEADINGS[angle % len(HEADINGS)],
        radius=radius,
        period=draws.uniform(slots, low=PERIOD[0], high=PERIOD[1]) * side,
        phase=draws.uniform(slots, 2),
        wave=HEADINGS[choose(len(HEADINGS), slots, 2)] * draws.uniform(slots, 2, 1, low=1.25, high=2.5) / side,
        start=draws.uniform(slots, 2),
        colour=draw_colours(draws, slots, patterned=slots),
        texture=draw_texture(draws, ground),
    )


def _wave(cycles: Floats) -> Floats:
    """A wave like a sine, of arcs of parabolas, between -1/2 and 1/2."""
    cycles = cycles - np.floor(cycles) - 0.5
    return cycles * (8 * np.abs(cycles) - 4)


def _draw(scene: MovingScene, slots: slice, dx: Floats, dy: Floats) -> tuple[Floats, Floats]:
    """Draw the shapes in N slots at the places dx `[B, N, T, W]` and dy `[B, N, T, H]` from their centres.

    Returns:
        Their cover and the share of their second colour, both `[B, N, T, H, W]`.
    """
    cover = np.empty((*dx.shape[:3], dy.shape[3], dx.shape[3]), np.float32)
    second = np.empty_like(cover)
    fields = (scene.orientation, scene.square, scene.radius, scene.period, scene.phase, scene.wave, scene.start)
    for kind in range(len(KINDS)):
        of_kind = scene.kind[:, slots] == kind
        orientation, *rest = (field[:, slots][of_kind] for field in fields)
        # Beside [n, T, H, W], with what is of u and of v apart: [n, ...] becomes [..., n, 1, 1, 1].
        square, radius, period, phase, wave, start = (np.moveaxis(part, 0, -1)[..., None, None, None] for part in rest)
        u, v = rotate(dx[of_kind], dy[of_kind], orientation)
        cover[of_kind] = np.clip(0.5 - outline(u, v, radius, square), 0, 1)
        bent = [
            place / period + shift + _wave(u * along[0] + v * along[1] + begin)
            for place, shift, along, begin in zip((u, v), phase, wave, start, strict=True)
        ]
        second[of_kind] = pattern(kind, *bent)
    return cover, second


def paint(scene: MovingScene, draws: Streams, height: int, width: int) -> NDArray[np.uint8]:
    """Paint a scene: clips `[B, T, 3, H, W]`."""
    batch, _, frames, _ = scene.centre.shape
    x, y = np.arange(width, dtype=np.float32) + 0.5, np.arange(height, dtype=np.float32) + 0.5
    dx, dy = x - scene.centre[:, :1, :, :1], y - scene.centre[:, :1, :, 1:]
    dx -= width * np.floor(dx / width + 0.5)  # on a torus: from the nearest of its centres
    dy -= height * np.floor(dy / height + 0.5)
    subject_cover, subject_second = (part[:, 0] for part in _draw(scene, slice(1), dx, dy))

    # A smaller shape is drawn on a square of pixels around it alone, which may lie beyond the borders; it does not.
    reach = int(np.ceil(_SMALL[1] * REACH * min(height, width))) + 1
    window = np.floor(scene.centre[:, 1:, :, :, None]).astype(np.int64) + np.arange(-reach, reach)
    away = window.astype(np.float32) + np.float32(0.5) - scene.centre[:, 1:, :, :, None]
    cover, second = _draw(scene, slice(1, None), away[..., 0, :], away[..., 1, :])
    columns, rows = window[..., 0, :] % width, window[..., 1, :] % height
    frame = np.arange(batch * frames).reshape(batch, 1, frames, 1)
    place = ((frame * height + rows) * width)[..., None] + columns[..., None, :]

    image = np.empty((3, batch, frames, height, width), np.float32)  # so that one place serves all three colours
    image[:] = upsample(scene.texture, height, width).swapaxes(0, 1)[:, :, None]
    pixels = image.reshape(3, -1)
    colour = scene.colour.transpose(2, 3, 0, 1)[..., None, None, None]  # [2, 3, B, S, 1, 1, 1]

    def add_small(in_front: bool) -> None:
        for small in range(_NUM_SMALL):
            clips = scene.in_front[:, small] == in_front
            part = pixels[:, place[clips, small]]
            first, other = colour[:, :, clips, 1 + small]
            lay_over(part, first, other, second[clips, small], cover[clips, small], np.empty_like(part))
            pixels[:, place[clips, small]] = part

    add_small(in_front=False)
    first, other = colour[:, :, :, 0]
    lay_over(image, first, other, subject_second, subject_cover, np.empty_like(image))
    add_small(in_front=True)
    return to_bytes(image.transpose(1, 2, 0, 3, 4), draws)

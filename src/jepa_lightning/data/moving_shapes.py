"""Rendered clips of moving shapes: a labelled video data set that needs no download."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from jepa_lightning.data.rendered import SPLITS, RenderedDataModule
from jepa_lightning.data.rendering import (
    HEADINGS,
    KINDS,
    PERIOD,
    REACH,
    Draws,
    Floats,
    Ints,
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

DIRECTIONS = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")
SPEEDS = ("slow", "medium", "fast")
_NUM_SMALL = 3
_SMALL = (0.11, 0.15)  # radii of the smaller shapes, in units of the image's shorter side
_MAX_SPIN = 32  # of 1024 parts of a turn, a frame
_PIXEL_MEAN, _PIXEL_STD = 127.5, 33.5  # of the rendered 8-bit values, over all channels
_CHUNK_PIXELS = 1 << 19  # pixels painted at a time, which bounds the memory; smaller chunks take longer


class MovingShapesBatch(NamedTuple):
    """A batch of clips of moving shapes (or, without the leading `B`, one sample).

    Attributes:
        clip: `[B, 3, T, H, W]` float32, about zero mean and unit variance.
        kind: `[B]` int64, the kind of the subject (the largest shape), an index into `KINDS`.
        direction: `[B]` int64, the direction that the subject moves in, an index into `DIRECTIONS`.
        speed: `[B]` int64, the class of its speed, an index into `SPEEDS`.
        position: `[B, T, 2]` float32, its centre in each frame as (x, y) in [0, 1] from the top left corner.
    """

    clip: Tensor
    kind: Tensor
    direction: Tensor
    speed: Tensor
    position: Tensor


class Scene(NamedTuple):
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


def lay_out(draws: Draws, num_frames: int, height: int, width: int) -> Scene:
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
    return Scene(
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


def _draw(scene: Scene, slots: slice, dx: Floats, dy: Floats) -> tuple[Floats, Floats]:
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


def paint(scene: Scene, draws: Draws, height: int, width: int) -> NDArray[np.uint8]:
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


class MovingShapesDataset(Dataset[MovingShapesBatch]):
    """Clips of one large patterned shape, the *subject*, and three smaller ones that move and turn.

    What a clip shows has two sides, with labels of their own. The subject's *kind* is the pattern of its surface, one
    of those of `ShapesDataset`; any frame shows it. Its *direction* and *speed* are in no frame: they take two.

    The subject has a constant velocity, in any of eight directions (within 17 degrees) and three speeds (0.016 to
    0.025, 0.031 to 0.05 and 0.063 to 0.1 of the image's shorter side a frame: half a pixel to three at 32 pixels), and
    turns by up to 11 degrees a frame. What of it leaves the picture comes in on the opposite side: on such a torus, its
    place in each frame is uniform and independent of its velocity, as are its angle and its looks. Between walls, a
    shape close to the left one would have to be going right soon, and a single frame would tell. Nothing is blurred by
    motion either.

    The smaller shapes have kinds and speeds of their own. They bounce off the borders and pass over and behind each
    other and the subject. The background is at rest.

    Every clip is a pure function of the seed, the split and its index, the same bytes on every machine and in every
    worker. It does not depend on `num_clips`, more frames go on where fewer stop, and another image size shows the same
    scene at another resolution.

    A whole batch is rendered at once where the loader asks for one: pass `collate_fn=MovingShapesDataset.collate` to a
    `DataLoader`. That takes about 0.4 ms a clip of 8 frames of 32 pixels in batches of 64, on one core.

    Args:
        num_clips: length of the data set.
        num_frames: frames of a clip; 1 for images, `[3, H, W]`.
        image_size: side of the square frames, or their (rows, columns); at least 16.
        seed: any integer in [0, 2**63); other seeds give other clips.
        split: "train", "val" or "test", three disjoint streams of clips.

    Raises:
        ValueError: for an argument out of range.

    Example:
        >>> dataset = MovingShapesDataset(100)
        >>> sample = dataset[7]
        >>> sample.clip.shape, dataset.kinds[sample.kind], dataset.directions[sample.direction]
        (torch.Size([3, 8, 32, 32]), 'stripes', 'right')
    """

    kinds, directions, speeds = KINDS, DIRECTIONS, SPEEDS

    def __init__(
        self,
        num_clips: int,
        num_frames: int = 8,
        image_size: int | list[int] = 32,
        seed: int = 0,
        split: str = "train",
    ) -> None:
        rows_columns = [image_size] * 2 if isinstance(image_size, int) else list(image_size)
        if len(rows_columns) != 2 or min(rows_columns) < 16:
            raise ValueError(
                f"image_size={image_size!r} is neither a side in pixels nor [rows, columns]; give sizes of at least 16."
            )
        if num_clips < 1:
            raise ValueError(f"num_clips={num_clips} leaves no clip; give at least 1.")
        if num_frames < 1:
            raise ValueError(f"num_frames={num_frames} leaves no frame; give at least 1.")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed={seed} is out of range; give an integer from 0 to 2**63 - 1.")
        if split not in SPLITS:
            raise ValueError(f"split={split!r} does not exist; choose one of {', '.join(SPLITS)}.")
        self.num_clips, self.num_frames, self.seed, self.split = num_clips, num_frames, seed, split
        self.height, self.width = rows_columns

    def __len__(self) -> int:
        return self.num_clips

    def __getitem__(self, index: int) -> MovingShapesBatch:
        return MovingShapesBatch(*(item[0] for item in self.__getitems__([index])))

    def __getitems__(self, indices: list[int]) -> MovingShapesBatch:
        """Render the batch of the given clips.

        Raises:
            IndexError: if an index is outside the data set (negative ones count from its end).
        """
        index = np.asarray(indices, np.int64)
        index = np.where(index < 0, index + self.num_clips, index)
        if ((index < 0) | (index >= self.num_clips)).any():
            raise IndexError(f"indices {indices} go beyond the {self.num_clips} clips of this data set.")
        step = max(1, _CHUNK_PIXELS // (self.num_frames * self.height * self.width))
        chunks = [self._render(index[start : start + step]) for start in range(0, len(index), step)]
        return MovingShapesBatch(*map(torch.cat, zip(*chunks, strict=True)))

    def _render(self, index: Ints) -> MovingShapesBatch:
        draws = Draws(self.seed, SPLITS.index(self.split), index)
        scene = lay_out(draws, self.num_frames, self.height, self.width)
        pixels = torch.from_numpy(paint(scene, draws, self.height, self.width)).transpose(1, 2)
        clips = pixels.float().sub_(_PIXEL_MEAN).div_(_PIXEL_STD).contiguous()
        return MovingShapesBatch(
            clips if self.num_frames > 1 else clips.squeeze(2),
            torch.from_numpy(scene.kind[:, 0].copy()),
            torch.from_numpy(scene.direction),
            torch.from_numpy(scene.speed),
            torch.from_numpy(scene.centre[:, 0] / np.array([self.width, self.height], np.float32)),
        )

    @staticmethod
    def collate(batch: Any) -> Any:
        """Pass on the batch that `__getitems__` has rendered."""
        return batch


class MovingShapesDataModule(RenderedDataModule):
    """Clips of moving shapes for training, validation and testing; see `MovingShapesDataset`.

    Batches are `MovingShapesBatch`es: `clip` is `[batch_size, 3, num_frames, H, W]`. Predicting uses the test clips.

    Args:
        image_size: side of the square frames, or their [rows, columns]; at least 16.
        num_frames: frames of a clip; 1 for images, `[batch_size, 3, H, W]`.
        num_train: number of training clips.
        num_val: number of validation clips, and of test clips.
        batch_size: clips per batch. Training drops an incomplete last batch.
        num_workers: worker processes per loader; 0 renders in the training process.
        seed: of the clips, an integer in [0, 2**63).

    Attributes:
        kinds: names of the kinds of shape; `MovingShapesBatch.kind` indexes them.
        directions: names of the directions, clockwise from the right; `MovingShapesBatch.direction` indexes them.
        speeds: names of the speeds, each twice the one before; `MovingShapesBatch.speed` indexes them.

    Raises:
        ValueError: for an argument out of range.

    Example:
        >>> datamodule = MovingShapesDataModule(num_train=64, num_val=16, batch_size=16, num_workers=0)
        >>> batch = next(iter(datamodule.train_dataloader()))
        >>> batch.clip.shape, batch.position.shape
        (torch.Size([16, 3, 8, 32, 32]), torch.Size([16, 8, 2]))
    """

    kinds, directions, speeds = KINDS, DIRECTIONS, SPEEDS

    def __init__(
        self,
        image_size: int | list[int] = 32,
        num_frames: int = 8,
        num_train: int = 10_000,
        num_val: int = 2_000,
        batch_size: int = 64,
        num_workers: int = 1,
        seed: int = 0,
    ) -> None:
        def render(number: int, split: str) -> MovingShapesDataset:
            return MovingShapesDataset(number, num_frames, image_size, seed, split)

        super().__init__(render, num_train, num_val, batch_size, num_workers)
        self.save_hyperparameters(logger=False)  # a module may have an image_size of its own to log

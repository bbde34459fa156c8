"""Rendered clips of moving shapes: a labelled video data set that needs no download."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jepa_lightning.data.synthetic.moving_scenes import DIRECTIONS, SPEEDS, lay_out, paint
from jepa_lightning.data.synthetic.painting import KINDS
from jepa_lightning.data.synthetic.rendered import RenderedDataModule, RenderedDataset
from jepa_lightning.data.synthetic.streams import Streams

_PIXEL_MEAN, _PIXEL_STD = 127.5, 33.5  # of the rendered 8-bit values, over all channels


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


class MovingShapesDataset(RenderedDataset):
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
    batch = MovingShapesBatch
    chunk_pixels = 1 << 19  # which bounds the memory; smaller chunks take longer

    def __init__(
        self,
        num_clips: int,
        num_frames: int = 8,
        image_size: int | list[int] = 32,
        seed: int = 0,
        split: str = "train",
    ) -> None:
        super().__init__(num_clips, image_size, seed, split)
        if num_frames < 1:
            raise ValueError(f"num_frames={num_frames} leaves no frame; give at least 1.")
        self.num_frames = num_frames

    @property
    def frames(self) -> int:
        """Those of a clip."""
        return self.num_frames

    def render(self, draws: Streams) -> MovingShapesBatch:
        """Draw up the scenes, and paint them."""
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

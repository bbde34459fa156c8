"""Rendered images of shapes on cluttered backgrounds: a labelled data set that needs no download."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jepa_lightning.data.synthetic.painting import KINDS
from jepa_lightning.data.synthetic.rendered import RenderedDataModule, RenderedDataset
from jepa_lightning.data.synthetic.still_scenes import ABSENT, MAX_COUNT, lay_out, paint
from jepa_lightning.data.synthetic.streams import Streams

_PIXEL_MEAN, _PIXEL_STD = 127.5, 39.5  # of the rendered 8-bit values, over all channels


class ShapesBatch(NamedTuple):
    """A batch of shape images (or, without the leading `B`, one sample).

    Attributes:
        image: `[B, 3, H, W]` float32, about zero mean and unit variance.
        kind: `[B]` int64, the kind of the subject (the largest shape), an index into `KINDS`.
        count: `[B]` int64, the number of shapes, 1 to 3.
        positions: `[B, 3, 2]` float32, the shapes' centres as (x, y) in [0, 1] from the top left corner, the
            subject's first; the rows of absent shapes are NaN.
        segmentation: `[B, H, W]` int64, 0 for background and `k + 1` for a pixel of a shape of kind `k`.
    """

    image: Tensor
    kind: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which no batch needs
    positions: Tensor
    segmentation: Tensor


class ShapesDataset(RenderedDataset):
    """Images of one to three patterned shapes over a cluttered background, rendered on the fly.

    A shape's *kind* is the pattern of its surface, in two colours: stripes, bars, checkers, dots, rings or a grid. Its
    outline, a disc or a square, is drawn apart from that, as are its colours, size, angle and place, and patterns are
    bent at random. The largest shape, the *subject*, gives an image its label.

    That leaves little for a comparison of pixels to go by, while patches of a shape still show their kind, and context
    tells something about target: so this is learned within minutes. Of images of 32 pixels, the 20 nearest of 10,000
    name the kind in 17 of 100 cases, which is chance, the nearest alone in 26, and the vote of `KNNProbe`, on
    standardised pixels and weighted, in about 30.

    Every image is a pure function of the seed, the split and its index, the same bytes on every machine and in every
    worker. It does not depend on `num_images`, and another image size shows the same scene at another resolution.

    A whole batch is rendered at once where the loader asks for one: pass `collate_fn=ShapesDataset.collate` to a
    `DataLoader`.

    Args:
        num_images: length of the data set.
        image_size: side of the square images, or their (rows, columns); at least 16.
        seed: any integer in [0, 2**63); other seeds give other images.
        split: "train", "val" or "test", three disjoint streams of images.

    Raises:
        ValueError: for an argument out of range.

    Example:
        >>> dataset = ShapesDataset(100, image_size=32)
        >>> sample = dataset[7]
        >>> sample.image.shape, dataset.kinds[sample.kind]
        (torch.Size([3, 32, 32]), 'dots')
    """

    kinds = KINDS
    batch = ShapesBatch
    chunk_pixels = 1 << 16  # the temporary arrays stay in the processor's cache

    def __init__(self, num_images: int, image_size: int | list[int] = 64, seed: int = 0, split: str = "train") -> None:
        super().__init__(num_images, image_size, seed, split)

    def render(self, draws: Streams) -> ShapesBatch:
        """Draw up the scenes, and paint them."""
        scene = lay_out(draws, self.height, self.width)
        pixels, segmentation = paint(scene, draws, self.height, self.width)
        present = scene.kind[:, :MAX_COUNT] != ABSENT
        positions = scene.centre[:, :MAX_COUNT] / np.array([self.width, self.height], np.float32)
        positions[~present] = np.nan
        return ShapesBatch(
            torch.from_numpy(pixels).float().sub_(_PIXEL_MEAN).div_(_PIXEL_STD),
            torch.from_numpy(scene.kind[:, 0].copy()),
            torch.from_numpy(present.sum(1, dtype=np.int64)),
            torch.from_numpy(positions),
            torch.from_numpy(segmentation),
        )


class ShapesDataModule(RenderedDataModule):
    """Shape images for training, validation and testing; see `ShapesDataset`.

    Batches are `ShapesBatch`es: `image` is `[batch_size, 3, H, W]`. Predicting uses the test images.

    Args:
        image_size: side of the square images, or their [rows, columns]; at least 16.
        num_train: number of training images.
        num_val: number of validation images, and of test images.
        batch_size: images per batch. Training drops an incomplete last batch.
        num_workers: worker processes per loader; 0 renders in the training process.
        seed: of the images, an integer in [0, 2**63).

    Attributes:
        kinds: names of the kinds of shape; `ShapesBatch.kind` indexes them.

    Raises:
        ValueError: for an argument out of range.

    Example:
        >>> datamodule = ShapesDataModule(image_size=32, num_train=64, num_val=16, batch_size=16, num_workers=0)
        >>> batch = next(iter(datamodule.train_dataloader()))
        >>> batch.image.shape, batch.kind.shape
        (torch.Size([16, 3, 32, 32]), torch.Size([16]))
    """

    kinds = KINDS

    def __init__(
        self,
        image_size: int | list[int] = 64,
        num_train: int = 50_000,
        num_val: int = 2_000,
        batch_size: int = 256,
        num_workers: int = 1,
        seed: int = 0,
    ) -> None:
        def render(number: int, split: str) -> ShapesDataset:
            return ShapesDataset(number, image_size, seed, split)

        super().__init__(render, num_train, num_val, batch_size, num_workers)
        self.save_hyperparameters(logger=False)  # a module may have an image_size of its own to log

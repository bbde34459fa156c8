"""What the rendered data sets share: samples that are functions of seed, split and index, a batch at a time."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from jepa_lightning.data.datamodule import ROLES, SplitDataModule, pass_on
from jepa_lightning.data.synthetic.streams import Streams


class DrawnDataset(Dataset[Any]):
    """Samples that are made when they are read.

    Args:
        number: length of the data set.
        seed: any integer in [0, 2**63).
        split: "train", "val" or "test".

    Raises:
        ValueError: for an argument out of range.
    """

    batch: Any  # the NamedTuple that batches are

    def __init__(self, number: int, seed: int, split: str) -> None:
        if number < 1:
            raise ValueError(f"a data set of {number} samples has none; give at least 1.")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed={seed} is out of range; give an integer from 0 to 2**63 - 1.")
        if split not in ROLES:
            raise ValueError(f"split={split!r} does not exist; choose one of {', '.join(ROLES)}.")
        self.number, self.seed, self.split = number, seed, split

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> Any:
        return self.batch(*(item[0] for item in self.__getitems__([index])))

    def __getitems__(self, indices: list[int]) -> Any:
        """Make the batch of the given samples.

        Raises:
            IndexError: if an index is outside the data set (negative ones count from its end).
        """
        index = np.asarray(indices, np.int64)
        index = np.where(index < 0, index + self.number, index)
        if ((index < 0) | (index >= self.number)).any():
            raise IndexError(f"indices {indices} go beyond the {self.number} samples of this data set.")
        chunks = [
            self.render(Streams(self.seed, ROLES.index(self.split), index[start : start + self.chunk]))
            for start in range(0, len(index), self.chunk)
        ]
        return chunks[0] if len(chunks) == 1 else self.batch(*map(torch.cat, zip(*chunks, strict=True)))

    @property
    @abstractmethod
    def chunk(self) -> int:
        """Samples that are made at a time."""

    @abstractmethod
    def render(self, draws: Streams) -> Any:
        """The batch of the samples that streams of random numbers draw up."""

    collate = staticmethod(pass_on)


class RenderedDataset(DrawnDataset):
    """Pictures that are rendered when they are read.

    Args:
        number: length of the data set.
        image_size: side of the square pictures, or their (rows, columns); at least 16.
        seed: any integer in [0, 2**63).
        split: "train", "val" or "test".

    Raises:
        ValueError: for an argument out of range.
    """

    chunk_pixels: int  # painted at a time

    def __init__(self, number: int, image_size: int | list[int], seed: int, split: str) -> None:
        rows_columns = [image_size] * 2 if isinstance(image_size, int) else list(image_size)
        if len(rows_columns) != 2 or min(rows_columns) < 16:
            raise ValueError(
                f"image_size={image_size!r} is neither a side in pixels nor [rows, columns]; give sizes of at least 16."
            )
        super().__init__(number, seed, split)
        self.height, self.width = rows_columns

    @property
    def chunk(self) -> int:
        """Samples that are painted at a time."""
        return max(1, self.chunk_pixels // (self.frames * self.height * self.width))

    @property
    def frames(self) -> int:
        """Pictures in a sample."""
        return 1


class RenderedDataModule(SplitDataModule):
    """Samples for training, validation and testing that are rendered when they are read; predicting uses the test's.

    Args:
        render: the data set of a number of samples of a split, `render(number, split)`.
        num_train: number of training samples.
        num_val: number of validation samples, and of test samples.
        batch_size: samples per batch.
        num_workers: worker processes per loader; 0 renders in the training process.

    Raises:
        ValueError: for an argument out of range.
    """

    def __init__(
        self,
        render: Callable[[int, str], DrawnDataset],
        num_train: int,
        num_val: int,
        batch_size: int,
        num_workers: int,
    ) -> None:
        super().__init__(batch_size, num_workers)
        if batch_size > num_train:
            raise ValueError(
                f"batch_size={batch_size} must be from 1 to num_train={num_train}, since an incomplete training "
                "batch is dropped."
            )
        if num_val < 1:
            raise ValueError(f"num_val={num_val} leaves no validation sample; give at least 1.")
        numbers = zip(ROLES, (num_train, num_val, num_val), strict=True)
        self.sets = {role: render(number, role) for role, number in numbers}

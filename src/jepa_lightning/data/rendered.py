"""What the DataModules of rendered data share: three splits and their loaders."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from jepa_lightning.data.order import Order, ResumableLoader

SPLITS = ("train", "val", "test")


class RenderedDataModule(pl.LightningDataModule):
    """Samples for training, validation and testing that are rendered when they are read; predicting uses the test's.

    Args:
        render: the data set of a number of samples of a split, `render(number, split)`; its `__getitems__` gives whole
            batches, which its `collate` passes on.
        num_train: number of training samples.
        num_val: number of validation samples, and of test samples.
        batch_size: samples per batch.
        num_workers: worker processes per loader; 0 renders in the training process.

    Raises:
        ValueError: for an argument out of range.
    """

    def __init__(
        self, render: Callable[[int, str], Any], num_train: int, num_val: int, batch_size: int, num_workers: int
    ) -> None:
        super().__init__()
        if not 1 <= batch_size <= num_train:
            raise ValueError(
                f"batch_size={batch_size} must be from 1 to num_train={num_train}, since an incomplete training "
                "batch is dropped."
            )
        if num_workers < 0:
            raise ValueError(f"num_workers={num_workers} is negative; give 0 to render in the training process.")
        if num_val < 1:
            raise ValueError(f"num_val={num_val} leaves no validation sample; give at least 1.")
        self.batch_size, self.num_workers = batch_size, num_workers
        numbers = (num_train, num_val, num_val)
        self.train_set, self.val_set, self.test_set = map(render, numbers, SPLITS)

    def _loader(self, dataset: Any, sampler: Order | None = None) -> DataLoader[Any]:
        return (DataLoader if sampler is None else ResumableLoader)(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # the default one, which dropout draws from, is left alone
            collate_fn=dataset.collate,
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches in random order, without an incomplete last one."""
        return self._loader(self.train_set, Order(self.train_set, self.batch_size, self.trainer))

    def val_dataloader(self) -> DataLoader[Any]:
        """The held-out samples, in order."""
        return self._loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Any]:
        """The test samples, in order."""
        return self._loader(self.test_set)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test samples, in order."""
        return self.test_dataloader()

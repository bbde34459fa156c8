"""What all DataModules share: a data set for each role, and the loaders of these."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from jepa_lightning.data.faults import FaultCountingLoader
from jepa_lightning.data.lengths import LengthOrder
from jepa_lightning.data.resume import Order, ResumableLoader, Visits, rank_and_ranks

ROLES = ("train", "val", "test")


class SplitDataModule(pl.LightningDataModule):
    """Samples for training, validation and testing; predicting uses the test's.

    A subclass fills `sets`, a data set for each role that there is: `train`, `val`, `test`. A batch is what the
    `__getitems__` of a data set gives for a list of indices.

    Args:
        batch_size: samples per batch. Training drops an incomplete last batch.
        num_workers: worker processes per loader; 0 loads in the training process.

    Raises:
        ValueError: for an argument out of range.
    """

    loader: type[DataLoader[Any]] = ResumableLoader

    def __init__(self, batch_size: int, num_workers: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        if num_workers < 0:
            raise ValueError(f"num_workers={num_workers} is negative; give 0 to load in the training process.")
        self.sets: dict[str, Any] = {}
        self.batch_size, self.num_workers = batch_size, num_workers

    @property
    def batch_size(self) -> int:
        """Samples per batch. Once the data are known, no more than make a training batch: a search goes beyond that."""
        return self._batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        most = self.largest_batch(len(self.sets["train"])) if "train" in self.sets else value
        if value > most:
            rank_zero_warn(
                f"there are no more training samples than for batch_size={most}, which is taken, not {value}."
            )
        self._batch_size = min(value, most)

    def largest_batch(self, samples: int) -> int:
        """The largest batch that so many training samples make on each rank."""
        return samples // rank_and_ranks()[1]

    def order(self, samples: Any) -> Order:
        """The order of the training samples."""
        return Order(samples, self.batch_size, self.trainer)

    def _loader(self, role: str) -> Any:
        if role not in self.sets:
            return []  # Lightning's way to skip validation
        samples = self.sets[role]
        if "batch_size" in self.hparams:  # what a search has set it to
            self.hparams["batch_size"] = self.batch_size
        order = self.order(samples) if role == "train" else None
        return self.loader(
            samples,
            batch_size=None if isinstance(order, LengthOrder) else self.batch_size,  # that makes the batches itself
            sampler=order,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # the default one, which dropout draws from, is left alone
            collate_fn=pass_on,
        )

    def train_dataloader(self) -> Any:
        """Batches in random order, without an incomplete last one."""
        return self._loader("train")

    def val_dataloader(self) -> Any:
        """The held-out samples, in order."""
        return self._loader("val")

    def test_dataloader(self) -> Any:
        """The test samples, in order."""
        return self._loader("test")

    def predict_dataloader(self) -> Any:
        """The test samples, in order."""
        return self._loader("test")


class FilesDataModule(SplitDataModule):
    """Samples that are read from files, some of which may be unreadable.

    The `__getitems__` of its data sets gives a batch, what could not be read for it, with the reasons, and how many
    files were tried.

    Args:
        batch_size: samples per batch. Training drops an incomplete last batch.
        num_workers: worker processes per loader; 0 loads in the training process.
        max_faulty: share of the files that may be unreadable, from 0 to below 1.

    Raises:
        ValueError: for an argument out of range.
    """

    loader = FaultCountingLoader

    def __init__(self, batch_size: int, num_workers: int, max_faulty: float) -> None:
        super().__init__(batch_size, num_workers)
        if not 0 <= max_faulty < 1:
            raise ValueError(f"max_faulty={max_faulty} must be a share of the files, from 0 to below 1.")
        self.max_faulty = max_faulty

    def order(self, samples: Any) -> Order:
        """The order of the training samples, which are drawn from at random."""
        return Visits(samples, self.batch_size, self.trainer)

    def check_found(self, stage: str | None) -> None:
        """Raise a FileNotFoundError if a stage is for held-out samples, and there are none; a fit goes without."""
        if stage not in (None, "fit") and not set(roles_of(stage)) <= set(self.sets):
            raise FileNotFoundError(
                f"{type(self).__name__} has found no held-out data, to validate, test or predict on: those of folders, "
                "lists and shards are in root/val."
            )

    @property
    def faulty(self) -> dict[str, str]:
        """The files that could not be read so far, with the reasons."""
        return {name: reason for samples in self.sets.values() for name, reason in samples.faults.reasons.items()}


def pass_on(batch: Any) -> Any:
    """Collate the batch that `__getitems__` has already made."""
    return batch


def roles_of(stage: str | None) -> tuple[str, ...]:
    """The roles whose samples a stage of the Trainer takes ("fit", "validate", "test", "predict"; None for all)."""
    roles = {None: ROLES, "fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}
    return roles[stage]

"""What the DataModules of files share: their loaders, which count and name what cannot be read."""

from abc import abstractmethod
from typing import Any

import lightning.pytorch as pl
import torch

from jepa_lightning.data.faults import TellingLoader
from jepa_lightning.data.order import Order


class FilesDataModule(pl.LightningDataModule):
    """Samples for training, validation and testing that are read from files; predicting uses the test's.

    A subclass sets `batch_size` and `num_workers`, and its `setup` fills `_sets`, a data set for each role that there
    is: `train`, `val`, `test`. Their `__getitems__` gives a batch, what could not be read for it, with the reasons, and
    how many files were tried.
    """

    batch_size: int
    num_workers: int

    def __init__(self) -> None:
        super().__init__()
        self._sets: dict[str, Any] = {}

    @abstractmethod
    def order(self, samples: Any) -> Order:
        """The order of the training samples."""

    @property
    def faulty(self) -> dict[str, str]:
        """The files that could not be read so far, with the reasons."""
        return {name: reason for samples in self._sets.values() for name, reason in samples.faults.reasons.items()}

    def _loader(self, role: str) -> TellingLoader | list[Any]:
        if role not in self._sets:
            return []  # Lightning's way to skip validation
        samples = self._sets[role]
        return TellingLoader(
            samples,
            batch_size=self.batch_size,
            sampler=self.order(samples) if role == "train" else None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # the default one, which dropout draws from, is left alone
            collate_fn=_pass_on,
        )

    def train_dataloader(self) -> TellingLoader | list[Any]:
        """Batches in random order, without an incomplete last one."""
        return self._loader("train")

    def val_dataloader(self) -> TellingLoader | list[Any]:
        """The held-out samples, in order."""
        return self._loader("val")

    def test_dataloader(self) -> TellingLoader | list[Any]:
        """The test samples, in order."""
        return self._loader("test")

    def predict_dataloader(self) -> TellingLoader | list[Any]:
        """The test samples, in order."""
        return self._loader("test")


def _pass_on(batch: Any) -> Any:
    """Collate the batch that `__getitems__` has already made."""
    return batch

"""Callbacks that remember: what they remember is of one training of one module."""

from __future__ import annotations

import weakref
from abc import abstractmethod

import lightning.pytorch as pl

_MODULES: weakref.WeakKeyDictionary[pl.Callback, weakref.ref[pl.LightningModule]] = weakref.WeakKeyDictionary()


class RememberingCallback(pl.Callback):
    """Forgets what it knows of an earlier training when a fit begins, or when it is given another module.

    A training that is resumed goes on with the memory of the checkpoint, which is loaded afterwards.
    """

    @abstractmethod
    def forget(self) -> None:
        """Be as new."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget, unless the module that was trained is looked at once more."""
        last = _MODULES.get(self)
        if stage == "fit" or (last is not None and last() is not pl_module):
            self.forget()
        _MODULES[self] = weakref.ref(pl_module)


def has_held_out(trainer: pl.Trainer) -> bool:
    """Whether a fit has held-out data; before its first validation, whether it is given any."""
    if trainer.val_dataloaders is None:
        return trainer.enable_validation
    return sum(trainer.num_val_batches) > 0

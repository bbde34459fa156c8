"""How fast a training runs."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl

from jepa_lightning import batches


class Throughput(pl.Callback):
    """Logs `train/images_per_second`, over all processes, to the loggers and the progress bar.

    The rate is that of the last `window` batches, with the time spent waiting for data and without that of validation.

    Args:
        window: batches a reading averages over, at least 1.

    Raises:
        ValueError: a window below 1.
    """

    def __init__(self, window: int = 20) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self.window = window
        self._restart()

    def _restart(self) -> None:
        self._since = time.perf_counter()
        self._batches = 0
        self._images = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock: an epoch that is resumed does not start again."""
        self._restart()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._restart()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the time of a validation out."""
        self._restart()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the batch; at the end of a window, log."""
        self._images += len(batches.observations(batch, pl_module.reads)[0])
        self._batches += 1
        if self._batches == self.window:
            rate = self._images * trainer.world_size / (time.perf_counter() - self._since)
            pl_module.log("train/images_per_second", rate, prog_bar=True)
            self._restart()

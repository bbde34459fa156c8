"""What a nearest-neighbour probe has to pass: the raw input, and the same module untrained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from jepa_lightning.step import Latents


class Baselines:
    """Reads two probes beside another one until the first validation with a full bank, and keeps what they read.

    Args:
        probe: makes a probe of a source, like the one whose baselines these are.
        pl_module: the module before its first step, of which a copy stays untrained.
    """

    def __init__(self, probe: Callable[[str], Any], pl_module: Any) -> None:
        self.probes = {"raw": probe("observation"), "untrained": probe("features")}
        # The Trainer is not copied with its module.
        self.untrained = copy.deepcopy(pl_module, {id(pl_module.trainer): pl_module.trainer}).eval()

    def fit(self, trainer: pl.Trainer, pl_module: Any, batch: Any) -> None:
        """Learn from a training batch, until the bank is full."""
        if not self._full:
            for probe, outputs in self._outputs(batch):
                probe.on_train_batch_end(trainer, pl_module, outputs, batch, 0)

    @property
    def _full(self) -> bool:
        return all(probe.full for probe in self.probes.values())

    def ready(self, trainer: pl.Trainer) -> bool:
        """Whether a validation is to read them: the bank is full, or will be no fuller."""
        return self._full or trainer.is_last_batch

    def start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begin to read."""
        for probe in self.probes.values():
            probe.on_validation_epoch_start(trainer, pl_module)

    def score(self, trainer: pl.Trainer, pl_module: Any, batch: Any) -> None:
        """Read a held-out batch."""
        for probe, outputs in self._outputs(batch):
            probe.on_validation_batch_end(trainer, pl_module, outputs, batch, 0)

    def readings(self) -> dict[str, Tensor]:
        """The accuracies."""
        return {name: probe.scores()["accuracy"] for name, probe in self.probes.items()}

    @torch.no_grad()
    def _outputs(self, batch: Any) -> list[tuple[Any, dict[str, Any]]]:
        latents = Latents({}, {}, self.untrained.features(batch))
        return [(probe, {"latents": latents}) for probe in self.probes.values()]

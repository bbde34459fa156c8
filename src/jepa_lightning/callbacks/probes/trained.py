"""Online probes that are trained: a network of their own takes a step with every step of the module."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jepa_lightning import batches
from jepa_lightning.batches import UNLABELLED
from jepa_lightning.callbacks.probes.base import Probe
from jepa_lightning.clock import clock


class TrainedProbe(Probe):
    """A classifier with weights, trained beside the model at every batch. Logs `accuracy`.

    Args:
        num_classes: number of classes.
        name: the probe's tags are `probe/<name>/<metric>`.
        label: the field of the batch that holds the class; the first label without.
        source: `features`, an embedding of the step by its name, or `observation` for the raw input.
        lr: learning rate of the probe's own AdamW; it falls to zero with the training's, so that the last reading is
            of a classifier that has settled.
    """

    def __init__(
        self,
        num_classes: int,
        name: str,
        label: str | None,
        source: str,
        lr: float,
    ) -> None:
        self.num_classes, self.lr = num_classes, lr
        super().__init__(name, label, source)
        if num_classes < 1 or not 0 < lr < math.inf:
            raise ValueError(
                f"the probe {name!r} needs at least one class or number and a positive lr, got {num_classes}, {lr}"
            )

    def forget(self) -> None:
        """Be as new: without a head."""
        super().forget()
        self._head: nn.Module | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._width = 0
        self._state: dict[str, Any] = {}

    @abstractmethod
    def build_head(self, pl_module: Any, width: int) -> nn.Module:
        """The classifier of inputs of a width."""

    def fit(self, trainer: pl.Trainer, pl_module: pl.LightningModule, inputs: Tensor, labels: Tensor) -> None:
        """One step of the classifier."""
        head, optimizer = self._trained(trainer, pl_module, self.width(inputs))
        remaining = 1.0 - clock(trainer).progress
        for group in optimizer.param_groups:
            group["lr"] = self.lr * min(1.0, 4.0 * remaining)
        outputs = head.train(len(inputs) > 1)(inputs)  # one image has no batch statistics
        optimizer.zero_grad()
        self.loss(outputs, labels).backward()
        optimizer.step()

    def check(self, labels: Tensor) -> None:
        """Raise a ValueError for a class that there is not."""
        try:
            batches.classes(labels, self.num_classes)
        except ValueError as error:
            raise ValueError(f"the probe {self.name!r}: {error}") from error

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """What the classifier minimises: the mean cross-entropy of what has a label."""
        self.check(labels)
        losses = F.cross_entropy(outputs, labels, ignore_index=UNLABELLED, reduction="sum")
        return losses / (labels != UNLABELLED).sum().clamp(min=1)

    def width(self, inputs: Tensor) -> int:
        """That of what the head is built for."""
        return inputs.shape[-1]

    @property
    def _classes(self) -> int:
        return self.num_classes

    @property
    def _fitted(self) -> bool:
        return self._head is not None

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Build the classifier of a checkpoint that is validated without training."""
        super().on_validation_epoch_start(trainer, pl_module)
        if self._state:
            self._trained(trainer, pl_module, self._state["width"])

    def predict(self, inputs: Tensor) -> Tensor:
        """The most likely class of each input."""
        assert self._head is not None, "the probe has not seen a training batch"
        return self._head.eval()(inputs).argmax(1)

    def _trained(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, width: int
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The classifier and its optimiser, made at the first batch."""
        if self._head is not None and self._optimizer is not None:
            return self._head, self._optimizer
        # Under a forked generator: a probe must not change the random numbers of the training it watches. Not in the
        # inference mode of a validation that comes first: such weights could not be trained.
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            head = self.build_head(pl_module, width).to(pl_module.device)
            self._optimizer = torch.optim.AdamW(head.parameters(), lr=self.lr, weight_decay=0.0)
            if self._state:
                head.load_state_dict(self._state["head"])
                self._optimizer.load_state_dict(self._state["optimizer"])
        self._width = width
        self._head = DistributedDataParallel(head) if trainer.world_size > 1 else head
        return self._head, self._optimizer

    def state_dict(self) -> dict[str, Any]:
        """The classifier and its optimiser."""
        if self._head is None or self._optimizer is None:
            return self._state
        head = self._head.module if isinstance(self._head, DistributedDataParallel) else self._head
        return {"head": head.state_dict(), "optimizer": self._optimizer.state_dict(), "width": self._width}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the first batch, which tells the width and the device."""
        self._state, self._head, self._optimizer = state_dict, None, None

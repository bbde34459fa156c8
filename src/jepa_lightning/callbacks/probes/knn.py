"""A probe without weights: the vote of the nearest training images."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from jepa_lightning.batches import UNLABELLED
from jepa_lightning.callbacks.probes.base import Probe
from jepa_lightning.callbacks.probes.baselines import Baselines


def vote(queries: Tensor, bank: Tensor, labels: Tensor, k: int, temperature: float, num_classes: int) -> Tensor:
    """The class with the largest vote of the nearest.

    Args:
        queries: `[Q, D]`.
        bank: `[N, D]`, standardised and normalised as the queries are.
        labels: LongTensor `[N]`, the classes of the bank.
        k: number of neighbours by cosine similarity that vote, all of the bank if it holds fewer.
        temperature: of the votes, whose weights are `exp(similarity / temperature)`.
        num_classes: number of classes.

    Returns:
        LongTensor `[Q]`.

    Source: Wu et al. (arXiv 1805.01978), section 3.4.
    """
    similarity, neighbours = (queries @ bank.T).topk(min(k, len(bank)))
    # Relative to the nearest: exp(1 / 0.07) alone would be 1.6 million.
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    votes = weights.new_zeros(len(queries), num_classes)
    return votes.scatter_add_(1, labels[neighbours], weights).argmax(1)


class KNNProbe(Probe):
    """A nearest-neighbour classifier on the features of the latest training images. Logs `accuracy`.

    Features are standardised by the bank's mean and std; the `k` nearest by cosine similarity vote with weights
    `exp(similarity / temperature)`. Nothing is fitted, so it cannot lag behind the encoder, and it takes any number of
    classes.

    With `baselines` it also logs `raw` and `untrained`: the same vote by the raw input, and by the features of the
    module before its first step, of which it keeps a copy until the first validation with a full bank; a sharded module
    cannot be copied.

    Args:
        name: the probe's tags are `probe/<name>/<metric>`.
        label: the field of the batch that holds the class; the first label without.
        source: `features`, an embedding of the step by its name, or `observation` for the raw input.
        k: neighbours that vote (all of the bank if it holds fewer).
        temperature: of the votes, above zero.
        bank_size: training images kept on each process.
        baselines: whether to say what an accuracy is to be compared with.

    Attributes:
        readings: the baselines by name, `raw` and `untrained`, once they are read.

    Raises:
        ValueError: a number out of its range.

    Source: the weighted vote is that of Wu et al. (arXiv 1805.01978), section 3.4.
    """

    def __init__(
        self,
        name: str = "knn",
        label: str | None = None,
        source: str = "features",
        k: int = 20,
        temperature: float = 0.07,
        bank_size: int = 10_000,
        baselines: bool = False,
    ) -> None:
        super().__init__(name, label, source)
        if k < 1 or temperature <= 0 or bank_size < 1:
            raise ValueError(f"k, temperature and bank_size must be positive, got {k}, {temperature}, {bank_size}")
        self.k = k
        self.temperature = temperature
        self.bank_size = bank_size
        self.baselines = baselines

    def forget(self) -> None:
        """Be as new: without a bank."""
        super().forget()
        self._inputs: Tensor | None = None
        self._labels: Tensor | None = None
        self._bank_labels: Tensor | None = None
        self._next = 0
        self.readings: dict[str, float] = {}
        self._references: Baselines | None = None
        self._reading = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Copy the untrained module; a training that is resumed has none."""
        if not self.baselines or trainer.global_step:
            return
        if pl_module.device_mesh is None:
            self._references = Baselines(self._like, pl_module)
        else:
            rank_zero_warn(f"the probe {self.name!r} reads no baselines: a sharded module cannot be copied")

    def _like(self, source: str) -> KNNProbe:
        return KNNProbe(self.name, self.label, source, self.k, self.temperature, self.bank_size)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Put the batch into the bank, and into those of the baselines."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._references:
            self._references.fit(trainer, pl_module, batch)

    def fit(self, trainer: pl.Trainer, pl_module: pl.LightningModule, inputs: Tensor, labels: Tensor) -> None:
        """Put the labelled images of the batch into the bank, over the oldest entries."""
        # No more than fit: a place written twice would get either.
        inputs, labels = (kept[labels != UNLABELLED][-self.bank_size :] for kept in (inputs, labels))
        if self._inputs is None or self._labels is None:
            self._inputs = inputs.new_zeros(self.bank_size, inputs.shape[1])
            self._labels = labels.new_full((self.bank_size,), UNLABELLED)
        self._inputs, self._labels = self._inputs.to(inputs.device), self._labels.to(labels.device)
        places = (self._next + torch.arange(len(inputs), device=inputs.device)) % self.bank_size
        self._inputs[places], self._labels[places] = inputs, labels
        self._next = int((self._next + len(inputs)) % self.bank_size)

    @property
    def full(self) -> bool:
        """Whether the bank holds as many images as it can."""
        return self._labels is not None and bool((self._labels != UNLABELLED).all())

    @property
    def _classes(self) -> int:
        assert self._bank_labels is not None
        return int(self._bank_labels.max()) + 1

    @property
    def _fitted(self) -> bool:
        return self._bank_labels is not None and len(self._bank_labels) > 0

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Collect the banks of all processes, once a validation."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._reading = self._references is not None and not trainer.sanity_checking and self._references.ready(trainer)
        if self._references and self._reading:
            self._references.start(trainer, pl_module)
        if self._inputs is None or self._labels is None:
            return
        width, device = self._inputs.shape[1], pl_module.device  # a checkpoint's bank lies on the CPU
        inputs = torch.as_tensor(pl_module.all_gather(self._inputs.to(device))).view(-1, width)
        labels = torch.as_tensor(pl_module.all_gather(self._labels.to(device))).view(-1)
        filled = labels != UNLABELLED
        if not filled.any():
            return
        inputs = inputs[filled]
        self._mean, self._std = inputs.mean(0), inputs.std(0, correction=0) + 1e-6
        self._bank, self._bank_labels = self._normalize(inputs), labels[filled]

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the answers, and those of the baselines."""
        super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        if self._references and self._reading:
            self._references.score(trainer, pl_module, batch)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the accuracy, and the baselines as lines to compare it with."""
        super().on_validation_epoch_end(trainer, pl_module)
        if self._references and self._reading:
            self.readings = {name: float(value) for name, value in self._references.readings().items()}
            self._references, self._reading = None, False
        for name, value in self.readings.items():
            pl_module.log(f"probe/{self.name}/{name}", value)

    def _normalize(self, inputs: Tensor) -> Tensor:
        return F.normalize((inputs - self._mean) / self._std, dim=1)

    def predict(self, inputs: Tensor) -> Tensor:
        """The class with the largest vote."""
        assert self._bank_labels is not None
        return vote(self._normalize(inputs), self._bank, self._bank_labels, self.k, self.temperature, self._classes)

    def state_dict(self) -> dict[str, Any]:
        """The bank; one of raw inputs fills again from the data, which would make up most of a checkpoint."""
        readings = {"readings": self.readings} if self.readings else {}
        if self.source == "observation":
            return readings
        return {**readings, "inputs": self._inputs, "labels": self._labels, "next": self._next}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the bank of the checkpoint."""
        self.readings = state_dict.get("readings", {})
        if "inputs" in state_dict:
            self._inputs, self._labels, self._next = (state_dict[name] for name in ("inputs", "labels", "next"))

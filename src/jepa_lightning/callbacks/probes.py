"""Probes that follow the training: what could be read off the target encoder's features right now."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassJaccardIndex

Source = Literal["features", "observation"]

UNLABELLED = -1  # the class of images without one in a partly labelled data set, as in torchvision's STL10


class Probe(pl.Callback):
    """What the online probes share: their input, their labels and their accuracy on the validation data.

    A probe reads the features that the step has computed anyway, the mean of the target encoder's tokens, and never
    touches the module: its own weights live in the callback's state in the checkpoint. Images of class -1 have no
    label: they teach it nothing and are not counted.

    Where the label is a map of classes `[B, H, W]`, the probe is a dense one: it reads single tokens, and the class of
    a token is the most frequent one of its patch. Beside the accuracy it logs `miou`, the intersection over union of
    tokens, averaged over the classes that there are.

    Args:
        name: the probe's tags are `probe/<name>/<metric>`.
        label: the field of the batch (a NamedTuple) that holds the class; the batch's second item without.
        source: `features`, or `observation` for the raw input, the baseline that features have to pass.
    """

    def __init__(self, name: str, label: str | None = None, source: Source = "features") -> None:
        if source not in ("features", "observation"):
            raise ValueError(f"source must be 'features' or 'observation', got {source!r}")
        self.name = name
        self.label = label
        self.source = source
        self._accuracy = MeanMetric()
        self._overlap: MulticlassJaccardIndex | None = None

    @property
    def state_key(self) -> str:
        """Keeps the states of several probes of one class apart."""
        return f"{type(self).__qualname__}[{self.name}]"

    @abstractmethod
    def fit(self, trainer: pl.Trainer, pl_module: pl.LightningModule, inputs: Tensor, labels: Tensor) -> None:
        """Learn from a training batch: inputs `[B, D]`, labels `[B]`."""

    @abstractmethod
    def predict(self, inputs: Tensor) -> Tensor:
        """The classes `[B]` of inputs `[B, D]`."""

    @property
    @abstractmethod
    def _classes(self) -> int:
        """The number of classes that it can predict."""

    @property
    @abstractmethod
    def _fitted(self) -> bool:
        """Whether there is something to predict with: a validation before any training has nothing to count."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Learn from the step's features."""
        self.fit(trainer, pl_module, *self._read(pl_module, outputs, batch))

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the last validation."""
        self._accuracy.to(pl_module.device).reset()
        self._overlap = None

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the hits on held-out images (a sanity check before the first step has nothing to count)."""
        if not trainer.sanity_checking and self._fitted:
            inputs, labels = self._read(pl_module, outputs, batch)
            predicted = self.predict(inputs)
            self._accuracy.update((predicted == labels)[labels != UNLABELLED].float())
            if len(labels) > len(batch[0]):
                if self._overlap is None:  # with one class more, for labels that the probe has never seen
                    self._overlap = MulticlassJaccardIndex(self._classes + 1, ignore_index=UNLABELLED)
                    self._overlap.to(pl_module.device)
                self._overlap.update(predicted, labels.clamp(max=self._classes))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the accuracy over the validation data of all processes."""
        if not trainer.sanity_checking and self._fitted:
            pl_module.log(f"probe/{self.name}/accuracy", self._accuracy.compute(), prog_bar=True)
            if self._overlap is not None:
                pl_module.log(f"probe/{self.name}/miou", self._overlap.compute())

    def _read(self, pl_module: Any, outputs: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """The inputs `[B, D]` and labels `[B]` of a batch; those of all its tokens, `[B * N, D]`, of a dense one."""
        try:
            labels = getattr(batch, self.label) if self.label else batch[1]
        except (AttributeError, IndexError):
            labels = None
        if isinstance(batch, Tensor) or labels is None:
            fields = getattr(batch, "_fields", None)
            raise ValueError(
                f"the probe {self.name!r} wants the label {self.label or 'at the second place'} of a batch, which has "
                + (f"the fields {', '.join(fields)}" if fields else "none: train on labelled data, or drop the probe")
            )
        if labels.ndim not in (1, 3) or labels.is_floating_point():
            raise ValueError(
                f"the probe {self.name!r} wants one class an image, integers [B], or one a pixel, [B, H, W], got "
                f"{labels.dtype} {list(labels.shape)}"
            )
        labels = labels.long()
        inputs = batch[0] if self.source == "observation" else outputs["latents"].features
        if labels.ndim == 1:
            return (inputs.flatten(1) if self.source == "observation" else inputs.mean(1)).float(), labels
        grid = pl_module.context_encoder.grid
        if self.source == "observation":
            inputs = patches(inputs, grid)
        return inputs.flatten(0, 1).float(), patches(labels.unsqueeze(1), grid).flatten(0, 1).mode(1).values


def patches(images: Tensor, grid: Sequence[int]) -> Tensor:
    """Cut images `[B, C, H, W]` into the flattened patches `[B, N, C * height * width]` of a grid of tokens.

    Raises:
        ValueError: a height or width that the grid does not divide.
    """
    (height, width), (rows, columns) = images.shape[-2:], grid
    if height % rows or width % columns:
        raise ValueError(f"a map of {height}x{width} pixels cannot be cut into {rows}x{columns} patches")
    cut = images.unflatten(3, (columns, width // columns)).unflatten(2, (rows, height // rows))
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


class LinearProbe(Probe):
    """A linear classifier on standardised features, trained beside the model at every batch. Logs `accuracy`.

    Args:
        num_classes: number of classes.
        name: the probe's tags are `probe/<name>/<metric>`.
        label: the field of the batch that holds the class; the batch's second item without.
        source: `features`, or `observation` for the raw input.
        lr: learning rate of the probe's own AdamW; it falls to zero with the training's, so that the last reading is
            of a classifier that has settled.

    Source: the standardisation without affine map is that of MAE (arXiv 2111.06377), appendix A.1.
    """

    def __init__(
        self,
        num_classes: int,
        name: str = "linear",
        label: str | None = None,
        source: Source = "features",
        lr: float = 3e-3,
    ) -> None:
        super().__init__(name, label, source)
        self.num_classes = num_classes
        self.lr = lr
        self._head: nn.Module | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._state: dict[str, Any] = {}

    def fit(self, trainer: pl.Trainer, pl_module: pl.LightningModule, inputs: Tensor, labels: Tensor) -> None:
        """One step of the classifier."""
        head, optimizer = self._trained(trainer, pl_module, inputs.shape[1])
        if int(labels.max()) >= self.num_classes:
            raise ValueError(f"the probe {self.name!r} has {self.num_classes} classes, but a label is {labels.max()}")
        remaining = 1.0 - trainer.global_step / trainer.estimated_stepping_batches
        for group in optimizer.param_groups:
            group["lr"] = self.lr * min(1.0, 4.0 * remaining)
        logits = head.train(len(inputs) > 1)(inputs)  # one image has no batch statistics
        optimizer.zero_grad()
        losses = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum")
        (losses / (labels != UNLABELLED).sum().clamp(min=1)).backward()
        optimizer.step()

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
            self._trained(trainer, pl_module, self._state["head"]["1.weight"].shape[1])

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
        # Under a forked generator: a probe must not change the random numbers of the training it watches.
        with torch.random.fork_rng(devices=[]):
            head = nn.Sequential(nn.BatchNorm1d(width, affine=False), nn.Linear(width, self.num_classes))
        head = head.to(pl_module.device)
        self._optimizer = torch.optim.AdamW(head.parameters(), lr=self.lr, weight_decay=0.0)
        if self._state:
            head.load_state_dict(self._state["head"])
            self._optimizer.load_state_dict(self._state["optimizer"])
        self._head = DistributedDataParallel(head) if trainer.world_size > 1 else head
        return self._head, self._optimizer

    def state_dict(self) -> dict[str, Any]:
        """The classifier and its optimiser."""
        if self._head is None or self._optimizer is None:
            return self._state
        head = self._head.module if isinstance(self._head, DistributedDataParallel) else self._head
        return {"head": head.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the first batch, which tells the width and the device."""
        self._state = state_dict


class KNNProbe(Probe):
    """A nearest-neighbour classifier on the features of the latest training images. Logs `accuracy`.

    Features are standardised by the bank's mean and std; the `k` nearest by cosine similarity vote with weights
    `exp(similarity / temperature)`. Nothing is fitted, so it cannot lag behind the encoder, and it takes any number of
    classes.

    Args:
        name: the probe's tags are `probe/<name>/<metric>`.
        label: the field of the batch that holds the class; the batch's second item without.
        source: `features`, or `observation` for the raw input.
        k: neighbours that vote (all of the bank if it holds fewer).
        temperature: of the votes, above zero.
        bank_size: training images kept on each process.

    Raises:
        ValueError: a number out of its range.

    Source: the weighted vote is that of Wu et al. (arXiv 1805.01978), section 3.4.
    """

    def __init__(
        self,
        name: str = "knn",
        label: str | None = None,
        source: Source = "features",
        k: int = 20,
        temperature: float = 0.07,
        bank_size: int = 10_000,
    ) -> None:
        super().__init__(name, label, source)
        if k < 1 or temperature <= 0 or bank_size < 1:
            raise ValueError(f"k, temperature and bank_size must be positive, got {k}, {temperature}, {bank_size}")
        self.k = k
        self.temperature = temperature
        self.bank_size = bank_size
        self._inputs: Tensor | None = None
        self._labels: Tensor | None = None
        self._bank_labels: Tensor | None = None
        self._next = 0

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
    def _classes(self) -> int:
        assert self._bank_labels is not None
        return int(self._bank_labels.max()) + 1

    @property
    def _fitted(self) -> bool:
        return self._bank_labels is not None and len(self._bank_labels) > 0

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Collect the banks of all processes, once a validation."""
        super().on_validation_epoch_start(trainer, pl_module)
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

    def _normalize(self, inputs: Tensor) -> Tensor:
        return F.normalize((inputs - self._mean) / self._std, dim=1)

    def predict(self, inputs: Tensor) -> Tensor:
        """The class with the largest vote."""
        assert self._bank_labels is not None
        similarity, neighbours = (self._normalize(inputs) @ self._bank.T).topk(min(self.k, len(self._bank)))
        # Relative to the nearest: exp(1 / 0.07) alone would be 1.6 million.
        weights = ((similarity - similarity[:, :1]) / self.temperature).exp()
        votes = weights.new_zeros(len(inputs), self._classes)
        return votes.scatter_add_(1, self._bank_labels[neighbours], weights).argmax(1)

    def state_dict(self) -> dict[str, Any]:
        """The bank."""
        return {"inputs": self._inputs, "labels": self._labels, "next": self._next}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the bank of the checkpoint."""
        self._inputs, self._labels, self._next = (state_dict[name] for name in ("inputs", "labels", "next"))

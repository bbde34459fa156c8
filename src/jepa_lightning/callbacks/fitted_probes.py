"""Online probes that are trained: a classifier or a regression, a step of its own with every step of the module."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import R2Score

from jepa_lightning import batches
from jepa_lightning.batches import UNLABELLED
from jepa_lightning.callbacks.probe import Probe
from jepa_lightning.clock import clock
from jepa_lightning.networks import AttentivePooler
from jepa_lightning.networks.label_scale import LabelScale
from jepa_lightning.step import Tokens


class FittedProbe(Probe):
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
        super().__init__(name, label, source)
        if num_classes < 1 or not 0 < lr < math.inf:
            raise ValueError(
                f"the probe {name!r} needs at least one class or number and a positive lr, got {num_classes}, {lr}"
            )
        self.num_classes = num_classes
        self.lr = lr
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


class LinearProbe(FittedProbe):
    """A linear classifier on standardised features, trained beside the model at every batch. Logs `accuracy`.

    Args:
        num_classes: number of classes.
        name: the probe's tags are `probe/<name>/<metric>`.
        label: the field of the batch that holds the class; the first label without.
        source: `features`, an embedding of the step by its name, or `observation` for the raw input.
        lr: learning rate of the probe's own AdamW; it falls to zero with the training's, so that the last reading is
            of a classifier that has settled.

    Source: the standardisation without affine map is that of MAE (arXiv 2111.06377), appendix A.1.
    """

    def __init__(
        self,
        num_classes: int,
        name: str = "linear",
        label: str | None = None,
        source: str = "features",
        lr: float = 3e-3,
    ) -> None:
        super().__init__(num_classes, name, label, source, lr)

    def build_head(self, pl_module: Any, width: int) -> nn.Module:
        """Standardisation by running statistics, and one layer."""
        return nn.Sequential(nn.BatchNorm1d(width, affine=False), nn.Linear(width, self.num_classes))


class RegressionProbe(FittedProbe):
    """A linear regression on standardised features, trained beside the model at every batch. Logs `r2`.

    For labels that are numbers, in any unit: where something is, how fast, how many. `r2` is the share of their
    variance on the validation data that is explained, averaged over the numbers: 1 at best, 0 for their mean.

    Args:
        num_outputs: the first so many numbers of the flattened label are predicted.
        name: the probe's tags are `probe/<name>/<metric>`.
        label: the field of the batch that holds the numbers `[B, ...]`; the first label without.
        source: `features`, an embedding of the step by its name, or `observation` for the raw input.
        lr: learning rate of the probe's own AdamW; it falls to zero with the training's.
    """

    def __init__(
        self,
        num_outputs: int = 1,
        name: str = "regression",
        label: str | None = None,
        source: str = "features",
        lr: float = 3e-3,
    ) -> None:
        super().__init__(num_outputs, name, label, source, lr)
        self._r2 = R2Score()
        self._scale = LabelScale(num_outputs)

    def build_head(self, pl_module: Any, width: int) -> nn.Module:
        """Standardisation by running statistics, and one layer."""
        return nn.Sequential(nn.BatchNorm1d(width, affine=False), nn.Linear(width, self.num_classes))

    def check(self, labels: Tensor) -> None:
        """Any finite numbers can be learned."""

    def checked(self, label: Tensor) -> Tensor:
        """The first numbers of each image, `[B, num_outputs]`.

        Raises:
            ValueError: fewer numbers, or some that are not finite.
        """
        return batches.numbers(label, self.num_classes)

    def fit(self, trainer: pl.Trainer, pl_module: pl.LightningModule, inputs: Tensor, labels: Tensor) -> None:
        """One step, to the labels in units of their spread over all processes."""
        self._scale.to(labels.device).add(trainer.strategy.reduce(self._scale.sums(labels), reduce_op="sum"))
        super().fit(trainer, pl_module, inputs, labels)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(outputs, self._scale.standardise(labels))

    def predict(self, inputs: Tensor) -> Tensor:
        """The standardised numbers of each input, `[B, num_outputs]`."""
        assert self._head is not None, "the probe has not seen a training batch"
        outputs: Tensor = self._head.eval()(inputs)
        return outputs

    def state_dict(self) -> dict[str, Any]:
        """The regression, its optimiser, and the scale of the labels."""
        state = super().state_dict()
        return {**state, "scale": self._scale.state_dict()} if state else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with those of the checkpoint."""
        super().load_state_dict(state_dict)
        if "scale" in state_dict:  # not in those of 0.1.0, whose labels were taken as they are
            self._scale.load_state_dict(state_dict["scale"])

    def reset(self, device: torch.device) -> None:
        """Forget the errors."""
        self._r2.to(device).reset()

    def score(self, predicted: Tensor, labels: Tensor, dense: bool) -> None:
        """Add up the errors of predicted numbers `[B, num_outputs]`."""
        self._r2.update(predicted, self._scale.to(labels.device).standardise(labels))

    def scores(self) -> dict[str, Tensor]:
        """What is explained of the variance, over all processes."""
        return {"r2": self._r2.compute()}


class AttentiveProbe(FittedProbe):
    """A classifier that chooses the tokens it reads, trained beside the model at every batch. Logs `accuracy`.

    What a mean over tokens washes out, as where and when something moves, it can still find. A label is one class an
    image or clip.

    Args:
        num_classes: number of classes.
        name: the probe's tags are `probe/<name>/<metric>`.
        label: the field of the batch that holds the class; the first label without.
        depth: blocks of the pooler: 1 as in V-JEPA's probe, 4 as in V-JEPA 2's.
        num_heads: attention heads a block; the encoder's by default.
        lr: learning rate of the probe's own AdamW; it falls to zero with the training's.

    Source: V-JEPA (arXiv 2404.08471), appendix D.
    """

    dense = False

    def __init__(
        self,
        num_classes: int,
        name: str = "attentive",
        label: str | None = None,
        depth: int = 1,
        num_heads: int | None = None,
        lr: float = 1e-3,
    ) -> None:
        super().__init__(num_classes, name, label, "features", lr)
        self.depth = depth
        self.num_heads = num_heads

    def build_head(self, pl_module: Any, width: int) -> nn.Module:
        """The pooler, and one layer."""
        heads = self.num_heads or getattr(getattr(pl_module, "context_encoder", None), "num_heads", None)
        if heads is None:
            raise ValueError(f"the encoder does not say how many heads it has: give the probe {self.name!r} num_heads")
        return AttentiveHead(width, heads, self.depth, self.num_classes)

    def pool(self, tokens: Tokens) -> Tensor:
        """All of them, as pooling is learned, `[B, N, D + 1]`: the last number says whether a token is there."""
        valid = torch.ones_like(tokens.values[..., 0]) if tokens.valid is None else tokens.valid
        return torch.cat([tokens.values, valid.unsqueeze(-1).to(tokens.values)], dim=-1)

    def width(self, inputs: Tensor) -> int:
        """That of the tokens."""
        return inputs.shape[-1] - 1


class AttentiveHead(nn.Sequential):
    """The pooler, and one layer, of tokens `[B, N, D + 1]` whose last number says whether they are there."""

    def __init__(self, embed_dim: int, num_heads: int, depth: int, num_classes: int) -> None:
        super().__init__(AttentivePooler(embed_dim, num_heads, depth), nn.Linear(embed_dim, num_classes))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `[B, num_classes]`."""
        pooler, classifier = self
        return classifier(pooler(inputs[..., :-1], inputs[..., -1] > 0))

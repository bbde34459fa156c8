"""Linear online probes, of classes and of numbers."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import R2Score

from jepa_lightning import batches
from jepa_lightning.callbacks.probes.trained import TrainedProbe
from jepa_lightning.networks.label_scale import LabelScale
from jepa_lightning.step import Tokens


class LinearProbe(TrainedProbe):
    """A linear classifier on standardised features, trained beside the model at every batch. Logs `accuracy`.

    Args:
        num_classes: number of classes.
        name: the probe's tags are `probe/<name>/<metric>`.
        label: the field of the batch that holds the class; the first label without.
        source: `features`, an embedding of the step by its name, or `observation` for the raw input.
        lr: learning rate of the probe's own AdamW; it falls to zero with the training's, so that the last reading is
            of a classifier that has settled.
        pooled: whether it reads the mean of the tokens (or their summary). Otherwise it reads all tokens side by side,
            `N * D` numbers, which keep what a mean loses: where things are. Raw input is read whole in any case, so
            this is the probe to compare with it.

    Raises:
        ValueError: tokens side by side are asked for where observations differ in their number of tokens.

    Source: the standardisation without affine map is that of MAE (arXiv 2111.06377), appendix A.1.
    """

    def __init__(
        self,
        num_classes: int,
        name: str = "linear",
        label: str | None = None,
        source: str = "features",
        lr: float = 3e-3,
        pooled: bool = True,
    ) -> None:
        super().__init__(num_classes, name, label, source, lr)
        self.pooled = pooled

    def pool(self, tokens: Tokens) -> Tensor:
        """The pooled tokens `[B, D]`, or all of them side by side, `[B, N * D]`."""
        if self.pooled:
            return super().pool(tokens)
        if tokens.valid is not None and not tokens.valid.all():
            raise ValueError(
                f"the probe {self.name!r} reads tokens side by side, of which all observations need the same number, "
                f"but a batch has {tokens.valid.sum(1).tolist()}: let it read their mean (pooled: true)"
            )
        return tokens.values.flatten(1)

    def build_head(self, pl_module: Any, width: int) -> nn.Module:
        """Standardisation by running statistics, and one layer."""
        return nn.Sequential(nn.BatchNorm1d(width, affine=False), nn.Linear(width, self.num_classes))


class RegressionProbe(TrainedProbe):
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

    def forget(self) -> None:
        """Be as new: without a head, and without a scale of the labels."""
        super().forget()
        self._r2 = R2Score()
        self._scale = LabelScale(self.num_classes)

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

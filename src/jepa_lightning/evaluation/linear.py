"""Linear probes of a frozen encoder: of classes and of numbers."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.optim import Lars
from torch import Tensor, nn
from torchmetrics import Metric, R2Score

from jepa_lightning import batches
from jepa_lightning.evaluation.probe import OfClasses, Width
from jepa_lightning.evaluation.sweep import Sweep
from jepa_lightning.networks.label_scale import LabelScale


class LinearHead(nn.Module):
    """One layer on the means over tokens of the last `layers` blocks, side by side."""

    def __init__(self, embed_dim: int, num_outputs: int, layers: int, norm: bool) -> None:
        super().__init__()
        width = layers * embed_dim
        self.layers = layers
        self.norm = nn.BatchNorm1d(width, affine=False) if norm else nn.Identity()
        self.linear = nn.Linear(width, num_outputs)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Features `[B, L, D]` of the last L blocks to `[B, num_outputs]`."""
        return self.linear(self.norm(features[:, -self.layers :].flatten(1)))


def linear_heads(
    embed_dim: int, num_outputs: int, layers: Sequence[int], norms: Sequence[bool] = (False, True)
) -> list[tuple[str, Callable[[], nn.Module]]]:
    """The kinds of linear head: on so many of the last blocks, as they are and standardised."""

    def kind(count: int, norm: bool) -> tuple[str, Callable[[], nn.Module]]:
        name = ("last layer" if count == 1 else f"last {count} layers") + (", standardised" if norm else "")
        return name, lambda: LinearHead(embed_dim, num_outputs, count, norm)

    return [kind(count, norm) for count in layers for norm in norms]


class LinearEvaluation(OfClasses, Sweep):
    """A linear classifier of the mean of the encoder's tokens, by the sweep of I-JEPA's evaluation.

    Heads on the last layer and on the last four, standardised by batch statistics or not, with every learning rate and
    weight decay. LARS with momentum 0.9, the rates a tenth after 30, 60 and 90 % of the training; biases neither decay
    nor are scaled.

    The paper's rates are for batches of 256, and 64 times as high for its batches of 16384, in 50 epochs of ImageNet.
    In the few steps that small data sets take they do not get anywhere: `optimizer="adamw"`, whose rates fall along
    half a cosine, does.

    Args:
        encoder: the checkpoint whose encoder is probed; see `FrozenEncoder`.
        num_classes: number of classes.
        label: the field of the batch that holds the class; the first label without.
        layers: numbers of last layers that heads are on.
        optimizer: `lars` or `adamw`.
        lrs: learning rates.
        weight_decays: weight decays.
        encoder_options: of `FrozenEncoder`.

    Raises:
        ValueError: an option out of its range, or labels that do not fit.

    Source: I-JEPA (arXiv 2301.08243), appendix A.2.
    """

    def __init__(
        self,
        encoder: str | Width,
        num_classes: int,
        label: str | None = None,
        layers: Sequence[int] = (1, 4),
        optimizer: Literal["lars", "adamw"] = "lars",
        lrs: Sequence[float] = (0.001, 0.01, 0.05),
        weight_decays: Sequence[float] = (0.0, 5e-4),
        encoder_options: dict[str, Any] | None = None,
    ) -> None:
        if optimizer not in ("lars", "adamw"):
            raise ValueError(f"optimizer must be 'lars' or 'adamw', got {optimizer!r}")
        super().__init__(encoder, encoder_options, label, max(layers), lrs, weight_decays)

    def pool(self, tokens: Tensor) -> Tensor:
        """Their means, `[B, layers, D]`."""
        return tokens.mean(2)

    def kinds_of_head(self) -> list[tuple[str, Callable[[], nn.Module]]]:
        """On the last layers, as they are and standardised."""
        return linear_heads(self.encoder.embed_dim, self.hparams.num_classes, self.hparams.layers)

    def build_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """LARS, or AdamW."""
        if self.hparams.optimizer == "adamw":
            return super().build_optimizer(groups)
        weights = [group | {"params": [p for p in group["params"] if p.ndim > 1]} for group in groups]
        biases = [group | {"params": [p for p in group["params"] if p.ndim <= 1]} for group in groups]
        scaled = [group | {"always_adapt": True} for group in weights]  # also where nothing decays
        return Lars(scaled + [group | {"weight_decay": 0.0} for group in biases], momentum=0.9)

    def factor(self, progress: float) -> float:
        """Steps of a tenth for LARS."""
        return (
            super().factor(progress) if self.hparams.optimizer == "adamw" else 0.1 ** bisect((0.3, 0.6, 0.9), progress)
        )


class RegressionEvaluation(Sweep):
    """A linear regression on the mean of the encoder's tokens: of a position, a count, a distance, in any unit.

    Args:
        encoder: the checkpoint whose encoder is probed; see `FrozenEncoder`.
        num_outputs: numbers that are predicted, the first so many of the flattened label: 2 for the place (x, y) of the
            first of several objects.
        label: the field of the batch that holds the numbers `[B, ...]`; the first label without.
        layers: numbers of last layers that heads are on.
        lrs: learning rates of AdamW.
        weight_decays: weight decays.
        encoder_options: of `FrozenEncoder`.

    Raises:
        ValueError: an option out of its range, or a label with fewer numbers, or with one that is not finite.

    Source: where and how many, as in the Clevr tasks of I-JEPA (arXiv 2301.08243), section 6, which are classifications
    there.
    """

    score = "r2"

    def __init__(
        self,
        encoder: str | Width,
        num_outputs: int = 1,
        label: str | None = None,
        layers: Sequence[int] = (1, 4),
        lrs: Sequence[float] = (1e-3, 1e-2, 1e-1),
        weight_decays: Sequence[float] = (0.0, 0.1),
        encoder_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(encoder, encoder_options, label, max(layers), lrs, weight_decays)
        self.scale = LabelScale(num_outputs)

    def pool(self, tokens: Tensor) -> Tensor:
        """Their means, `[B, layers, D]`."""
        return tokens.mean(2)

    def kinds_of_head(self) -> list[tuple[str, Callable[[], nn.Module]]]:
        """On the last layers, standardised."""
        return linear_heads(self.encoder.embed_dim, self.hparams.num_outputs, self.hparams.layers, [True])

    def build_score(self) -> Metric:
        """The share of the variance that is explained, averaged over the outputs."""
        return R2Score()

    def read(self, batch: Any) -> tuple[Tensor, Tensor]:
        """The features and labels of a batch, standardised by the training labels seen so far: R² stays the same."""
        features, label = super().read(batch)
        if self.training:
            self.scale.add(self.trainer.strategy.reduce(self.scale.sums(label), reduce_op="sum"))
        return features, self.scale.standardise(label)

    def loss(self, answer: Tensor, label: Tensor) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(answer, label)

    def checked(self, label: Tensor) -> Tensor:
        """The first numbers of each sample, `[B, num_outputs]`."""
        return batches.numbers(label, self.hparams.num_outputs)

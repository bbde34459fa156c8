"""Linear and attentive probes of a frozen encoder: of classes, of maps of classes, of numbers."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.optim import Lars
from torch import Tensor, nn
from torchmetrics import Metric, R2Score
from torchmetrics.classification import MulticlassJaccardIndex

from jepa_lightning import batches
from jepa_lightning.batches import UNLABELLED
from jepa_lightning.evaluation.frozen import OfClasses, Width
from jepa_lightning.evaluation.sweep import Sweep
from jepa_lightning.networks import AttentivePooler
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


class LinearProbe(OfClasses, Sweep):
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


class AttentiveProbe(OfClasses, Sweep):
    """A classifier of the encoder's tokens with a learned query, by the sweep of V-JEPA 2's evaluation.

    AdamW, the rates along half a cosine to zero. V-JEPA has `depth=1`, one rate of 0.001 and a decay of 0.01.

    Args:
        encoder: the checkpoint whose encoder is probed; see `FrozenEncoder`.
        num_classes: number of classes.
        label: the field of the batch that holds the class; the first label without.
        depth: blocks of the pooler: 1 as in V-JEPA, 4 as in V-JEPA 2.
        num_heads: attention heads a block; the encoder's by default.
        lrs: learning rates.
        weight_decays: weight decays.
        encoder_options: of `FrozenEncoder`.

    Raises:
        ValueError: an option out of its range, or labels that do not fit.

    Source: V-JEPA (arXiv 2404.08471), appendix D; V-JEPA 2 (arXiv 2506.09985), section 5 and its appendix.
    """

    def __init__(
        self,
        encoder: str | Width,
        num_classes: int,
        label: str | None = None,
        depth: int = 4,
        num_heads: int | None = None,
        lrs: Sequence[float] = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4),
        weight_decays: Sequence[float] = (0.01, 0.1, 0.4, 0.8),
        encoder_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(encoder, encoder_options, label, 1, lrs, weight_decays)

    def pool(self, tokens: Tensor) -> Tensor:
        """All tokens of the last layer, `[B, N, D]`: pooling is learned."""
        return tokens[:, -1]

    def kinds_of_head(self) -> list[tuple[str, Callable[[], nn.Module]]]:
        """The pooler, and one layer."""
        dim, depth, classes = self.encoder.embed_dim, self.hparams.depth, self.hparams.num_classes
        heads = self.hparams.num_heads or self.encoder.num_heads
        return [(f"depth {depth}", lambda: nn.Sequential(AttentivePooler(dim, heads, depth), nn.Linear(dim, classes)))]


class SegmentationProbe(Sweep):
    """A linear classifier of single tokens, whose maps of logits are scaled up to the pixels.

    Args:
        encoder: the checkpoint whose encoder is probed, of images; see `FrozenEncoder`.
        num_classes: number of classes.
        label: the field of the batch that holds the maps of classes `[B, H, W]`, -1 for pixels that do not count.
        lrs: learning rates of AdamW.
        weight_decays: weight decays.
        encoder_options: of `FrozenEncoder`.

    Raises:
        ValueError: an option out of its range, an encoder of clips, or labels that do not fit.

    Source: the linear evaluation of DINOv2 (arXiv 2304.07193), section 7.4.
    """

    score = "miou"

    def __init__(
        self,
        encoder: str | Width,
        num_classes: int,
        label: str | None = None,
        lrs: Sequence[float] = (1e-3, 1e-2),
        weight_decays: Sequence[float] = (0.0, 0.01),
        encoder_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(encoder, encoder_options, label, 1, lrs, weight_decays)
        if len(self.encoder.grid) != 2:
            raise ValueError(f"{encoder} encodes clips of {self.encoder.grid} tokens, not images")

    def pool(self, tokens: Tensor) -> Tensor:
        """The tokens of the last layer, `[B, N, D]`."""
        return tokens[:, -1]

    def kinds_of_head(self) -> list[tuple[str, Callable[[], nn.Module]]]:
        """One layer on standardised tokens."""
        dim, classes = self.encoder.embed_dim, self.hparams.num_classes
        return [("tokens", lambda: nn.Sequential(nn.BatchNorm1d(dim, affine=False), nn.Linear(dim, classes)))]

    def answer(self, contender: int, features: Tensor, label: Tensor) -> Tensor:
        """Logits `[B, num_classes, H, W]` of each pixel."""
        rows, columns = self.encoder.grid[0], self.encoder.grid[1]
        logits = (
            self.heads[contender](features.flatten(0, 1))
            .unflatten(0, (len(features), rows, columns))
            .permute(0, 3, 1, 2)
        )
        return F.interpolate(logits, label.shape[1:], mode="bilinear", align_corners=False)

    def build_score(self) -> Metric:
        """Intersection over union of pixels, averaged over the classes."""
        return MulticlassJaccardIndex(self.hparams.num_classes, ignore_index=UNLABELLED)

    def checked(self, label: Tensor) -> Tensor:
        """Integers `[B, H, W]` below the number of classes."""
        if label.ndim != 3:
            raise ValueError(f"expected maps of classes, integers [B, H, W], got {label.dtype} {list(label.shape)}")
        return batches.classes(label, self.hparams.num_classes, maps=True)


class RegressionProbe(Sweep):
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

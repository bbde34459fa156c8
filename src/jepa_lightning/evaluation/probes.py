"""Probes of a frozen encoder, fitted in many settings at once."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.optim import Lars
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric, R2Score
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from jepa_lightning.callbacks.step import UNLABELLED, label_of
from jepa_lightning.evaluation.frozen import FrozenEncoder
from jepa_lightning.networks import AttentivePooler
from jepa_lightning.schedules import cosine


class Features(NamedTuple):
    """A batch of what a probe reads of the frozen encoder, computed before.

    Attributes:
        features: what the probe's `pool` gives of the encoder's tokens.
        label: as in the batches that they were computed from.
    """

    features: Tensor
    label: Tensor


class FrozenProbe(pl.LightningModule):
    """Heads of several settings on one frozen encoder, trained at once; the best on the validation data is tested.

    The heads see the same batches, and none changes another's gradients: each is trained as it would be alone. Which
    one is best is found anew at each validation, kept in the checkpoint, and the one that `test_step` reports on. So
    the validation data must not be the test data: see `HeldOut`. The encoder's weights are not in the checkpoint, which
    names their file.

    Args:
        encoder: the checkpoint whose encoder is probed; see `FrozenEncoder`.
        encoder_options: of `FrozenEncoder`.
        label: the field of the batch that is read off the features; the batch's second item without.
        num_layers: number of blocks of the encoder that are read, from the last one back.
        lrs: learning rates.
        weight_decays: weight decays; every kind of head is trained with each pair of a rate and a decay.
    """

    hparams: Any
    scores: Any
    chosen: Tensor
    score: str  # the name of what the heads are compared by, the higher the better

    def __init__(
        self,
        encoder: str,
        encoder_options: dict[str, Any] | None,
        label: str | None,
        num_layers: int,
        lrs: Sequence[float],
        weight_decays: Sequence[float],
    ) -> None:
        super().__init__()
        if not lrs or not weight_decays or min(lrs) <= 0 or min(weight_decays) < 0:
            raise ValueError(f"expected rates above zero and decays from zero on, got {lrs} and {weight_decays}")
        self.save_hyperparameters()
        self.encoder = FrozenEncoder(encoder, num_layers, encoder_options)
        self.strict_loading = False  # checkpoints lack the encoder
        self.label = label
        self.heads, self.names, self.settings = nn.ModuleList(), [], []
        for (name, build), (lr, decay) in product(self.kinds_of_head(), product(lrs, weight_decays)):
            self.heads.append(build())
            self.names.append(f"{name}, lr {lr:g}, wd {decay:g}")
            self.settings.append((lr, decay))
        self.scores = nn.ModuleList(self.build_score() for _ in self.heads)
        self.register_buffer("chosen", torch.zeros((), dtype=torch.long))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the encoder out: it is in the file it came from."""
        state = checkpoint["state_dict"]
        for name in [name for name in state if name.startswith("encoder.")]:
            del state[name]

    @abstractmethod
    def pool(self, tokens: Tensor) -> Tensor:
        """What the heads read of the tokens `[B, layers, N, D]`."""

    @abstractmethod
    def kinds_of_head(self) -> list[tuple[str, Callable[[], nn.Module]]]:
        """The kinds of head by name, each as a function that makes one."""

    @abstractmethod
    def build_score(self) -> Metric:
        """What tells how good a head is, updated with its outputs and labels."""

    @abstractmethod
    def loss(self, output: Tensor, label: Tensor) -> Tensor:
        """What a head minimises, the mean over the batch."""

    def outputs(self, head: nn.Module, features: Tensor, label: Tensor) -> Tensor:
        """The outputs of a head for features with a label."""
        return head(features)

    def read(self, batch: Any) -> tuple[Tensor, Tensor]:
        """The features and labels of a batch.

        Raises:
            ValueError: a batch without the label, or with one of a kind that the probe does not take.
        """
        if isinstance(batch, Features):
            return batch.features, self.checked(batch.label)
        label = self.checked(label_of(batch, self.label))
        return self.pool(self.encoder(batch[0])), label

    @abstractmethod
    def checked(self, label: Tensor) -> Tensor:
        """The label as loss and score take it, or an error that says what it should be."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The sum of the heads' losses, whose gradients are each head's own."""
        features, label = self.read(batch)
        self.heads.train(len(features) > 1)  # one sample has no batch statistics
        losses = torch.stack([self.loss(self.outputs(head, features, label), label) for head in self.heads])
        self.log("train/loss", losses.detach().mean(), prog_bar=True)
        return losses.sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Score every head."""
        features, label = self.read(batch)
        for head, score in zip(self.heads, self.scores, strict=True):
            score.update(self.outputs(head, features, label), label)

    def on_validation_epoch_end(self) -> None:
        """Choose the best."""
        scores = torch.stack([score.compute() for score in self.scores])
        for score in self.scores:
            score.reset()
        scores = scores.nan_to_num(-torch.inf)  # of heads that diverged
        self.chosen.copy_(scores.argmax())
        self.log(f"val/{self.score}", scores.max(), prog_bar=True)

    def on_fit_end(self) -> None:
        """Say which it is."""
        rank_zero_info(f"best of {len(self.heads)} heads on the validation data: {self.name_of_chosen}")

    @property
    def name_of_chosen(self) -> str:
        """The kind and the setting of the head that did best on the validation data."""
        return self.names[int(self.chosen)]

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Score the chosen head."""
        features, label = self.read(batch)
        chosen = int(self.chosen)
        self.scores[chosen].update(self.outputs(self.heads[chosen], features, label), label)

    def on_test_epoch_end(self) -> None:
        """Log its score."""
        score = self.scores[int(self.chosen)]
        self.log(f"test/{self.score}", score.compute())
        score.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimiser with a group for each head."""
        groups = [
            {"params": [*head.parameters()], "lr": lr, "weight_decay": decay}
            for head, (lr, decay) in zip(self.heads, self.settings, strict=True)
        ]
        optimizer, factor = self.build_optimizer(groups), self.factor
        total = self.trainer.estimated_stepping_batches
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, lambda step: factor(step / total)), "interval": "step"},
        }

    def build_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """AdamW over the heads' groups."""
        return torch.optim.AdamW(groups)

    def factor(self, progress: float) -> float:
        """What learning rates are multiplied by at a share of the training: half a cosine to zero."""
        return cosine(progress, 1.0, 1.0, 0.0)


class Classification(FrozenProbe):
    """What the probes of one class an image or clip share; samples of class -1 have no label and do not count."""

    score = "accuracy"

    def build_score(self) -> Metric:
        """The share of hits."""
        return MulticlassAccuracy(self.hparams.num_classes, average="micro", ignore_index=UNLABELLED)

    def loss(self, output: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(output, label, ignore_index=UNLABELLED)

    def checked(self, label: Tensor) -> Tensor:
        """Integers `[B]` below the number of classes."""
        return checked_classes(label, self.hparams.num_classes, 1)


def checked_classes(label: Tensor, num_classes: int, ndim: int) -> Tensor:
    """Labels that are classes, as int64.

    Raises:
        ValueError: labels of another shape or type, or out of range.
    """
    if label.ndim != ndim or label.is_floating_point():
        wanted = "one class a sample, integers [B]" if ndim == 1 else "maps of classes, integers [B, H, W]"
        raise ValueError(f"expected {wanted}, got {label.dtype} {list(label.shape)}")
    if label.numel() and not UNLABELLED <= int(label.min()) <= int(label.max()) < num_classes:
        raise ValueError(f"labels from {int(label.min())} to {int(label.max())} do not fit num_classes={num_classes}")
    return label.long()


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


class LinearProbe(Classification):
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
        label: the field of the batch that holds the class; the batch's second item without.
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
        encoder: str,
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


class AttentiveProbe(Classification):
    """A classifier of the encoder's tokens with a learned query, by the sweep of V-JEPA 2's evaluation.

    AdamW, the rates along half a cosine to zero. V-JEPA has `depth=1`, one rate of 0.001 and a decay of 0.01.

    Args:
        encoder: the checkpoint whose encoder is probed; see `FrozenEncoder`.
        num_classes: number of classes.
        label: the field of the batch that holds the class; the batch's second item without.
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
        encoder: str,
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


class SegmentationProbe(FrozenProbe):
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
        encoder: str,
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

    def outputs(self, head: nn.Module, features: Tensor, label: Tensor) -> Tensor:
        """Logits `[B, num_classes, H, W]` of each pixel."""
        rows, columns = self.encoder.grid[0], self.encoder.grid[1]
        logits = head(features.flatten(0, 1)).unflatten(0, (len(features), rows, columns)).permute(0, 3, 1, 2)
        return F.interpolate(logits, label.shape[1:], mode="bilinear", align_corners=False)

    def build_score(self) -> Metric:
        """Intersection over union of pixels, averaged over the classes."""
        return MulticlassJaccardIndex(self.hparams.num_classes, ignore_index=UNLABELLED)

    def loss(self, output: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy of the pixels."""
        return F.cross_entropy(output, label, ignore_index=UNLABELLED)

    def checked(self, label: Tensor) -> Tensor:
        """Integers `[B, H, W]` below the number of classes."""
        return checked_classes(label, self.hparams.num_classes, 3)


class RegressionProbe(FrozenProbe):
    """A linear regression on the mean of the encoder's tokens: of a position, a count, a distance.

    Args:
        encoder: the checkpoint whose encoder is probed; see `FrozenEncoder`.
        num_outputs: numbers that are predicted, the first so many of the flattened label: 2 for the place (x, y) of the
            first of several objects.
        label: the field of the batch that holds the numbers `[B, ...]`; the batch's second item without.
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
        encoder: str,
        num_outputs: int = 1,
        label: str | None = None,
        layers: Sequence[int] = (1, 4),
        lrs: Sequence[float] = (1e-3, 1e-2),
        weight_decays: Sequence[float] = (0.0, 0.1),
        encoder_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(encoder, encoder_options, label, max(layers), lrs, weight_decays)

    def pool(self, tokens: Tensor) -> Tensor:
        """Their means, `[B, layers, D]`."""
        return tokens.mean(2)

    def kinds_of_head(self) -> list[tuple[str, Callable[[], nn.Module]]]:
        """On the last layers, standardised."""
        return linear_heads(self.encoder.embed_dim, self.hparams.num_outputs, self.hparams.layers, [True])

    def build_score(self) -> Metric:
        """The share of the variance that is explained, averaged over the outputs."""
        return R2Score()

    def loss(self, output: Tensor, label: Tensor) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(output, label)

    def checked(self, label: Tensor) -> Tensor:
        """The first numbers of each sample, `[B, num_outputs]`."""
        numbers = label.flatten(1) if label.ndim > 1 else label.unsqueeze(1)
        wanted = numbers[:, : self.hparams.num_outputs].float()
        if wanted.shape[1] < self.hparams.num_outputs or not wanted.isfinite().all():
            raise ValueError(f"expected {self.hparams.num_outputs} finite numbers a sample, got {list(label.shape)}")
        return wanted

"""Probes that read the single tokens of a frozen encoder: attentive pooling, and segmentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassJaccardIndex

from jepa_lightning import batches
from jepa_lightning.batches import UNLABELLED
from jepa_lightning.evaluation.probe import OfClasses, Width
from jepa_lightning.evaluation.sweep import Sweep
from jepa_lightning.networks import AttentivePooler


class AttentiveEvaluation(OfClasses, Sweep):
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


class SegmentationEvaluation(Sweep):
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

"""Training the encoder on for one task, the more carefully the earlier the layer."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics.classification import MulticlassAccuracy

from jepa_lightning import batches
from jepa_lightning.batches import UNLABELLED
from jepa_lightning.checkpoints import load_encoder
from jepa_lightning.clock import clock
from jepa_lightning.schedules import warmup_cosine


class Classifier(nn.Module):
    """An encoder and one layer on the mean of its tokens."""

    def __init__(self, encoder: nn.Module, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(embed_dim, num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images or clips to logits `[B, num_classes]`."""
        return self.head(self.encoder(x).mean(1))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters are how deep, in timm's words: embedding, blocks, and what is left, norm and head."""
        return {"stem": r"^encoder\.(?:patch_embed|pos_embed)", "blocks": r"^encoder\.blocks\.(\d+)"}


class FineTuning(pl.LightningModule):
    """A classifier whose encoder starts from a checkpoint and is trained with it.

    AdamW, half a cosine after a linear warm-up, label smoothing; the learning rate of a layer is `layer_decay` times
    that of the next. The defaults are those of I-JEPA's evaluation on 1 % of ImageNet, in 50 epochs of batches of 512.

    Args:
        encoder: the checkpoint that the encoder starts from: anything that `load_encoder` reads.
        num_classes: number of classes.
        label: the field of the batch that holds the class; the first label without. Samples of class -1 have
            no label and do not count.
        lr: learning rate of the head.
        layer_decay: rate of a layer over that of the next, in (0, 1].
        weight_decay: of all but biases and norms.
        warmup: share of the training spent on the linear warm-up, in [0, 1).
        label_smoothing: in [0, 1).
        encoder_options: further arguments of `load_encoder`.

    Raises:
        ValueError: an option out of its range, or labels that do not fit.

    Source: I-JEPA (arXiv 2301.08243), appendix A.2.
    """

    hparams: Any
    score = "accuracy"

    def __init__(
        self,
        encoder: str,
        num_classes: int,
        label: str | None = None,
        lr: float = 3e-5,
        layer_decay: float = 0.75,
        weight_decay: float = 0.05,
        warmup: float = 0.1,
        label_smoothing: float = 0.1,
        encoder_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not 0 < layer_decay <= 1 or not 0 <= warmup < 1 or not 0 <= label_smoothing < 1:
            raise ValueError(
                "expected layer_decay in (0, 1], warmup and label_smoothing in [0, 1), "
                f"got {layer_decay}, {warmup} and {label_smoothing}"
            )
        self.save_hyperparameters()
        network = load_encoder(encoder, **(encoder_options or {}))
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name != "pos_embed" or getattr(network, "positions", "sincos") == "learned")
        self.classifier = Classifier(network.train(), network.embed_dim, num_classes)
        self.accuracy = MulticlassAccuracy(num_classes, average="micro", ignore_index=UNLABELLED)

    def read(self, batch: Any) -> tuple[Tensor, Tensor]:
        """The logits and labels of a batch."""
        label = batches.classes(batches.label(batch, self.hparams.label), self.hparams.num_classes)
        return self.classifier(batches.observations(batch)[0]), label

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Cross-entropy with smoothed labels."""
        logits, label = self.read(batch)
        smoothing = self.hparams.label_smoothing
        loss = F.cross_entropy(logits, label, ignore_index=UNLABELLED, label_smoothing=smoothing)
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Count the hits."""
        self.accuracy.update(*self.read(batch))
        self.log("val/accuracy", self.accuracy, prog_bar=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Count the hits."""
        self.accuracy.update(*self.read(batch))
        self.log("test/accuracy", self.accuracy)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with a rate for each layer."""
        hparams, total = self.hparams, clock(self.trainer).total
        groups = param_groups_layer_decay(self.classifier, hparams.weight_decay, layer_decay=hparams.layer_decay)
        for group in groups:
            group["lr"] = hparams.lr * group.pop("lr_scale")
        optimizer = torch.optim.AdamW(groups)
        warmup = hparams.warmup * total
        schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step + 1, total, warmup, 0.0, 1.0, 0.0))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

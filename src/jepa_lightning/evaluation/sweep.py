"""Heads of many settings, fitted at once on the same features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from jepa_lightning.batches import UNLABELLED
from jepa_lightning.clock import clock
from jepa_lightning.evaluation.probe import FrozenProbe, Width
from jepa_lightning.schedules import cosine


class Sweep(FrozenProbe):
    """Heads of several settings, trained at once.

    They see the same batches, and none changes another's gradients: each is trained as it would be alone, unless the
    Trainer clips them (`gradient_clip_val`), which it does by the norm of all.

    Args:
        encoder: the checkpoint whose encoder is probed; see `FrozenEncoder`.
        encoder_options: of `FrozenEncoder`.
        label: the field of the batch that is read off the features; the first label without.
        num_layers: number of blocks of the encoder that are read, from the last one back.
        lrs: learning rates.
        weight_decays: weight decays; every kind of head is trained with each pair of a rate and a decay.
    """

    def __init__(
        self,
        encoder: str | Width,
        encoder_options: dict[str, Any] | None,
        label: str | None,
        num_layers: int,
        lrs: Sequence[float],
        weight_decays: Sequence[float],
    ) -> None:
        if not lrs or not weight_decays or min(lrs) <= 0 or min(weight_decays) < 0:
            raise ValueError(f"expected rates above zero and decays from zero on, got {lrs} and {weight_decays}")
        super().__init__(encoder, encoder_options, label, num_layers)
        self.heads, self.names, self.settings = nn.ModuleList(), [], []
        for (name, build), (lr, decay) in product(self.kinds_of_head(), product(lrs, weight_decays)):
            self.heads.append(build())
            self.names.append(f"{name}, lr {lr:g}, wd {decay:g}")
            self.settings.append((lr, decay))
        self.scores = nn.ModuleList(self.build_score() for _ in self.heads)

    @abstractmethod
    def kinds_of_head(self) -> list[tuple[str, Callable[[], nn.Module]]]:
        """The kinds of head by name, each as a function that makes one."""

    def loss(self, answer: Tensor, label: Tensor) -> Tensor:
        """What a head minimises, the mean over the batch: cross-entropy."""
        return F.cross_entropy(answer, label, ignore_index=UNLABELLED)

    def answer(self, contender: int, features: Tensor, label: Tensor) -> Tensor:
        """The outputs of a head."""
        outputs: Tensor = self.heads[contender](features)
        return outputs

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The sum of the heads' losses, whose gradients are each head's own."""
        features, label = self.read(batch)
        self.heads.train(len(features) > 1)  # one sample has no batch statistics
        numbers = range(len(self.heads))
        losses = torch.stack([self.loss(self.answer(number, features, label), label) for number in numbers])
        self.log("train/loss", losses.detach().mean(), prog_bar=True)
        return losses.sum()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimiser with a group for each head."""
        groups = [
            {"params": [*head.parameters()], "lr": lr, "weight_decay": decay}
            for head, (lr, decay) in zip(self.heads, self.settings, strict=True)
        ]
        optimizer, factor = self.build_optimizer(groups), self.factor
        total = clock(self.trainer).total
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

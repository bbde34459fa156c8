"""The vote of the nearest neighbours among a frozen encoder's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from jepa_lightning.callbacks.knn import vote
from jepa_lightning.callbacks.step import UNLABELLED, label_of
from jepa_lightning.evaluation.frozen import FrozenEncoder
from jepa_lightning.evaluation.probes import Features, checked_classes


class KNNProbe(pl.LightningModule):
    """A nearest-neighbour classifier on the mean of a frozen encoder's tokens, with the best of several k.

    The training data of the last epoch are its bank: one epoch will do. Features are standardised by the bank's mean
    and std; the `k` that does best on the validation data is the one that `test_step` uses, so these must not be the
    test data: see `HeldOut`. Its checkpoint holds the bank and not the encoder, whose file it names.

    Args:
        encoder: the checkpoint whose encoder is probed; see `FrozenEncoder`.
        num_classes: number of classes.
        label: the field of the batch that holds the class; the batch's second item without.
        k: numbers of neighbours that vote.
        temperature: of the votes, above zero.
        encoder_options: of `FrozenEncoder`.

    Raises:
        ValueError: an option out of its range, or labels that do not fit.

    Source: Wu et al. (arXiv 1805.01978), section 3.4.
    """

    hparams: Any
    scores: Any
    score = "accuracy"
    bank: Tensor
    bank_labels: Tensor
    chosen: Tensor

    def __init__(
        self,
        encoder: str,
        num_classes: int,
        label: str | None = None,
        k: Sequence[int] = (10, 20, 100, 200),
        temperature: float = 0.07,
        encoder_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not k or min(k) < 1 or temperature <= 0:
            raise ValueError(f"k and temperature must be positive, got {k} and {temperature}")
        self.save_hyperparameters()
        self.encoder = FrozenEncoder(encoder, 1, encoder_options)
        self.strict_loading = False  # checkpoints lack the encoder
        self.scores = nn.ModuleList(
            MulticlassAccuracy(num_classes, average="micro", ignore_index=UNLABELLED) for _ in k
        )
        self.register_buffer("chosen", torch.zeros((), dtype=torch.long))
        self.register_buffer("bank", torch.empty(0, self.encoder.embed_dim))
        self.register_buffer("bank_labels", torch.empty(0, dtype=torch.long))
        self.automatic_optimization = False  # there is nothing to optimise
        self.nothing = nn.Parameter(torch.zeros(()))  # DDP takes no module without a parameter
        self._seen: list[tuple[Tensor, Tensor]] = []

    def configure_optimizers(self) -> None:
        """Nothing is optimised."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the encoder out: it is in the file it came from."""
        state = checkpoint["state_dict"]
        for name in [name for name in state if name.startswith("encoder.")]:
            del state[name]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make room for the checkpoint's bank."""
        for name in ("bank", "bank_labels"):
            setattr(self, name, torch.empty_like(checkpoint["state_dict"][name], device=self.device))

    def read(self, batch: Any) -> tuple[Tensor, Tensor]:
        """The features `[B, D]` and labels `[B]` of a batch."""
        label = batch.label if isinstance(batch, Features) else label_of(batch, self.hparams.label)
        label = checked_classes(label, self.hparams.num_classes, 1)
        tokens = batch.features if isinstance(batch, Features) else self.encoder(batch[0]).mean(2)
        return tokens[:, -1], label

    def on_train_epoch_start(self) -> None:
        """Start an empty bank."""
        self._seen = []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Put a batch into the bank."""
        self._seen.append(self.read(batch))

    def on_validation_epoch_start(self) -> None:
        """Collect the bank from all processes, which have as many samples each, some without a label."""
        if not self._seen:  # a sanity check before training, or the checkpoint's own bank
            return
        features, labels = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        features = torch.as_tensor(self.all_gather(features)).view(-1, features.shape[1])
        labels = torch.as_tensor(self.all_gather(labels)).view(-1)
        self.bank, self.bank_labels = features[labels != UNLABELLED], labels[labels != UNLABELLED]

    def classes(self, features: Tensor, k: int) -> Tensor:
        """The vote of k neighbours for features `[B, D]`.

        Raises:
            RuntimeError: no bank.
        """
        if not len(self.bank):
            raise RuntimeError("there is no bank: fit the probe, or load a checkpoint of one")
        mean, std = self.bank.mean(0), self.bank.std(0, correction=0) + 1e-6
        query, bank = (F.normalize((inputs - mean) / std, dim=1) for inputs in (features, self.bank))
        return vote(query, bank, self.bank_labels, k, self.hparams.temperature, self.hparams.num_classes)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Score every k."""
        if not len(self.bank):
            return
        features, labels = self.read(batch)
        for k, score in zip(self.hparams.k, self.scores, strict=True):
            score.update(self.classes(features, k), labels)

    def on_validation_epoch_end(self) -> None:
        """Choose the best."""
        if not len(self.bank):
            return
        scores = torch.stack([score.compute() for score in self.scores])
        for score in self.scores:
            score.reset()
        self.chosen.copy_(scores.argmax())
        self.log("val/accuracy", scores.max(), prog_bar=True)

    def on_fit_end(self) -> None:
        """Say which it is."""
        rank_zero_info(f"best on the validation data: {self.name_of_chosen}")

    @property
    def name_of_chosen(self) -> str:
        """The number of neighbours that did best on the validation data."""
        return f"k {self.hparams.k[int(self.chosen)]}"

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Score the chosen number of neighbours."""
        features, labels = self.read(batch)
        chosen = int(self.chosen)
        self.scores[chosen].update(self.classes(features, self.hparams.k[chosen]), labels)

    def on_test_epoch_end(self) -> None:
        """Log its score."""
        score = self.scores[int(self.chosen)]
        self.log("test/accuracy", score.compute())
        score.reset()

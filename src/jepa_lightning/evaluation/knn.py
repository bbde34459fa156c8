"""The vote of the nearest neighbours among a frozen encoder's features."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lightning.batches import UNLABELLED
from jepa_lightning.callbacks.probes import vote
from jepa_lightning.evaluation.probe import OfClasses, Width


class KNNEvaluation(OfClasses):
    """A nearest-neighbour classifier on the mean of a frozen encoder's tokens, with the best of several k.

    The training data of the last epoch are its bank: one epoch will do. Features are standardised by the bank's mean
    and std; the `k` that does best on the validation data is the one that `test_step` uses, so these must not be the
    test data: see `HeldOut`. Its checkpoint holds the bank and not the encoder, whose file it names.

    Args:
        encoder: the checkpoint whose encoder is probed; see `FrozenEncoder`.
        num_classes: number of classes.
        label: the field of the batch that holds the class; the first label without.
        k: numbers of neighbours that vote.
        temperature: of the votes, above zero.
        encoder_options: of `FrozenEncoder`.

    Raises:
        ValueError: an option out of its range, or labels that do not fit.

    Source: Wu et al. (arXiv 1805.01978), section 3.4.
    """

    bank: Tensor
    bank_labels: Tensor

    def __init__(
        self,
        encoder: str | Width,
        num_classes: int,
        label: str | None = None,
        k: Sequence[int] = (10, 20, 100, 200),
        temperature: float = 0.07,
        encoder_options: dict[str, Any] | None = None,
    ) -> None:
        if not k or min(k) < 1 or temperature <= 0:
            raise ValueError(f"k and temperature must be positive, got {k} and {temperature}")
        super().__init__(encoder, encoder_options, label, 1)
        self.names = [f"k {number}" for number in k]
        self.scores = nn.ModuleList(self.build_score() for _ in k)
        self.register_buffer("bank", torch.empty(0, self.encoder.embed_dim))
        self.register_buffer("bank_labels", torch.empty(0, dtype=torch.long))
        self.automatic_optimization = False  # there is nothing to optimise
        self.nothing = nn.Parameter(torch.zeros(()))  # DDP takes no module without a parameter
        self._seen: list[tuple[Tensor, Tensor]] = []

    def configure_optimizers(self) -> None:
        """Nothing is optimised."""
        warnings.filterwarnings("ignore", message=r".*configure_optimizers. returned .None.")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make room for the checkpoint's bank."""
        for name in ("bank", "bank_labels"):
            setattr(self, name, torch.empty_like(checkpoint["state_dict"][name], device=self.device))

    def pool(self, tokens: Tensor) -> Tensor:
        """Their means, `[B, layers, D]`."""
        return tokens.mean(2)

    def on_train_epoch_start(self) -> None:
        """Start an empty bank."""
        self._seen = []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Put a batch into the bank."""
        features, labels = self.read(batch)
        self._seen.append((features[:, -1], labels))

    def on_validation_epoch_start(self) -> None:
        """Collect the bank from all processes, which have as many samples each, some without a label."""
        if not self._seen:  # a sanity check before training, or the checkpoint's own bank
            return
        features, labels = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        features = torch.as_tensor(self.all_gather(features)).view(-1, features.shape[1])
        labels = torch.as_tensor(self.all_gather(labels)).view(-1)
        self.bank, self.bank_labels = features[labels != UNLABELLED], labels[labels != UNLABELLED]

    def answer(self, contender: int, features: Tensor, label: Tensor) -> Tensor:
        """The vote of k neighbours.

        Raises:
            RuntimeError: no bank.
        """
        if not len(self.bank):
            raise RuntimeError("there is no bank: fit the probe, or load a checkpoint of one")
        mean, std = self.bank.mean(0), self.bank.std(0, correction=0) + 1e-6
        query, bank = (F.normalize((inputs - mean) / std, dim=1) for inputs in (features[:, -1], self.bank))
        hparams = self.hparams
        return vote(query, bank, self.bank_labels, hparams.k[contender], hparams.temperature, hparams.num_classes)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Score every k."""
        if len(self.bank):
            super().validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Choose the best."""
        if len(self.bank):
            super().on_validation_epoch_end()

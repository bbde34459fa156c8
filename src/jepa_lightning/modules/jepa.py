"""The base of every method: predict the embedding of a target from the embedding of a context."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from jepa_lightning import batches
from jepa_lightning.callbacks.progress import Progress
from jepa_lightning.draws import Rng
from jepa_lightning.losses import Distance, token_distance, weight_of, weighted_over_ranks
from jepa_lightning.modules.training import TrainingModule
from jepa_lightning.step import Latents, Prediction, Tokens, nearest_future, weighted_mean


class JEPA(TrainingModule, ABC):
    """A joint-embedding predictive architecture: what a step draws, computes and minimises.

    A method answers four questions. What is the context, what is the target, and what conditions the prediction:
    `latents`. What keeps the embeddings from collapsing: `teachers`, or a term of `loss`. It builds its networks in its
    constructor, after that of this class, whose options say how it is trained (see `TrainingModule`).

    A step is `draw`, `latents`, `loss`, and gives what callbacks read: the loss's terms, the `latents` and what was
    `drawn`. Everything random comes from `draw`, so that a resumed training draws the same. The teachers move by
    `EMATargetEncoder`, which the module brings along unless the Trainer has one, as it does `GradientGuard`.

    Attributes:
        reads: names of the fields of a batch that the method reads, which a plain tuple has in this order; without
            names, the first one. All others are labels (see `jepa_lightning.batches`).
        distance: between prediction and target: `smooth_l1`, `l1` or `l2`.
        regularizers: terms that are added to the loss, by name (see `Regularizer`), if the method has any.
    """

    regularizers: Any
    reads: tuple[str, ...] = ()
    distance: Distance = "smooth_l1"

    def draw(self, batch: Any, rng: Rng) -> Any:
        """What a step draws for a batch: masks, views, a direction; nothing by default."""
        return None

    @abstractmethod
    def latents(self, batch: Any, drawn: Any = None) -> Latents:
        """The predictions, their targets, and the embeddings of a batch; what is not given is drawn."""

    @abstractmethod
    def features(self, batch: Any) -> Tokens:
        """The embeddings of a batch that a task would use, without anything hidden."""

    def distances(self, prediction: Tensor, target: Tensor) -> Tensor:
        """How far each prediction `[B, ..., D]` is from its target, `[B, ...]`: the mean over the features."""
        return token_distance(prediction, target, self.distance)

    def loss(self, latents: Latents) -> dict[str, Tensor]:
        """All terms by name; `"loss"` is what is minimised.

        That is the distance of each prediction, averaged by its weights over the batch of all processes, then the mean
        of the predictions, plus the regularisers. Of K possible futures the nearest counts.
        """
        several = {}
        for name, each in latents.predictions.items():
            distances, weight = nearest_future(self._distances(each), each)
            several[name] = weighted_over_ranks(distances, weight)
        energy = torch.stack(list(several.values())).mean()
        terms = {f"energy_{name}": value for name, value in several.items()} if len(several) > 1 else {}
        loss, regularizers = energy, getattr(self, "regularizers", {})
        for name, regularizer in regularizers.items():
            penalty, parts = regularizer(latents)
            loss = loss + penalty
            terms |= {f"{name}_{part}" if part else name: value for part, value in parts.items()}
        return {"loss": loss, **({"energy": energy} if regularizers else {}), **terms}

    def energy(self, latents: Latents) -> Tensor:
        """How far each sample's predictions are from their targets, `[B]`: low for compatible pairs.

        The mean of the predictions; of K possible futures, the nearest.
        """
        several = []
        for each in latents.predictions.values():
            distances, weight = nearest_future(self._distances(each), each)
            several.append(weighted_mean(distances, weight, tuple(range(1, distances.ndim))))
        return torch.stack(several).mean(0)

    def _distances(self, each: Prediction) -> Tensor:
        target = each.target if each.futures is None else each.target.unsqueeze(1).expand_as(each.prediction)
        return self.distances(each.prediction, target)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Log every term under `train/`; return them with what was drawn and the detached latents for callbacks."""
        return self._step(batch, batch_idx, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """The same on held-out data, under `val/`; what is drawn for a batch is the same in every epoch."""
        return self._step(batch, batch_idx, "val")

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """The same on the test data, under `test/`."""
        return self._step(batch, batch_idx, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """What an evaluation reads, `features` `[B, D]`; and the labels."""
        return {"features": self.features(batch).pooled(), **batches.labels(batch, self.reads)}

    def observations(self, batch: Any) -> tuple[Any, ...]:
        """The fields of a batch that the method reads."""
        return batches.observations(batch, self.reads)

    def _step(self, batch: Any, batch_idx: int, stage: str) -> dict[str, Any]:
        size = len(self.observations(batch)[0])
        drawn = self._drawn(batch, size, batch_idx)
        latents = self.latents(batch, drawn)
        terms = self.loss(latents)
        self.log_terms(terms, stage, size)
        if stage == "train" and self.automatic_optimization and self.trainer.accumulate_grad_batches > 1:
            weights = [each.weight for each in latents.predictions.values() if each.weight is not None]
            if weights:
                terms = {**terms, "loss": self.weigh(terms["loss"], weight_of(weights), batch_idx)}
        return {**terms, "latents": latents.detach(), "drawn": drawn}

    @torch.compiler.disable  # a compiler can trace neither the hashes of Python numbers nor what NumPy chooses by them
    def _drawn(self, batch: Any, size: int, batch_idx: int) -> Any:
        return self.draw(batch, self.rng(size, batch_idx))

    def log_terms(self, terms: dict[str, Tensor], stage: str, batch_size: int) -> None:
        """Log terms as `<stage>/<name>`."""
        training = stage == "train"
        # What another bar is to show is read, and so waited for, in every step; `Progress` reads when a line is due.
        bar = None if self._trainer is None else self.trainer.progress_bar_callback
        shown = training and bar is not None and not isinstance(bar, Progress)
        for name, value in terms.items():
            self.log(
                f"{stage}/{name}",
                value.detach(),
                prog_bar=shown and name == "loss",
                sync_dist=not training,
                batch_size=batch_size,
            )

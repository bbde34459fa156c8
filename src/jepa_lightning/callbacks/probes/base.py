"""Probes that follow the training: what could be read off the target encoder's features right now."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassJaccardIndex

from jepa_lightning import batches
from jepa_lightning.batches import UNLABELLED
from jepa_lightning.callbacks.memory import RememberingCallback
from jepa_lightning.callbacks.probes.raw import classes_of_tokens, raw_samples, raw_tokens
from jepa_lightning.step import Latents, Tokens


class Probe(RememberingCallback):
    """What the online probes share: their input, their labels and their accuracy on the validation or test data.

    A probe reads the features that the step has computed anyway, of most methods the mean of the target encoder's
    tokens, and never touches the module: its own weights live in the callback's state in the checkpoint. Images of
    class -1 (or -100) have no label: they teach it nothing and are not counted.

    Where the label is a map of classes `[B, H, W]`, the probe is a dense one: it reads single tokens, and the class of
    a token is the most frequent one of its patch. Beside the accuracy it logs `miou`, the intersection over union of
    tokens, averaged over the classes that there are. So it is where the label is a class for each step of series,
    waves or words, `[B, T]`: each token has the most frequent one of its share of the T steps.

    Args:
        name: the probe's tags are `probe/<name>/<metric>`.
        label: the field of the batch that holds the class; the first label without.
        source: `features`; an embedding of the step by its name, such as `context`; or `observation` for the raw input,
            the baseline that features have to pass.
    """

    dense = True  # whether it can read single tokens

    def __init__(self, name: str, label: str | None = None, source: str = "features") -> None:
        self.name = name
        self.label = label
        self.source = source
        self.forget()

    def forget(self) -> None:
        """Be as new."""
        self._accuracy = MeanMetric()
        self._overlap: MulticlassJaccardIndex | None = None

    @property
    def state_key(self) -> str:
        """Keeps the states of several probes of one class apart."""
        return f"{type(self).__qualname__}[{self.name}]"

    @abstractmethod
    def fit(self, trainer: pl.Trainer, pl_module: pl.LightningModule, inputs: Tensor, labels: Tensor) -> None:
        """Learn from a training batch: inputs `[B, D]`, labels `[B]`."""

    @abstractmethod
    def predict(self, inputs: Tensor) -> Tensor:
        """The answers to inputs `[B, D]`: classes `[B]`."""

    def pool(self, tokens: Tokens) -> Tensor:
        """What the probe reads of the tokens of an image: one vector, `[B, D]`."""
        return tokens.pooled()

    @property
    @abstractmethod
    def _classes(self) -> int:
        """The number of classes that it can predict."""

    @property
    @abstractmethod
    def _fitted(self) -> bool:
        """Whether there is something to predict with: a validation before any training has nothing to count."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Learn from the step's features."""
        inputs, labels = self._read(pl_module, outputs, batch)
        finite = inputs.isfinite().flatten(1).all(1)
        if not finite.all():  # a single NaN would stay in statistics, weights or bank
            inputs = inputs.nan_to_num(0.0, 0.0, 0.0)
            labels = labels if labels.is_floating_point() else labels.masked_fill(~finite, UNLABELLED)
        self.fit(trainer, pl_module, inputs, labels)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the last validation."""
        self.reset(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the answers on held-out images; in the sanity check before the first step, look at the labels only."""
        if trainer.sanity_checking:
            self.check(self._read(pl_module, outputs, batch)[1])
        elif self._fitted:
            inputs, labels = self._read(pl_module, outputs, batch)
            self.score(self.predict(inputs), labels, dense=len(labels) > len(self._observation(pl_module, batch)))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the scores over the validation data of all processes."""
        if not trainer.sanity_checking and self._fitted:
            for name, value in self.scores().items():
                pl_module.log(f"probe/{self.name}/{name}", value, prog_bar=name != "miou")

    def check(self, labels: Tensor) -> None:
        """Raise a ValueError for labels that the probe cannot learn: held-out ones may only be missed."""

    def reset(self, device: torch.device) -> None:
        """Forget the scores."""
        self._accuracy.to(device).reset()
        self._overlap = None

    def score(self, predicted: Tensor, labels: Tensor, dense: bool) -> None:
        """Count the hits of predicted classes `[B]`."""
        self._accuracy.update((predicted == labels)[labels != UNLABELLED].float())
        if dense:
            if self._overlap is None:  # with one class more, for labels that the probe has never seen
                self._overlap = MulticlassJaccardIndex(self._classes + 1, ignore_index=UNLABELLED).to(labels.device)
            self._overlap.update(predicted, labels.clamp(max=self._classes))

    def scores(self) -> dict[str, Tensor]:
        """The scores by name, over all processes."""
        overlap = {} if self._overlap is None else {"miou": self._overlap.compute()}
        return {"accuracy": self._accuracy.compute(), **overlap}

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same of the test data."""
        self.on_validation_epoch_start(trainer, pl_module)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """The same of the test data."""
        self.on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same of the test data."""
        self.on_validation_epoch_end(trainer, pl_module)

    def _observation(self, pl_module: Any, batch: Any) -> Tensor:
        return batches.observations(batch, pl_module.reads)[0]

    def _label(self, pl_module: Any, batch: Any) -> Tensor:
        """The label of a batch, checked."""
        try:
            return self.checked(batches.label(batch, self.label, pl_module.reads))
        except ValueError as error:
            raise ValueError(f"the probe {self.name!r}: {error}") from error

    def checked(self, label: Tensor) -> Tensor:
        """A label as the probe takes it: classes.

        Raises:
            ValueError: one of another kind, or out of range.
        """
        return batches.classes(label, maps=self.dense)

    def _tokens(self, latents: Latents) -> Tokens:
        """The embedding that the probe reads."""
        if self.source == "features" and latents.features is not None:
            return latents.features
        if self.source not in latents.embeddings:
            names = ["observation", *(["features"] if latents.features is not None else []), *latents.embeddings]
            raise ValueError(
                f"the probe {self.name!r} reads {self.source!r}, which this method does not have: choose its source "
                f"among {', '.join(names)}"
            )
        return latents.embeddings[self.source]

    def _read(self, pl_module: Any, outputs: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """The inputs `[B, D]` and labels `[B]` of a batch; those of all its tokens, `[B * N, D]`, of a dense one."""
        labels, observation = self._label(pl_module, batch), self._observation(pl_module, batch)
        raw = self.source == "observation"
        if labels.ndim == 2 and not labels.is_floating_point():
            return self._read_steps(pl_module, outputs, batch, labels)
        if labels.ndim < 3:
            inputs = raw_samples(pl_module, batch) if raw else self.pool(self._tokens(outputs["latents"]))
            return inputs.float(), labels
        grid = pl_module.context_encoder.grid_of(observation)
        if len(grid) != 2:
            raise ValueError(f"the probe {self.name!r} reads maps of classes of images, not of clips of {grid} tokens")
        inputs = patches(observation, grid) if raw else self._tokens(outputs["latents"]).values
        return inputs.flatten(0, 1).float(), patches(labels.unsqueeze(1), grid).flatten(0, 1).mode(1).values

    def _read_steps(self, pl_module: Any, outputs: Any, batch: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs and labels of the tokens that there are, of classes `[B, T]` of the steps of series or words."""
        grid = pl_module.context_encoder.grid_of(self._observation(pl_module, batch))
        raw, latents = self.source == "observation", outputs["latents"]
        tokens = latents.features if raw and latents.features is not None else self._tokens(latents)
        count = tokens.values.shape[1]
        if len(grid) != 1 or count != grid[0]:
            raise ValueError(
                f"the probe {self.name!r} reads classes {list(labels.shape)} of the steps of series, waves or words, "
                f"from all of their tokens, but {self.source!r} has {count} tokens of a grid of {tuple(grid)}"
            )
        inputs = raw_tokens(pl_module, batch, count) if raw else tokens.values
        of_tokens = classes_of_tokens(labels, count)
        if tokens.valid is None:
            return inputs.flatten(0, 1).float(), of_tokens.flatten()
        return inputs[tokens.valid].float(), of_tokens[tokens.valid]


def patches(images: Tensor, grid: Sequence[int]) -> Tensor:
    """Cut images `[B, C, H, W]` into the flattened patches `[B, N, C * height * width]` of a grid of tokens.

    Raises:
        ValueError: a height or width that the grid does not divide.
    """
    (height, width), (rows, columns) = images.shape[-2:], grid
    if height % rows or width % columns:
        raise ValueError(f"a map of {height}x{width} pixels cannot be cut into {rows}x{columns} patches")
    cut = images.unflatten(3, (columns, width // columns)).unflatten(2, (rows, height // rows))
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

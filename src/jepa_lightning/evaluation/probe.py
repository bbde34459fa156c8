"""What reads a label off the features of a frozen encoder."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from jepa_lightning import batches
from jepa_lightning.batches import UNLABELLED
from jepa_lightning.checkpoints import load_encoder
from jepa_lightning.networks import Transformer


class FrozenEncoder(nn.Module):
    """The encoder of any checkpoint that `load_encoder` reads, without gradients, and the tokens of its last blocks.

    Args:
        path: a checkpoint file, or a folder in the layout of the Hugging Face hub.
        layers: blocks from the last one back whose tokens are given.
        options: further arguments of `load_encoder`, such as `{"network": "context_encoder", "image_size": 384}`.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file that cannot be read, or an encoder of fewer blocks.
    """

    def __init__(self, path: str, layers: int = 1, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        encoder = load_encoder(path, **(options or {}))
        self.depth = len(encoder.blocks) if isinstance(encoder, Transformer) else 1  # of others the last one is read
        if not 1 <= layers <= self.depth:
            raise ValueError(f"{path} has {self.depth} blocks that can be read: its last {layers} cannot")
        self.encoder, self.layers = encoder, layers
        self.embed_dim, self.num_heads = encoder.embed_dim, getattr(encoder, "num_heads", None)
        self.grid: tuple[int, ...] = encoder.grid if isinstance(encoder, Transformer) else ()

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Images or clips to the tokens `[B, layers, N, D]` of the last blocks, each after the encoder's norm."""
        encoder = self.encoder
        if not isinstance(encoder, Transformer):
            return encoder(x).unsqueeze(1)
        several = encoder.layers(encoder.tokens(x), range(-self.layers, 0), grid=encoder.grid_of(x))
        return torch.stack([encoder.norm(tokens) if encoder.norm_first else tokens for tokens in several], 1)


class Width(nn.Module):
    """In place of the encoder of a probe whose features are computed before: it only says what these are like.

    Args:
        embed_dim: width of the features.
        grid: of the tokens, if there are any.
        num_heads: of the encoder, if it has any.
    """

    def __init__(self, embed_dim: int, grid: tuple[int, ...] = (), num_heads: int | None = None) -> None:
        super().__init__()
        self.embed_dim, self.grid, self.num_heads = embed_dim, grid, num_heads


class Features(NamedTuple):
    """A batch of what a probe reads of the frozen encoder, computed before.

    Attributes:
        features: what the probe's `pool` gives of the encoder's tokens.
        label: as in the batches that they were computed from.
    """

    features: Tensor
    label: Tensor


class FrozenProbe(pl.LightningModule):
    """Contenders that read a label off a frozen encoder's features; the best on the validation data is tested.

    Which one is best is found anew at each validation, kept in the checkpoint, and the one that `test_step` reports on.
    So the validation data must not be the test data: see `HeldOut`. The encoder's weights are not in the checkpoint,
    which names their file.

    Args:
        encoder: the checkpoint whose encoder is probed, see `FrozenEncoder`; or the `Width` of features that are
            computed before.
        encoder_options: of `FrozenEncoder`.
        label: the field of the batch that is read off the features; the first label without.
        num_layers: number of blocks of the encoder that are read, from the last one back.
    """

    hparams: Any
    encoder: Any
    scores: Any
    names: list[str]  # of the contenders
    chosen: Tensor
    score: str  # the name of what they are compared by, the higher the better

    def __init__(
        self, encoder: str | Width, encoder_options: dict[str, Any] | None, label: str | None, num_layers: int
    ) -> None:
        super().__init__()
        if isinstance(encoder, Width):
            self.save_hyperparameters(ignore=["encoder"])
            self.encoder = encoder
        else:
            self.save_hyperparameters()
            self.encoder = FrozenEncoder(encoder, num_layers, encoder_options)
        self.strict_loading = False  # checkpoints lack the encoder
        self.label = label
        self.register_buffer("chosen", torch.zeros((), dtype=torch.long))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the encoder out: it is in the file it came from."""
        state = checkpoint["state_dict"]
        for name in [name for name in state if name.startswith("encoder.")]:
            del state[name]

    @abstractmethod
    def pool(self, tokens: Tensor) -> Tensor:
        """What the contenders read of the tokens `[B, layers, N, D]`."""

    @abstractmethod
    def answer(self, contender: int, features: Tensor, label: Tensor) -> Tensor:
        """What a contender, by its number, makes of features that have a label."""

    @abstractmethod
    def build_score(self) -> Metric:
        """What tells how good a contender is, updated with its answers and the labels."""

    @abstractmethod
    def checked(self, label: Tensor) -> Tensor:
        """The label as the score takes it, or an error that says what it should be."""

    @property
    def name_of_chosen(self) -> str:
        """The contender that did best on the validation data."""
        return self.names[int(self.chosen)]

    def read(self, batch: Any) -> tuple[Tensor, Tensor]:
        """The features and labels of a batch.

        Raises:
            ValueError: a batch without the label, or with one of a kind that the probe does not take.
        """
        if isinstance(batch, Features):
            return batch.features, self.checked(batch.label)
        label = self.checked(batches.label(batch, self.label))
        return self.pool(self.encoder(batches.observations(batch)[0])), label

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Score every contender."""
        features, label = self.read(batch)
        for number, score in enumerate(self.scores):
            score.update(self.answer(number, features, label), label)

    def on_validation_epoch_end(self) -> None:
        """Choose the best."""
        scores = torch.stack([score.compute() for score in self.scores])
        for score in self.scores:
            score.reset()
        scores = scores.nan_to_num(-torch.inf)  # of heads that diverged
        self.chosen.copy_(scores.argmax())
        self.log(f"val/{self.score}", scores.max(), prog_bar=True)

    def on_fit_start(self) -> None:
        """Keep quiet about what is as it should be: an encoder in evaluation mode."""
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")

    def on_fit_end(self) -> None:
        """Say which it is."""
        rank_zero_info(f"best of {len(self.names)} on the validation data: {self.name_of_chosen}")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Score the chosen one."""
        features, label = self.read(batch)
        chosen = int(self.chosen)
        self.scores[chosen].update(self.answer(chosen, features, label), label)

    def on_test_epoch_end(self) -> None:
        """Log its score."""
        score = self.scores[int(self.chosen)]
        self.log(f"test/{self.score}", score.compute())
        score.reset()


class OfClasses(FrozenProbe):
    """What the probes of one class a sample share; samples of class -1 have no label and do not count."""

    score = "accuracy"

    def build_score(self) -> Metric:
        """The share of hits."""
        return MulticlassAccuracy(self.hparams.num_classes, average="micro", ignore_index=UNLABELLED)

    def checked(self, label: Tensor) -> Tensor:
        """Integers `[B]` below the number of classes."""
        return batches.classes(label, self.hparams.num_classes)

"""TensorBoard as a cockpit: what tells whether a run learns on one page, and its embeddings to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from jepa_lightning import batches
from jepa_lightning.callbacks.pictures import as_shown
from jepa_lightning.step import Latents

# Charts of TensorBoard's page "Custom scalars", in the order of the questions; a name is a regular expression.
LAYOUT = {
    "Is it learning?": {
        "accuracy (or share of variance) of the probes on held-out data": ["Multiline", ["probe/.*/(accuracy|r2)"]],
        "loss (or energy), and that of a constant prediction: they must stay apart": [
            "Multiline",
            ["train/(loss|energy|constant_loss)$"],
        ],
    },
    "Has it collapsed?": {
        "rank across images (RankMe)": ["Multiline", ["collapse/.*/rankme$"]],
        "cosine between images: 1 is a collapse": ["Multiline", ["collapse/.*/cosine$"]],
        "standard deviation across images: 0 is a collapse": ["Multiline", ["collapse/.*/std$"]],
        "rank across the tokens of an image": ["Multiline", ["collapse/.*/token_rankme"]],
    },
    "How is it driven?": {
        "learning rate": ["Multiline", ["lr-[^-]*$"]],
        "momentum of the teacher": ["Multiline", ["train/momentum"]],
        "distance of teacher and student": ["Multiline", ["collapse/target/student_distance"]],
    },
}


class Cockpit(pl.Callback):
    """Lays out TensorBoard's page "Custom scalars", and gives its projector the embeddings of held-out data.

    The page has the probes beside the loss, the readings of `CollapseMonitor` below them, and the schedules last. The
    projector gets the features of the first held-out samples at the end of the fit, with their labels and, of images
    and clips, with thumbnails (of a clip, the first frame).

    Args:
        num_embeddings: images in the projector; 0 for none.

    Raises:
        ValueError: a negative number.
    """

    def __init__(self, num_embeddings: int = 500) -> None:
        if num_embeddings < 0:
            raise ValueError(f"num_embeddings must not be negative, got {num_embeddings}")
        self.num_embeddings = num_embeddings
        self._kept: list[tuple[Tensor, Tensor | None, list[list[str]]]] = []
        self._fields: list[str] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the layout."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_custom_scalars(LAYOUT)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the embeddings of the last validation."""
        self._kept = []

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the embeddings, thumbnails and labels of the first images."""
        missing = self.num_embeddings - sum(len(embeddings) for embeddings, _, _ in self._kept)
        if missing <= 0 or dataloader_idx:
            return
        observation = batches.observations(batch, pl_module.reads)[0][:missing]
        latents: Latents = outputs["latents"]
        embedding = latents.features or next(iter(latents.embeddings.values()))
        labels = _labels(batch, pl_module.reads)
        self._fields = list(labels)
        rows = [[str(value) for value in row] for row in zip(*(labels[name][:missing] for name in labels), strict=True)]
        self._kept.append((embedding.float().pooled()[:missing].cpu(), _thumbnails(observation), rows))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the last validation's embeddings."""
        if not self._kept:
            return
        embeddings, thumbnails, rows = zip(*self._kept, strict=True)
        metadata = [row for part in rows for row in part]
        shown = [part for part in thumbnails if part is not None]
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_embedding(
                    torch.cat(embeddings),
                    metadata=[row[0] for row in metadata] if len(self._fields) == 1 else metadata or None,
                    metadata_header=self._fields if len(self._fields) > 1 else None,
                    label_img=torch.cat(shown) if len(shown) == len(thumbnails) else None,
                    global_step=trainer.global_step,
                )


def _thumbnails(observation: Tensor) -> Tensor | None:
    """Small pictures of images `[B, C, H, W]` and clips `[B, C, T, H, W]`; there is none of anything else."""
    if observation.ndim not in (4, 5):
        return None
    return as_shown(observation[:, :, 0] if observation.ndim == 5 else observation)


def _labels(batch: Any, reads: Sequence[str]) -> dict[str, list[int]]:
    """The classes of a batch, one for each image, by the names of its fields."""
    return {
        name: field.tolist()
        for name, field in batches.labels(batch, reads).items()
        if isinstance(field, Tensor) and field.ndim == 1 and not field.is_floating_point()
    }

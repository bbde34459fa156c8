"""TensorBoard as a cockpit: what tells whether a run learns on one page, and its embeddings to look at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.figure import Figure
from torch import Tensor

from jepa_lightning import batches
from jepa_lightning.callbacks.memory import RememberingCallback, has_held_out
from jepa_lightning.callbacks.pictures import as_shown
from jepa_lightning.step import Latents

# Charts of TensorBoard's page "Custom scalars", in the order of the questions; a name is a regular expression.
LAYOUT = {
    "Is it learning?": {
        "accuracy (or share of variance) of the probes on held-out data": [
            "Multiline",
            ["probe/.*/(accuracy|r2|raw|untrained)$"],
        ],
        "loss (or energy), and that of a constant prediction: they must stay apart": [
            "Multiline",
            ["train/(loss|energy|constant_loss)$"],
        ],
    },
    "Has it collapsed?": {
        "rank across samples (RankMe)": ["Multiline", ["collapse/.*/rankme$"]],
        "cosine between samples: 1 is a collapse": ["Multiline", ["collapse/.*/cosine$"]],
        "standard deviation across samples: 0 is a collapse": ["Multiline", ["collapse/.*/std$"]],
        "rank across the tokens of a sample": ["Multiline", ["collapse/.*/token_rankme"]],
        "share of the target that the place of a token tells: 1 is a collapse": [
            "Multiline",
            ["collapse/target.*/token_place"],
        ],
    },
    "How is it driven?": {
        "learning rate": ["Multiline", ["lr-[^-]*$"]],
        "momentum of the teacher": ["Multiline", ["train/momentum"]],
        "distance of teacher and student": ["Multiline", ["collapse/target/student_distance"]],
    },
}


class Cockpit(RememberingCallback):
    """Lays out TensorBoard's page "Custom scalars", and gives its projector the embeddings of held-out data.

    The page has the probes beside the loss, the readings of `CollapseMonitor` below them, and the schedules last. The
    same curves with their names beside them are the picture `cockpit/curves`, drawn at every validation or, without
    held-out data, in every epoch. The projector gets the features of the first held-out samples at the end of the fit,
    with their labels and, of images and clips, with thumbnails (of a clip, the first frame).

    Args:
        num_embeddings: samples in the projector; 0 for none.

    Raises:
        ValueError: a negative number.
    """

    def __init__(self, num_embeddings: int = 500) -> None:
        if num_embeddings < 0:
            raise ValueError(f"num_embeddings must not be negative, got {num_embeddings}")
        self.num_embeddings = num_embeddings
        self.forget()

    def forget(self) -> None:
        """Be as new: without curves and embeddings."""
        self._curves: dict[str, dict[int, float]] = {}  # by tag, of the steps
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
        """Keep the embeddings, thumbnails and labels of the first samples."""
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

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the curves so far."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._draw(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same where there are no held-out data."""
        if not has_held_out(trainer):
            self._draw(trainer)

    def _draw(self, trainer: pl.Trainer) -> None:
        for tag, value in trainer.callback_metrics.items():
            self._curves.setdefault(tag, {})[trainer.global_step] = float(value)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("cockpit/curves", draw_curves(self._curves), trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """The curves, which a resumed run goes on with."""
        return {"curves": self._curves}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the curves of the run that is resumed."""
        self._curves = state_dict.get("curves", {})

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


def draw_curves(curves: dict[str, dict[int, float]]) -> Figure:
    """Values by step, with the names of the lines beside them: one plot for each question that has an answer.

    Args:
        curves: by tag, of values by step; those that the layout has no chart for are left out.
    """
    plots = []
    for charts in LAYOUT.values():
        for title, (_, patterns) in charts.items():
            tags = [tag for tag in curves if any(re.match(pattern, tag) for pattern in patterns)]
            plots += [(title, tags)] if tags else []
    height = 2 * max(1, len(plots))
    figure = Figure(figsize=(5, height))  # as wide as TensorBoard's cards show it
    # Room by hand: a layout that finds it by itself draws everything twice, which takes a second on a slow core.
    figure.subplots_adjust(left=0.11, right=0.61, bottom=0.3 / height, top=1 - 0.3 / height, hspace=0.42)
    for place, (title, tags) in enumerate(plots, start=1):
        axes = figure.add_subplot(len(plots), 1, place)
        axes.set_title(title, fontsize=8, loc="left")
        axes.tick_params(labelsize=7)
        # Names from top to bottom as the lines end.
        for tag in sorted(tags, key=lambda tag: curves[tag][max(curves[tag])], reverse=True):
            steps, values = zip(*sorted(curves[tag].items()), strict=True)
            name = re.sub(r"^lr-(\w+)/pg(\d+)", r"optimiser/\1, group \2", tag).split("/", 1)[-1]
            axes.plot(steps, values, marker=".", label=name.removesuffix("/accuracy"))
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    return figure


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

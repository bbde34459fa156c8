"""When pictures are drawn, and where they go."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from jepa_lightning import batches
from jepa_lightning.callbacks.memory import has_held_out
from jepa_lightning.callbacks.pictures.drawing import titled


class Pictures(pl.Callback):
    """Draws a few images or clips into TensorBoard at every validation or, without held-out data, in every epoch.

    They are the first ones of the first batch: of held-out data the same ones, under the same masks, every time.

    Args:
        num_images: number of images, or of clips, at least 1.

    Raises:
        ValueError: none at all.
    """

    tag: str
    axes: tuple[int, ...] = (4, 5)  # of the observations that it draws

    def __init__(self, num_images: int = 6) -> None:
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        self.num_images = num_images

    @abstractmethod
    def titles(self, pl_module: Any, images: Tensor, outputs: Any) -> list[str]:
        """What the columns of the picture show, from left to right; or one title for the whole of it."""

    @abstractmethod
    def draw(self, pl_module: Any, images: Tensor, outputs: Any) -> Tensor:
        """The picture `[3, height, width]`, in [0, 1], of the images and of the outputs of their step."""

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw held-out images."""
        if not (batch_idx or dataloader_idx or trainer.sanity_checking):
            self._show(trainer, pl_module, outputs, batch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw training images if there are no others."""
        if not batch_idx and not has_held_out(trainer):
            self._show(trainer, pl_module, outputs, batch)

    def shown(self, pl_module: Any, batch: Any) -> Tensor:
        """What is drawn of a batch: the first images or clips.

        Raises:
            ValueError: observations of another kind.
        """
        images = batches.observations(batch, pl_module.reads)[0][: self.num_images]
        if images.ndim not in self.axes:
            kinds = {
                2: "words [B, L]",
                3: "series and waves [B, L, C]",
                4: "images [B, C, H, W]",
                5: "clips [B, C, T, H, W]",
            }
            drawn = " and ".join(kinds[axes] for axes in self.axes)
            raise ValueError(f"{type(self).__name__} draws {drawn}, got {list(images.shape)}: leave it out")
        return images

    def _show(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any) -> None:
        images = self.shown(pl_module, batch)
        picture = titled(self.draw(pl_module, images, outputs), self.titles(pl_module, images, outputs))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(self.tag, picture, trainer.global_step)

"""How many directions tell held-out images apart, whatever of them is hidden."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from jepa_lightning import batches
from jepa_lightning.draws import Rng
from jepa_lightning.metrics import LiDAR
from jepa_lightning.step import Latents, Tokens, weighted_mean


class LiDARMonitor(pl.Callback):
    """Logs LiDAR of held-out images at every validation, as `collapse/context/lidar` and `collapse/prediction/lidar`.

    An image or clip is a class, and what it looks like under each of `num_masks` masks are its views: the mean of the
    context encoder's tokens of the visible part, and the mean of the predictor's tokens. Of a method with several kinds
    of masks, the tokens of all kinds; of LeJEPA, the tokens of the first view and the mean of the projected views. The
    target encoder sees all of an image, and so has one view of it.

    The masks are the same for all images, validations, runs and processes. With masks of its own for every image, an
    encoder that has collapsed to *where* tokens are would read as healthy: the masks would tell the images apart.

    In [0, min(D, num_images - 1)] for embeddings of width D: to compare, keep both numbers, and take more images than
    D. It is measured against what the masks change, and a collapse that leaves of both next to nothing may read as high
    as a healthy encoder: it ranks runs that `CollapseMonitor` finds alive.

    A validation costs `num_images * num_masks` forward passes more, in single precision, of as many images at a time as
    a validation batch has.

    Args:
        num_images: how many images of the (first) validation data, counted over all processes, and up to one more
            for each of them.
        num_masks: views of an image, q.

    Raises:
        ValueError: fewer than two of either.

    Source: Thilak et al., LiDAR (arXiv 2312.04000), section 4, which takes 10 to 50 views.
    """

    def __init__(self, num_images: int = 256, num_masks: int = 10) -> None:
        if num_images < 2 or num_masks < 2:
            raise ValueError(f"num_images and num_masks must be at least 2, got {num_images} and {num_masks}")
        self.num_images = num_images
        self.num_masks = num_masks
        self._metrics: dict[str, LiDAR] = {}
        self._missing = 0

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the last validation."""
        self._metrics = {}
        # Rounded up: a process without images would leave the others waiting for its sums.
        self._missing = -(-self.num_images // trainer.world_size)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Embed the first images under every mask."""
        if self._missing <= 0 or dataloader_idx or trainer.sanity_checking:
            return
        seen = batches.first(batch, self._missing)
        images = batches.observations(seen, pl_module.reads)[0]
        self._missing -= len(images)
        views: dict[str, list[Tensor]] = {"context": [], "prediction": []}
        # Forked: what a module draws besides must not change the random numbers of the training. A hook is outside of
        # mixed precision, and should be: rounding would be taken for directions that tell images apart.
        devices = [images.device] if images.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            for draw in range(self.num_masks):
                drawn = pl_module.draw(batches.first(seen, 1), Rng(draw, batch_size=1, device=images.device))
                for_all = apply_to_collection(drawn, Tensor, lambda part: part.expand(len(images), *part.shape[1:]))
                latents: Latents = pl_module.latents(seen, for_all)
                contexts = [each for name, each in latents.embeddings.items() if name.split("/")[0] == "context"]
                if contexts:
                    views["context"].append(mean_token(contexts))
                views["prediction"].append(mean_token([each.tokens() for each in latents.predictions.values()]))
        for branch, means in views.items():
            if not means:  # of a method without an embedding of that name
                continue
            if branch not in self._metrics:
                self._metrics[branch] = LiDAR(means[0].shape[-1]).to(images.device)
            self._metrics[branch].update(torch.stack(means, dim=1))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log LiDAR over the images of all processes."""
        for branch, metric in self._metrics.items():
            pl_module.log(f"collapse/{branch}/lidar", metric.compute())


def mean_token(parts: list[Tokens]) -> Tensor:
    """The mean `[B, D]` over the valid tokens of all parts."""
    values = torch.cat([part.values for part in parts], dim=1).float()
    valid = [torch.ones_like(part.values[..., 0]) if part.valid is None else part.valid.float() for part in parts]
    return weighted_mean(values, torch.cat(valid, dim=1).unsqueeze(-1), (1,))

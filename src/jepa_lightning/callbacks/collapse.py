"""Whether the embeddings still tell images, and the tokens of an image, apart."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torchmetrics import Metric, MetricCollection

from jepa_lightning.metrics import FeatureStd, MeanCosine, RankMe, feature_std, mean_cosine, moments, rankme

TOKEN_IMAGES = 8  # images a step whose tokens are looked at


class CollapseMonitor(pl.Callback):
    """Logs feature std, mean cosine similarity and RankMe of every branch, across images and across tokens.

    Under `collapse/<branch>/<metric>`, for the branches `context`, `target` and `prediction`:

    - `std`, `cosine`, `rankme`: of the mean token of an image, across the images of the last `every_n_steps` steps;
    - `token_std`, `token_cosine`, `token_rankme`: of the tokens of one image, averaged over some images of the step.

    An encoder that has come to encode only where a token is looks alive on tokens and is dead across images. Beside
    `train/loss` stands `train/constant_loss`: that of the best constant predictor, the mean target. A loss that does
    not stay below it has learned nothing; both falling together is the collapse that a loss alone hides.

    Args:
        every_n_steps: optimiser batches between two readings, at least 1.

    Raises:
        ValueError: an interval below 1.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._metrics: dict[str, MetricCollection] = {}
        self._batches = 0

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add up this step's images; at the end of an interval, log."""
        latents = outputs["latents"]
        branches = {
            "context": latents.context,
            "target": latents.features,
            "prediction": latents.prediction.flatten(1, 2),
        }
        for branch, tokens in branches.items():
            if branch not in self._metrics:
                width = tokens.shape[-1]
                metrics: dict[str, Metric | MetricCollection] = {
                    "std": FeatureStd(width),
                    "cosine": MeanCosine(width),
                    "rankme": RankMe(width),
                }
                self._metrics[branch] = MetricCollection(metrics, prefix=f"collapse/{branch}/").to(tokens.device)
            self._metrics[branch].update(tokens.float().mean(1))
        self._batches += 1
        if self._batches % self.every_n_steps:
            return
        for branch, tokens in branches.items():
            pl_module.log_dict(self._metrics[branch].compute())
            self._metrics[branch].reset()
            sums = moments(tokens[:TOKEN_IMAGES])
            for name, function in (("std", feature_std), ("cosine", mean_cosine), ("rankme", rankme)):
                pl_module.log(f"collapse/{branch}/token_{name}", function(sums).mean(), sync_dist=True)
        constant = latents.target.mean(dim=(0, 1, 2)).expand_as(latents.target)
        loss = pl_module.energy(latents._replace(prediction=constant)).mean()
        pl_module.log("train/constant_loss", loss, sync_dist=True)

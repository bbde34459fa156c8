"""Pictures of what is masked and of what the target encoder makes of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchvision.utils import make_grid

# The colours of the target blocks, apart for red-green blind readers too (Okabe and Ito).
BLOCK_COLOURS = torch.tensor([[0.90, 0.62, 0.0], [0.34, 0.71, 0.91], [0.0, 0.62, 0.45], [0.80, 0.47, 0.65]])


class LatentPictures(pl.Callback):
    """Draws a few validation images into TensorBoard (`pictures/latents`), a row each, at every validation.

    From left to right: the image; what the context encoder sees; the target blocks in colours; and the target encoder's
    tokens, their first three principal components over all rows as red, green and blue. Rows whose last picture is the
    same whatever the image show an encoder that knows where a token is and nothing else.

    Args:
        num_images: number of rows, at least 1.

    Raises:
        ValueError: no rows.
    """

    def __init__(self, num_images: int = 6) -> None:
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        self.num_images = num_images

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first images of the first batch: the same ones, under the same masks, every time."""
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if batch_idx or dataloader_idx or trainer.sanity_checking or not loggers:
            return
        images = (batch if isinstance(batch, Tensor) else batch[0])[: self.num_images]
        grid = pl_module.context_encoder.grid
        masks, features = outputs["masks"], outputs["latents"].features
        picture = draw_latents(images, masks.context, masks.targets, features[: self.num_images], grid)
        for logger in loggers:
            logger.experiment.add_image("pictures/latents", picture, trainer.global_step)


def draw_latents(images: Tensor, context: Tensor, targets: Tensor, features: Tensor, grid: Sequence[int]) -> Tensor:
    """The picture of `LatentPictures`.

    Args:
        images: `[R, C, H, W]`, of any range of values; one channel, or the first three are shown.
        context: LongTensor `[≥R, K_c]`.
        targets: LongTensor `[≥R, M, K_t]`.
        features: `[R, N, D]`, the tokens of the images.
        grid: `(rows, columns)` of the tokens.

    Returns:
        `[3, height, width]` in [0, 1].
    """
    count, size = len(images), images.shape[-2:]
    images, features = images.detach().float().cpu(), features.detach().float().cpu()
    context, targets = context[:count].cpu(), targets[:count].cpu()
    shown = _unit_range(images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1))

    visible = torch.zeros(count, grid[0] * grid[1]).scatter_(1, context, 1.0)
    context_picture = shown * _as_pixels(visible.unsqueeze(-1), grid, size) + 0.5 * (
        1 - _as_pixels(visible.unsqueeze(-1), grid, size)
    )
    tint = torch.zeros(count, grid[0] * grid[1], 3)
    hit = torch.zeros(count, grid[0] * grid[1], 1)
    for block in range(targets.shape[1]):
        places = targets[:, block, :, None]
        tint.scatter_(1, places.expand(-1, -1, 3), BLOCK_COLOURS[block % 4].expand(count, places.shape[1], 3))
        hit.scatter_(1, places, 1.0)
    strength = 0.65 * _as_pixels(hit, grid, size)
    target_picture = shown * (1 - strength) + _as_pixels(tint, grid, size) * strength

    tokens = features.flatten(0, 1)
    tokens = tokens - tokens.mean(0)
    _, _, directions = torch.linalg.svd(tokens, full_matrices=False)
    components = tokens @ directions[:3].T
    low, high = components.quantile(0.02, dim=0), components.quantile(0.98, dim=0)
    colours = ((components - low) / (high - low).clamp(min=1e-6)).clamp(0, 1).view(count, -1, components.shape[1])
    colours = F.pad(colours, (0, 3 - colours.shape[-1]))
    columns = [shown, context_picture, target_picture, _as_pixels(colours, grid, size)]
    # Small images are enlarged without blurring, so that their patches can be seen.
    scale = max(1, 96 // max(size))
    panels = F.interpolate(torch.stack(columns, dim=1).flatten(0, 1), scale_factor=scale, mode="nearest")
    return make_grid(panels, nrow=len(columns), padding=2, pad_value=1.0)


def _as_pixels(tokens: Tensor, grid: Sequence[int], size: Sequence[int]) -> Tensor:
    """Token values `[R, N, C]` as pictures `[R, C, H, W]`, each token a flat patch."""
    maps = tokens.mT.reshape(len(tokens), -1, grid[0], grid[1])
    return F.interpolate(maps, size=tuple(size), mode="nearest")


def _unit_range(images: Tensor) -> Tensor:
    low, high = images.amin(dim=(1, 2, 3), keepdim=True), images.amax(dim=(1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp(min=1e-6)

"""Pictures of the neighbourhoods that DMT-JEPA aggregates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_lightning.callbacks.pictures.base import Pictures
from jepa_lightning.callbacks.pictures.drawing import BLOCK_COLOURS, as_pixels, as_shown, as_table, tinted


class NeighbourPictures(Pictures):
    """What DMT-JEPA makes of a patch (`pictures/neighbours`), of each image the one that stands out most from its mean.

    From left to right: the image with the patch (white) and its masked semantic neighbours (orange); how similar the
    teacher's token of every patch is to that of this one, which is the target of I-JEPA; and the same of the aggregated
    targets of DMT-JEPA. White is a cosine of 1, black the lowest of the image.

    Drawn at every validation or, without held-out data, in every epoch.

    Args:
        num_images: number of rows, at least 1.

    Raises:
        ValueError: no rows.
        TypeError: a method without aggregated targets.
    """

    tag = "pictures/neighbours"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse methods that have nothing to draw."""
        if not hasattr(pl_module, "target_head"):
            raise TypeError(f"NeighbourPictures draws what DMTJEPA aggregates; {type(pl_module).__name__} does not")

    def titles(self, pl_module: Any, images: Tensor, outputs: Any) -> list[str]:
        """A title a column."""
        return ["neighbours", "teacher", "aggregated"]

    def draw(self, pl_module: Any, images: Tensor, outputs: Any) -> Tensor:
        """Of each image a row."""
        tokens = outputs["latents"].features.values[: self.num_images].float()
        tokens = F.layer_norm(tokens, tokens.shape[-1:])
        with torch.no_grad():
            picked, exists = pl_module.target_head.neighbours(tokens)
            aggregated = pl_module.target_head.neighbourhoods(tokens)
        hidden = outputs["drawn"].targets[: self.num_images].flatten(1)
        likeness = F.cosine_similarity(tokens, tokens.mean(1, keepdim=True), dim=-1)
        patch = hidden.gather(1, likeness.gather(1, hidden).argmin(1, keepdim=True)).squeeze(1)
        grid = pl_module.grid
        return draw_neighbours(images, patch, picked, exists, (tokens, aggregated), grid)


def draw_neighbours(
    images: Tensor, patch: Tensor, picked: Tensor, exists: Tensor, tokens: Sequence[Tensor], grid: Sequence[int]
) -> Tensor:
    """The picture of `NeighbourPictures`.

    Args:
        images: `[R, C, H, W]`, of any range of values.
        patch: LongTensor `[R]`, the patch of each image that is looked at.
        picked: LongTensor `[R, N, k]`, the neighbours of every patch.
        exists: BoolTensor `[R, N, k]`, which of them there are.
        tokens: some `[R, N, D]`, of each of which the similarity to the patch is shown.
        grid: `(rows, columns)` of the tokens.

    Returns:
        `[3, height, width]` in [0, 1].
    """
    shown, rows = as_shown(images), torch.arange(len(images))
    patch, picked, exists = patch.cpu(), picked.cpu(), exists.cpu()
    mine, there = picked[rows, patch], exists[rows, patch]
    tint = torch.zeros(len(images), grid[0] * grid[1], 3)
    for place, real in zip(mine.unbind(1), there.unbind(1), strict=True):
        tint[rows[real], place[real]] = BLOCK_COLOURS[0]
    tint[rows, patch] = 1.0
    columns = [tinted(shown, tint, grid)]
    for kind in tokens:
        unit = F.normalize(kind.detach().float().cpu(), dim=-1)
        similarity = (unit @ unit[rows, patch].unsqueeze(-1)).expand(-1, -1, 3)
        low = similarity.amin(dim=(1, 2), keepdim=True)
        columns.append(as_pixels((similarity - low) / (1 - low).clamp(min=1e-6), grid, shown.shape[-2:]).clamp(0, 1))
    return as_table(columns)

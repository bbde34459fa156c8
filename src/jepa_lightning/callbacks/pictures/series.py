"""Pictures of series: what is hidden of them, and how badly it is predicted."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from jepa_lightning.callbacks.pictures.base import Pictures
from jepa_lightning.callbacks.pictures.drawing import BLOCK_COLOURS
from jepa_lightning.masking import Masks

WIDTH, HEIGHT, BARS = 600, 80, 30  # pixels of a series, and of the bars below it


class SeriesPictures(Pictures):
    """What is hidden of series, and the energies of what is predicted there (`pictures/series`), for `TSJEPA`.

    Of each series a row: its channels as lines, hidden stretches in orange, and below each of these a bar, as high as
    the distance of its prediction from the target; the longest bar of the picture has full height.

    Drawn at every validation or, without held-out data, in every epoch.

    Args:
        num_images: number of series, at least 1.

    Raises:
        ValueError: no rows.
    """

    tag = "pictures/series"
    axes = (3,)

    def titles(self, pl_module: Any, images: Tensor, outputs: Any) -> list[str]:
        """One for the whole."""
        return ["series, what is hidden of them, and the energies of its predictions"]

    def draw(self, pl_module: Any, images: Tensor, outputs: Any) -> Tensor:
        """The rows."""
        latents, masks = outputs["latents"], outputs["drawn"]
        energies = pl_module.distances(latents.prediction, latents.target)[: self.num_images]
        return draw_series(images, masks, energies, pl_module.grid_of(pl_module.observations(images)[0])[0])


def draw_series(series: Tensor, masks: Masks, energies: Tensor, tokens: int) -> Tensor:
    """The picture of `SeriesPictures`.

    Args:
        series: `[R, L, C]`, of any range of values.
        masks: those of R or more series.
        energies: `[R, 1, K_t]`, of each hidden token.
        tokens: how many a series has.

    Returns:
        `[3, height, width]` in [0, 1].
    """
    series, energies = series.detach().float().nan_to_num(0.0).cpu(), energies.detach().float().cpu().flatten(1)
    highest = energies.max().clamp(min=1e-6)
    orange = tuple(int(255 * value) for value in BLOCK_COLOURS[0])
    rows = []
    for row, each in enumerate(series):
        picture = Image.new("RGB", (WIDTH, HEIGHT + BARS), "white")
        pen = ImageDraw.Draw(picture)
        for token, energy in zip(masks.targets[row].flatten().tolist(), energies[row].tolist(), strict=True):
            left, right = token * WIDTH / tokens, (token + 1) * WIDTH / tokens - 1
            pen.rectangle((left, 0, right, HEIGHT), fill=(255, 228, 181))
            top = HEIGHT + BARS - (BARS - 2) * energy / float(highest)
            pen.rectangle((left, top, right, HEIGHT + BARS), fill=orange)
        low, high = each.min(), each.max()
        scaled = HEIGHT - 4 - (HEIGHT - 8) * (each - low) / (high - low).clamp(min=1e-6)
        places = torch.linspace(0, WIDTH - 1, len(each)).tolist()
        for number, channel in enumerate(scaled.T):
            colour = "black" if number == 0 else tuple(int(200 * value) for value in BLOCK_COLOURS[number % 4])
            pen.line(list(zip(places, channel.tolist(), strict=True)), fill=colour)
        rows.append(pil_to_tensor(picture).float() / 255)
    return torch.cat(rows, 1)

"""Pictures of what is masked and of what the target encoder makes of images and clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jepa_lightning.callbacks.pictures.base import Pictures
from jepa_lightning.callbacks.pictures.drawing import BLOCK_COLOURS, as_colours, as_pixels, as_shown, as_table, tinted
from jepa_lightning.masking import Masks


class LatentPictures(Pictures):
    """What is masked of images or clips, and what the target encoder makes of them (`pictures/latents`).

    Of an image a row. From left to right: the image; where tokens are masked, what the context encoder sees, and the
    target blocks in colours, of several masks of an image those of the first; and the target encoder's tokens, their
    first three principal components over all rows as red, green and blue. Rows whose last picture is the same whatever
    the image show an encoder that knows where a token is and nothing else. Colours are stretched to the tokens at hand,
    however little these differ: whether they do, `CollapseMonitor` says.

    Of a clip a film strip, a column for each frame of tokens: the clip; for each kind of mask what the context encoder
    sees, and in colour what is predicted; and the principal components.

    Drawn at every validation or, without held-out data, in every epoch.

    Args:
        num_images: number of images, or of clips, at least 1.

    Raises:
        ValueError: no rows.
    """

    tag = "pictures/latents"

    def titles(self, pl_module: Any, images: Tensor, outputs: Any) -> list[str]:
        """Of images, a title a column; of clips, what the film strips of each show."""
        if len(pl_module.context_encoder.grid_of(images)) == 2:
            masked = hasattr(pl_module, "kinds")
            return ["image", *(["context", "targets"] if masked else []), "features"]
        kinds = (
            ["masks"]
            if isinstance(outputs["drawn"], Masks)
            else [f"{name} masks" for name in pl_module.kinds(outputs["drawn"])]
        )
        return [f"of each, from top: clip; {'; '.join(kinds)}; features"]

    def draw(self, pl_module: Any, images: Tensor, outputs: Any) -> Tensor:
        """The rows, or the film strips."""
        features = outputs["latents"].features.values[: self.num_images]
        drawn, grid = outputs["drawn"], tuple(pl_module.context_encoder.grid_of(images))
        if len(grid) == 2:
            masks = next(iter(pl_module.kinds(drawn).values())) if hasattr(pl_module, "kinds") else None
            return draw_latents(images, masks, features, grid)
        kinds = [drawn] if isinstance(drawn, Masks) else drawn
        return draw_clips(images.unsqueeze(2) if images.ndim == 4 else images, kinds, features, grid)


def draw_latents(images: Tensor, masks: Masks | None, features: Tensor, grid: Sequence[int]) -> Tensor:
    """The picture of `LatentPictures`.

    Args:
        images: `[R, C, H, W]`, of any range of values; one channel, or the first three are shown.
        masks: those of R or more images; without, their two columns are left out.
        features: `[R, N, D]`, the tokens of the images.
        grid: `(rows, columns)` of the tokens.

    Returns:
        `[3, height, width]` in [0, 1].
    """
    shown, features = as_shown(images), features.detach().float().cpu()
    count, size = len(shown), shown.shape[-2:]
    columns = [shown]
    if masks is not None:
        context, targets = masks.context[:count].cpu(), masks.targets[:count].cpu()
        visible = torch.zeros(count, grid[0] * grid[1], 1).scatter_(1, context.unsqueeze(-1), 1.0)
        visible = as_pixels(visible, grid, size)
        columns.append(shown * visible + 0.5 * (1 - visible))
        tint = torch.zeros(count, grid[0] * grid[1], 3)
        for block in range(targets.shape[1]):
            places = targets[:, block, :, None].expand(-1, -1, 3)
            tint.scatter_(1, places, BLOCK_COLOURS[block % 4].expand(places.shape))
        columns.append(tinted(shown, tint, grid))

    return as_table([*columns, as_pixels(as_colours(features), grid, size)])


def draw_clips(clips: Tensor, kinds: Sequence[Masks], features: Tensor, grid: Sequence[int]) -> Tensor:
    """The film strips of `LatentPictures`.

    Args:
        clips: `[R, C, T, H, W]`, of any range of values.
        kinds: the masks of each kind, of R or more clips.
        features: `[R, N, D]`, the tokens of the clips.
        grid: `(frames, rows, columns)` of the tokens.

    Returns:
        `[3, height, width]` in [0, 1].
    """
    count, (length, *cells), size = len(clips), grid, clips.shape[-2:]
    frames = clips[:, :, :: clips.shape[2] // length]  # the first of every tubelet, as bright as in the whole clip
    shown = as_shown(frames.flatten(2, 3)).unflatten(2, (length, -1)).transpose(1, 2).flatten(0, 1)
    strips = [shown]
    for masks in kinds:
        context, targets = masks.context[:count].cpu(), masks.targets[:count].flatten(1).cpu()
        state = torch.zeros(count, length * cells[0] * cells[1]).scatter_(1, context, 1.0).scatter_(1, targets, 2.0)
        state = state.view(count * length, -1, 1)
        hidden = as_pixels((state == 0).float(), cells, size)
        tint = (state == 2) * BLOCK_COLOURS[0]
        strips.append(tinted(shown, tint, cells) * (1 - hidden) + 0.5 * hidden)
    colours = as_colours(features.detach().float().cpu()).view(count * length, -1, 3)
    strips.append(as_pixels(colours, cells, size))
    # Clip by clip, and of each its strips one below the other.
    panels = torch.stack([strip.unflatten(0, (count, length)) for strip in strips], dim=1).flatten(0, 1)
    return as_table(panels.unbind(1))

"""Pictures of what is masked and of what the target encoder makes of an image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchvision.utils import make_grid

from jepa_lightning import batches
from jepa_lightning.masking import Masks

# The colours of the target blocks, apart for red-green blind readers too (Okabe and Ito).
BLOCK_COLOURS = torch.tensor([[0.90, 0.62, 0.0], [0.34, 0.71, 0.91], [0.0, 0.62, 0.45], [0.80, 0.47, 0.65]])


class Pictures(pl.Callback):
    """Draws a few images or clips into TensorBoard at every validation or, without held-out data, in every epoch.

    They are the first ones of the first batch: of held-out data the same ones, under the same masks, every time.

    Args:
        num_images: number of images, or of clips, at least 1.

    Raises:
        ValueError: none at all.
    """

    tag: str

    def __init__(self, num_images: int = 6) -> None:
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        self.num_images = num_images

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
        if not batch_idx and not sum(trainer.num_val_batches):
            self._show(trainer, pl_module, outputs, batch)

    def _show(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any) -> None:
        images = batches.observations(batch, pl_module.reads)[0][: self.num_images]
        if images.ndim not in (4, 5):
            raise ValueError(
                f"{type(self).__name__} draws images [B, C, H, W] and clips [B, C, T, H, W], got {list(images.shape)}: "
                "leave it out"
            )
        picture = self.draw(pl_module, images, outputs)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(self.tag, picture, trainer.global_step)


class LatentPictures(Pictures):
    """What is masked of images or clips, and what the target encoder makes of them (`pictures/latents`).

    Of an image a row. From left to right: the image; where tokens are masked, what the context encoder sees, and the
    target blocks in colours; and the target encoder's tokens, their first three principal components over all rows as
    red, green and blue. Rows whose last picture is the same whatever the image show an encoder that knows where a token
    is and nothing else. Colours are stretched to the tokens at hand, however little these differ: whether they do,
    `CollapseMonitor` says.

    Of a clip a film strip, a column for each frame of tokens: the clip; for each kind of mask what the context encoder
    sees, and in colour what is predicted; and the principal components.

    Drawn at every validation or, without held-out data, in every epoch.

    Args:
        num_images: number of images, or of clips, at least 1.

    Raises:
        ValueError: no rows.
    """

    tag = "pictures/latents"

    def draw(self, pl_module: Any, images: Tensor, outputs: Any) -> Tensor:
        """The rows, or the film strips."""
        features = outputs["latents"].features.values[: self.num_images]
        drawn, grid = outputs["drawn"], tuple(pl_module.context_encoder.grid_of(images))
        if len(grid) == 2:
            return draw_latents(images, drawn if isinstance(drawn, Masks) else None, features, grid)
        kinds = [drawn] if isinstance(drawn, Masks) else drawn
        return draw_clips(images.unsqueeze(2) if images.ndim == 4 else images, kinds, features, grid)


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
    columns = [_tinted(shown, tint, grid)]
    for kind in tokens:
        unit = F.normalize(kind.detach().float().cpu(), dim=-1)
        similarity = (unit @ unit[rows, patch].unsqueeze(-1)).expand(-1, -1, 3)
        low = similarity.amin(dim=(1, 2), keepdim=True)
        columns.append(_as_pixels((similarity - low) / (1 - low).clamp(min=1e-6), grid, shown.shape[-2:]).clamp(0, 1))
    return _as_table(columns)


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
        visible = _as_pixels(visible, grid, size)
        columns.append(shown * visible + 0.5 * (1 - visible))
        tint = torch.zeros(count, grid[0] * grid[1], 3)
        for block in range(targets.shape[1]):
            places = targets[:, block, :, None].expand(-1, -1, 3)
            tint.scatter_(1, places, BLOCK_COLOURS[block % 4].expand(places.shape))
        columns.append(_tinted(shown, tint, grid))

    return _as_table([*columns, _as_pixels(_as_colours(features), grid, size)])


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
        hidden = _as_pixels((state == 0).float(), cells, size)
        tint = (state == 2) * BLOCK_COLOURS[0]
        strips.append(_tinted(shown, tint, cells) * (1 - hidden) + 0.5 * hidden)
    colours = _as_colours(features.detach().float().cpu()).view(count * length, -1, 3)
    strips.append(_as_pixels(colours, cells, size))
    # Clip by clip, and of each its strips one below the other.
    panels = torch.stack([strip.unflatten(0, (count, length)) for strip in strips], dim=1).flatten(0, 1)
    return _as_table(panels.unbind(1))


def _as_colours(features: Tensor) -> Tensor:
    """The first three principal components of tokens `[R, N, D]` over all of them, in [0, 1]: `[R, N, 3]`."""
    tokens = features.flatten(0, 1)
    tokens = tokens - tokens.mean(0)
    _, _, directions = torch.linalg.svd(tokens, full_matrices=False)
    components = tokens @ directions[:3].T
    low, high = components.quantile(0.02, dim=0), components.quantile(0.98, dim=0)
    colours = ((components - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    return F.pad(colours, (0, 3 - colours.shape[-1])).view(*features.shape[:2], 3)


def _as_table(columns: Sequence[Tensor]) -> Tensor:
    """Columns of pictures `[R, 3, H, W]` side by side."""
    # Small images are enlarged without blurring, so that their patches can be seen.
    scale = max(1, 96 // max(columns[0].shape[-2:]))
    panels = F.interpolate(torch.stack(list(columns), dim=1).flatten(0, 1), scale_factor=scale, mode="nearest")
    return make_grid(panels, nrow=len(columns), padding=2, pad_value=1.0)


def _tinted(shown: Tensor, tint: Tensor, grid: Sequence[int]) -> Tensor:
    """Pictures with the colours `[R, N, 3]` laid over their patches; black ones leave them as they are."""
    strength = 0.65 * _as_pixels((tint.amax(-1, keepdim=True) > 0).float(), grid, shown.shape[-2:])
    return shown * (1 - strength) + _as_pixels(tint, grid, shown.shape[-2:]) * strength


def as_shown(images: Tensor) -> Tensor:
    """Images of any range and number of channels as pictures `[R, 3, H, W]` in [0, 1]."""
    images = images.detach().float().cpu()
    images = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    low, high = images.amin(dim=(1, 2, 3), keepdim=True), images.amax(dim=(1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp(min=1e-6)


def _as_pixels(tokens: Tensor, grid: Sequence[int], size: Sequence[int]) -> Tensor:
    """Token values `[R, N, C]` as pictures `[R, C, H, W]`, each token a flat patch."""
    maps = tokens.mT.reshape(len(tokens), -1, grid[0], grid[1])
    return F.interpolate(maps, size=tuple(size), mode="nearest")

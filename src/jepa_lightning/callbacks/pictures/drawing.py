"""How images, tokens and masks become pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor
from torchvision.utils import make_grid

from jepa_lightning.step import Tokens

# The colours of the target blocks, apart for red-green blind readers too (Okabe and Ito).
BLOCK_COLOURS = torch.tensor([[0.90, 0.62, 0.0], [0.34, 0.71, 0.91], [0.0, 0.62, 0.45], [0.80, 0.47, 0.65]])
TITLE_HEIGHT = 18  # pixels above a picture


def as_colours(features: Tensor) -> Tensor:
    """The first three principal components of tokens `[R, N, D]` over all of them, in [0, 1]: `[R, N, 3]`."""
    tokens = features.flatten(0, 1)
    tokens = tokens - tokens.mean(0)
    _, _, directions = torch.linalg.svd(tokens, full_matrices=False)
    components = tokens @ directions[:3].T
    low, high = components.quantile(0.02, dim=0), components.quantile(0.98, dim=0)
    colours = ((components - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    return F.pad(colours, (0, 3 - colours.shape[-1])).view(*features.shape[:2], 3)


def colours_of_tokens(tokens: Tokens, count: int) -> Tensor:
    """The first three principal components of the first samples' tokens, over those that there are, `[count, N, 3]`.

    They are in [0, 1]; those of tokens that are not there are white.
    """
    values = tokens.values[:count].detach().float().cpu()
    if tokens.valid is None:
        return as_colours(values)
    valid = tokens.valid[:count].cpu()
    colours = torch.ones(*valid.shape, 3)
    colours[valid] = as_colours(values[valid].unsqueeze(0))[0]
    return colours


def as_table(columns: Sequence[Tensor]) -> Tensor:
    """Columns of pictures `[R, 3, H, W]` side by side."""
    # Small images are enlarged without blurring, so that their patches can be seen.
    scale = max(1, 96 // max(columns[0].shape[-2:]))
    panels = F.interpolate(torch.stack(list(columns), dim=1).flatten(0, 1), scale_factor=scale, mode="nearest")
    return make_grid(panels, nrow=len(columns), padding=2, pad_value=1.0)


def tinted(shown: Tensor, tint: Tensor, grid: Sequence[int]) -> Tensor:
    """Pictures with the colours `[R, N, 3]` laid over their patches; black ones leave them as they are."""
    strength = 0.65 * as_pixels((tint.amax(-1, keepdim=True) > 0).float(), grid, shown.shape[-2:])
    return shown * (1 - strength) + as_pixels(tint, grid, shown.shape[-2:]) * strength


def as_shown(images: Tensor) -> Tensor:
    """Images of any range and number of channels as pictures `[R, 3, H, W]` in [0, 1]."""
    images = images.detach().float().cpu()
    images = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    low, high = images.amin(dim=(1, 2, 3), keepdim=True), images.amax(dim=(1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp(min=1e-6)


def as_pixels(tokens: Tensor, grid: Sequence[int], size: Sequence[int]) -> Tensor:
    """Token values `[R, N, C]` as pictures `[R, C, H, W]`, each token a flat patch."""
    maps = tokens.mT.reshape(len(tokens), -1, grid[0], grid[1])
    return F.interpolate(maps, size=tuple(size), mode="nearest")


def titled(picture: Tensor, titles: Sequence[str]) -> Tensor:
    """A picture `[3, height, width]` with titles above its columns, which share its width."""
    height, width = TITLE_HEIGHT, picture.shape[-1] // len(titles)
    strip = Image.new("RGB", (picture.shape[-1], height), "white")
    pen, font = ImageDraw.Draw(strip), ImageFont.load_default(size=12)
    for number, title in enumerate(titles):
        pen.text((number * width + width / 2, height / 2), title, "black", font, anchor="mm")
    return torch.cat([pil_to_tensor(strip).float() / 255, picture], dim=1)

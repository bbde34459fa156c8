"""Random views of images: crops with other colours, drawn as numbers first and taken from a whole batch at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_lightning.draws import Rng
from jepa_lightning.masking.masks import between, checked


class Views(NamedTuple):
    """What is seen in each of the V views of an image; global views come first.

    Attributes:
        boxes: `[B, V, 4]`: the centre (x, y) and the halved width and height of a crop, in units where the image spans
            [-1, 1]; a negative width shows it mirrored.
        colours: `[B, V, 3]`: a shift of the brightness, and factors of contrast and saturation.
    """

    boxes: Tensor
    colours: Tensor


class MultiViews:
    """Draw `num_global` large and `num_local` small crops an image, mirrored at random and with other colours.

    Args:
        num_global: global views an image, at least one.
        num_local: local views an image.
        global_scale: range of a global crop's share of the image.
        local_scale: range of a local crop's share of the image.
        aspect: range of a crop's width over its height, relative to the image's; drawn evenly on a log scale.
        jitter: how far brightness (in standard deviations of the data) is shifted at most, and contrast and saturation
            are scaled; in [0, 1].

    Raises:
        ValueError: a value out of its range.

    Source: the crops of LeJEPA (arXiv 2511.08544), after DINO (arXiv 2104.14294).

    >>> views = MultiViews(2, 4)(8, rng=Rng(0, batch_size=8))
    >>> views.boxes.shape
    torch.Size([8, 6, 4])
    """

    def __init__(
        self,
        num_global: int = 2,
        num_local: int = 6,
        global_scale: tuple[float, float] = (0.3, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.3),
        aspect: tuple[float, float] = (3 / 4, 4 / 3),
        jitter: float = 0.4,
    ) -> None:
        if num_global < 1 or num_local < 0 or num_global + num_local < 2:
            raise ValueError(f"two views are needed, one of them global, got {num_global} global, {num_local} local")
        for name, (low, high) in {"global_scale": global_scale, "local_scale": local_scale}.items():
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} must be a range within (0, 1], got {(low, high)}")
        if not 0 < aspect[0] <= aspect[1]:
            raise ValueError(f"aspect must be a range of positive numbers, got {tuple(aspect)}")
        if not 0 <= jitter <= 1:
            raise ValueError(f"jitter must lie in [0, 1], got {jitter}")
        self.num_global = num_global
        self.num_local = num_local
        self.global_scale = global_scale
        self.local_scale = local_scale
        self.aspect = aspect
        self.jitter = jitter

    def __call__(self, batch_size: int, rng: Rng | None = None) -> Views:
        """Draw the views of a batch, on the device of `rng`.

        Args:
            batch_size: number of images B.
            rng: source of all randomness; without it, one seeded by torch's default generator.
        """
        rng = checked(rng, batch_size)
        of_scale, of_aspect, of_x, of_y, of_mirror, *of_colours = rng.sample(
            self.num_global + self.num_local, 8
        ).unbind(-1)
        scale = torch.cat(
            [
                between(of_scale[:, : self.num_global], *self.global_scale),
                between(of_scale[:, self.num_global :], *self.local_scale),
            ],
            dim=1,
        )
        aspect = between(of_aspect, *map(math.log, self.aspect)).exp()
        width, height = (scale * aspect).sqrt().clamp(max=1), (scale / aspect).sqrt().clamp(max=1)
        x, y = ((1 - side) * between(number, -1, 1) for side, number in ((width, of_x), (height, of_y)))
        mirrored = torch.where(of_mirror < 0.5, -width, width)
        colours = between(torch.stack(of_colours, dim=-1), -self.jitter, self.jitter)
        colours[..., 1:] += 1  # contrast and saturation are factors
        return Views(torch.stack([x, y, mirrored, height], dim=-1), colours)


def take_views(images: Tensor, views: Views, size: Sequence[int]) -> Tensor:
    """The views of a batch, resampled to one size.

    Args:
        images: `[B, C, H, W]`.
        views: V views of each image.
        size: `(rows, columns)` of a view in pixels. Crops much larger than that alias, as nothing is blurred.

    Returns:
        `[B, V, C, rows, columns]`.
    """
    shape = (len(images), images.shape[1], *size)
    seen = []
    for box, (shift, contrast, saturation) in zip(
        views.boxes.unbind(1), (colours.T.view(3, -1, 1, 1, 1) for colours in views.colours.unbind(1)), strict=True
    ):
        x, y, width, height = box.T
        zero = torch.zeros_like(x)
        maps = torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
        places = F.affine_grid(maps, list(shape), align_corners=False)
        view = F.grid_sample(images, places, padding_mode="border", align_corners=False)
        grey = view.mean(1, keepdim=True)
        view = grey + saturation * (view - grey)
        mean = grey.mean((2, 3), keepdim=True)
        seen.append(mean + contrast * (view - mean) + shift)
    return torch.stack(seen, dim=1)

"""From observations to tokens. A tokenizer has `embed_dim`, `grid_of(x)`, `init_weights()` and `forward(x)`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lightning.networks.linear import linear
from jepa_lightning.networks.tokens import check_sizes

_CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_KINDS = {1: "series [B, L, {}]", 2: "images [B, {}, H, W]", 3: "clips [B, {}, T, H, W] or images [B, {}, H, W]"}
_AXES = {1: "L", 2: "HW", 3: "THW"}


class PatchEmbed(nn.Module):
    """A linear map of each patch: of stretches of a series, patches of an image, or tubelets of a clip.

    Parameter names are the official ones. An image given to a tokenizer of clips is taken as the frames of one tubelet.

    Args:
        patch: `(steps,)`, `(rows, columns)` or `(frames, rows, columns)` that a token spans.
        in_channels: number of channels.
        embed_dim: width D of the tokens.
        std: standard deviation of the initial weights; one over the root of their number of inputs without.

    Raises:
        ValueError: a size or standard deviation that is not positive.

    >>> import torch
    >>> PatchEmbed((5,), in_channels=2, embed_dim=8)(torch.zeros(3, 20, 2)).shape
    torch.Size([3, 4, 8])
    """

    def __init__(self, patch: Sequence[int], in_channels: int, embed_dim: int, std: float | None = None) -> None:
        super().__init__()
        names = {1: ("steps",), 2: ("rows", "columns"), 3: ("frames", "rows", "columns")}[len(patch)]
        check_sizes(in_channels=in_channels, embed_dim=embed_dim)
        check_sizes(**{f"patch_{name}": side for name, side in zip(names, patch, strict=True)})
        if std is not None and not std > 0:
            raise ValueError(f"the standard deviation of a patch embedding's weights must be positive, got {std}")
        self.patch, self.std = tuple(patch), std
        self.embed_dim = embed_dim
        self.proj = _CONV[len(patch)](in_channels, embed_dim, self.patch, stride=self.patch)

    def init_weights(self) -> None:
        """Draw the weights anew; unless told otherwise, so that what a token shows starts level with where it is.

        The official std of 0.02 does that for patches of 16x16x3 only; at 4x4x1 it leaves a token whose position (std
        0.7) drowns what it shows. By itself I-JEPA then polishes just that; decorrelated embeddings start best there.
        """
        std = self.proj.weight[0].numel() ** -0.5 if self.std is None else self.std
        nn.init.trunc_normal_(self.proj.weight, std=std)

    def grid_of(self, x: Tensor) -> tuple[int, ...]:
        """The token grid of observations, of one, two or three axes.

        Raises:
            ValueError: a size that the patches do not divide, or another number of channels.
        """
        axes, channels = len(self.patch), self.proj.in_channels
        if axes == 1:
            size, found = tuple(x.shape[1:2]), x.shape[-1] if x.ndim == 3 else None
        else:
            still = axes == 3 and x.ndim == 4
            size = (self.patch[0], *x.shape[2:]) if still else tuple(x.shape[2:])
            found = x.shape[1] if x.ndim > 1 else None
        if len(size) != axes or found != channels or any(s % p for s, p in zip(size, self.patch, strict=True)):
            multiples = [f"{axis} a multiple of {side}" for axis, side in zip(_AXES[axes], self.patch, strict=True)]
            raise ValueError(
                f"expected {_KINDS[axes].format(channels, channels)} with {', '.join(multiples)}, got {list(x.shape)}"
            )
        return tuple(side // part for side, part in zip(size, self.patch, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """Observations to tokens `[B, N, D]` in raster order.

        Raises:
            ValueError: a size that the patches do not divide, or another number of channels.
        """
        self.grid_of(x)
        if len(self.patch) == 1:
            x = x.mT
        elif len(self.patch) == 3 and x.ndim == 4:
            x = x.unsqueeze(2).expand(-1, -1, self.patch[0], -1, -1)
        return self.proj(x).flatten(2).mT


class SeriesPatchEmbed(PatchEmbed):
    """Of each stretch of a series, a short convolution without overlap and a linear map of all that it gives.

    Parameter names are those of TS-JEPA's tokenizer. A stretch that the kernel does not divide is filled up with zeros;
    the official code leaves its last steps unseen, two of 32 with a kernel of three.

    Args:
        patch_size: steps that a token spans.
        in_channels: number of channels.
        embed_dim: width D of the tokens.
        kernel_size: steps of the convolution, which moves by as many.

    Raises:
        ValueError: a kernel longer than the stretch.

    Source: TS-JEPA (arXiv 2509.25449), section 3.

    >>> import torch
    >>> SeriesPatchEmbed(5, in_channels=2, embed_dim=8)(torch.zeros(3, 20, 2)).shape
    torch.Size([3, 4, 8])
    """

    def __init__(self, patch_size: int, in_channels: int, embed_dim: int, kernel_size: int = 3) -> None:
        super().__init__((patch_size,), in_channels, embed_dim)
        check_sizes(kernel_size=kernel_size)
        if kernel_size > patch_size:
            raise ValueError(f"kernel_size={kernel_size} is longer than a patch of {patch_size} steps")
        self.kernel_size = kernel_size
        self.proj = nn.Conv1d(in_channels, embed_dim, kernel_size, stride=kernel_size)
        self.fc = nn.Linear(embed_dim * math.ceil(patch_size / kernel_size), embed_dim)

    def init_weights(self) -> None:
        """Draw the weights anew, so that what a token shows starts level with where it is."""
        super().init_weights()
        nn.init.trunc_normal_(self.fc.weight, std=self.fc.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Series `[B, L, C]` to tokens `[B, N, D]`.

        Raises:
            ValueError: a length that the patches do not divide, or another number of channels.
        """
        (cells,) = self.grid_of(x)
        patches = x.unflatten(1, (cells, self.patch[0])).flatten(0, 1).mT
        patches = F.pad(patches, (0, -self.patch[0] % self.kernel_size))
        return linear(self.fc, self.proj(patches).flatten(1)).unflatten(0, (len(x), cells))

"""Whether what a mask hides is hidden: the property that every encoder of a masked method must have."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def check_hiding(encode: Callable[[Tensor, Tensor], Tensor], example: Tensor, grid: Sequence[int], name: str) -> None:
    """Change one hidden token's share of an observation, and look whether the visible tokens change.

    Args:
        encode: observations `[1, C, ...]` and indices `[1, K]` to tokens `[1, K, D]`.
        example: an observation `[1, C, ...]`, or a series `[1, L, C]`.
        grid: the token grid of the observation, an axis for each of its axes beside the channels.
        name: of the encoder, for the error.

    Raises:
        ValueError: an encoder whose visible tokens are not as many as asked for, or tell what is hidden.
    """
    x, changed = example, example.clone()
    first = 1 if len(grid) == 1 else 2  # channels come last in series
    sizes = x.shape[first : first + len(grid)]
    share: Any = [slice(0, max(1, size // cells)) for size, cells in zip(sizes, grid, strict=True)]
    changed[(*[slice(None)] * first, *share)] += 3.0
    visible = torch.arange(1, math.prod(grid), device=x.device).unsqueeze(0)
    before, after = encode(x, visible), encode(changed, visible)
    if before.shape[1] != visible.shape[1]:
        raise ValueError(
            f"{name} gives {before.shape[1]} tokens of a {tuple(grid)} grid where {visible.shape[1]} were asked for: "
            "it must drop the others"
        )
    if not torch.allclose(before, after, rtol=1e-4, atol=1e-5):
        raise ValueError(
            f"{name} lets visible tokens see what is hidden: a hidden patch moves them by "
            f"{float((before - after).abs().max()):.2g}. Its patches overlap, as those of convolutional stems do, or "
            "mix before hidden ones are dropped"
        )

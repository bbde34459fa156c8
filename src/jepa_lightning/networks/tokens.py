"""What encoders of every kind do with token indices, and the first weights of the transformers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn


def check_sizes(**sizes: float) -> None:
    """Raise a ValueError for a size of a network, by name, that is not positive, or not whole unless it is a ratio."""
    for name, size in sizes.items():
        kind = "number" if name.endswith("ratio") else "whole number"
        if not 0 < size < math.inf or (kind == "whole number" and size != round(size)):
            raise ValueError(f"{name} must be a positive {kind}, got {size}")


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Pick tokens by their place in the grid.

    Args:
        tokens: `[B, N, D]`.
        indices: LongTensor `[B, K]` or, for several blocks an image, `[B, M, K]`, with values in `[0, N)`.

    Returns:
        `[B, K, D]` or `[B, M, K, D]`.

    >>> import torch
    >>> gather_tokens(torch.arange(6.0).view(1, 3, 2), torch.tensor([[2, 0]]))
    tensor([[[4., 5.],
             [0., 1.]]])
    """
    flat = indices.flatten(1)
    picked = tokens.gather(1, flat.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
    return picked.view(*indices.shape, tokens.shape[-1])


def hide_patches(images: Tensor, indices: Tensor, grid: Sequence[int]) -> Tensor:
    """Set every patch that is not listed to zero: how a network that cannot drop tokens is kept from seeing them.

    Args:
        images: `[B, C, H, W]`; H and W are multiples of the grid's rows and columns.
        indices: LongTensor `[B, K]`, the patches that stay visible.
        grid: `(rows, columns)` of the token grid.

    Returns:
        `[B, C, H, W]`.

    >>> import torch
    >>> hide_patches(torch.ones(1, 1, 2, 2), torch.tensor([[1, 2]]), (2, 2))
    tensor([[[[0., 1.],
              [1., 0.]]]])
    """
    rows, columns = grid
    visible = images.new_zeros(images.shape[0], rows * columns).scatter_(1, indices, 1.0)
    visible = visible.view(-1, 1, rows, columns)
    return images * nn.functional.interpolate(visible, size=images.shape[-2:], mode="nearest")


def init_transformer(module: nn.Module) -> None:
    """The official initialisation of a layer: truncated normal weights of std 0.02, zero biases, unit norms.

    The official code also divides the last layer of every residual branch by `sqrt(2 l)`, and then loses that by
    initialising all linear layers once more; what was trained is what stands here.
    """
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()


def rescale_residuals(blocks: Iterable[Any], first: int = 1) -> None:
    """Divide what the l-th block adds to its input by `sqrt(2 l)` at the start, as V-JEPA 2's code does.

    Args:
        blocks: transformer blocks with `attn.proj` and `mlp.fc2`.
        first: l of the first of them.
    """
    for number, block in enumerate(blocks, start=first):
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight.data.div_((2 * number) ** 0.5)

"""What encoders of every kind do with token indices, and the fixed positions and first weights of the transformers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Pick tokens by their place in the grid.

    Args:
        tokens: `[B, N, D]`.
        indices: LongTensor `[B, K]` or, for several blocks an image, `[B, M, K]`, with values in `[0, N)`.

    Returns:
        `[B, K, D]` or `[B, M, K, D]`.

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

    >>> hide_patches(torch.ones(1, 1, 2, 2), torch.tensor([[1, 2]]), (2, 2))
    tensor([[[[0., 1.],
              [1., 0.]]]])
    """
    rows, columns = grid
    visible = images.new_zeros(images.shape[0], rows * columns).scatter_(1, indices, 1.0)
    visible = visible.view(-1, 1, rows, columns)
    return images * nn.functional.interpolate(visible, size=images.shape[-2:], mode="nearest")


def sincos_positions(grid: Sequence[int], dim: int) -> Tensor:
    """Fixed 2-D sine-cosine position embeddings in the layout of I-JEPA's (and MAE's) code.

    The first half of the features encodes the column, the second the row; each half is `[sin | cos]` at frequencies
    `10000^(-4 i / dim)`.

    Args:
        grid: `(rows, columns)` of the token grid.
        dim: width of the embedding, a multiple of four.

    Returns:
        `[1, rows * columns, dim]`, float32.

    Raises:
        ValueError: `dim` is not a multiple of four.
    """
    if dim % 4:
        raise ValueError(f"2-D sine-cosine positions need a width that is a multiple of 4, not {dim}")
    rows, columns = grid
    # In float64 until the end, as the official code: at 32 rows float32 angles already differ in the last digits.
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    halves = []
    for place in (column, row):
        angles = place.reshape(-1, 1) * frequencies
        halves += [angles.sin(), angles.cos()]
    return torch.cat(halves, dim=1).float().unsqueeze(0)


def init_transformer(module: nn.Module) -> None:
    """The official initialisation of a layer: truncated normal weights of std 0.02, zero biases, unit norms.

    The official code also divides the last layer of every residual branch by `sqrt(2 l)`, and then loses that by
    initialising all linear layers once more; what was trained is what stands here.
    """
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()

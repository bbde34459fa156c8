"""The decoder of data2vec 2.0: convolutions over visible tokens, and noise at the places of hidden ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lightning.networks.linear import linear
from jepa_lightning.networks.tokens import check_sizes, gather_tokens

_CONV = {1: nn.Conv1d, 2: nn.Conv2d}


class ConvDecoder(nn.Module):
    """Predict the embeddings at `target_indices` from context tokens, by grouped convolutions over the whole grid.

    Each convolution is followed by a norm over the channels and GELU, and its input is added where widths agree.

    Args:
        axes: those of the token grid, one or two.
        embed_dim: width D of the encoder's tokens.
        predictor_embed_dim: the decoder's own width, a multiple of `groups`, as `embed_dim` is.
        depth: number of convolutions.
        kernel_size: tokens that one sees, along each axis.
        groups: those of its channels.
        residual: whether a convolution's input is added to what it gives.
        head_layers: linear maps at the end, one or two: of two, the first doubles the width, and GELU is between.

    Raises:
        ValueError: a size that does not fit.

    Source: data2vec 2.0 (arXiv 2212.07525), section 3.3.

    >>> decoder, noise = ConvDecoder(1, 8, predictor_embed_dim=4, depth=2, groups=2), torch.zeros(3, 2, 8)
    >>> seen, hidden = torch.tensor([[0, 2, 3]]).expand(3, -1), torch.tensor([[1, 4]]).expand(3, -1)
    >>> decoder(torch.zeros(3, 3, 8), seen, hidden, noise, (5,)).shape
    torch.Size([3, 2, 8])
    """

    def __init__(
        self,
        axes: int,
        embed_dim: int,
        predictor_embed_dim: int = 768,
        depth: int = 6,
        kernel_size: int = 3,
        groups: int = 16,
        residual: bool = True,
        head_layers: int = 1,
    ) -> None:
        super().__init__()
        check_sizes(predictor_embed_dim=predictor_embed_dim, predictor_depth=depth, kernel_size=kernel_size)
        check_sizes(groups=groups)
        if axes not in _CONV or head_layers not in (1, 2):
            raise ValueError(f"a decoder is of one or two axes and linear maps, got axes={axes}, {head_layers=}")
        if embed_dim % groups or predictor_embed_dim % groups:
            raise ValueError(
                f"the widths of a decoder, {embed_dim} (embed_dim) and {predictor_embed_dim} (predictor_embed_dim), "
                f"must be multiples of its {groups} groups"
            )
        self.residual = residual
        widths = [embed_dim, *[predictor_embed_dim] * depth]
        self.blocks = nn.ModuleList(
            _CONV[axes](width, predictor_embed_dim, kernel_size, padding=kernel_size // 2, groups=groups)
            for width in widths[:-1]
        )
        hidden = [2 * predictor_embed_dim] * (head_layers - 1)
        inner, outer = [predictor_embed_dim, *hidden], [*hidden, embed_dim]
        self.proj = nn.ModuleList(nn.Linear(*sizes) for sizes in zip(inner, outer, strict=True))

    def forward(
        self,
        context: Tensor,
        context_indices: Tensor,
        target_indices: Tensor,
        noise: Tensor,
        grid: Sequence[int],
        valid: Tensor | None = None,
    ) -> Tensor:
        """Predict one set of tokens a sample.

        Args:
            context: encoded context tokens `[B, K_c, D]`.
            context_indices: LongTensor `[B, K_c]`, their places.
            target_indices: LongTensor `[B, K_t]`, the places to predict.
            noise: `[B, K_t, D]`, what stands at these places.
            grid: that of the indices.
            valid: BoolTensor `[B, N]`, which tokens there are; the others are zero. All without.

        Returns:
            `[B, K_t, D]`.
        """
        places = torch.cat([context_indices, target_indices], dim=1).unsqueeze(-1).expand(-1, -1, context.shape[-1])
        tokens = torch.cat([context, noise.to(context.dtype)], dim=1)
        tokens = tokens.new_zeros(len(tokens), math.prod(grid), tokens.shape[-1]).scatter(1, places, tokens)
        if valid is not None:
            tokens = tokens.masked_fill(~valid.unsqueeze(-1), 0.0)
        x = tokens.mT.unflatten(2, tuple(grid))
        for block in self.blocks:
            given, x = x, block(x)
            x = x[(..., *(slice(cells) for cells in grid))]  # an even kernel gives one more
            x = F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)
            x = F.gelu(x)
            if self.residual and given.shape == x.shape:
                x = x + given
        predicted = gather_tokens(x.flatten(2).mT, target_indices)
        for number, layer in enumerate(self.proj):
            predicted = linear(layer, F.gelu(predicted) if number else predicted)
        return predicted

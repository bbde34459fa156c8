"""The predictor of V-JEPA and V-JEPA 2: a narrow transformer from context tokens and places to target embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jepa_lightning.networks.linear import Linear
from jepa_lightning.networks.rotary import RotaryBlock, rotation
from jepa_lightning.networks.tokens import (
    check_sizes,
    gather_tokens,
    init_transformer,
    rescale_residuals,
    sincos_positions,
)
from jepa_lightning.networks.video_transformer import Positions


class VideoPredictor(nn.Module):
    """Predict the embeddings at `target_indices` from the context tokens, with a mask token for each kind of mask.

    Args:
        grid: `(frames, rows, columns)` of the encoder's token grid.
        embed_dim: width D of the encoder's tokens.
        predictor_embed_dim: the predictor's own width, a multiple of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads a block.
        num_mask_tokens: number of mask tokens; they start at zero.
        positions: those of the encoder, see `VideoTransformer`.

    Source: V-JEPA (arXiv 2404.08471), section 3.2; V-JEPA 2 (arXiv 2506.09985), section 2.1.
    """

    def __init__(
        self,
        grid: Sequence[int],
        embed_dim: int,
        predictor_embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 12,
        num_mask_tokens: int = 2,
        positions: Positions = "sincos",
    ) -> None:
        super().__init__()
        check_sizes(predictor_embed_dim=predictor_embed_dim, predictor_depth=depth, num_heads=num_heads)
        if predictor_embed_dim % num_heads:
            raise ValueError(f"a predictor of width {predictor_embed_dim} cannot be split among {num_heads} heads")
        self.grid = tuple(grid)
        self.positions = positions
        self.head_dim = predictor_embed_dim // num_heads
        self.predictor_embed = Linear(embed_dim, predictor_embed_dim)
        self.mask_tokens = nn.ParameterList(torch.zeros(1, 1, predictor_embed_dim) for _ in range(num_mask_tokens))
        if positions == "sincos":
            pos_embed = sincos_positions(grid, predictor_embed_dim)
            self.predictor_pos_embed = nn.Parameter(pos_embed, requires_grad=False)
        self.predictor_blocks = nn.ModuleList(RotaryBlock(predictor_embed_dim, num_heads) for _ in range(depth))
        self.predictor_norm = nn.LayerNorm(predictor_embed_dim, eps=1e-6)
        self.predictor_proj = Linear(predictor_embed_dim, embed_dim)
        self.apply(init_transformer)
        if positions != "sincos":
            rescale_residuals(self.predictor_blocks)

    def forward(
        self,
        context: Tensor,
        context_indices: Tensor,
        target_indices: Tensor,
        mask_index: int = 0,
        grid: Sequence[int] | None = None,
    ) -> Tensor:
        """Predict one or several sets of tokens a clip.

        Args:
            context: encoded context tokens `[B, K_c, D]`.
            context_indices: LongTensor `[B, K_c]`, their places.
            target_indices: LongTensor `[B, K_t]`, the places to predict, or `[B, M, K_t]` for M sets. A set sees the
                context and itself, never another set.
            mask_index: which mask token stands for what is to be predicted.
            grid: that of the indices, where clips have another size than the predictor was built for.

        Returns:
            `[B, K_t, D]` or `[B, M, K_t, D]`.
        """
        grid = tuple(grid or self.grid)
        sets = target_indices.view(len(context), -1, target_indices.shape[-1])
        places = torch.cat([context_indices.unsqueeze(1).expand(-1, sets.shape[1], -1), sets], dim=2).flatten(0, 1)
        known = self.predictor_embed(context).repeat_interleave(sets.shape[1], dim=0)
        queries = self.mask_tokens[mask_index].expand(len(known), sets.shape[2], -1)
        tokens = torch.cat([known, queries.to(known.dtype)], dim=1)
        by = None
        if self.positions == "sincos":
            stored = grid == self.grid
            positions = self.predictor_pos_embed if stored else sincos_positions(grid, tokens.shape[-1]).to(tokens)
            tokens = tokens + gather_tokens(positions.expand(len(tokens), -1, -1), places)
        else:
            by = rotation(places, grid, self.head_dim, tiled=self.positions == "tiled_rope")
        for number, block in enumerate(self.predictor_blocks, start=1):
            tokens = block(tokens, by, last=sets.shape[2] if number == len(self.predictor_blocks) else 0)
        predicted = self.predictor_norm(tokens[:, -sets.shape[2] :])
        return self.predictor_proj(predicted).view(*target_indices.shape, -1)

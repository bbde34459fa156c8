"""The predictor of I-JEPA: a narrow transformer from context tokens and target positions to target embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jepa_lightning.networks.linear import Linear
from jepa_lightning.networks.rotary import RotaryBlock
from jepa_lightning.networks.tokens import check_sizes, gather_tokens, init_transformer, sincos_positions


class Predictor(nn.Module):
    """Predict the embeddings at `target_indices` from the context tokens, each target block on its own.

    Args:
        grid: `(rows, columns)` of the encoder's token grid.
        embed_dim: width D of the encoder's tokens.
        predictor_embed_dim: the predictor's own width, a multiple of four and of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads a block.

    Source: I-JEPA (arXiv 2301.08243), section 3 "Prediction" and appendix A.1.
    """

    def __init__(
        self, grid: Sequence[int], embed_dim: int, predictor_embed_dim: int = 384, depth: int = 6, num_heads: int = 6
    ) -> None:
        super().__init__()
        check_sizes(predictor_embed_dim=predictor_embed_dim, predictor_depth=depth, num_heads=num_heads)
        if predictor_embed_dim % num_heads:
            raise ValueError(f"a predictor of width {predictor_embed_dim} cannot be split among {num_heads} heads")
        self.predictor_embed = Linear(embed_dim, predictor_embed_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, predictor_embed_dim))
        self.predictor_pos_embed = nn.Parameter(sincos_positions(grid, predictor_embed_dim), requires_grad=False)
        self.predictor_blocks = nn.Sequential(*(RotaryBlock(predictor_embed_dim, num_heads) for _ in range(depth)))
        self.predictor_norm = nn.LayerNorm(predictor_embed_dim, eps=1e-6)
        self.predictor_proj = Linear(predictor_embed_dim, embed_dim)
        self.apply(init_transformer)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, context: Tensor, context_indices: Tensor, target_indices: Tensor) -> Tensor:
        """Predict one or several blocks of tokens an image.

        Args:
            context: encoded context tokens `[B, K_c, D]`.
            context_indices: LongTensor `[B, K_c]`, their places.
            target_indices: LongTensor `[B, K_t]`, the places to predict, or `[B, M, K_t]` for M blocks. A block sees
                the context and itself, never another block.

        Returns:
            `[B, K_t, D]` or `[B, M, K_t, D]`.
        """
        blocks = target_indices.view(context.shape[0], -1, target_indices.shape[-1])
        num_blocks, block_size = blocks.shape[1:]
        positions = self.predictor_pos_embed.expand(context.shape[0], -1, -1)
        context = self.predictor_embed(context) + gather_tokens(positions, context_indices)
        queries = self.mask_token + gather_tokens(positions, blocks)
        tokens = torch.cat([context.repeat_interleave(num_blocks, dim=0), queries.flatten(0, 1)], dim=1)
        for number, block in enumerate(self.predictor_blocks, start=1):
            tokens = block(tokens, last=block_size if number == len(self.predictor_blocks) else 0)
        return self.predictor_proj(self.predictor_norm(tokens[:, -block_size:])).view(*target_indices.shape, -1)

"""Predictors: narrow transformers from context tokens and places to target embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jepa_lightning.networks.blocks import Block
from jepa_lightning.networks.linear import linear
from jepa_lightning.networks.positions import ADDED, Positions, rotation, sincos_positions
from jepa_lightning.networks.tokens import check_sizes, gather_tokens, init_transformer, rescale_residuals


class Predictor(nn.Module):
    """Predict the embeddings at `target_indices` from the context tokens, each set of targets on its own.

    Parameter names are the official ones: those of I-JEPA, with one mask token, or, with `num_mask_tokens`, those of
    V-JEPA and V-JEPA 2, whose mask tokens start at zero and are chosen by the condition.

    Args:
        grid: the encoder's token grid, of one to three axes.
        embed_dim: width D of the encoder's tokens.
        predictor_embed_dim: the predictor's own width, a multiple of `num_heads` (and of four, for sine-cosine
            positions on two axes).
        depth: number of blocks.
        num_heads: attention heads a block.
        num_mask_tokens: number of mask tokens to choose from; a single one, of I-JEPA's name, without.
        positions: `sincos`, `rope` or `tiled_rope`, as the encoder's.

    Raises:
        ValueError: a size that does not fit.

    Source: I-JEPA (arXiv 2301.08243), section 3 "Prediction" and appendix A.1; V-JEPA (arXiv 2404.08471), section 3.2;
    V-JEPA 2 (arXiv 2506.09985), section 2.1.
    """

    def __init__(
        self,
        grid: Sequence[int],
        embed_dim: int,
        predictor_embed_dim: int = 384,
        depth: int = 6,
        num_heads: int = 6,
        num_mask_tokens: int | None = None,
        positions: Positions = "sincos",
    ) -> None:
        super().__init__()
        check_sizes(predictor_embed_dim=predictor_embed_dim, predictor_depth=depth, num_heads=num_heads)
        if predictor_embed_dim % num_heads:
            raise ValueError(f"a predictor of width {predictor_embed_dim} cannot be split among {num_heads} heads")
        self.grid = tuple(grid)
        self.positions = positions
        self.head_dim = predictor_embed_dim // num_heads
        self.predictor_embed = nn.Linear(embed_dim, predictor_embed_dim)
        if num_mask_tokens is None:
            self.mask_token = nn.Parameter(torch.empty(1, 1, predictor_embed_dim))
        else:
            self.mask_tokens = nn.ParameterList(torch.zeros(1, 1, predictor_embed_dim) for _ in range(num_mask_tokens))
        if positions in ADDED:
            pos_embed = sincos_positions(grid, predictor_embed_dim)
            self.predictor_pos_embed = nn.Parameter(pos_embed, requires_grad=False)
        self.predictor_blocks = nn.ModuleList(Block(predictor_embed_dim, num_heads) for _ in range(depth))
        self.predictor_norm = nn.LayerNorm(predictor_embed_dim, eps=1e-6)
        self.predictor_proj = nn.Linear(predictor_embed_dim, embed_dim)
        self.apply(init_transformer)
        if positions not in ADDED:
            rescale_residuals(self.predictor_blocks)
        if num_mask_tokens is None:
            nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(
        self,
        context: Tensor,
        context_indices: Tensor,
        target_indices: Tensor,
        condition: int | None = None,
        grid: Sequence[int] | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Predict one or several sets of tokens a sample.

        Args:
            context: encoded context tokens `[B, K_c, D]`.
            context_indices: LongTensor `[B, K_c]`, their places.
            target_indices: LongTensor `[B, K_t]`, the places to predict, or `[B, M, K_t]` for M sets. A set sees the
                context and itself, never another set.
            condition: which of several mask tokens stands for what is to be predicted; the first without.
            grid: that of the indices, where samples have another size than the predictor was built for.
            valid: BoolTensor `[B, N]`, which tokens there are; the others are seen by none. All without.

        Returns:
            `[B, K_t, D]` or `[B, M, K_t, D]`.
        """
        grid = tuple(grid or self.grid)
        sets = target_indices.view(len(context), -1, target_indices.shape[-1])
        num_sets, size = sets.shape[1:]
        known = linear(self.predictor_embed, context)
        mask_token = self.mask_tokens[condition or 0] if hasattr(self, "mask_tokens") else self.mask_token
        queries = mask_token.expand(*sets.shape, -1).to(known.dtype)
        by, mask = None, None
        if valid is not None:
            there = torch.cat([context_indices.unsqueeze(1).expand(-1, num_sets, -1), sets], dim=2).flatten(1)
            seen = valid.gather(1, there).view(len(context) * num_sets, -1)
            # A set without any token sees them all: nothing reads what is made of it, and it must not be NaN.
            mask = (seen | ~seen.any(1, keepdim=True))[:, None, None]
        if self.positions in ADDED:
            stored = self.predictor_pos_embed
            table = stored if grid == self.grid else sincos_positions(grid, stored.shape[-1]).to(stored)
            table = table.expand(len(context), -1, -1)
            known, queries = known + gather_tokens(table, context_indices), queries + gather_tokens(table, sets)
        else:
            seen = context_indices.unsqueeze(1).expand(-1, num_sets, -1)
            places = torch.cat([seen, sets], dim=2).flatten(0, 1)
            by = rotation(places, grid, self.head_dim, tiled=self.positions == "tiled_rope")
        tokens = torch.cat([known.repeat_interleave(num_sets, dim=0), queries.flatten(0, 1)], dim=1)
        for number, block in enumerate(self.predictor_blocks, start=1):
            tokens = block(tokens, by, mask, size if number == len(self.predictor_blocks) else 0)
        predicted = self.predictor_norm(tokens[:, -size:])
        return linear(self.predictor_proj, predicted).view(*target_indices.shape, -1)

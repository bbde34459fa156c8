"""Attentive pooling: one vector of many tokens, by a query that is learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa_lightning.networks.blocks import Block
from jepa_lightning.networks.linear import Mlp
from jepa_lightning.networks.tokens import init_transformer, rescale_residuals


class CrossAttentionBlock(nn.Module):
    """A query attends to tokens: `q ← q + A(q, LN(x))`, `q ← q + MLP(LN(q))`, where A has no output projection."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dim)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, round(dim * mlp_ratio))

    def forward(self, query: Tensor, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Query `[B, Q, dim]` and tokens `[B, N, dim]`, of which `valid` `[B, N]` are there, to `[B, Q, dim]`."""
        x, q = self.norm1(x), self.q(query).unflatten(-1, (self.num_heads, -1))
        of_key, of_value = self.kv.weight.unflatten(0, (2, self.num_heads, -1)).unbind()
        # q·(W x) = (qW)·x: a few queries are cheaper to project than all tokens, and the weighted mean of values is the
        # value of the weighted mean. The bias of keys is the same for all tokens, and lost in the softmax.
        asked = torch.einsum("bqhd,hde->bhqe", q, of_key).flatten(1, 2) * q.shape[-1] ** -0.5
        logits = asked @ x.mT
        if valid is not None:
            logits = logits.masked_fill(~valid.unsqueeze(1), -torch.inf)
        means = (logits.softmax(-1) @ x).unflatten(1, (self.num_heads, -1))
        read = torch.einsum("bhqe,hde->bqhd", means, of_value) + self.kv.bias.unflatten(0, (2, self.num_heads, -1))[1]
        query = query + read.flatten(2)
        return query + self.mlp(self.norm2(query))


class AttentivePooler(nn.Module):
    """Pool tokens with one learned query, after `depth - 1` blocks of self-attention among the tokens.

    Args:
        embed_dim: width D of the tokens.
        num_heads: attention heads a block.
        depth: number of blocks: 1 as in V-JEPA's probe, 4 as in V-JEPA 2's.

    Raises:
        ValueError: heads that do not share the width, or no block.

    Source: V-JEPA (arXiv 2404.08471), appendix D; V-JEPA 2 (arXiv 2506.09985), section 5 and appendix.

    >>> AttentivePooler(12, num_heads=3)(torch.zeros(2, 5, 12)).shape
    torch.Size([2, 12])
    """

    def __init__(self, embed_dim: int, num_heads: int, depth: int = 1) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"a width of {embed_dim} cannot be split among {num_heads} heads")
        if depth < 1:
            raise ValueError(f"depth must be at least 1, the block with the query, got {depth}")
        self.query = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads) for _ in range(depth - 1))
        self.cross_attention = CrossAttentionBlock(embed_dim, num_heads)
        self.apply(init_transformer)
        # What the blocks add to their input starts smaller, as in the official code: that of the query is the first.
        rescale_residuals(self.blocks, first=2)
        self.cross_attention.mlp.fc2.weight.data.div_(2**0.5)
        nn.init.trunc_normal_(self.query, std=0.02)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Tokens `[B, N, D]`, of which `valid` `[B, N]` are there (all without), to `[B, D]`."""
        if valid is not None:
            valid = valid | ~valid.any(1, keepdim=True)  # a sample without any token must not become NaN
        mask = None if valid is None else valid[:, None, None]
        for block in self.blocks:
            x = block(x, mask=mask)
        return self.cross_attention(self.query.expand(len(x), -1, -1), x, valid).squeeze(1)

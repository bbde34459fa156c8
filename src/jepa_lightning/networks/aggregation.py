"""The aggregation head of DMT-JEPA: tokens from their most similar neighbours, by class attention."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lightning.networks.linear import Mlp, linear
from jepa_lightning.networks.tokens import init_transformer


class ClassAttention(nn.Module):
    """Attention of queries, each to itself and to tokens of its own."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, tokens: Tensor, picked: Tensor | None, visible: Tensor | None) -> Tensor:
        """Queries `[B, Q, D]` over tokens `[B, N, D]`; see `ClassAttentionBlock`."""
        heads = (self.num_heads, queries.shape[-1] // self.num_heads)
        keys_values = []
        for layer in (self.k, self.v):
            own, others = linear(layer, queries).unsqueeze(2), linear(layer, tokens)  # [B, Q, 1, D], [B, N, D]
            if picked is None:
                others = others.unsqueeze(1).expand(-1, queries.shape[1], -1, -1)
            else:
                images = torch.arange(len(tokens), device=tokens.device).view(-1, 1, 1)
                others = others[images, picked]  # [B, Q, k, D]
            keys_values.append(torch.cat([own, others], dim=2).unflatten(-1, heads).transpose(2, 3))
        keys, values = keys_values
        asked = linear(self.q, queries).unsqueeze(2).unflatten(-1, heads).transpose(2, 3)  # [B, Q, heads, 1, D / heads]
        mask = None if visible is None else F.pad(visible, (1, 0), value=True)[:, :, None, None]
        attended = F.scaled_dot_product_attention(asked, keys, values, attn_mask=mask)
        return linear(self.proj, attended.flatten(2))


class ClassAttentionBlock(nn.Module):
    """A pre-norm block of class attention and an MLP.

    Args:
        dim: width D.
        num_heads: attention heads.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = ClassAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)

    def attend(
        self, queries: Tensor, tokens: Tensor, picked: Tensor | None = None, visible: Tensor | None = None
    ) -> Tensor:
        """What the queries `[B, Q, D]` read from themselves and from tokens `[B, N, D]`.

        Args:
            queries: `[B, Q, D]`.
            tokens: `[B, N, D]`.
            picked: LongTensor `[B, Q, k]`, the tokens that each query may read; all without.
            visible: BoolTensor `[B, Q, k]`, which of these count; all without.
        """
        return self.attn(self.norm1(queries), self.norm1(tokens), picked, visible)

    def add_mlp(self, tokens: Tensor) -> Tensor:
        """The residual branch of the MLP."""
        return tokens + self.mlp(self.norm2(tokens))


class LocalAggregation(nn.Module):
    """Two class-attention blocks that make one token of a neighbourhood, or give a context its summary.

    Args:
        grid: the token grid, of any number of dimensions.
        embed_dim: width D of the tokens, a multiple of `num_heads`.
        num_heads: attention heads.
        num_neighbours: k, how many of the adjacent tokens (eight in a plane) are aggregated.

    Raises:
        ValueError: a grid of one token, or a number of neighbours that no token has.

    Source: DMT-JEPA (arXiv 2405.17995), section 3.
    """

    forward_methods = ("neighbourhoods", "context", "summary")  # which a strategy that shards has to know

    cls_blocks: Any
    window: Tensor
    inside: Tensor

    def __init__(self, grid: Sequence[int], embed_dim: int, num_heads: int, num_neighbours: int = 4) -> None:
        super().__init__()
        adjacent = 3 ** len(grid) - 1
        if math.prod(grid) < 2 or not 1 <= num_neighbours <= adjacent:
            raise ValueError(
                f"num_neighbours must be 1 to {adjacent} on a grid of two or more tokens, got {num_neighbours} on "
                f"{tuple(grid)}"
            )
        self.num_neighbours = num_neighbours
        self.cls_blocks = nn.ModuleList(ClassAttentionBlock(embed_dim, num_heads) for _ in range(2))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.apply(init_transformer)
        window, inside = _window(grid)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("inside", inside, persistent=False)

    def neighbours(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The `k` adjacent tokens that are most similar to each token `[B, N, D]`, by cosine.

        Returns:
            Their places, LongTensor `[B, N, k]`, and whether they exist, BoolTensor `[B, N, k]`: a token in a corner of
            a plane has three neighbours only.
        """
        unit = F.normalize(tokens.float(), dim=-1)
        places = self.window.expand(len(tokens), -1, -1)
        with torch.autocast(tokens.device.type, enabled=False):  # rounded cosines would be ranked otherwise
            cosines = unit @ unit.mT
        similarity = cosines.gather(2, places).masked_fill(~self.inside, -torch.inf)
        nearest, order = similarity.topk(self.num_neighbours, dim=-1)
        return places.gather(2, order), nearest > -torch.inf

    def neighbourhoods(self, tokens: Tensor) -> Tensor:
        """One token for each neighbourhood of tokens `[B, N, D]`; the mean of an image's tokens asks first."""
        picked, visible = self.neighbours(tokens)
        queries = tokens.mean(1, keepdim=True).expand_as(tokens)
        for block in self.cls_blocks:
            queries = block.add_mlp(queries + block.attend(queries, tokens, picked, visible))
        return self.norm(queries)

    def context(self, tokens: Tensor) -> Tensor:
        """Add to all tokens `[B, K, D]` what their mean attends to among them."""
        for block in self.cls_blocks:
            tokens = block.add_mlp(tokens + block.attend(tokens.mean(1, keepdim=True), tokens))
        return self.norm(tokens)

    def summary(self, tokens: Tensor) -> Tensor:
        """The one token `[B, 1, D]` that the mean of tokens `[B, K, D]` gathers from them."""
        query = tokens.mean(1, keepdim=True)
        for block in self.cls_blocks:
            query = block.add_mlp(query + block.attend(query, tokens))
        return self.norm(query)


def _window(grid: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The adjacent places `[N, 3^d - 1]` of every place, and whether they lie inside the grid."""
    place = torch.stack(torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij"), -1).flatten(0, -2)
    steps = torch.tensor([step for step in itertools.product((-1, 0, 1), repeat=len(grid)) if any(step)])
    adjacent, sides = place[:, None] + steps, torch.tensor(grid)
    inside = ((adjacent >= 0) & (adjacent < sides)).all(-1)
    strides = torch.tensor([math.prod(grid[axis + 1 :]) for axis in range(len(grid))])
    return (adjacent * strides).sum(-1).masked_fill(~inside, 0), inside

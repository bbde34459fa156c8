"""data2vec on images as one would first write it, see `textbook.py`: the same function of the same weights.

The bias of attention is looked up anew in each block, masks come from a loop over samples and blocks, the student
computes all tokens of all blocks, and the head all predictions, of which the hidden ones are then picked.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from textbook import Mlp, picked
from torch import Tensor, nn


def offsets(rows: int, columns: int) -> Tensor:
    """Which number of the table is the bias of two tokens, the class token first, `[1 + N, 1 + N]`."""
    count = (2 * rows - 1) * (2 * columns - 1)
    places = [(row, column) for row in range(rows) for column in range(columns)]
    found = torch.empty(1 + len(places), 1 + len(places), dtype=torch.long)
    found[0], found[:, 0] = count, count + 1
    found[0, 0] = count + 2
    for query, (row, column) in enumerate(places, 1):
        for key, (other_row, other_column) in enumerate(places, 1):
            down, right = row - other_row + rows - 1, column - other_column + columns - 1
            found[query, key] = down * (2 * columns - 1) + right
    return found


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5 + bias
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim)
        self.gamma_1, self.gamma_2 = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.gamma_1 * self.attn(self.norm1(x), bias)
        return x + self.gamma_2 * self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, stride=patch)
        self.cls_token, self.mask_token = nn.Parameter(torch.zeros(1, 1, dim)), nn.Parameter(torch.zeros(1, 1, dim))


class Bias(nn.Module):
    def __init__(self, grid: Sequence[int], num_heads: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros((2 * grid[0] - 1) * (2 * grid[1] - 1) + 3, num_heads))
        self.register_buffer("offsets", offsets(*grid), persistent=False)


class Encoder(nn.Module):
    def __init__(self, patch: int, grid: Sequence[int], dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(patch, dim)
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.bias = Bias(grid, num_heads)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """The tokens, and those after each block, without the class token; mask tokens where `hidden`."""
        tokens = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        if hidden is not None:
            tokens = torch.where(hidden.unsqueeze(-1), self.patch_embed.mask_token.to(tokens.dtype), tokens)
        tokens = torch.cat([self.patch_embed.cls_token.expand(len(x), -1, -1).to(tokens.dtype), tokens], 1)
        layers = []
        for block in self.blocks:
            bias = self.bias.table[self.bias.offsets].permute(2, 0, 1).unsqueeze(0)
            tokens = block(tokens, bias)
            layers.append(tokens[:, 1:])
        return self.norm(tokens)[:, 1:], layers


def blocks(batch_size: int, grid: Sequence[int], count: int) -> Tensor:
    """Hidden tokens `[B, K]` by BEiT's blocks, one image and one block at a time."""
    rows, columns = grid
    found = []
    for _ in range(batch_size):
        hidden: set[int] = set()
        while len(hidden) < count:
            area, aspect = (
                random.uniform(min(16, count), count),
                math.exp(random.uniform(math.log(0.3), -math.log(0.3))),
            )
            height = min(max(round(math.sqrt(area * aspect)), 1), rows)
            width = min(max(round(math.sqrt(area / aspect)), 1), columns)
            top, left = random.randint(0, rows - height), random.randint(0, columns - width)
            for row in range(top, top + height):
                hidden |= {row * columns + column for column in range(left, left + width)}
        found.append(random.sample(sorted(hidden), count))
    return torch.tensor(found)


class Data2VecTextbook(nn.Module):
    """The networks, masks and loss of data2vec on images.

    Args:
        patch: side of a patch.
        grid: of the tokens.
        dim: width.
        depth: blocks.
        num_heads: attention heads.
        num_layers: the last ones, of which targets are the mean.
        hidden: tokens that are hidden.
        beta: of smooth L1.
    """

    def __init__(
        self,
        patch: int,
        grid: Sequence[int],
        dim: int,
        depth: int,
        num_heads: int,
        num_layers: int,
        hidden: int,
        beta: float,
    ) -> None:
        super().__init__()
        self.grid, self.num_layers, self.hidden, self.beta = grid, num_layers, hidden, beta
        self.context_encoder = Encoder(patch, grid, dim, depth, num_heads)
        self.target_encoder = Encoder(patch, grid, dim, depth, num_heads).requires_grad_(False)
        self.predictor = nn.Linear(dim, dim)

    def masks(self, batch_size: int) -> Tensor:
        return blocks(batch_size, self.grid, self.hidden)

    def targets(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            _, layers = self.target_encoder(x)
            mean = torch.stack(layers[-self.num_layers :]).float().mean(0)
            return F.layer_norm(mean, mean.shape[-1:])

    def loss(self, prediction: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
        found, wanted = picked(prediction, hidden).float(), picked(target, hidden)
        distances = F.smooth_l1_loss(found, wanted, reduction="none", beta=self.beta)
        return distances.sum(-1).mean() * found.shape[-1] ** -0.5

    @torch.no_grad()
    def move_teacher(self, momentum: float) -> None:
        for mine, theirs in zip(self.target_encoder.parameters(), self.context_encoder.parameters(), strict=True):
            mine.mul_(momentum).add_(theirs, alpha=1 - momentum)

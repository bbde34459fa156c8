"""I-JEPA, V-JEPA and V-JEPA 2 as one would first write them: what `step.py` measures our step against.

The same function of the same weights, under the same names, without any of the savings: attention is a softmax of a
matrix of scores, the rotations are computed anew for queries and keys of each block axis by axis, blocks of target
tokens are predicted one after another by all tokens of all blocks, masks come from a loop over samples, and the teacher
is moved parameter by parameter. What saves nothing but sense is left out: hidden tokens are dropped before the blocks.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from masking import loop_over_samples
from torch import Tensor, nn

Grid = Sequence[int]


def rotated(x: Tensor, places: Tensor, grid: Grid) -> Tensor:
    """Queries or keys `[B, heads, K, d]` at places `[B, K]`, rotated as V-JEPA 2 has it, with a frequency a pair."""
    _, rows, columns = grid
    share = x.shape[-1] // 3 // 2 * 2
    parts, start = [], 0
    for axis in (places // (rows * columns), places // columns % rows, places % columns):
        axis = axis.unsqueeze(1).expand(-1, x.shape[1], -1)
        frequencies = 10000.0 ** (-torch.arange(share // 2, device=x.device) / (share // 2))
        angles = (axis.unsqueeze(-1) * frequencies).repeat_interleave(2, -1)
        part = x[..., start : start + share]
        first, second = part.unflatten(-1, (-1, 2)).unbind(-1)
        parts.append(part * angles.cos() + torch.stack([-second, first], -1).flatten(-2) * angles.sin())
        start += share
    return torch.cat([*parts, x[..., start:]], -1)


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int, grid: Grid | None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.grid = grid
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if self.grid is not None:
            q, k = rotated(q, places, self.grid).to(v.dtype), rotated(k, places, self.grid).to(v.dtype)
        scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, grid: Grid | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, grid)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), places)
        return x + self.mlp(self.norm2(x))


def picked(tokens: Tensor, indices: Tensor) -> Tensor:
    return torch.gather(tokens, 1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


class PatchEmbed(nn.Module):
    def __init__(self, patch: Sequence[int], dim: int) -> None:
        super().__init__()
        convolution = nn.Conv2d if len(patch) == 2 else nn.Conv3d
        self.proj = convolution(3, dim, tuple(patch), stride=tuple(patch))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """Embeds all tokens, and then leaves out those that are not at `indices`.

    Args:
        patch: `(rows, columns)` or `(frames, rows, columns)` of a token.
        grid: the token grid.
        dim: width.
        depth: blocks.
        num_heads: attention heads.
        rotary: with rotary positions in place of added ones.
    """

    def __init__(self, patch: Sequence[int], grid: Grid, dim: int, depth: int, num_heads: int, rotary: bool) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(patch, dim)
        if not rotary:
            self.pos_embed = nn.Parameter(torch.zeros(1, math.prod(grid), dim), requires_grad=False)
        self.blocks = nn.ModuleList(Block(dim, num_heads, grid if rotary else None) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        tokens = self.patch_embed(x)
        places = torch.arange(tokens.shape[1], device=x.device).expand(len(x), -1)
        if hasattr(self, "pos_embed"):
            tokens = tokens + self.pos_embed
        if indices is not None:
            tokens, places = picked(tokens, indices), indices
        for block in self.blocks:
            tokens = block(tokens, places)
        return self.norm(tokens)


class Predictor(nn.Module):
    """Predicts one block of target tokens."""

    def __init__(
        self, grid: Grid, embed_dim: int, dim: int, depth: int, num_heads: int, num_mask_tokens: int, rotary: bool
    ) -> None:
        super().__init__()
        self.predictor_embed = nn.Linear(embed_dim, dim)
        if num_mask_tokens:  # of clips
            self.mask_tokens = nn.ParameterList(torch.zeros(1, 1, dim) for _ in range(num_mask_tokens))
        else:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        if not rotary:
            self.predictor_pos_embed = nn.Parameter(torch.zeros(1, math.prod(grid), dim), requires_grad=False)
        self.predictor_blocks = nn.ModuleList(Block(dim, num_heads, grid if rotary else None) for _ in range(depth))
        self.predictor_norm = nn.LayerNorm(dim, eps=1e-6)
        self.predictor_proj = nn.Linear(dim, embed_dim)

    def forward(self, context: Tensor, seen: Tensor, hidden: Tensor, kind: int) -> Tensor:
        token = self.mask_tokens[kind] if hasattr(self, "mask_tokens") else self.mask_token
        context = self.predictor_embed(context)
        queries = token.expand(len(context), hidden.shape[1], -1).to(context.dtype)
        tokens, places = torch.cat([context, queries], 1), torch.cat([seen, hidden], 1)
        if hasattr(self, "predictor_pos_embed"):
            tokens = tokens + picked(self.predictor_pos_embed.expand(len(tokens), -1, -1), places)
        for block in self.predictor_blocks:
            tokens = block(tokens, places)
        return self.predictor_proj(self.predictor_norm(tokens)[:, -hidden.shape[1] :])


def tubes(
    batch_size: int, grid: Grid, num_blocks: int, scale: float, context_tokens: int, target_tokens: int
) -> tuple[Tensor, Tensor]:
    """Context `[B, K_c]` and targets `[B, 1, K_t]` of V-JEPA's masks, one clip at a time."""
    frames, rows, columns = grid
    contexts, targets = [], []
    while len(contexts) < batch_size:
        inside = torch.zeros(rows, columns, dtype=torch.bool)
        for _ in range(num_blocks):
            area, aspect = int(scale * rows * columns), random.uniform(0.75, 1.5)
            height = min(max(round(math.sqrt(area * aspect)), 1), rows)
            width = min(max(round(math.sqrt(area / aspect)), 1), columns)
            top, left = random.randint(0, rows - height), random.randint(0, columns - width)
            inside[top : top + height, left : left + width] = True
        covered = inside.flatten().repeat(frames)
        hidden, seen = covered.nonzero().squeeze(1), (~covered).nonzero().squeeze(1)
        if len(hidden) >= target_tokens and len(seen) >= context_tokens:
            targets.append(hidden[torch.randperm(len(hidden))[:target_tokens]])
            contexts.append(seen[torch.randperm(len(seen))[:context_tokens]])
    return torch.stack(contexts), torch.stack(targets).unsqueeze(1)


class Textbook(nn.Module):
    """A method's networks, masks and loss.

    Args:
        encoder: the options of `Encoder`.
        predictor: those of `Predictor` but for grid and widths.
        width: of the predictor.
        kinds: number of blocks, their scale, and the numbers of context and target tokens, for each kind of mask of a
            clip; none for I-JEPA.
        distance: of prediction and target.
    """

    def __init__(
        self,
        encoder: dict[str, Any],
        predictor: dict[str, Any],
        width: int,
        kinds: list[tuple[int, float, int, int]],
        distance: Any,
    ) -> None:
        super().__init__()
        self.grid = tuple(encoder["grid"])
        self.kinds = kinds
        self.distance = distance
        self.context_encoder = Encoder(**encoder)
        self.target_encoder = Encoder(**encoder).requires_grad_(False)
        rotary, mask_tokens = encoder["rotary"], len(kinds)
        self.predictor = Predictor(
            self.grid, encoder["dim"], width, **predictor, num_mask_tokens=mask_tokens, rotary=rotary
        )

    def masks(self, batch_size: int) -> list[tuple[Tensor, Tensor]]:
        """Context `[B, K_c]` and targets `[B, M, K_t]` of each kind."""
        if not self.kinds:
            return [tuple(loop_over_samples(batch_size, self.grid, torch.default_generator))]
        return [tubes(batch_size, self.grid, *kind) for kind in self.kinds]

    def targets(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.target_encoder(x)
            return F.layer_norm(features, features.shape[-1:])

    def predictions(self, context: Tensor, seen: Tensor, targets: Tensor, kind: int) -> Tensor:
        """`[B, M, K_t, D]`, one block after another."""
        return torch.stack([self.predictor(context, seen, block, kind) for block in targets.unbind(1)], 1)

    def loss(self, prediction: Tensor, features: Tensor, targets: Tensor) -> Tensor:
        wanted = torch.stack([picked(features, block) for block in targets.unbind(1)], 1)
        return self.distance(prediction, wanted)

    @torch.no_grad()
    def move_teacher(self, momentum: float) -> None:
        for mine, theirs in zip(self.target_encoder.parameters(), self.context_encoder.parameters(), strict=True):
            mine.mul_(momentum).add_(theirs, alpha=1 - momentum)

"""The predictor of V-JEPA 2-AC: from frames, actions and states up to a time to the next frame."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jepa_lightning.networks.blocks import Block
from jepa_lightning.networks.linear import linear
from jepa_lightning.networks.positions import Positions, rotation
from jepa_lightning.networks.tokens import check_sizes, init_transformer, rescale_residuals


class ActionPredictor(nn.Module):
    """A block-causal transformer: a time has a token for its action, one for its state, and its patches.

    Tokens see all of their own time and of the times before. Patches are rotated by time, row and column, the others by
    time alone. Parameter names are the official ones.

    Args:
        embed_dim: width D of a frame's tokens.
        action_dim: numbers A of an action.
        state_dim: numbers S of a state; there are no state tokens with 0.
        predictor_embed_dim: the predictor's own width, a multiple of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads a block.
        positions: `rope` or `tiled_rope`.
        num_embodiments: how many kinds of robot there are, each of which has its own maps of actions and states.
        num_views: how many cameras show a time; the patches of each have a learned vector added.

    Raises:
        ValueError: a size that does not fit.

    Source: V-JEPA 2 (arXiv 2506.09985), section 3.1; several embodiments and views as in RoboJEPA (arXiv 2610.10515).
    """

    def __init__(
        self,
        embed_dim: int,
        action_dim: int = 7,
        state_dim: int = 7,
        predictor_embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        positions: Positions = "rope",
        num_embodiments: int = 1,
        num_views: int = 1,
    ) -> None:
        super().__init__()
        check_sizes(action_dim=action_dim, predictor_embed_dim=predictor_embed_dim, predictor_depth=depth)
        check_sizes(predictor_num_heads=num_heads, num_embodiments=num_embodiments, num_views=num_views)
        if state_dim < 0:
            raise ValueError(f"state_dim must be 0, for no states, or more, got {state_dim}")
        if predictor_embed_dim % num_heads:
            raise ValueError(f"a predictor of width {predictor_embed_dim} cannot be split among {num_heads} heads")
        self.positions, self.head_dim = positions, predictor_embed_dim // num_heads
        self.action_dim, self.state_dim = action_dim, state_dim
        self.num_embodiments, self.num_views = num_embodiments, num_views
        width = predictor_embed_dim
        self.predictor_embed = nn.Linear(embed_dim, width)
        self.action_encoder = self._per_embodiment(action_dim, width)
        self.state_encoder = self._per_embodiment(state_dim, width) if state_dim else None
        self.view_embed = nn.Parameter(torch.empty(num_views, 1, width)) if num_views > 1 else None
        self.predictor_blocks = nn.ModuleList(Block(width, num_heads) for _ in range(depth))
        self.predictor_norm = nn.LayerNorm(width, eps=1e-6)
        self.predictor_proj = nn.Linear(width, embed_dim)
        self.apply(init_transformer)
        rescale_residuals(self.predictor_blocks)
        if self.view_embed is not None:
            nn.init.trunc_normal_(self.view_embed, std=0.02)

    def forward(
        self,
        frames: Tensor,
        actions: Tensor,
        states: Tensor | None,
        grid: Sequence[int],
        embodiment: Tensor | None = None,
        last: bool = False,
    ) -> Tensor:
        """Predict the frame after each time.

        Args:
            frames: tokens `[B, T, N, D]`; of several views those of one after those of the other.
            actions: `[B, T, A]`, of each time the one that leads to the next.
            states: `[B, T, S]`; None without state tokens.
            grid: `(rows, columns)` of a view's patches.
            embodiment: LongTensor `[B]`, which kind of robot it is; the first without.
            last: whether only the prediction after the last time is wanted.

        Returns:
            `[B, T, N, D]`, the frames one time later, or `[B, 1, N, D]`.
        """
        batch, times, patches, _ = frames.shape
        tokens = linear(self.predictor_embed, frames)
        if self.view_embed is not None:
            tokens = tokens + self.view_embed.repeat_interleave(patches // self.num_views, dim=0).flatten(0, 1)
        conditions = [self._encoded(self.action_encoder, actions, embodiment)]
        if self.state_encoder is not None:
            conditions.append(self._encoded(self.state_encoder, states, embodiment))
        tokens = torch.cat([*(condition.unsqueeze(2) for condition in conditions), tokens], dim=2)
        size, first = tokens.shape[2], len(conditions)
        # Action and state stand where the first patch does: in row and column 0, by which nothing is rotated.
        place = torch.arange(patches // self.num_views, device=tokens.device).repeat(self.num_views)
        place = torch.cat([place.new_zeros(first), place])
        time = torch.arange(times, device=tokens.device).unsqueeze(1)
        places = (time * grid[0] * grid[1] + place).view(1, -1)
        by = rotation(places, (times, *grid), self.head_dim, tiled=self.positions == "tiled_rope")
        when = time.expand(-1, size).flatten()
        mask = (when.unsqueeze(1) >= when).view(1, 1, times * size, -1)
        tokens = tokens.flatten(1, 2)
        for number, block in enumerate(self.predictor_blocks, start=1):
            tokens = block(tokens, by, mask, last=size if last and number == len(self.predictor_blocks) else 0)
        tokens = tokens.view(batch, -1, size, tokens.shape[-1])[:, :, first:]
        return linear(self.predictor_proj, self.predictor_norm(tokens))

    def _per_embodiment(self, inputs: int, width: int) -> nn.Module:
        if self.num_embodiments == 1:
            return nn.Linear(inputs, width)
        return nn.ModuleList(nn.Linear(inputs, width) for _ in range(self.num_embodiments))

    def _encoded(self, encoder: nn.Module, values: Tensor | None, embodiment: Tensor | None) -> Tensor:
        """Actions or states `[B, T, ...]` as tokens `[B, T, width]`, by the map of each sample's embodiment."""
        if not isinstance(encoder, nn.ModuleList):
            return linear(encoder, values)  # type: ignore[arg-type]
        if embodiment is None:
            raise ValueError(f"with {len(encoder)} embodiments a batch says which is whose, by a field `embodiment`")
        every = torch.stack([linear(each, values) for each in encoder], 1)  # type: ignore[arg-type]
        return every[torch.arange(len(every), device=every.device), embodiment]

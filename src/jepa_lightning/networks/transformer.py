"""The encoder of all methods: a transformer on the tokens of an observation, of which it may be given a part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lightning.networks.blocks import Block, BlockOutput
from jepa_lightning.networks.linear import Activation
from jepa_lightning.networks.positions import ADDED, ROTARY, Positions, Rotation, rotation, sincos_positions
from jepa_lightning.networks.tokens import check_sizes, gather_tokens, init_transformer, rescale_residuals
from jepa_lightning.step import Tokens


class Transformer(nn.Module):
    """A transformer encoder whose hidden tokens are dropped before the first block.

    Parameter names are those of I-JEPA, V-JEPA and timm: `patch_embed` (the tokenizer), `pos_embed`, `cls_token`,
    `blocks`, `norm`.

    Args:
        tokenizer: from observations to tokens: a module with `embed_dim`, `grid_of(x)` and `init_weights()`, such as
            `PatchEmbed`.
        grid: that of the observations it is built for, of one to three axes; other sizes are fine too.
        depth: number of blocks.
        num_heads: attention heads a block; divides the tokens' width.
        mlp_ratio: width of the MLPs over that of the tokens.
        positions: how a token knows its place: `sincos`, `learned`, `rope`, `tiled_rope` or `none`, see `positions.py`.
        norm_first: pre-norm blocks and a norm at the end, or, without, post-norm blocks and a norm before the first.
        class_token: whether a token that has no place is put in front: the summary of `encode`.
        activation: of the MLPs, `gelu` or `relu`.
        eps: epsilon of the norms.
        layer_scale: of the blocks, see `Block`.
        bias: what is added to the logits of all blocks: a module `bias(places, grid)` from places `[B, K]` (or
            `[1, K]`, of all samples) to `[B, heads, K, K]`, with the class token, if there is one, in front.

    Raises:
        ValueError: a size that does not fit.

    >>> from jepa_lightning.networks import PatchEmbed
    >>> encoder = Transformer(PatchEmbed((5,), 1, 8), grid=(4,), depth=1, num_heads=2, class_token=True)
    >>> encoder(torch.zeros(3, 20, 1)).shape
    torch.Size([3, 4, 8])
    """

    forward_methods = ("tokens", "masked", "encode", "outputs", "layers")  # which a strategy that shards has to know
    patch_embed: Any

    def __init__(
        self,
        tokenizer: Any,
        grid: Sequence[int],
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        positions: Positions = "sincos",
        norm_first: bool = True,
        class_token: bool = False,
        activation: Activation = "gelu",
        eps: float = 1e-6,
        layer_scale: float | None = None,
        bias: nn.Module | None = None,
    ) -> None:
        super().__init__()
        embed_dim: int = tokenizer.embed_dim
        check_sizes(depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio)
        if embed_dim % num_heads:
            raise ValueError(f"a width of {embed_dim} cannot be split among {num_heads} heads")
        self.grid = tuple(grid)
        self.embed_dim, self.depth, self.num_heads, self.mlp_ratio = embed_dim, depth, num_heads, mlp_ratio
        self.positions, self.norm_first = positions, norm_first
        self.patch_embed = tokenizer
        if positions in ADDED:
            # Fixed ones are a parameter too and no buffer: so they stand in official checkpoints and parameter counts.
            fixed = positions == "sincos"
            self.pos_embed = nn.Parameter(sincos_positions(self.grid, embed_dim), requires_grad=not fixed)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, norm_first, activation, eps=eps, layer_scale=layer_scale)
            for _ in range(depth)
        )
        self.norm: nn.Module = nn.LayerNorm(embed_dim, eps=eps)
        self.bias = bias
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim)) if class_token else None
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the weights anew."""
        self.apply(init_transformer)
        if self.positions in ROTARY:
            rescale_residuals(self.blocks)
        self.patch_embed.init_weights()
        if self.positions == "learned":
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def grid_of(self, x: Tensor) -> tuple[int, ...]:
        """The token grid of observations.

        Raises:
            ValueError: observations that the tokenizer does not take.
        """
        grid: tuple[int, ...] = self.patch_embed.grid_of(x)
        return grid

    @property
    def class_token(self) -> Tensor | None:
        """The token `[1, 1, D]` that is put in front, if there is one."""
        return self.cls_token

    def tokens(self, x: Tensor) -> Tensor:
        """The tokens `[B, N, D]` of observations, which do not know their places yet."""
        return self.patch_embed(x)

    def masked(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Tokens `[B, N, D]` with mask tokens at the places `hidden`, a BoolTensor `[B, N]`.

        Of encoders whose tokenizer has a mask token: a method `masked(tokens, hidden)`.
        """
        tokens = self.patch_embed.masked(tokens, hidden)
        return tokens

    def encode(
        self,
        tokens: Tensor,
        indices: Tensor | None = None,
        valid: Tensor | None = None,
        grid: Sequence[int] | None = None,
        mask: Tensor | None = None,
    ) -> Tokens:
        """Encode tokens, which see one another and nothing else.

        Args:
            tokens: `[B, N, D]`, what `tokens` gives, or the like.
            indices: LongTensor `[B, K]` into the grid in raster order, the tokens to keep; all without.
            valid: BoolTensor `[B, N]`, which tokens there are; the others are seen by none. All without.
            grid: that of the tokens; the one that the encoder was built for without.
            mask: BoolTensor `[K, K]` or `[B, K, K]`: which of the kept tokens (columns) each (row) sees; all without.
                The class token sees all, and is seen by all.

        Returns:
            The kept tokens `[B, K, D]` and, where there is a class token, the summary.
        """
        tokens, by, mask, kept = self._kept(tokens, indices, valid, grid, mask)
        for block in self.blocks:
            tokens = block(tokens, by, mask)
        return self._ended(tokens, kept)

    def outputs(
        self,
        tokens: Tensor,
        indices: Tensor | None = None,
        valid: Tensor | None = None,
        grid: Sequence[int] | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tokens, list[BlockOutput]]:
        """Encode tokens, and keep what every block gives and what its MLP adds, without the class token.

        Args:
            tokens: `[B, N, D]`.
            indices: see `encode`, as `valid`, `grid` and `mask`.
            valid: see `encode`.
            grid: see `encode`.
            mask: see `encode`.

        Returns:
            What `encode` gives, and of each block two tensors `[B, K, D]`.
        """
        tokens, by, mask, kept = self._kept(tokens, indices, valid, grid, mask)
        first, found = int(self.class_token is not None), []
        block: Any
        for block in self.blocks:
            output = block.output(tokens, by, mask)
            tokens = output.tokens
            found.append(BlockOutput(output.tokens[:, first:], output.added[:, first:]))
        return self._ended(tokens, kept), found

    def layers(
        self,
        tokens: Tensor,
        blocks: Sequence[int],
        indices: Tensor | None = None,
        valid: Tensor | None = None,
        grid: Sequence[int] | None = None,
        mask: Tensor | None = None,
    ) -> list[Tensor]:
        """What some blocks give, each `[B, K, D]`, before the norm at the end.

        Args:
            tokens: `[B, N, D]`.
            blocks: numbers of the blocks, from 0; negative ones count from the last.
            indices: see `encode`, as `valid`, `grid` and `mask`.
            valid: see `encode`.
            grid: see `encode`.
            mask: see `encode`.

        Raises:
            IndexError: a block that there is not.
        """
        wanted = [range(len(self.blocks))[number] for number in blocks]
        tokens, by, mask, _ = self._kept(tokens, indices, valid, grid, mask)
        found = {}
        for number, block in enumerate(self.blocks):
            if number > max(wanted):
                break
            tokens = block(tokens, by, mask)
            found[number] = tokens if self.class_token is None else tokens[:, 1:]
        return [found[number] for number in wanted]

    def forward(self, x: Tensor, indices: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """Encode the tokens at `indices`, which see one another and nothing else.

        Args:
            x: observations, such as images `[B, C, H, W]`. Sizes other than that of the constructor are fine as long as
                patches fit; the positions are then those of the grid that they give.
            indices: LongTensor `[B, K]` into the grid in raster order; all tokens without.
            valid: BoolTensor `[B, N]`, which tokens there are; all without.

        Returns:
            Tokens `[B, K, D]`, layer-normed.

        Raises:
            ValueError: observations of a size that the tokenizer does not take.
        """
        return self.encode(self.tokens(x), indices, valid, self.grid_of(x)).values

    def _ended(self, tokens: Tensor, valid: Tensor | None) -> Tokens:
        """What the last block gives, without the class token."""
        tokens = self.norm(tokens) if self.norm_first else tokens
        return Tokens(tokens, valid) if self.class_token is None else Tokens(tokens[:, 1:], valid, tokens[:, 0])

    def _kept(
        self,
        tokens: Tensor,
        indices: Tensor | None,
        valid: Tensor | None,
        grid: Sequence[int] | None,
        mask: Tensor | None,
    ) -> tuple[Tensor, Rotation | None, Tensor | None, Tensor | None]:
        """The tokens that enter the blocks, their rotation, the attention mask, and which of them are valid."""
        grid = tuple(grid or self.grid)
        tokens = self._placed(tokens, grid, indices, valid)
        places = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        if indices is not None:
            tokens, places = gather_tokens(tokens, indices), indices
            valid = None if valid is None else valid.gather(1, indices)
        by = None
        if self.positions in ROTARY:
            by = rotation(places, grid, self.embed_dim // self.num_heads, tiled=self.positions == "tiled_rope")
        if mask is not None:
            mask = mask.view(-1, 1, *mask.shape[-2:])
        if valid is not None:
            # A sample without any token sees them all: nothing reads what it makes of them, and it must not be NaN.
            seen = (valid | ~valid.any(1, keepdim=True))[:, None, None]
            mask = seen if mask is None else mask & seen
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
            by = None if by is None else by.after(1)
            if mask is not None:
                mask = F.pad(mask, (1, 0, 1 if mask.shape[-2] > 1 else 0, 0), value=True)
        if self.bias is not None:
            bias = self.bias(places, grid)
            mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
        return (tokens if self.norm_first else self.norm(tokens)), by, mask, valid

    def _placed(self, tokens: Tensor, grid: tuple[int, ...], indices: Tensor | None, valid: Tensor | None) -> Tensor:
        """The tokens `[B, N, D]` with what tells them their places, of which those at `indices` will be kept."""
        return tokens + self._added(grid) if self.positions in ADDED else tokens

    def _added(self, grid: tuple[int, ...]) -> Tensor:
        if grid == self.grid:
            return self.pos_embed
        if self.positions == "learned":
            raise ValueError(f"learned positions are those of a grid of {self.grid}, the observations have {grid}")
        return sincos_positions(grid, self.embed_dim).to(self.pos_embed)

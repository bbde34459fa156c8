"""The encoder of all methods: a transformer on the tokens of an observation, of which it may be given a part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lightning.networks.blocks import Block
from jepa_lightning.networks.positions import ADDED, Positions, Rotation, rotation, sincos_positions
from jepa_lightning.networks.tokenizers import PatchEmbed
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
        positions: how a token knows its place: `sincos`, `learned`, `rope` or `tiled_rope`, see `positions.py`.
        norm_first: pre-norm blocks and a norm at the end, or, without, post-norm blocks and a norm before the first.
        class_token: whether a token that has no place is put in front: the summary of `encode`.

    Raises:
        ValueError: a size that does not fit.

    >>> encoder = Transformer(PatchEmbed((5,), 1, 8), grid=(4,), depth=1, num_heads=2, class_token=True)
    >>> encoder(torch.zeros(3, 20, 1)).shape
    torch.Size([3, 4, 8])
    """

    forward_methods = ("tokens", "encode", "layers")  # which a strategy that shards has to know
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
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, norm_first) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim)) if class_token else None
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the weights anew."""
        self.apply(init_transformer)
        if self.positions not in ADDED:
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

    def tokens(self, x: Tensor) -> Tensor:
        """The tokens `[B, N, D]` of observations, which do not know their places yet."""
        return self.patch_embed(x)

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
        tokens = self.norm(tokens) if self.norm_first else tokens
        return Tokens(tokens, kept) if self.cls_token is None else Tokens(tokens[:, 1:], kept, tokens[:, 0])

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
            found[number] = tokens if self.cls_token is None else tokens[:, 1:]
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
        if self.positions in ADDED:
            tokens = tokens + self._added(grid)
        places = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        if indices is not None:
            tokens, places = gather_tokens(tokens, indices), indices
            valid = None if valid is None else valid.gather(1, indices)
        by = None
        if self.positions not in ADDED:
            by = rotation(places, grid, self.embed_dim // self.num_heads, tiled=self.positions == "tiled_rope")
        if mask is not None:
            mask = mask.view(-1, 1, *mask.shape[-2:])
        if valid is not None:
            # A sample without any token sees them all: nothing reads what it makes of them, and it must not be NaN.
            seen = (valid | ~valid.any(1, keepdim=True))[:, None, None]
            mask = seen if mask is None else mask & seen
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
            by = None if by is None else by.after(1)
            if mask is not None:
                mask = F.pad(mask, (1, 0, 1 if mask.shape[-2] > 1 else 0, 0), value=True)
        return (tokens if self.norm_first else self.norm(tokens)), by, mask, valid

    def _added(self, grid: tuple[int, ...]) -> Tensor:
        if grid == self.grid:
            return self.pos_embed
        if self.positions == "learned":
            raise ValueError(f"learned positions are those of a grid of {self.grid}, the observations have {grid}")
        return sincos_positions(grid, self.embed_dim).to(self.pos_embed)


class VisionTransformer(Transformer):
    """The encoder of I-JEPA: a ViT on image patches with fixed sine-cosine positions and without class token.

    Args:
        image_size: `(rows, columns)` in pixels, multiples of the patch size.
        patch_size: `(rows, columns)` of a patch in pixels.
        in_channels: number of image channels.
        embed_dim: width D of the tokens, a multiple of four and of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads a block.
        mlp_ratio: width of the MLPs over `embed_dim`.

    Raises:
        ValueError: a size that does not fit.

    Source: I-JEPA (arXiv 2301.08243), section 3 and appendix A.1.

    >>> encoder = VisionTransformer((32, 48), (16, 16), embed_dim=8, depth=1, num_heads=2)
    >>> encoder.grid_of(torch.zeros(5, 3, 32, 48)), encoder(torch.zeros(5, 3, 32, 48)).shape
    ((2, 3), torch.Size([5, 6, 8]))
    >>> encoder(torch.zeros(5, 3, 32, 48), torch.tensor([[0, 4]]).expand(5, -1)).shape
    torch.Size([5, 2, 8])
    """

    def __init__(
        self,
        image_size: Sequence[int] = (224, 224),
        patch_size: Sequence[int] = (16, 16),
        in_channels: int = 3,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
    ) -> None:
        check_sizes(patch_rows=patch_size[0], patch_columns=patch_size[1], rows=image_size[0], columns=image_size[1])
        if any(size % patch for size, patch in zip(image_size, patch_size, strict=True)):
            raise ValueError(
                f"an image of {tuple(image_size)} pixels cannot be cut into patches of {tuple(patch_size)}"
            )
        grid = (image_size[0] // patch_size[0], image_size[1] // patch_size[1])
        super().__init__(PatchEmbed(patch_size, in_channels, embed_dim), grid, depth, num_heads, mlp_ratio)
        self.patch_size = (patch_size[0], patch_size[1])


class VideoTransformer(Transformer):
    """The encoder of V-JEPA and V-JEPA 2: a ViT on tubelets, patches that span a few frames.

    Args:
        image_size: `(rows, columns)` in pixels, multiples of the patch size.
        num_frames: frames of a clip, a multiple of the tubelet size.
        patch_size: `(rows, columns)` of a patch in pixels.
        tubelet_size: frames that a token spans.
        in_channels: number of channels.
        embed_dim: width D of the tokens, a multiple of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads a block.
        mlp_ratio: width of the MLPs over `embed_dim`.
        positions: `sincos` (V-JEPA), `rope` (V-JEPA 2), or `tiled_rope`, which V-JEPA 2's published weights need.

    Raises:
        ValueError: a size that does not fit.

    Source: V-JEPA (arXiv 2404.08471), section 3.2; V-JEPA 2 (arXiv 2506.09985), section 2.1.

    >>> encoder = VideoTransformer((32, 48), 4, (16, 16), 2, embed_dim=12, depth=1, num_heads=2, positions="rope")
    >>> encoder.grid_of(torch.zeros(5, 3, 4, 32, 48)), encoder(torch.zeros(5, 3, 4, 32, 48)).shape
    ((2, 2, 3), torch.Size([5, 12, 12]))
    >>> encoder(torch.zeros(5, 3, 32, 48), torch.tensor([[0, 4]]).expand(5, -1)).shape
    torch.Size([5, 2, 12])
    """

    def __init__(
        self,
        image_size: Sequence[int] = (224, 224),
        num_frames: int = 16,
        patch_size: Sequence[int] = (16, 16),
        tubelet_size: int = 2,
        in_channels: int = 3,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        positions: Positions = "sincos",
    ) -> None:
        check_sizes(patch_rows=patch_size[0], patch_columns=patch_size[1], tubelet_size=tubelet_size)
        check_sizes(rows=image_size[0], columns=image_size[1], num_frames=num_frames)
        size, tubelet = (num_frames, *image_size), (tubelet_size, *patch_size)
        if any(length % part for length, part in zip(size, tubelet, strict=True)):
            raise ValueError(f"a clip of {size} (frames, rows, columns) cannot be cut into tubelets of {tubelet}")
        grid = [length // part for length, part in zip(size, tubelet, strict=True)]
        super().__init__(PatchEmbed(tubelet, in_channels, embed_dim), grid, depth, num_heads, mlp_ratio, positions)
        self.patch_size, self.tubelet_size = (patch_size[0], patch_size[1]), tubelet_size

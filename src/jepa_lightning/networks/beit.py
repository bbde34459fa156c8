"""The encoder of BEiT and of data2vec on images: relative positions, scaled layers, and mask tokens among patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jepa_lightning.networks.attention_bias import RelativePositionBias
from jepa_lightning.networks.encoders import check_image
from jepa_lightning.networks.tokenizers import PatchEmbed
from jepa_lightning.networks.tokens import rescale_residuals
from jepa_lightning.networks.transformer import Transformer


class BeitPatchEmbed(PatchEmbed):
    """A linear map of each patch, a class token, and a mask token that stands for patches that are hidden.

    Args:
        patch: `(rows, columns)` that a token spans.
        in_channels: number of image channels.
        embed_dim: width D of the tokens.
        std: standard deviation of the initial weights, see `PatchEmbed`.

    Source: BEiT (arXiv 2106.08254), section 2.3. The official code of data2vec draws both tokens around 0.02, with a
    standard deviation of 1; here that is 0.02, around 0.
    """

    def __init__(self, patch: Sequence[int], in_channels: int, embed_dim: int, std: float | None = None) -> None:
        super().__init__(patch, in_channels, embed_dim, std)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))

    def init_weights(self) -> None:
        """Draw the weights anew."""
        super().init_weights()
        for token in (self.cls_token, self.mask_token):
            nn.init.trunc_normal_(token, std=0.02)

    def masked(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Tokens `[B, N, D]` with the mask token at the places `hidden`, a BoolTensor `[B, N]`."""
        return torch.where(hidden.unsqueeze(-1), self.mask_token.to(tokens.dtype), tokens)


class BeitTransformer(Transformer):
    """A pre-norm ViT with a class token that knows places by a bias of attention, the same in all blocks.

    Args:
        image_size: `(rows, columns)` in pixels, multiples of the patch size; smaller ones are fine too.
        patch_size: `(rows, columns)` of a patch in pixels.
        in_channels: number of image channels.
        embed_dim: width D of the tokens, a multiple of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads a block.
        mlp_ratio: width of the MLPs over `embed_dim`.
        layer_scale: what the features of the blocks' branches are multiplied by at the start; by nothing without.
        patch_std: standard deviation of the patch embedding's initial weights, see `PatchEmbed`.
        eps: epsilon of the norms.

    Raises:
        ValueError: a size that does not fit.

    Source: BEiT (arXiv 2106.08254), section 2; data2vec (arXiv 2202.03555), section 4.1.

    >>> encoder = BeitTransformer((32, 48), (16, 16), embed_dim=8, depth=1, num_heads=2)
    >>> encoder(torch.zeros(5, 3, 32, 48)).shape
    torch.Size([5, 6, 8])
    >>> tokens = encoder.masked(encoder.tokens(torch.zeros(5, 3, 32, 48)), torch.ones(5, 6, dtype=torch.bool))
    >>> encoder.encode(tokens).summary.shape
    torch.Size([5, 8])
    """

    def __init__(
        self,
        image_size: Sequence[int] = (224, 224),
        patch_size: Sequence[int] = (16, 16),
        in_channels: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = 1e-4,
        patch_std: float | None = None,
        eps: float = 1e-6,
    ) -> None:
        grid = check_image(image_size, patch_size)
        super().__init__(
            BeitPatchEmbed(patch_size, in_channels, embed_dim, patch_std),
            grid,
            depth,
            num_heads,
            mlp_ratio,
            positions="none",
            eps=eps,
            layer_scale=layer_scale,
            bias=RelativePositionBias(grid, num_heads),
        )
        self.image_size, self.patch_size = (image_size[0], image_size[1]), (patch_size[0], patch_size[1])
        self.in_channels, self.layer_scale, self.patch_std = in_channels, layer_scale, patch_std

    @property
    def class_token(self) -> Tensor | None:
        """That of the tokenizer."""
        token: Tensor = self.patch_embed.cls_token
        return token

    def init_weights(self) -> None:
        """Draw the weights anew; what a block adds is small in deep ones."""
        super().init_weights()
        rescale_residuals(self.blocks)

    def example(self) -> Tensor:
        """An image of the size that it is built for, of which only the shape matters."""
        return torch.empty(1, self.in_channels, *self.image_size, device="meta")

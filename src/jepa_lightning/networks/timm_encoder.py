"""Vision transformers of timm as encoders: the one place that touches timm's private position step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from jepa_lightning.networks.hiding import check_hiding
from jepa_lightning.networks.tokens import gather_tokens


class TimmEncoder(nn.Module):
    """A vision transformer of timm, made to drop hidden patches before its blocks.

    Args:
        name: a timm model of the VisionTransformer family, such as `"vit_small_patch16_224"`.
        image_size: `(rows, columns)` in pixels.
        in_channels: number of image channels.
        pretrained: start from timm's weights (downloads them).

    Raises:
        ValueError: a model of timm that is no plain vision transformer, or whose patches overlap.

    >>> import torch
    >>> encoder = TimmEncoder("vit_tiny_patch16_224", image_size=(32, 64))
    >>> encoder.embed_dim, encoder.grid_of(torch.zeros(1, 3, 32, 64))
    (192, (2, 4))
    """

    def __init__(
        self, name: str, image_size: Sequence[int] = (224, 224), in_channels: int = 3, pretrained: bool = False
    ) -> None:
        super().__init__()
        # Without class token: masks count patches from zero, and a class token would shift every index by one.
        options: dict[str, Any] = {"class_token": False, "global_pool": "avg", "fc_norm": False, "num_classes": 0}
        try:
            vit = timm.create_model(name, pretrained, img_size=tuple(image_size), in_chans=in_channels, **options)
        except TypeError as error:  # of models that have no such options
            raise ValueError(f"timm's {name!r} is not a plain VisionTransformer: {error}") from error
        if not isinstance(vit, VisionTransformer):
            raise ValueError(f"timm's {name!r} is a {type(vit).__name__}, not a plain VisionTransformer")
        self.vit = vit
        blocks: Any = vit.blocks
        self.embed_dim: int = vit.embed_dim
        self.depth, self.num_heads = len(blocks), blocks[0].attn.num_heads
        self.image_size = tuple(image_size)
        example = torch.zeros(1, in_channels, *self.image_size)
        check_hiding(self._embed, example, self.grid_of(example), f"timm's {name!r}")

    def _embed(self, x: Tensor, indices: Tensor | None) -> Tensor:
        tokens = self.vit._pos_embed(self.vit.patch_embed(x))
        return tokens if indices is None else gather_tokens(tokens, indices)

    def grid_of(self, x: Tensor) -> tuple[int, ...]:
        """The `(rows, columns)` of patches of images `[B, C, H, W]`.

        Raises:
            ValueError: images of another size than the encoder was made for.
        """
        if tuple(x.shape[-2:]) != self.image_size:
            raise ValueError(f"this encoder takes images of {self.image_size} pixels, got {list(x.shape)}")
        rows, columns = self.vit.patch_embed.grid_size
        return rows, columns

    def forward(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        """Encode images `[B, C, H, W]` to tokens `[B, K, D]` at `indices` `[B, K]`, all of them without."""
        return self.vit.norm(self.vit.blocks(self.vit.norm_pre(self._embed(x, indices))))

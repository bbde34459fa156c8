"""Vision transformers of timm as encoders: the one place that touches timm's private position step."""

from __future__ import annotations

from typing import Any

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from jepa_lightning.networks.tokens import gather_tokens


class TimmEncoder(nn.Module):
    """A vision transformer of timm, made to drop hidden patches before its blocks.

    Args:
        name: a timm model of the VisionTransformer family, such as `"vit_small_patch16_224"`.
        image_size: `(rows, columns)` in pixels.
        in_channels: number of image channels.
        pretrained: start from timm's weights (downloads them).

    Raises:
        ValueError: a model of timm that is no plain vision transformer.

    >>> encoder = TimmEncoder("vit_tiny_patch16_224", image_size=(32, 64))
    >>> encoder.embed_dim, encoder.grid
    (192, (2, 4))
    """

    def __init__(
        self, name: str, image_size: tuple[int, int] = (224, 224), in_channels: int = 3, pretrained: bool = False
    ) -> None:
        super().__init__()
        # Without class token: masks count patches from zero, and a class token would shift every index by one.
        options: dict[str, Any] = {"class_token": False, "global_pool": "avg", "fc_norm": False, "num_classes": 0}
        try:
            vit = timm.create_model(name, pretrained, img_size=image_size, in_chans=in_channels, **options)
        except TypeError as error:  # of models that have no such options
            raise ValueError(f"timm's {name!r} is not a plain VisionTransformer: {error}") from error
        if not isinstance(vit, VisionTransformer):
            raise ValueError(f"timm's {name!r} is a {type(vit).__name__}, not a plain VisionTransformer")
        self.vit = vit
        self.embed_dim: int = vit.embed_dim
        self.grid: tuple[int, int] = vit.patch_embed.grid_size

    def forward(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        """Encode images `[B, C, H, W]` to tokens `[B, K, D]` at `indices` `[B, K]`, all of them without."""
        tokens = self.vit._pos_embed(self.vit.patch_embed(x))
        if indices is not None:
            tokens = gather_tokens(tokens, indices)
        return self.vit.norm(self.vit.blocks(self.vit.norm_pre(tokens)))

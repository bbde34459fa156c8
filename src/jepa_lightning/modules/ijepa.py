"""I-JEPA: predict the embeddings of image blocks from one context block (Assran et al., arXiv 2301.08243)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from jepa_lightning.checkpoints import load_networks, predictor_sizes, read_networks, vision_transformer_sizes
from jepa_lightning.losses import Distance
from jepa_lightning.masking import MultiBlockMasking
from jepa_lightning.modules.masked import MaskedJEPA
from jepa_lightning.networks import Predictor, VisionTransformer


class IJEPA(MaskedJEPA):
    """Image-based joint-embedding predictive architecture. The defaults are those of the published ViT-B/16.

    Args:
        image_size: side in pixels, or `[rows, columns]`.
        patch_size: side of a patch in pixels, or `[rows, columns]`; divides the image size.
        in_channels: number of image channels.
        embed_dim: width of the encoder's tokens.
        depth: blocks of the encoder.
        num_heads: attention heads of the encoder.
        mlp_ratio: width of the encoder's MLPs over `embed_dim`.
        patch_std: standard deviation of the patch embedding's initial weights: 0.02 in the official code; one over the
            root of a patch's numbers by default.
        predictor_embed_dim: width of the predictor.
        predictor_depth: blocks of the predictor.
        predictor_num_heads: attention heads of the predictor; the encoder's by default.
        num_targets: target blocks an image, M.
        target_scale: range of a target block's share of the image.
        target_aspect: range of a target block's height over its width.
        context_scale: range of the context block's share of the image.
        context_tokens: tokens of a context; a quarter of the grid by default.
        target_tokens: tokens of a target block; by default what the lower end of `target_scale` holds.
        official_masks: draw masks as the official code does, faults included (see `MultiBlockMasking`).
        distance: between prediction and target: `smooth_l1` as in the official code, `l1`, or `l2` as in the paper.
        **options: those of `MaskedJEPA`: another encoder, regularisers, momentum, learning rate, weights to start from.
    """

    encoder_sizes = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "patch_std")

    def __init__(
        self,
        image_size: int | list[int] = 224,
        patch_size: int | list[int] = 16,
        in_channels: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        patch_std: float | None = None,
        predictor_embed_dim: int = 384,
        predictor_depth: int = 6,
        predictor_num_heads: int | None = None,
        num_targets: int = 4,
        target_scale: tuple[float, float] = (0.15, 0.2),
        target_aspect: tuple[float, float] = (0.75, 1.5),
        context_scale: tuple[float, float] = (0.85, 1.0),
        context_tokens: int | None = None,
        target_tokens: int | None = None,
        official_masks: bool = False,
        distance: Distance = "smooth_l1",
        **options: Any,
    ) -> None:
        super().__init__(distance=distance, **options)

    def example(self) -> Tensor:
        """An image."""
        return torch.empty(1, self.hparams.in_channels, *pair(self.hparams.image_size), device="meta")

    def build_encoder(self) -> nn.Module:
        """The vision transformer f."""
        hparams = self.hparams
        return VisionTransformer(
            pair(hparams.image_size),
            pair(hparams.patch_size),
            hparams.in_channels,
            hparams.embed_dim,
            hparams.depth,
            hparams.num_heads,
            hparams.mlp_ratio,
            hparams.patch_std,
        )

    def build_predictor(self) -> nn.Module:
        """The narrow transformer g."""
        hparams = self.hparams
        return Predictor(
            self.grid,
            self.context_encoder.embed_dim,
            hparams.predictor_embed_dim,
            hparams.predictor_depth,
            hparams.predictor_num_heads or num_heads(self),
        )

    def build_masking(self) -> MultiBlockMasking:
        """The multi-block masking."""
        hparams = self.hparams
        masking = MultiBlockMasking(
            hparams.num_targets,
            hparams.target_scale,
            hparams.target_aspect,
            hparams.context_scale,
            hparams.context_tokens,
            hparams.target_tokens,
            official=hparams.official_masks,
        )
        masking.check(self.grid)
        return masking

    @classmethod
    def from_official(
        cls,
        path: str,
        image_size: int | list[int] | None = None,
        num_heads: int | None = None,
        predictor_num_heads: int | None = None,
        **options: Any,
    ) -> Self:
        """A module of the sizes and weights (encoder, predictor, teacher) of an official checkpoint, to train on with.

        Args:
            path: a file in the layout of facebookresearch/ijepa (`encoder`, `predictor`, `target_encoder`).
            image_size: another size than the square one that the checkpoint's positions tell.
            num_heads: attention heads of the encoder, asked for only where the width is none of the published ones.
            predictor_num_heads: those of the predictor; the encoder's, as in the official code, by default.
            **options: everything else that the module takes.

        Raises:
            ValueError: a file that is not such a checkpoint, or sizes that its shapes cannot tell.
        """
        networks = read_networks(path)
        sizes = vision_transformer_sizes(networks.states["target_encoder"], image_size, num_heads)
        sizes |= predictor_sizes(networks.states["predictor"])
        module = cls(**sizes, predictor_num_heads=predictor_num_heads, **options)
        load_networks(module, networks)
        return module


def pair(size: int | list[int]) -> tuple[int, int]:
    """A side, or rows and columns."""
    rows, columns = (size, size) if isinstance(size, int) else size
    return rows, columns


def num_heads(module: MaskedJEPA) -> int:
    """The attention heads of a module's encoder, for a predictor that is not told its own.

    Raises:
        ValueError: an encoder that does not say how many it has.
    """
    heads: int | None = getattr(module.context_encoder, "num_heads", None)
    if heads is None:
        raise ValueError(
            f"{type(module.context_encoder).__name__} does not say how many heads it has: give predictor_num_heads"
        )
    return heads

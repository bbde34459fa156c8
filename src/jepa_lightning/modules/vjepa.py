"""V-JEPA: predict the embeddings of what blocks of a clip hide (Bardes et al., arXiv 2404.08471)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Self

from jepa_lightning.checkpoints import (
    check_positions,
    load_networks,
    predictor_sizes,
    read_networks,
    video_transformer_sizes,
)
from jepa_lightning.clock import clock
from jepa_lightning.draws import Rng
from jepa_lightning.errors import unknown_options
from jepa_lightning.losses import Distance
from jepa_lightning.masking import MaskingList, Masks, TubeMasking
from jepa_lightning.modules.ijepa import num_heads, pair
from jepa_lightning.modules.masked import MaskedJEPA
from jepa_lightning.networks import Predictor, VideoTransformer
from jepa_lightning.networks.positions import Positions

SHORT_RANGE: dict[str, Any] = {"num_blocks": 8, "spatial_scale": [0.15, 0.15]}
LONG_RANGE: dict[str, Any] = {
    "num_blocks": 2,
    "spatial_scale": [0.7, 0.7],
    "context_ratio": 0.07,
    "target_ratio": 0.7,
}


class VJEPA(MaskedJEPA):
    """Video joint-embedding predictive architecture. The defaults are those of the published ViT-L/16.

    Observations are clips `[B, C, T, H, W]` of any length and size that tubelets fit, one of each a batch, or images
    `[B, C, H, W]`, which are taken as the frames of one tubelet. The step makes a prediction for each kind of mask, of
    one set of target tokens each (M = 1): `short` and `long`, or of masks of one's own `0`, `1` and so on.

    Args:
        image_size: side of the frames in pixels, or `[rows, columns]`.
        num_frames: frames of a clip, a multiple of the tubelet size.
        patch_size: side of a patch in pixels, or `[rows, columns]`; divides the image size.
        tubelet_size: frames that a token spans.
        in_channels: number of channels.
        embed_dim: width of the encoder's tokens.
        depth: blocks of the encoder.
        num_heads: attention heads of the encoder.
        mlp_ratio: width of the encoder's MLPs over `embed_dim`.
        predictor_embed_dim: width of the predictor.
        predictor_depth: blocks of the predictor.
        predictor_num_heads: attention heads of the predictor; the encoder's by default.
        num_mask_tokens: mask tokens of the predictor, of which each kind of mask uses its own; one a kind by default.
        masks: the options of a `TubeMasking` for each kind of mask; the published short-range and long-range masks by
            default.
        distance: between prediction and target: `l1` as published, `l2` or `smooth_l1`.
        **options: those of `MaskedJEPA`: another encoder, regularisers, momentum, learning rate, weights to start from.
    """

    encoder_sizes = ("patch_size", "tubelet_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
    any_size = True

    def __init__(
        self,
        image_size: int | list[int] = 224,
        num_frames: int = 16,
        patch_size: int | list[int] = 16,
        tubelet_size: int = 2,
        in_channels: int = 3,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        predictor_embed_dim: int = 384,
        predictor_depth: int = 12,
        predictor_num_heads: int | None = None,
        num_mask_tokens: int | None = None,
        masks: list[dict[str, Any]] | None = None,
        distance: Distance = "l1",
        **options: Any,
    ) -> None:
        super().__init__(distance=distance, **options)

    def example(self) -> Tensor:
        """A clip."""
        hparams = self.hparams
        return torch.empty(1, hparams.in_channels, hparams.num_frames, *pair(hparams.image_size), device="meta")

    @property
    def positions(self) -> Positions:
        """How encoder and predictor know where a token is."""
        return "sincos"

    def build_encoder(self) -> nn.Module:
        """The vision transformer f on tubelets."""
        hparams = self.hparams
        return VideoTransformer(
            pair(hparams.image_size),
            hparams.num_frames,
            pair(hparams.patch_size),
            hparams.tubelet_size,
            hparams.in_channels,
            hparams.embed_dim,
            hparams.depth,
            hparams.num_heads,
            hparams.mlp_ratio,
            self.positions,
        )

    def build_masking(self) -> MaskingList:
        """A masking for each kind of mask."""
        given, known = self.hparams.masks, inspect.signature(TubeMasking).parameters
        if given is not None and not given:
            raise ValueError("masks is an empty list: give the options of one kind of mask or more, or nothing")
        for options in given or ():
            if unknown := sorted(set(options) - set(known)):
                raise TypeError(unknown_options("TubeMasking", unknown, known))
        maskings = MaskingList(TubeMasking(**options) for options in given or [SHORT_RANGE, LONG_RANGE])
        maskings(1, self.grid, rng=Rng(0, batch_size=1))  # raises what does not fit
        return maskings

    def build_predictor(self) -> nn.Module:
        """The narrow transformer g, with a mask token for each kind of mask."""
        hparams = self.hparams
        used = {self.mask_token(kind) for kind in range(len(self.masking))}
        number = hparams.num_mask_tokens or max(used) + 1
        if number <= max(used):
            raise ValueError(f"{len(self.masking)} kinds of masks need a mask token each, got num_mask_tokens={number}")
        predictor = Predictor(
            self.grid,
            self.context_encoder.embed_dim,
            hparams.predictor_embed_dim,
            hparams.predictor_depth,
            hparams.predictor_num_heads or num_heads(self),
            number,
            self.positions,
        )
        for index, token in enumerate(predictor.mask_tokens):
            token.requires_grad_(index in used)  # DDP would wait for the gradients of the others
        return predictor

    def mask_token(self, kind: int) -> int:
        """Which mask token stands for the targets of a kind of mask."""
        return kind

    def kinds(self, drawn: Masks | Sequence[Masks]) -> dict[str, Masks]:
        """The masks of each kind by its name."""
        several = [drawn] if isinstance(drawn, Masks) else list(drawn)
        names = [str(kind) for kind in range(len(several))]
        if self.hparams.masks is None and len(several) == 2:
            names = ["short", "long"]
        return dict(zip(names if len(several) > 1 else [""], several, strict=True))

    def predict(
        self, context: Tensor, masks: Masks, kind: int, grid: Sequence[int], valid: Tensor | None = None
    ) -> Tensor:
        """The predictions `[B, 1, K_t, D]`, conditioned on the places and the kind of mask."""
        return self.predictor(context, masks.context, masks.targets, self.mask_token(kind), grid=grid)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As published: encoder and predictor each by their own norm, and not before the end of the warm-up."""
        if gradient_clip_algorithm not in (None, "norm"):
            raise ValueError("gradients are clipped by norm, not by value: leave out gradient_clip_algorithm")
        step, total = clock(self.trainer)
        if gradient_clip_val and step >= self.hparams.warmup * total:
            for network in (self.context_encoder, self.predictor):
                nn.utils.clip_grad_norm_(network.parameters(), gradient_clip_val)

    @classmethod
    def from_official(
        cls,
        path: str,
        image_size: int | list[int] | None = None,
        num_frames: int | None = None,
        num_heads: int | None = None,
        predictor_num_heads: int | None = None,
        **options: Any,
    ) -> Self:
        """A module of the sizes and weights (encoder, predictor, teacher) of an official checkpoint, to train on with.

        Args:
            path: a file in the layout of facebookresearch/jepa or vjepa2 (`encoder`, `predictor`, `target_encoder`).
            image_size: another size than the checkpoint's positions tell.
            num_frames: another length than the checkpoint's positions tell.
            num_heads: attention heads of the encoder, asked for only where the width is none of the published ones.
            predictor_num_heads: those of the predictor; the method's default without.
            **options: everything else that the module takes.

        Raises:
            ValueError: a file that is not such a checkpoint or one of the other method, or sizes that it does not tell.
        """
        networks = read_networks(path)
        state, rotary = networks.states["target_encoder"], options.get("official", False)
        sizes = video_transformer_sizes(state, image_size, num_frames, num_heads, added=not rotary)
        check_positions(networks, "tiled_rope" if rotary else "sincos")
        sizes |= predictor_sizes(networks.states["predictor"])
        if predictor_num_heads is not None:
            sizes["predictor_num_heads"] = predictor_num_heads
        module = cls(**sizes, **options)
        load_networks(module, networks)
        return module

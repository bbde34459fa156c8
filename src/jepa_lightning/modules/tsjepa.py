"""TS-JEPA: predict the embeddings of hidden stretches of a time series (Ennadir et al., arXiv 2509.25449)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from jepa_lightning import batches
from jepa_lightning.checkpoints import load_networks, predictor_sizes, read_networks, series_transformer_sizes
from jepa_lightning.draws import Rng
from jepa_lightning.losses import Distance
from jepa_lightning.masking import Masks, SpanMasking
from jepa_lightning.masking.masks import skipping_gaps
from jepa_lightning.modules.ijepa import num_heads
from jepa_lightning.modules.masked import MaskedJEPA
from jepa_lightning.networks import Predictor, SeriesTransformer


class TSJEPA(MaskedJEPA):
    """Time-series joint-embedding predictive architecture. The defaults are those of the published runs.

    Observations are series `[B, L, C]` of any length; what lacks for a whole number of patches is filled up with zeros.
    A batch may say by its field `valid` `[B, L]` at which steps there is anything (`batches.Series`): a patch with no
    such step is neither seen nor predicted, and other steps that are not there are zero, whatever stands in them.

    As published, weight decay acts on biases, norms and the mask token, too. The official code gathers all tokens of a
    batch from its first series; this module does not.

    Args:
        num_steps: length of the series that it is built for.
        patch_size: steps that a token spans.
        in_channels: number of channels C.
        kernel_size: steps of the tokenizer's convolution (see `SeriesPatchEmbed`).
        embed_dim: width of the encoder's tokens.
        depth: blocks of the encoder.
        num_heads: attention heads of the encoder.
        mlp_ratio: width of the encoder's MLPs over `embed_dim`.
        predictor_embed_dim: width of the predictor.
        predictor_depth: blocks of the predictor.
        predictor_num_heads: attention heads of the predictor; the encoder's by default.
        mask_ratio: share of a series' tokens that is hidden, and predicted.
        span_length: tokens that are hidden in a row (see `SpanMasking`); 1 for a random choice of tokens, as published.
        distance: between prediction and target: `l1` as published, `l2` or `smooth_l1`.
        momentum: momentum of the target encoder at the start and at the end, along a line.
        weight_decay: at the start and at the end.
        **options: those of `MaskedJEPA`: another encoder, regularisers, learning rate, weights to start from.
    """

    encoder_sizes = ("patch_size", "kernel_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
    any_size = True

    def __init__(
        self,
        num_steps: int = 320,
        patch_size: int = 32,
        in_channels: int = 1,
        kernel_size: int = 3,
        embed_dim: int = 128,
        depth: int = 1,
        num_heads: int = 2,
        mlp_ratio: float = 4.0,
        predictor_embed_dim: int = 128,
        predictor_depth: int = 1,
        predictor_num_heads: int | None = None,
        mask_ratio: float = 0.7,
        span_length: int = 1,
        distance: Distance = "l1",
        momentum: tuple[float, float] = (0.998, 1.0),
        weight_decay: tuple[float, float] = (0.01, 0.01),
        **options: Any,
    ) -> None:
        super().__init__(distance=distance, momentum=momentum, weight_decay=weight_decay, **options)

    def example(self) -> Tensor:
        """A series."""
        return self._in_patches(torch.empty(1, self.hparams.num_steps, self.hparams.in_channels, device="meta"))

    def build_encoder(self) -> nn.Module:
        """The transformer f on stretches of a series."""
        hparams = self.hparams
        return SeriesTransformer(
            self.example().shape[1],
            hparams.patch_size,
            hparams.in_channels,
            hparams.embed_dim,
            hparams.depth,
            hparams.num_heads,
            hparams.mlp_ratio,
            hparams.kernel_size,
        )

    def build_predictor(self) -> nn.Module:
        """The transformer g, whose mask token starts at zero."""
        hparams = self.hparams
        width, depth = hparams.predictor_embed_dim, hparams.predictor_depth
        heads = hparams.predictor_num_heads or num_heads(self)
        predictor = Predictor(self.grid, self.context_encoder.embed_dim, width, depth, heads)
        nn.init.zeros_(predictor.mask_token)
        for norm in predictor.modules():
            if isinstance(norm, nn.LayerNorm):
                norm.eps = 1e-5  # as the official ones
        return predictor

    def build_masking(self) -> SpanMasking:
        """Random tokens or spans."""
        masking = SpanMasking(self.hparams.mask_ratio, self.hparams.span_length)
        if self.grid[0] < 2:
            raise ValueError(
                f"num_steps={self.hparams.num_steps} make a single patch, of which nothing can be hidden: give a "
                "patch_size that is smaller"
            )
        return masking

    def observations(self, batch: Any) -> tuple[Any, ...]:
        """The series in whole patches, zero at steps that are not there."""
        (series,) = batches.observations(batch, self.reads)
        valid = batches.valid(batch, series.shape[:2])
        return (self._in_patches(series if valid is None else series.masked_fill(~valid.unsqueeze(-1), 0.0)),)

    def valid(self, batch: Any) -> Tensor | None:
        """Which tokens there are: those with a step that is there."""
        (series,) = batches.observations(batch, self.reads)
        valid = batches.valid(batch, series.shape[:2])
        if valid is None:
            return None
        steps = self._in_patches(valid.unsqueeze(-1))
        return steps.view(len(steps), self.grid_of(self.observations(batch)[0])[0], -1).any(-1)

    def draw(self, batch: Any, rng: Rng) -> Masks:
        """The masks; those of a series with gaps are drawn as if it had none, and skip them."""
        masks, valid = super().draw(batch, rng), self.valid(batch)
        return masks if valid is None else skipping_gaps(masks, valid)

    def predict(
        self, context: Tensor, masks: Masks, kind: int, grid: Sequence[int], valid: Tensor | None = None
    ) -> Tensor:
        """The predictions `[B, 1, K_t, D]`, conditioned on the places."""
        return self.predictor(context, masks.context, masks.targets, grid=grid, valid=valid)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """All of them are decayed."""
        return [group | {"weight_decay": weight_decay} for group in super().parameter_groups(weight_decay)]

    @classmethod
    def from_official(
        cls,
        path: str,
        patch_size: int | None = None,
        num_heads: int = 2,
        predictor_num_heads: int | None = None,
        **options: Any,
    ) -> Self:
        """A module of the sizes and weights (encoder, predictor, teacher) of an official checkpoint, to train on with.

        Args:
            path: a file in the layout of Sennadir/TS_JEPA (`encoder`, `predictor`, `encoder_ema`).
            patch_size: steps of a patch, where the kernel does not divide it: the official code does not see the last
                of them, and this module is given weights of zero for these. A multiple of the kernel by default.
            num_heads: attention heads of the encoder.
            predictor_num_heads: those of the predictor; the encoder's by default.
            **options: everything else that the module takes.

        Raises:
            ValueError: a file that is not such a checkpoint, or sizes that do not fit its weights.
        """
        networks = read_networks(path)
        sizes = series_transformer_sizes(networks.states["context_encoder"], patch_size)
        sizes |= predictor_sizes(networks.states["predictor"])
        module = cls(**sizes, num_heads=num_heads, predictor_num_heads=predictor_num_heads, **options)
        for name in ("context_encoder", "target_encoder"):
            weight = networks.states[name]["patch_embed.fc.weight"].unflatten(1, (sizes["embed_dim"], -1))
            lacking = -(-sizes["patch_size"] // sizes["kernel_size"]) - weight.shape[2]
            networks.states[name]["patch_embed.fc.weight"] = F.pad(weight, (0, lacking)).flatten(1)
        load_networks(module, networks)
        return module

    def _in_patches(self, series: Tensor) -> Tensor:
        """Steps `[B, L, C]` filled up with zeros to whole patches; another encoder's, to whole ones of its own."""
        patch = self.hparams.get("patch_size") or 1
        return F.pad(series, (0, 0, 0, -series.shape[1] % patch))

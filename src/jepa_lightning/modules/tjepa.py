"""T-JEPA: predict the embeddings of hidden points of a trajectory (Li et al., arXiv 2406.12913)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from jepa_lightning import batches
from jepa_lightning.checkpoints import (
    load_networks,
    read_networks,
    track_predictor_sizes,
    track_transformer_sizes,
)
from jepa_lightning.draws import Rng
from jepa_lightning.masking import PointMasking, PointMasks
from jepa_lightning.modules.masked import MaskedJEPA
from jepa_lightning.networks import TrackPredictor, TrackTransformer
from jepa_lightning.networks.tracks import NEIGHBOURHOOD
from jepa_lightning.step import Latents, Prediction, Tokens


class TJEPA(MaskedJEPA):
    """Trajectory joint-embedding predictive architecture. The defaults are the published sizes.

    Context: the points of a track but those of a target, and a few more, encoded. Target: the teacher's tokens of the
    target's points, which sees all. Condition: the places of these. Against collapse: the teacher. Each of several
    targets has a context of its own. What is hidden is zero, and keeps its place.

    Observations are tracks `[B, L, 9 D]`: of each point the embedding of its cell, and those of the eight cells around
    it (`TrajectoriesDataModule` makes them); a batch may say by its field `valid` `[B, L]` which points there are.

    Some ways of the official code are not here: neighbours that are the wrong cells, a teacher that does not start as a
    copy of the student, a context that mostly keeps as few points as it may, targets without a point, dropout.

    Args:
        num_points: points of the longest track.
        embed_dim: width D of the encoder's tokens, and of a cell's embedding.
        depth: blocks of the encoder.
        num_heads: attention heads of the encoder.
        mlp_ratio: width of the encoder's MLPs over `embed_dim`.
        adj_fuse: whether a token knows the cells around its own.
        predictor_depth: blocks of the predictor.
        predictor_num_heads: attention heads of the predictor.
        predictor_head_dim: width of each.
        num_targets: targets a track, M.
        target_ratios: shares of its points that a target may have.
        span_share: how often a target is a stretch of points in a row, and not points at random.
        context_scale: range of the share of points that a context keeps.
        official: count the loss as the official code does: a sum over points and features, in which the predictor has
            to say zero where there is no target; padding is seen by it, too.
        weight_decay: at the start and at the end.
        **options: those of `MaskedJEPA`: another encoder, regularisers, momentum, learning rate, weights to start from.

    Source: T-JEPA (arXiv 2406.12913), section 4.
    """

    encoder_sizes = ("num_points", "embed_dim", "depth", "num_heads", "mlp_ratio", "adj_fuse")
    any_size = True

    def __init__(
        self,
        num_points: int = 200,
        embed_dim: int = 256,
        depth: int = 3,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        adj_fuse: bool = True,
        predictor_depth: int = 2,
        predictor_num_heads: int = 8,
        predictor_head_dim: int = 64,
        num_targets: int = 4,
        target_ratios: tuple[float, ...] = (0.1, 0.2, 0.3),
        span_share: float = 0.5,
        context_scale: tuple[float, float] = (0.85, 1.0),
        official: bool = False,
        weight_decay: tuple[float, float] = (1e-4, 1e-4),
        **options: Any,
    ) -> None:
        super().__init__(weight_decay=weight_decay, **options)

    def example(self) -> Tensor:
        """A track."""
        return torch.empty(1, self.hparams.num_points, NEIGHBOURHOOD * self.hparams.embed_dim, device="meta")

    def build_encoder(self) -> nn.Module:
        """The transformer f on the points of a track."""
        return TrackTransformer(**{name: self.hparams[name] for name in self.encoder_sizes})

    def build_predictor(self) -> nn.Module:
        """The causal transformer g."""
        hparams, width = self.hparams, self.context_encoder.embed_dim
        depth, heads = hparams.predictor_depth, hparams.predictor_num_heads
        return TrackPredictor(self.grid[0], width, depth, heads, hparams.predictor_head_dim)

    def build_masking(self) -> PointMasking:
        """Random points and stretches."""
        hparams = self.hparams
        return PointMasking(hparams.num_targets, hparams.target_ratios, hparams.span_share, hparams.context_scale)

    def valid(self, batch: Any) -> Tensor | None:
        """Which points there are."""
        return batches.valid(batch, self.observations(batch)[0].shape[:2])

    def draw(self, batch: Any, rng: Rng) -> PointMasks:
        """The masks; those of a track with gaps are drawn as if it had none, and skip them."""
        masks, valid = super().draw(batch, rng), self.valid(batch)
        if valid is None:
            return masks
        number = (valid.cumsum(1) - 1).clamp(min=0).unsqueeze(1).expand_as(masks.context)
        return PointMasks(*(mask.gather(2, number) & valid.unsqueeze(1) for mask in masks))

    def latents(self, batch: Any, drawn: Any = None) -> Latents:
        """Encode the whole for the targets, and for each target its context, and predict.

        Args:
            batch: with tracks of no more points than the module was built for.
            drawn: the `PointMasks`; drawn if not given.

        Raises:
            ValueError: longer tracks, or cells of another width.
        """
        (tracks,), valid = self.observations(batch), self.valid(batch)
        self.grid_of(tracks)
        if drawn is None:
            drawn = self.draw(batch, Rng.fresh(len(tracks), tracks.device))
        masks = PointMasks(*(mask.to(tracks.device) for mask in drawn))
        with torch.no_grad():
            features = self.encode(self.target_encoder, tracks, None, valid)
        several = masks.targets.shape[1]
        seen, sought = (mask.flatten(0, 1) for mask in masks)
        there = None if valid is None else valid.repeat_interleave(several, 0)
        visible = tracks.repeat_interleave(several, 0) * seen.unsqueeze(-1)
        context = self.encode(self.context_encoder, visible, None, there).values
        context = context if there is None else context * there.unsqueeze(-1)
        prediction = self.predictor(context, sought, None if self.hparams.official else there)
        target = features.values.unsqueeze(1) * masks.targets.unsqueeze(-1)
        weight = None if self.hparams.official else masks.targets.float()
        everywhere = None if there is None else there.view(len(tracks), -1)
        embeddings = {"context": Tokens(context.view(len(tracks), -1, context.shape[-1]), everywhere)}
        predictions = {"": Prediction(prediction.unflatten(0, (-1, several)), target, weight)}
        return Latents(predictions, {**embeddings, "target": features}, features)

    def distances(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The mean over the features; with `official`, as much more as makes the mean over points a sum over both."""
        found = super().distances(prediction, target)
        return found * (prediction.shape[-2] * prediction.shape[-1]) if self.hparams.official else found

    @classmethod
    def from_official(cls, path: str, num_heads: int = 4, predictor_num_heads: int = 8, **options: Any) -> Self:
        """A module of the sizes and weights (encoder, predictor, teacher) of an official checkpoint, to train on with.

        Args:
            path: a file in the layout of Jacobieee/T-JEPA, the version of 2024 (`model_state_dict`).
            num_heads: attention heads of the encoder.
            predictor_num_heads: those of the predictor.
            **options: everything else that the module takes.

        Raises:
            ValueError: a file that is not such a checkpoint.
        """
        networks = read_networks(path)
        sizes = track_transformer_sizes(networks.states["context_encoder"])
        sizes |= track_predictor_sizes(networks.states["predictor"], predictor_num_heads)
        module = cls(**sizes, num_heads=num_heads, predictor_num_heads=predictor_num_heads, **options)
        load_networks(module, networks)
        return module

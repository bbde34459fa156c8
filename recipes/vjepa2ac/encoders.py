"""Encoders to plan with on a laptop: one vector for what is seen, near where places are near.

`FrameLeJEPA` is a JEPA of one's own (see docs/your-own-method.md): LeJEPA, whose views are frames of one episode.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from jepa_lightning import JEPA, Latents, Prediction, Tokens
from jepa_lightning.losses import SIGReg
from jepa_lightning.networks import VisionTransformer


class FrameEmbedding(nn.Module):
    """One vector for a frame of 64 pixels: the mean token of a small ViT, and a projector with batch norms.

    Args:
        embed_dim: numbers of the vector.
    """

    def __init__(self, embed_dim: int = 8) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.vit = VisionTransformer((64, 64), (16, 16), embed_dim=96, depth=2, num_heads=3)
        layers = [nn.BatchNorm1d(96), nn.Linear(96, 256), nn.BatchNorm1d(256), nn.GELU()]
        self.projector = nn.Sequential(*layers, nn.Linear(256, embed_dim))

    def grid_of(self, frames: Tensor) -> tuple[int, int]:
        """One token."""
        return 1, 1

    def forward(self, frames: Tensor) -> Tensor:
        """Frames `[B, C, H, W]` to `[B, 1, D]`."""
        return self.projector(self.vit(frames).mean(1)).unsqueeze(1)


class TrueState(nn.Module):
    """Vectors as they are: the first numbers of the environment's scene, standardised.

    Args:
        embed_dim: how many of them.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim

    def grid_of(self, vectors: Tensor) -> tuple[int, int]:
        """One token."""
        return 1, 1

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors `[B, F]` to `[B, 1, D]`."""
        return vectors[:, None, : self.embed_dim]


class FrameLeJEPA(JEPA):
    """LeJEPA whose views are the frames of a window, a few steps apart: what stays is where things are.

    Context and target: the frames of a window and their mean. Condition: none. Against collapse: SIGReg, whose weight
    is small: with more of it space is folded, and places far apart get near embeddings; with less of it, or with more
    numbers, one axis of the world may take nearly all of the variance.

    A batch has the field `observation` `[B, C, T, H, W]`, of two times or more.

    Args:
        embed_dim: numbers of an embedding.
        sigreg_weight: share of SIGReg in the loss.
        **training: learning rate and weight decay, see `TrainingModule`.
    """

    reads = ("observation",)
    distance = "l2"

    def __init__(self, embed_dim: int = 8, sigreg_weight: float = 0.005, **training: Any) -> None:
        super().__init__(**training)
        self.context_encoder = FrameEmbedding(embed_dim)
        self.target_encoder = self.context_encoder
        self.sigreg = SIGReg(num_slices=64)

    def latents(self, batch: Any, drawn: Any = None) -> Latents:
        """Embed each frame; its target is the mean of the window's."""
        tokens = self.features(batch)
        centre = tokens.values.mean(1, keepdim=True).expand_as(tokens.values)
        return Latents({"": Prediction(tokens.values, centre)}, {"context": tokens, "target": tokens}, tokens)

    def features(self, batch: Any) -> Tokens:
        """The embeddings `[B, T, D]` of all frames."""
        frames = self.observations(batch)[0].transpose(1, 2)
        return Tokens(self.context_encoder(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).squeeze(2))

    def loss(self, latents: Latents) -> dict[str, Tensor]:
        """How far the frames of a window are apart, and how far all are from a Gaussian."""
        energy, sigreg = self.energy(latents).mean(), self.sigreg(latents.prediction.transpose(0, 1))
        weight = self.hparams.sigreg_weight
        return {"loss": (1 - weight) * energy + weight * sigreg, "energy": energy, "sigreg": sigreg}

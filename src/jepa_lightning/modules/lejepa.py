"""LeJEPA: views that agree, and embeddings that are Gaussian (Balestriero and LeCun, arXiv 2511.08544)."""

from __future__ import annotations

from typing import Any

import torch
from lightly.models.modules.heads import LeJEPAProjectionHead
from torch import Tensor

from jepa_lightning.draws import Rng
from jepa_lightning.losses import SIGReg
from jepa_lightning.losses.distributed import check_batch
from jepa_lightning.masking import MultiViews, Views, take_views
from jepa_lightning.modules.ijepa import pair
from jepa_lightning.modules.jepa import JEPA
from jepa_lightning.networks import VisionTransformer
from jepa_lightning.networks.tokens import check_sizes
from jepa_lightning.step import Latents, Prediction, Tokens


class LeJEPA(JEPA):
    """`L = (1 − λ) mean_v |z_v − c|² + λ mean_v SIGReg(z_v)`, with c the mean of an image's global views.

    Without teacher, stop-gradient and predictor: the target encoder is the encoder itself, and SIGReg alone keeps the
    embeddings apart. Views are made of the images of any DataModule on the module's device; the features that probes
    read are those of the whole image.

    Args:
        image_size: side in pixels, or `[rows, columns]`; that of global views too.
        patch_size: side of a patch in pixels, or `[rows, columns]`; divides the sizes of image and local views.
        in_channels: number of image channels.
        embed_dim: width of the encoder's tokens.
        depth: blocks of the encoder.
        num_heads: attention heads of the encoder.
        mlp_ratio: width of the encoder's MLPs over `embed_dim`.
        projector: hidden and output width of the projector, three layers with batch norms, whose statistics are those
            of all processes with the Trainer's `sync_batchnorm=True`.
        num_global: global views an image.
        num_local: local views an image.
        global_scale: range of a global view's share of the image.
        local_scale: range of a local view's share of the image.
        local_size: side of a local view in pixels, or `[rows, columns]`.
        jitter: strength of the change of colours, see `MultiViews`.
        sigreg_weight: λ, in [0, 1].
        num_slices: directions of SIGReg.
        lr: peak learning rate of AdamW.
        start_lr: learning rate at the start of the warm-up.
        final_lr: learning rate at the end.
        warmup: share of the training spent on the linear warm-up, in [0, 1).
        weight_decay: weight decay at the start and at the end, along half a cosine; biases and norms have none.
        weights: a checkpoint of this method whose networks this training starts from.
        recompute_activations: of the encoder's blocks, see `TrainingModule`.

    Raises:
        ValueError: a value out of its range.

    Source: LeJEPA (arXiv 2511.08544), section 5.
    """

    distance = "l2"

    def __init__(
        self,
        image_size: int | list[int] = 224,
        patch_size: int | list[int] = 16,
        in_channels: int = 3,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        projector: tuple[int, int] = (2048, 16),
        num_global: int = 2,
        num_local: int = 6,
        global_scale: tuple[float, float] = (0.3, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.3),
        local_size: int | list[int] = 96,
        jitter: float = 0.4,
        sigreg_weight: float = 0.05,
        num_slices: int = 1024,
        lr: float = 5e-4,
        start_lr: float = 5e-7,
        final_lr: float = 5e-7,
        warmup: float = 0.1,
        weight_decay: tuple[float, float] = (0.05, 0.05),
        weights: str | None = None,
        recompute_activations: bool = False,
    ) -> None:
        if not 0 <= sigreg_weight <= 1:
            raise ValueError(f"sigreg_weight must lie in [0, 1], got {sigreg_weight}")
        sides = zip(pair(local_size), pair(patch_size), strict=True)
        if num_local and any(side < 1 or side % patch for side, patch in sides):
            raise ValueError(f"local_size must be a positive multiple of patch_size={patch_size}, got {local_size}")
        super().__init__(
            lr=lr,
            start_lr=start_lr,
            final_lr=final_lr,
            warmup=warmup,
            weight_decay=weight_decay,
            weights=weights,
            recompute_activations=recompute_activations,
        )
        self.context_encoder = VisionTransformer(
            pair(image_size), pair(patch_size), in_channels, embed_dim, depth, num_heads, mlp_ratio
        )
        self.target_encoder = self.context_encoder  # there is no teacher: the encoder is evaluated as it is
        hidden_dim, output_dim = projector
        check_sizes(projector_hidden=hidden_dim, projector_output=output_dim)
        self.predictor = LeJEPAProjectionHead(embed_dim, hidden_dim, output_dim)  # takes the place of a predictor
        self.views = MultiViews(num_global, num_local, global_scale, local_scale, jitter=jitter)
        self.sigreg = SIGReg(num_slices)

    def draw(self, batch: Any, rng: Rng) -> Views:
        """The views."""
        return self.views(len(self.observations(batch)[0]), rng)

    def latents(self, batch: Any, drawn: Views | None = None) -> Latents:
        """Embed and project the views of the images; the target of each is the mean of the global ones.

        Args:
            batch: with images `[B, C, H, W]`.
            drawn: the views; drawn if not given.

        Returns:
            The projections `[B, V, P]` of all views and their centre in the same shape; the tokens of the first view as
            `context`, and of the whole images as `target`, which are the features.
        """
        (images,) = self.observations(batch)
        if drawn is None:
            drawn = self.draw(batch, Rng.fresh(len(images), images.device))
        boxes, colours = drawn.boxes.to(images.device), drawn.colours.to(images.device)
        split = self.hparams.num_global
        tokens, embeddings = [], []
        for views, size in (
            (Views(boxes[:, :split], colours[:, :split]), images.shape[-2:]),
            (Views(boxes[:, split:], colours[:, split:]), pair(self.hparams.local_size)),
        ):
            if views.boxes.shape[1]:
                seen = take_views(images, views, size)
                tokens.append(self.context_encoder(seen.flatten(0, 1)).unflatten(0, seen.shape[:2]))
                embeddings.append(tokens[-1].mean(2))
        embedding = torch.cat(embeddings, dim=1)
        projection = self.predictor(embedding.flatten(0, 1)).unflatten(0, embedding.shape[:2])
        centre = projection[:, :split].mean(1, keepdim=True).expand_as(projection)
        with torch.no_grad():
            features = self.features(batch)
        watched = {"context": Tokens(tokens[0][:, 0]), "target": features}
        return Latents({"": Prediction(projection, centre)}, watched, features)

    def features(self, batch: Any) -> Tokens:
        """The encoder's tokens of the whole images."""
        return Tokens(self.target_encoder(self.observations(batch)[0]))

    def loss(self, latents: Latents) -> dict[str, Tensor]:
        """The views' disagreement, and how far the projections of each view are from a Gaussian."""
        if self.training:
            check_batch(len(latents.prediction))
        energy = self.energy(latents).mean()
        sigreg = self.sigreg(latents.prediction.transpose(0, 1))
        weight = self.hparams.sigreg_weight
        return {"loss": (1 - weight) * energy + weight * sigreg, "energy": energy, "sigreg": sigreg}

"""Decorrelation, VICReg and SIGReg as terms that can be added to the loss of any method."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn

from jepa_lightning.errors import unknown_options
from jepa_lightning.losses import Decorrelation, SIGReg, VICReg
from jepa_lightning.losses.distributed import check_batch
from jepa_lightning.networks.tokens import check_sizes
from jepa_lightning.step import Latents

Source = Literal["context", "context_tokens", "context_and_target", "prediction_blocks"]
LOSSES: dict[str, Any] = {"decorrelation": Decorrelation, "sigreg": SIGReg, "vicreg": VICReg}


class Regularizer(nn.Module):
    """A regulariser, its weight in the loss, and the embeddings that it is taken of.

    Args:
        name: `decorrelation`, `sigreg` or `vicreg`.
        embed_dim: width D of the embeddings.
        weight: of the term in the loss, zero or more; it must be given.
        source: what is regularised, as views `[N, D']` of one batch:
            `context_tokens`: all context tokens as samples of one view;
            `context`: the mean context token of every image, one view. Without a projector `sigreg` and `vicreg` ask
            for means that are spread as far as layer-normed tokens, which they are only if the tokens of an image are
            all alike; `decorrelation` does not;
            `context_and_target`: the mean context token and the mean of the teacher's tokens, two views;
            `prediction_blocks`: the mean predicted token of every target block, M views.
        projector: widths of the layers of an MLP between embeddings and regulariser; none by default. Its norms are
            over features and not over the batch, so that two processes with half a batch do what one does with all.
        **options: those of `VICReg` or `SIGReg`; `Decorrelation` has none.

    Raises:
        ValueError: an unknown name or source, or a negative or infinite weight.
        TypeError: an option that the regulariser does not have, or no weight.
    """

    def __init__(
        self,
        name: str,
        embed_dim: int,
        weight: float | None = None,
        source: Source = "context_tokens",
        projector: Sequence[int] = (),
        **options: Any,
    ) -> None:
        super().__init__()
        if name not in LOSSES:
            raise ValueError(f"there is no regulariser {name!r}; choose from {', '.join(LOSSES)}")
        if source not in get_args(Source):
            raise ValueError(f"source of {name} must be one of {', '.join(get_args(Source))}, got {source!r}")
        known = inspect.signature(LOSSES[name]).parameters
        if unknown := sorted(set(options) - set(known)):
            raise TypeError(unknown_options(name, unknown, [*known, "weight", "source", "projector"]))
        if weight is None:
            raise TypeError(f"{name} needs a weight: what it is multiplied by in the loss")
        if not 0 <= weight < math.inf:
            raise ValueError(f"the weight of {name} must be finite and not negative, got {weight}")
        check_sizes(**{f"{name}_projector_{place}": width for place, width in enumerate(projector)})
        self.weight = weight
        self.source = source
        self.regularizer = LOSSES[name](**options)
        widths = [embed_dim, *projector]
        layers: list[Any] = [(a, b, nn.LayerNorm(b), nn.ReLU()) for a, b in itertools.pairwise(widths)]
        if layers:
            layers[-1] = (*widths[-2:], None, None)
        self.projector = ProjectionHead(layers)

    def forward(self, latents: Latents) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted penalty, and its parts before weighting by name (`""` for a regulariser of a single part).

        Of a step with several predictions, the mean over these.

        Raises:
            ValueError: a single sample to train on.
        """
        penalty: Any = 0.0
        parts: dict[str, Any] = {}
        for name in latents.predictions:
            z = self.projector(self.views(latents, name))
            if self.training:
                check_batch(z.shape[1])
            if isinstance(self.regularizer, VICReg):
                terms = self.regularizer.terms(*z)
                value = self.regularizer.combine(terms)
            else:
                value = self.regularizer(z)
                terms = {"": value}
            share = 1 / len(latents.predictions)
            penalty = penalty + share * self.weight * value
            parts = {part: parts.get(part, 0.0) + share * term for part, term in terms.items()}
        return penalty, parts

    def views(self, latents: Latents, name: str = "") -> Tensor:
        """The embeddings `[V, N, D]` of the source, of one of the predictions."""
        context = latents.embeddings[f"context/{name}" if name else "context"]
        if self.source == "context":
            return context.pooled().unsqueeze(0)
        if self.source == "context_tokens":
            tokens = context.values.flatten(0, 1) if context.valid is None else context.values[context.valid]
            return tokens.unsqueeze(0)
        if self.source == "prediction_blocks":
            return latents.predictions[name].prediction.mean(2).transpose(0, 1)
        return torch.stack([context.pooled(), latents.embeddings["target"].pooled()])

"""DMT-JEPA: I-JEPA with discriminative masked targets (Mo and Tong, arXiv 2405.17995)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch import Tensor

from jepa_lightning.masking import Masks
from jepa_lightning.modules.ijepa import IJEPA, num_heads
from jepa_lightning.modules.training import Teacher
from jepa_lightning.networks.aggregation import LocalAggregation

ContextAggregation = Literal["added", "pooled"]


class DMTJEPA(IJEPA):
    """Discriminative masked targets: of each place, an aggregate of the neighbours that look most like it.

    For every token of the teacher (layer-normed), the `num_neighbours` most similar of the eight around it are its
    masked semantic neighbours. A head of class attention, asked by the image's mean token, makes one token of them: the
    target. The context passes through the same head, whose weights the teacher's head follows by the momentum.

    Two faults of the official code are not here: its queries come from the wrong image of the batch, and its windows
    wrap round the border. Here a token at the border has fewer neighbours.

    Args:
        num_neighbours: k, at most eight.
        context_aggregation: what the predictor is given: with `added`, as in the official code, all context tokens, to
            which what their mean attends to is added; with `pooled`, as the paper can be read, that one vector at every
            place.
        **options: those of `IJEPA`.

    Raises:
        ValueError: a value that there is not.

    Source: DMT-JEPA (arXiv 2405.17995), section 3.
    """

    context_head: Any
    target_head: Any

    def __init__(
        self, num_neighbours: int = 4, context_aggregation: ContextAggregation = "added", **options: Any
    ) -> None:
        if context_aggregation not in get_args(ContextAggregation):
            raise ValueError(
                f"context_aggregation must be one of {', '.join(get_args(ContextAggregation))}, "
                f"got {context_aggregation!r}"
            )
        super().__init__(**options)
        width = self.context_encoder.embed_dim
        self.context_head = LocalAggregation(self.grid, width, num_heads(self), num_neighbours)
        self.target_head = self.build_teacher(self.context_head)

    def teachers(self) -> list[Teacher]:
        """Encoder and head, with one momentum."""
        return [*super().teachers(), Teacher("context_head", "target_head", self.momentum)]

    def targets(self, features: Tensor) -> Tensor:
        """The aggregate of each token's masked semantic neighbours, `[B, N, D]`."""
        return self.target_head.neighbourhoods(super().targets(features))

    def predict(
        self, context: Tensor, masks: Masks, kind: int, grid: Sequence[int], valid: Tensor | None = None
    ) -> Tensor:
        """Predict from the aggregated context."""
        if self.hparams.context_aggregation == "added":
            context = self.context_head.context(context)
        else:
            context = self.context_head.summary(context).expand_as(context)
        return super().predict(context, masks, kind, grid, valid)

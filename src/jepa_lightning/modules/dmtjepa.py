"""DMT-JEPA: I-JEPA with discriminative masked targets (Mo and Tong, arXiv 2405.17995)."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import Tensor
from torch.distributed.fsdp import register_fsdp_forward_method

from jepa_lightning.masking import Masks
from jepa_lightning.modules.ijepa import IJEPA
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
        encoder = self.context_encoder
        self.context_head = LocalAggregation(encoder.grid, encoder.embed_dim, self.hparams.num_heads, num_neighbours)
        self.target_head = self.build_teacher(self.context_head)

    def configure_model(self) -> None:
        """Tell a strategy that shards what of the heads is called."""
        super().configure_model()
        if self.device_mesh is not None:
            for head in (self.context_head, self.target_head):
                for method in ("neighbourhoods", "context", "summary"):
                    register_fsdp_forward_method(head, method)

    def targets(self, features: Tensor) -> Tensor:
        """The aggregate of each token's masked semantic neighbours, `[B, N, D]`."""
        return self.target_head.neighbourhoods(super().targets(features))

    def predict(self, context: Tensor, masks: Masks) -> Tensor:
        """Predict from the aggregated context."""
        if self.hparams.context_aggregation == "added":
            context = self.context_head.context(context)
        else:
            context = self.context_head.summary(context).expand_as(context)
        return super().predict(context, masks)

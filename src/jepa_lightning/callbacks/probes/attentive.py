"""The attentive online probe."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from jepa_lightning.callbacks.probes.trained import TrainedProbe
from jepa_lightning.networks import AttentivePooler
from jepa_lightning.step import Tokens


class AttentiveProbe(TrainedProbe):
    """A classifier that chooses the tokens it reads, trained beside the model at every batch. Logs `accuracy`.

    What a mean over tokens washes out, as where and when something moves, it can still find. A label is one class an
    image or clip.

    Args:
        num_classes: number of classes.
        name: the probe's tags are `probe/<name>/<metric>`.
        label: the field of the batch that holds the class; the first label without.
        depth: blocks of the pooler: 1 as in V-JEPA's probe, 4 as in V-JEPA 2's.
        num_heads: attention heads a block; the encoder's by default.
        lr: learning rate of the probe's own AdamW; it falls to zero with the training's.

    Source: V-JEPA (arXiv 2404.08471), appendix D.
    """

    dense = False

    def __init__(
        self,
        num_classes: int,
        name: str = "attentive",
        label: str | None = None,
        depth: int = 1,
        num_heads: int | None = None,
        lr: float = 1e-3,
    ) -> None:
        super().__init__(num_classes, name, label, "features", lr)
        self.depth = depth
        self.num_heads = num_heads

    def build_head(self, pl_module: Any, width: int) -> nn.Module:
        """The pooler, and one layer."""
        heads = self.num_heads or getattr(getattr(pl_module, "context_encoder", None), "num_heads", None)
        if heads is None:
            raise ValueError(f"the encoder does not say how many heads it has: give the probe {self.name!r} num_heads")
        return AttentiveHead(width, heads, self.depth, self.num_classes)

    def pool(self, tokens: Tokens) -> Tensor:
        """All of them, as pooling is learned, `[B, N, D + 1]`: the last number says whether a token is there."""
        valid = torch.ones_like(tokens.values[..., 0]) if tokens.valid is None else tokens.valid
        return torch.cat([tokens.values, valid.unsqueeze(-1).to(tokens.values)], dim=-1)

    def width(self, inputs: Tensor) -> int:
        """That of the tokens."""
        return inputs.shape[-1] - 1


class AttentiveHead(nn.Sequential):
    """The pooler, and one layer, of tokens `[B, N, D + 1]` whose last number says whether they are there."""

    def __init__(self, embed_dim: int, num_heads: int, depth: int, num_classes: int) -> None:
        super().__init__(AttentivePooler(embed_dim, num_heads, depth), nn.Linear(embed_dim, num_classes))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `[B, num_classes]`."""
        pooler, classifier = self
        return classifier(pooler(inputs[..., :-1], inputs[..., -1] > 0))

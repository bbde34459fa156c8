"""How spread out embeddings are: all from sums over samples, so that batches and ranks simply add up."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric


class Moments(NamedTuple):
    """Sums over the N samples of embeddings `[..., N, D]`, in float64.

    Attributes:
        num: N, `[...]`.
        total: sum of the samples, `[..., D]`.
        outer: sum of their outer products z zᵀ, `[..., D, D]`.
        unit: sum of the samples scaled to length one, `[..., D]`; a zero sample counts as zero.
    """

    num: Tensor
    total: Tensor
    outer: Tensor
    unit: Tensor


def moments(embeddings: Tensor) -> Moments:
    """The sums that every metric here is a function of.

    Args:
        embeddings: `[..., N, D]` of any floating type; leading dimensions are kept apart.

    Raises:
        ValueError: fewer than two dimensions.
    """
    if embeddings.ndim < 2:
        raise ValueError(f"embeddings must be [..., N, D], got {list(embeddings.shape)}")
    z = embeddings.double()
    num = torch.full(z.shape[:-2], z.shape[-2], dtype=torch.float64, device=z.device)
    return Moments(num, z.sum(-2), z.mT @ z, F.normalize(z, dim=-1).sum(-2))


def rankme(sums: Moments) -> Tensor:
    """RankMe: the exponential of the entropy of the singular values, `exp(-Σ p log p)`, `p = σ / Σσ + 1e-7`.

    Uncentred, as published: a common offset of all embeddings lowers it.

    Returns:
        `[...]`, between 1 (one direction) and min(N, D) (all directions alike).

    Source: Garrido et al., RankMe (arXiv 2210.02885), equation 1.

    >>> rankme(moments(torch.eye(4)))
    tensor(4.0000, dtype=torch.float64)
    """
    sigma = torch.linalg.eigvalsh(sums.outer).clamp(min=0).sqrt()
    p = sigma / sigma.sum(-1, keepdim=True).clamp(min=1e-300) + 1e-7
    # Embeddings that are all zero have no direction: rank one would say "as bad as it gets" of something worse.
    return torch.where(sigma.sum(-1) > 0, torch.exp(-(p * p.log()).sum(-1)), 0.0)


def feature_std(sums: Moments) -> Tensor:
    """The standard deviation of each feature over the samples, averaged over the features (zero if all are alike).

    Returns:
        `[...]`, zero or more.

    >>> feature_std(moments(torch.tensor([[0.0, 1.0], [2.0, 1.0]])))
    tensor(0.5000, dtype=torch.float64)
    """
    mean = sums.total / sums.num.unsqueeze(-1)
    square = sums.outer.diagonal(dim1=-2, dim2=-1) / sums.num.unsqueeze(-1)
    return (square - mean**2).clamp(min=0).sqrt().mean(-1)


def mean_cosine(sums: Moments) -> Tensor:
    """The cosine between two different samples, averaged over all pairs: `(|Σ ẑ|² − N) / (N (N − 1))`.

    Returns:
        `[...]`, in [-1, 1]; 1 where all samples point the same way, NaN for a single one.

    >>> mean_cosine(moments(torch.tensor([[1.0, 0.0], [0.0, 2.0]])))
    tensor(0., dtype=torch.float64)
    """
    cosine = (sums.unit.square().sum(-1) - sums.num) / (sums.num * (sums.num - 1))
    return torch.where(sums.num > 1, cosine, torch.nan)  # rounding makes it infinite for one sample


class EmbeddingMetric(Metric):
    """Base of the metrics of embeddings `[N, D]`: states that add up over batches and ranks.

    In a `MetricCollection` all of them share one update and one all-reduce (a compute group).

    Args:
        embed_dim: D.
        **kwargs: those of `torchmetrics.Metric`.
    """

    full_state_update = False
    num: Tensor
    total: Tensor
    outer: Tensor
    unit: Tensor

    def __init__(self, embed_dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        shapes = {"num": (), "total": (embed_dim,), "outer": (embed_dim, embed_dim), "unit": (embed_dim,)}
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, embeddings: Tensor) -> None:
        """Add embeddings `[N, D]`.

        Raises:
            ValueError: another shape.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != len(self.total):
            raise ValueError(f"expected embeddings [N, {len(self.total)}], got {list(embeddings.shape)}")
        for name, value in moments(embeddings)._asdict().items():
            setattr(self, name, getattr(self, name) + value)

    def sums(self) -> Moments:
        """What has been added up."""
        return Moments(self.num, self.total, self.outer, self.unit)


class RankMe(EmbeddingMetric):
    """`rankme` over all embeddings seen.

    >>> metric = RankMe(3)
    >>> metric.update(torch.eye(3))
    >>> metric.compute()
    tensor(3.0000, dtype=torch.float64)
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        """RankMe, in [1, D]."""
        return rankme(self.sums())


class FeatureStd(EmbeddingMetric):
    """`feature_std` over all embeddings seen.

    >>> metric = FeatureStd(2)
    >>> metric.update(torch.ones(5, 2))
    >>> metric.compute()
    tensor(0., dtype=torch.float64)
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        """The mean standard deviation, zero or more."""
        return feature_std(self.sums())


class MeanCosine(EmbeddingMetric):
    """`mean_cosine` over all embeddings seen.

    >>> metric = MeanCosine(2)
    >>> metric.update(torch.tensor([[1.0, 1.0], [3.0, 3.0]]))
    >>> metric.compute()
    tensor(1.0000, dtype=torch.float64)
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """The mean cosine, in [-1, 1]."""
        return mean_cosine(self.sums())

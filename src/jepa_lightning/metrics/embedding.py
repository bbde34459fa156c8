"""How spread out embeddings are: all from sums over samples, so that batches and ranks simply add up."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

EPSILON = torch.finfo(torch.float64).eps


class Moments(NamedTuple):
    """Sums over the N samples of embeddings `[..., N, D]`, in float64.

    Attributes:
        num: N, `[...]`.
        total: sum of the samples, `[..., D]`.
        outer: sum of their outer products z zᵀ, `[..., D, D]`.
        unit: sum of their `directions`, `[..., D + 1]`.
    """

    num: Tensor
    total: Tensor
    outer: Tensor
    unit: Tensor


def moments(embeddings: Tensor) -> Moments:
    """The sums that every metric of this file and of `rank` is a function of.

    Args:
        embeddings: `[..., N, D]` of any floating type; leading dimensions are kept apart.

    Raises:
        ValueError: fewer than two dimensions.
    """
    if embeddings.ndim < 2:
        raise ValueError(f"embeddings must be [..., N, D], got {list(embeddings.shape)}")
    z = embeddings.double()
    num = torch.full(z.shape[:-2], z.shape[-2], dtype=torch.float64, device=z.device)
    return Moments(num, z.sum(-2), z.mT @ z, directions(z).sum(-2))


def directions(embeddings: Tensor) -> Tensor:
    """Embeddings `[..., D]` at length one, `[..., D + 1]`: a zero has no direction, and gets the last axis as its own.

    So zeros are all alike and unlike anything else, and a collapse to zero reads as the collapse it is.

    >>> directions(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
    tensor([[0., 1., 0.],
            [0., 0., 1.]])
    """
    norm = embeddings.norm(dim=-1, keepdim=True)
    zero = norm == 0
    return torch.cat([embeddings / torch.where(zero, 1.0, norm), zero.to(embeddings.dtype)], dim=-1)


def covariance(num: Tensor, total: Tensor, outer: Tensor) -> Tensor:
    """The covariance `Σ z zᵀ / N − z̄ z̄ᵀ` from the sums of `Moments`, `[..., D, D]`, zero where only rounding is left.

    The difference of two sums of N terms is uncertain by up to about N ε of them (ε = 2e-16). Without the zeros,
    embeddings that are all alike would spread a little in every direction, and a rank would call that healthy. A
    standard deviation below `sqrt(N ε)` of a feature's root mean square (1e-6 at 10 000 samples) is therefore zero.
    """
    size = num.unsqueeze(-1)
    mean, second = total / size, outer / size.unsqueeze(-1)
    difference = second - mean.unsqueeze(-1) * mean.unsqueeze(-2)
    scale = second.diagonal(dim1=-2, dim2=-1).sqrt()
    rounding = EPSILON * (size + total.shape[-1]).unsqueeze(-1) * scale.unsqueeze(-1) * scale.unsqueeze(-2)
    return torch.where(difference.abs() <= rounding, 0.0, difference)


def std_per_feature(sums: Moments) -> Tensor:
    """The standard deviation of each feature over the samples, `[..., D]`, zero or more; NaN without samples.

    >>> std_per_feature(moments(torch.tensor([[0.0, 1.0], [2.0, 1.0]])))
    tensor([1., 0.], dtype=torch.float64)
    """
    return covariance(sums.num, sums.total, sums.outer).diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()


def feature_std(sums: Moments) -> Tensor:
    """`FeatureStd` of the samples, `[...]`.

    >>> feature_std(moments(torch.tensor([[0.0, 1.0], [2.0, 1.0]])))
    tensor(0.5000, dtype=torch.float64)
    """
    return std_per_feature(sums).mean(-1)


def dead_features(sums: Moments) -> Tensor:
    """`DeadFeatures` of the samples, `[...]`.

    >>> dead_features(moments(torch.tensor([[0.0, 1.0], [2.0, 1.0]])))
    tensor(0.5000, dtype=torch.float64)
    """
    std = std_per_feature(sums)
    mean = std.mean(-1)
    share = (std <= 0.1 * mean.unsqueeze(-1)).double().mean(-1)
    return torch.where(mean.isfinite(), share, torch.nan)


def mean_correlation(sums: Moments) -> Tensor:
    """`MeanCorrelation` of the samples, `[...]`.

    >>> mean_correlation(moments(torch.tensor([[0.0, 1.0], [1.0, 3.0], [2.0, 5.0]]))).round(decimals=4)
    tensor(1., dtype=torch.float64)
    """
    matrix = covariance(sums.num, sums.total, sums.outer)
    std = matrix.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    alive = std > 0
    inverse = torch.where(alive, 1 / std, 0.0)
    correlation = (matrix * inverse.unsqueeze(-1) * inverse.unsqueeze(-2)).abs().clamp(max=1)
    num = alive.sum(-1)
    others = correlation.sum((-2, -1)) - correlation.diagonal(dim1=-2, dim2=-1).sum(-1)
    return others / (num * (num - 1))


def mean_cosine(sums: Moments) -> Tensor:
    """`MeanCosine` of the samples, `[...]`.

    >>> mean_cosine(moments(torch.tensor([[1.0, 0.0], [0.0, 2.0]])))
    tensor(0., dtype=torch.float64)
    """
    cosine = (sums.unit.square().sum(-1) - sums.num) / (sums.num * (sums.num - 1))
    return torch.where(sums.num > 1, cosine, torch.nan)  # rounding makes it infinite for one sample


def non_orthonormality(sums: Moments) -> Tensor:
    """`NonOrthonormality` of the samples, `[...]`.

    >>> non_orthonormality(moments(torch.tensor([[2.0, 0.0], [0.0, 2.0]])))
    tensor(0., dtype=torch.float64)
    """
    second = sums.outer / sums.num[..., None, None]
    size = second.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    difference = second / size - torch.eye(second.shape[-1], dtype=second.dtype, device=second.device)
    return difference.norm(dim=(-2, -1)) / second.shape[-1] ** 0.5


class EmbeddingMetric(Metric):
    """Base of the metrics that are functions of `Moments`: states that add up over batches and ranks.

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
        shapes = {"num": (), "total": (embed_dim,), "outer": (embed_dim, embed_dim), "unit": (embed_dim + 1,)}
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


class FeatureStd(EmbeddingMetric):
    """The standard deviation of each feature over all embeddings seen, averaged over the features.

    Zero or more. What is healthy depends on the scale of the embeddings (VICReg asks for 1); a collapse takes it to 0,
    and a single embedding has 0.

    >>> metric = FeatureStd(2)
    >>> metric.update(torch.ones(5, 2))
    >>> metric.compute()
    tensor(0., dtype=torch.float64)
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        """The mean standard deviation, zero or more."""
        return feature_std(self.sums())


class DeadFeatures(EmbeddingMetric):
    """The share of features whose standard deviation is at most a tenth of the mean one (`FeatureStd`).

    In [0, 1]: healthy near 0; 1 where all embeddings are alike, or where there is only one. It is the mean and not the
    median that is the measure, so that it also holds where most features are dead.

    >>> metric = DeadFeatures(4)
    >>> metric.update(torch.tensor([[1.0, 0.0, 5.0, 7.0], [-1.0, 2.0, 5.0, 7.01]]))
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """The share of dead features, in [0, 1]."""
        return dead_features(self.sums())


class MeanCorrelation(EmbeddingMetric):
    """The absolute correlation of two different features, averaged over all pairs of features that vary.

    In [0, 1]: N embeddings with independent features have about `sqrt(2 / (π N))`, those on a line 1. NaN where fewer
    than two features vary at all. Unlike VICReg's covariance term it does not depend on the scale.

    >>> metric = MeanCorrelation(3)
    >>> metric.update(torch.tensor([[1.0, 0.0, 5.0], [0.0, 1.0, 5.0], [-1.0, 0.0, 5.0], [0.0, -1.0, 5.0]]))
    >>> metric.compute()
    tensor(0., dtype=torch.float64)
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """The mean absolute correlation, in [0, 1]."""
        return mean_correlation(self.sums())


class MeanCosine(EmbeddingMetric):
    """The cosine between two different embeddings, averaged over all pairs: `(|Σ ẑ|² − N) / (N (N − 1))`.

    In [−1, 1]: healthy near 0, 1 where all embeddings point the same way. Zeros count as alike (1) and as orthogonal to
    the rest (0), so a collapse to zero has 1. NaN for a single embedding.

    >>> metric = MeanCosine(2)
    >>> metric.update(torch.tensor([[1.0, 1.0], [3.0, 3.0]]))
    >>> metric.compute().round(decimals=4)
    tensor(1., dtype=torch.float64)
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """The mean cosine, in [-1, 1]."""
        return mean_cosine(self.sums())


class NonOrthonormality(EmbeddingMetric):
    """How far the features of embeddings are from being orthonormal, whatever their scale: `‖Σ / σ² − I‖ / √D`.

    Σ is the second moment `E[z zᵀ]`, σ² the mean of its diagonal. 0 where all features are as large, and no two of them
    go together; √(D − 1) where all embeddings lie on a line; NaN where all are zero. N embeddings whose features are
    independent have about `√((D + 1) / N)`, so only readings of as many samples compare.

    >>> metric = NonOrthonormality(2)
    >>> metric.update(torch.tensor([[1.0, 1.0], [3.0, 3.0]]))
    >>> metric.compute()
    tensor(1., dtype=torch.float64)
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """The distance, in [0, √(D − 1)]."""
        return non_orthonormality(self.sums())

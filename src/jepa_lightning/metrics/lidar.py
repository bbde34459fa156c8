"""How many directions tell samples apart: LiDAR, of several views of each of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from jepa_lightning.metrics.embedding import covariance
from jepa_lightning.metrics.rank import entropy_rank

DELTA = 1e-4  # the ridge of other implementations too


class Scatter(NamedTuple):
    """Sums over the C classes of views `[..., C, q, D]`, in float64.

    Attributes:
        num: C, `[...]`.
        total: sum of the class means, `[..., D]`.
        outer: sum of the outer products of the class means, `[..., D, D]`.
        within: sum of the classes' covariances, `[..., D, D]`.
    """

    num: Tensor
    total: Tensor
    outer: Tensor
    within: Tensor


def scatter(views: Tensor) -> Scatter:
    """The sums that LiDAR is a function of.

    Args:
        views: `[..., C, q, D]`, q views of each of C samples; leading dimensions are kept apart.

    Raises:
        ValueError: fewer than three dimensions, or fewer than two views.
    """
    if views.ndim < 3 or views.shape[-2] < 2:
        raise ValueError(f"views must be [..., classes, views, D] with two views or more, got {list(views.shape)}")
    z = views.double()
    means = z.mean(-2)
    deviations = (z - means.unsqueeze(-2)).flatten(-3, -2)
    num = torch.full(means.shape[:-2], means.shape[-2], dtype=torch.float64, device=z.device)
    return Scatter(num, means.sum(-2), means.mT @ means, deviations.mT @ deviations / (z.shape[-2] - 1))


def lidar(sums: Scatter) -> Tensor:
    """`LiDAR` of the classes, `[...]`.

    >>> lidar(scatter(torch.eye(4).unsqueeze(1).expand(4, 2, 4))).round(decimals=4)  # four samples, their views alike
    tensor(3., dtype=torch.float64)
    """
    between = covariance(sums.num, sums.total, sums.outer)
    within = sums.within / sums.num[..., None, None]
    finite = (between + within).isfinite().all(-1).all(-1)[..., None, None]
    between, within = torch.where(finite, between, 0.0), torch.where(finite, within, 0.0)
    values, vectors = torch.linalg.eigh(within)
    whiten = vectors * (values.clamp(min=0) + DELTA).rsqrt().unsqueeze(-2)
    ratios = torch.linalg.eigvalsh(whiten.mT @ between @ whiten).clamp(min=0)
    return torch.where(finite[..., 0, 0], entropy_rank(ratios), torch.nan)


class LiDAR(Metric):
    """LiDAR: how many directions tell samples apart, measured against how much the views of one sample differ.

    Every sample is a class of its own, and q views of it are what is known of that class: for a masked JEPA, the
    embeddings of q mask draws. With Σ_b the covariance of the class means, Σ_w the mean covariance within a class plus
    `δ = 1e-4` times the identity, and p the eigenvalues of `Σ_w^-½ Σ_b Σ_w^-½` over their sum, LiDAR is
    `exp(-Σ p log p)`. The paper's small constant in p only keeps the logarithm finite, and is left out.

    Between 1 and min(D, C − 1) for C samples; higher is healthier. 0 where the class means are all alike: a collapse,
    or a single class. The mean of q views keeps 1/q of the variance within, so directions of pure noise have
    eigenvalues near 1/q and not 0, and noise alone reads as full rank: compare only at the same q, with more samples
    than D. δ makes it depend on the scale where the variance within is as small.

    Source: Thilak et al., LiDAR (arXiv 2312.04000), equations 1 to 4.

    Args:
        embed_dim: D.
        **kwargs: those of `torchmetrics.Metric`.

    >>> metric = LiDAR(2)
    >>> means = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> metric.update(torch.stack([means + 0.1, means - 0.1], dim=1))
    >>> metric.compute().round(decimals=2)  # along (1, 1) the views differ too: only (1, -1) tells the samples apart
    tensor(1.0200, dtype=torch.float64)
    """

    full_state_update = False
    higher_is_better = True
    num: Tensor
    total: Tensor
    outer: Tensor
    within: Tensor

    def __init__(self, embed_dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        square = (embed_dim, embed_dim)
        for name, shape in {"num": (), "total": (embed_dim,), "outer": square, "within": square}.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, views: Tensor) -> None:
        """Add classes `[C, q, D]`: all q views of a sample at once. Updates may differ in q.

        Raises:
            ValueError: another shape, or fewer than two views.
        """
        if views.ndim != 3 or views.shape[2] != len(self.total):
            raise ValueError(f"expected views [classes, views, {len(self.total)}], got {list(views.shape)}")
        for name, value in scatter(views)._asdict().items():
            setattr(self, name, getattr(self, name) + value)

    def compute(self) -> Tensor:
        """LiDAR, in [1, D], or 0; NaN without classes."""
        return lidar(Scatter(self.num, self.total, self.outer, self.within))

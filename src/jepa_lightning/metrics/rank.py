"""How many directions embeddings use: functions of the eigenvalues of their second moment or covariance.

The eigenvalues come from sums of squares in float64, so singular values below about 1e-8 of the largest are noise (a
singular value decomposition of the embeddings would resolve 1e-16, which embeddings in single precision do not hold).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from jepa_lightning.metrics.embedding import EPSILON, EmbeddingMetric, Moments, covariance


def eigenvalues(sums: Moments, centred: bool) -> Tensor:
    """The eigenvalues `[..., D]`, smallest first, of the covariance (centred) or of the second moment `Σ z zᵀ / N`.

    Those that rounding alone can make, up to `(N + D) ε` of the largest (ε = 2e-16), are zero. All are NaN without
    samples and where a sample is not finite.

    >>> from jepa_lightning.metrics import moments
    >>> eigenvalues(moments(torch.tensor([[3.0, 0.0], [3.0, 2.0]])), centred=True)
    tensor([0., 1.], dtype=torch.float64)
    """
    size = sums.num[..., None, None]
    matrix = covariance(sums.num, sums.total, sums.outer) if centred else sums.outer / size
    finite = matrix.isfinite().all(-1).all(-1, keepdim=True)
    values = torch.linalg.eigvalsh(torch.where(finite.unsqueeze(-1), matrix, 0.0))  # it raises on NaN
    rounding = EPSILON * (size[..., 0] + values.shape[-1]) * values[..., -1:]
    return torch.where(finite, torch.where(values > rounding, values, 0.0), torch.nan)


def entropy_rank(weights: Tensor, eps: float = 0.0) -> Tensor:
    """How many of the weights `[..., D]` count: `exp(-Σ p log p)`, `p = w / Σw + eps`; zero where all are zero."""
    total = weights.sum(-1, keepdim=True)
    rank = torch.special.entr(weights / total + eps).sum(-1).exp()
    # Nothing at all has no direction: rank one would say "as bad as it gets" of something worse.
    return torch.where(total.squeeze(-1) == 0, 0.0, rank)


def rankme(sums: Moments, centred: bool = False) -> Tensor:
    """`RankMe` of the samples, `[...]`.

    >>> from jepa_lightning.metrics import moments
    >>> rankme(moments(torch.eye(4)))
    tensor(4.0000, dtype=torch.float64)
    """
    return entropy_rank(eigenvalues(sums, centred).sqrt(), eps=1e-7)


def effective_rank(sums: Moments, centred: bool = False) -> Tensor:
    """`EffectiveRank` of the samples, `[...]`.

    >>> from jepa_lightning.metrics import moments
    >>> effective_rank(moments(torch.eye(4))).round(decimals=4)
    tensor(4., dtype=torch.float64)
    """
    return entropy_rank(eigenvalues(sums, centred).sqrt())


def stable_rank(sums: Moments, centred: bool = False) -> Tensor:
    """`StableRank` of the samples, `[...]`.

    >>> from jepa_lightning.metrics import moments
    >>> stable_rank(moments(torch.diag(torch.tensor([2.0, 1.0, 1.0]))))
    tensor(1.5000, dtype=torch.float64)
    """
    values = eigenvalues(sums, centred)
    return torch.where(values[..., -1] == 0, 0.0, values.sum(-1) / values[..., -1])


def participation_ratio(sums: Moments) -> Tensor:
    """`ParticipationRatio` of the samples, `[...]`.

    >>> from jepa_lightning.metrics import moments
    >>> participation_ratio(moments(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))).round(decimals=4)
    tensor(2., dtype=torch.float64)
    """
    matrix = covariance(sums.num, sums.total, sums.outer)
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    # The trace and the Frobenius norm are the sums of the eigenvalues and of their squares.
    ratio = 1 / (matrix / trace[..., None, None]).square().sum((-2, -1))
    return torch.where(trace == 0, 0.0, ratio)


def iso_score(sums: Moments) -> Tensor:
    """`IsoScore` of the samples, `[...]`.

    >>> from jepa_lightning.metrics import moments
    >>> iso_score(moments(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))).round(decimals=4)
    tensor(1., dtype=torch.float64)
    """
    return ((participation_ratio(sums) - 1) / (sums.total.shape[-1] - 1)).clamp(min=0)


class PowerLaw(NamedTuple):
    """A spectrum `λ_i ∝ i^-alpha`.

    Attributes:
        alpha: how fast the eigenvalues fall, `[...]`.
        r2: the share of the variance of `log λ_i` that the fit explains, in [0, 1], `[...]`.
    """

    alpha: Tensor
    r2: Tensor


def alpha_req(sums: Moments) -> PowerLaw:
    """`AlphaReQ` of the samples.

    >>> from jepa_lightning.metrics import moments
    >>> axes = torch.diag(torch.arange(1, 65, dtype=torch.float64) ** -0.75)
    >>> fit = alpha_req(moments(torch.cat([axes, -axes])))
    >>> round(float(fit.alpha), 4), round(float(fit.r2), 4)
    (1.5, 1.0)
    """
    values = eigenvalues(sums, centred=True).flip(-1)
    usable = (values > 0).sum(-1, keepdim=True)
    index = torch.arange(1, values.shape[-1] + 1, dtype=values.dtype, device=values.device)
    inside = (index >= 6) & (index <= (0.9 * usable).clamp(max=100))
    weight = torch.where(inside, 1 / index, 0.0)
    weight = weight / weight.sum(-1, keepdim=True)
    x, y = index.log(), torch.where(inside, values, 1.0).log()
    x, y = x - (weight * x).sum(-1, keepdim=True), y - (weight * y).sum(-1, keepdim=True)
    slope = (weight * x * y).sum(-1) / (weight * x.square()).sum(-1)
    residual = (weight * (y - slope.unsqueeze(-1) * x).square()).sum(-1)
    variance = (weight * y.square()).sum(-1)
    r2 = torch.where(variance > 1e-20, 1 - residual / variance, 1.0)  # all alike, a slope of zero fits exactly
    enough = usable.squeeze(-1) >= 20
    return PowerLaw(torch.where(enough, -slope, torch.nan), torch.where(enough, r2, torch.nan))


class RankMetric(EmbeddingMetric):
    """Base of the ranks that are taken of the embeddings as they are or with their mean taken off.

    Args:
        embed_dim: D.
        centred: take the mean embedding off first. Without, one offset of all embeddings counts as a direction, and a
            large one hides the others; both together tell a common offset from a collapse.
        **kwargs: those of `torchmetrics.Metric`.
    """

    higher_is_better = True

    def __init__(self, embed_dim: int, centred: bool = False, **kwargs: Any) -> None:
        super().__init__(embed_dim, **kwargs)
        self.centred = centred


class RankMe(RankMetric):
    """RankMe: the exponential of the entropy of the singular values, `exp(-Σ p log p)`, `p = σ / Σσ + 1e-7`.

    Between 1 (one direction) and min(N, D) (all directions alike); 0 where all embeddings are zero, or alike if
    centred. Higher is healthier, but only runs of one method compare, at the same N: the paper takes 25 600 samples.

    Source: Garrido et al., RankMe (arXiv 2210.02885), equation 1, which is uncentred.

    >>> metric = RankMe(3)
    >>> metric.update(torch.eye(3))
    >>> metric.compute()
    tensor(3.0000, dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """RankMe, in [1, D], or 0."""
        return rankme(self.sums(), self.centred)


class EffectiveRank(RankMetric):
    """The effective rank: the exponential of the entropy of the singular values, `exp(-Σ p log p)`, `p = σ / Σσ`.

    RankMe without its 1e-7: 1 for embeddings on a line, up to min(N, D) where all directions are alike; 0 where all
    embeddings are zero, or alike if centred. Higher is healthier.

    Source: Roy and Vetterli, The effective rank: a measure of effective dimensionality (EUSIPCO 2007).

    >>> metric = EffectiveRank(3)
    >>> metric.update(torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]))
    >>> metric.compute().round(decimals=4)
    tensor(1., dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """The effective rank, in [1, D], or 0."""
        return effective_rank(self.sums(), self.centred)


class StableRank(RankMetric):
    """The stable rank `Σ σ² / max σ²`; centred, it is NESum, `Σ λ / max λ` of the covariance.

    Between 1 (one direction carries all) and min(N, D) (all directions alike); 0 where all embeddings are zero, or
    alike if centred. Higher is healthier; it falls as soon as one direction dominates, before the ranks by entropy do.

    Source: Rudelson and Vershynin, Sampling from large matrices (JACM 2007); NESum: He and Ozay, Exploring the gap
    between collapsed and whitened features in self-supervised learning (ICML 2022).

    >>> metric = StableRank(2)
    >>> metric.update(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    >>> metric.compute()
    tensor(1.2500, dtype=torch.float64)
    """

    def compute(self) -> Tensor:
        """The stable rank, in [1, D], or 0."""
        return stable_rank(self.sums(), self.centred)


class ParticipationRatio(EmbeddingMetric):
    """The participation ratio `(Σ λ)² / Σ λ²` of the eigenvalues of the covariance.

    Between 1 (one direction) and min(N − 1, D) (all directions alike); 0 where all embeddings are alike. Higher is
    healthier. It needs no eigenvalues, only the trace and the norm of the covariance, and costs the least of the ranks.

    Source: Gao et al., A theory of multineuronal dimensionality, dynamics and measurement (bioRxiv 214262).

    >>> metric = ParticipationRatio(2)
    >>> metric.update(torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))
    >>> metric.compute().round(decimals=4)
    tensor(1., dtype=torch.float64)
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        """The participation ratio, in [1, D], or 0."""
        return participation_ratio(self.sums())


class IsoScore(EmbeddingMetric):
    """IsoScore: how evenly the variance spreads over the principal directions, whatever the mean, scale and rotation.

    In [0, 1]: 1 where all directions have the same variance, 0 where one has it all or where there is none, and about
    `(k − 1) / (D − 1)` where k of the D directions have it in equal parts. NaN for D = 1.

    The paper scales the variances to the length `sqrt(D)`, takes their distance to (1, …, 1), and maps that to [0, 1].
    All of it together is `(P − 1) / (D − 1)` with P the `ParticipationRatio`.

    Source: Rudman et al., IsoScore (arXiv 2108.07344).

    >>> metric = IsoScore(3)
    >>> metric.update(torch.tensor([[1.0, 0.0, 5.0], [-1.0, 0.0, 5.0], [0.0, 1.0, 5.0], [0.0, -1.0, 5.0]]))
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        """IsoScore, in [0, 1]."""
        return iso_score(self.sums())


class AlphaReQ(EmbeddingMetric):
    """α-ReQ: how fast the eigenvalues of the covariance fall, as the exponent of `λ_i ∝ i^-α`, and how well that fits.

    Near 1 is healthy; far above, few directions carry all (collapse), far below, all carry the same (noise). Read α
    only where the fit is good: `alpha_req_r2`, in [0, 1], above 0.9 or so.

    It is a line through `log λ_i` over `log i` by least squares with weights 1/i, which weigh every octave alike, from
    i = 6 to 100; the last tenth of the eigenvalues that are not zero is left out, since too few samples or a
    LayerNorm pull it down. Both values are NaN below 20 such eigenvalues.

    Source: Agrawal et al., α-ReQ: assessing representation quality in self-supervised learning by measuring
    eigenspectrum decay (NeurIPS 2022).

    >>> metric = AlphaReQ(64)
    >>> axes = torch.diag(1 / torch.arange(1, 65))
    >>> metric.update(torch.cat([axes, -axes]))
    >>> {name: round(float(value), 4) for name, value in metric.compute().items()}
    {'alpha_req': 2.0, 'alpha_req_r2': 1.0}
    """

    higher_is_better = None

    def compute(self) -> dict[str, Tensor]:
        """The exponent and the share of the variance that it explains, by names that `log_dict` takes as they are."""
        fit = alpha_req(self.sums())
        return {"alpha_req": fit.alpha, "alpha_req_r2": fit.r2}

"""Which directions embeddings use, and how many: eigenvalues of their second moment or covariance, and RankMe.

The eigenvalues come from sums of squares in float64, so singular values below about 1e-8 of the largest are noise (a
singular value decomposition of the embeddings would resolve 1e-16, which embeddings in single precision do not hold).
"""

from __future__ import annotations

from typing import Any

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


class RankMe(EmbeddingMetric):
    """RankMe: the exponential of the entropy of the singular values, `exp(-Σ p log p)`, `p = σ / Σσ + 1e-7`.

    Between 1 (one direction) and min(N, D) (all directions alike); 0 where all embeddings are zero, or alike if
    centred. Higher is healthier, but only runs of one method compare, at the same N: the paper takes 25 600 samples.

    Source: Garrido et al., RankMe (arXiv 2210.02885), equation 1, which is uncentred.

    Args:
        embed_dim: D.
        centred: take the mean embedding off first. Without, one offset of all embeddings counts as a direction, and a
            large one hides the others; both together tell a common offset from a collapse.
        **kwargs: those of `torchmetrics.Metric`.

    >>> metric = RankMe(3)
    >>> metric.update(torch.eye(3))
    >>> metric.compute()
    tensor(3.0000, dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, embed_dim: int, centred: bool = False, **kwargs: Any) -> None:
        super().__init__(embed_dim, **kwargs)
        self.centred = centred

    def compute(self) -> Tensor:
        """RankMe, in [1, D], or 0."""
        return rankme(self.sums(), self.centred)


class CovarianceSpectrum(EmbeddingMetric):
    """`RankMe`, centred, beside the largest and the smallest eigenvalue that it is made of: of the covariance.

    Of D features that are orthonormal and have mean zero, both eigenvalues are 1. The smallest is 0 where a direction
    is lost, as it is with fewer than D + 1 embeddings.

    >>> metric = CovarianceSpectrum(2)
    >>> metric.update(torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    >>> {name: round(float(value), 4) for name, value in metric.compute().items()}
    {'rankme_centred': 1.7548, 'largest_eigenvalue': 4.5, 'smallest_eigenvalue': 0.5}
    """

    def compute(self) -> dict[str, Tensor]:
        """The three by their names, of one decomposition."""
        values = eigenvalues(self.sums(), centred=True)
        return {
            "rankme_centred": entropy_rank(values.sqrt(), eps=1e-7),
            "largest_eigenvalue": values[-1],
            "smallest_eigenvalue": values[0],
        }

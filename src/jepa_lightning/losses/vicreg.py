"""VICReg: variance, invariance and covariance of embeddings (Bardes et al., arXiv 2105.04906)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lightning.losses.distributed import sum_over_ranks


def vicreg_terms(*views: Tensor) -> dict[str, Tensor]:
    """The three terms before their coefficients, each the mean over all ordered pairs of different views.

    Variance and covariance are taken over the batch of all processes, in float32.

    Args:
        *views: embeddings `[N, D]` of the same samples. A single view is its own pair, without invariance; a single
            sample has neither variance nor covariance, and these terms are zero.

    Returns:
        `sim`, the mean squared difference of two views; `std`, how far the features' standard deviations are below
        one; `cov`, the squared off-diagonal covariances over D, summed over the two of a pair.

    Raises:
        ValueError: no views, or views of different shapes.

    Source: VICReg (arXiv 2105.04906), equations 1 to 6, with its constants gamma = 1 and eps = 1e-4.
    """
    shapes = [list(view.shape) for view in views]
    if not views or any(shape != shapes[0] or len(shape) != 2 for shape in shapes):
        raise ValueError(f"VICReg wants views of one shape [N, D], got {shapes}")
    with torch.autocast(views[0].device.type, enabled=False):
        z = torch.stack([view.float() for view in views], dim=1)
        # Twice the variance over views is the mean of (a - b)^2 over ordered pairs.
        sim = 2 * z.var(dim=1).mean() if len(views) > 1 else z.new_zeros(())
        # Not by lightly's `variance_loss` and `covariance_loss`, which take the whole batch: it had to be gathered,
        # which ranks with different numbers of tokens cannot do. The last of the sums is the number of samples.
        sums = sum_over_ranks(F.pad(z, (0, 1), value=1.0).sum(0))
        num = sums[0, -1]
        centred = z - sums[:, :-1] / num
        covariance = sum_over_ranks(torch.einsum("nvc,nvd->vcd", centred, centred)) / (num - 1).clamp(min=1)
        variance = covariance.diagonal(dim1=-2, dim2=-1)
        std = F.relu(1 - (variance + 1e-4).sqrt()).mean() * (num > 1)
        off_diagonal = covariance - torch.diag_embed(variance)
        return {"sim": sim, "std": std, "cov": 2 * off_diagonal.square().sum((-2, -1)).mean() / z.shape[-1]}


class VICReg(nn.Module):
    """Keep every feature alive and decorrelated over the batch, and the views of a sample together.

    The variance and covariance are taken over the batch of all processes, in float32.

    Args:
        sim: coefficient of the invariance term, zero or more.
        std: coefficient of the variance term.
        cov: coefficient of the covariance term.

    Raises:
        ValueError: a negative coefficient.

    Source: VICReg (arXiv 2105.04906), equations 1 to 6, with its constants gamma = 1 and eps = 1e-4.

    >>> VICReg()(torch.zeros(4, 2), torch.zeros(4, 2))  # 25 * (1 - sqrt(eps)): all features dead
    tensor(24.7500)
    """

    def __init__(self, sim: float = 25.0, std: float = 25.0, cov: float = 1.0) -> None:
        super().__init__()
        if min(sim, std, cov) < 0:
            raise ValueError(f"the coefficients of VICReg must not be negative, got sim={sim}, std={std}, cov={cov}")
        self.coefficients = {"sim": sim, "std": std, "cov": cov}

    def terms(self, *views: Tensor) -> dict[str, Tensor]:
        """Those of `vicreg_terms`."""
        return vicreg_terms(*views)

    def forward(self, *views: Tensor) -> Tensor:
        """The terms, weighted by their coefficients and added up."""
        return self.combine(self.terms(*views))

    def combine(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the terms."""
        return torch.stack([weight * terms[name] for name, weight in self.coefficients.items()]).sum()

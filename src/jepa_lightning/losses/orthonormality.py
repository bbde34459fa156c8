"""Embeddings whose features neither vanish nor say the same."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa_lightning.losses.distributed import num_ranks, sum_over_ranks


def orthonormality(embeddings: Tensor) -> Tensor:
    """How far the second moment of embeddings is from the identity, but for a constant, from pairs of other samples.

    `1 / (2 B (B − 1)) Σ_{i≠j} (e_i · e_j)² − 1 / B Σ_i e_i · e_i`, over the batch of all processes; one sample makes no
    pair. The squares of all pairs are those of the entries of `Σ e eᵀ`, which has D² numbers and not B².

    Args:
        embeddings: `[B, D]`.

    Returns:
        A scalar, in expectation −D / 2 or more: that is where the features are orthonormal.

    >>> float(orthonormality(torch.eye(2)))
    -1.0

    Source: HaoChen et al. (arXiv 2106.04156), the spectral contrastive loss; TD-JEPA (arXiv 2510.00739), section 4.
    """
    embeddings = embeddings.float()
    size, norms = len(embeddings) * num_ranks(), embeddings.square().sum(1)
    with torch.autocast(embeddings.device.type, enabled=False):  # differences of large numbers
        outer = embeddings.mT @ embeddings
    fourth, total = norms.square().sum(), norms.sum()
    if num_ranks() > 1:
        sums = sum_over_ranks(torch.cat([outer.flatten(), torch.stack([fourth, total])]))
        outer, fourth, total = sums[:-2], sums[-2], sums[-1]
    return (outer.square().sum() - fourth) / (2 * size * max(1, size - 1)) - total / size

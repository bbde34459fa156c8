"""Decorrelation: make the features of embeddings say different things, whatever their scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa_lightning.losses.distributed import sum_over_ranks


def decorrelation(embeddings: Tensor) -> Tensor:
    """The squared correlations of each feature with all others, summed over these and averaged over the features.

    It is zero where no two of the D features are correlated and D − 1 where all are one. Correlations are over the
    batch of all processes, in float32; features that do not vary have none. Unlike VICReg's covariances they do not
    depend on how far features spread: means of layer-normed tokens can be decorrelated, but not spread at will.

    Args:
        embeddings: `[..., N, D]`; leading dimensions (views) are taken one by one.

    Returns:
        The mean over the leading dimensions.

    Raises:
        ValueError: fewer than two dimensions.

    Source: the redundancy reduction of Barlow Twins (arXiv 2103.03230), equation 1, of a view with itself, over D.

    >>> x = torch.tensor([1.0, -1.0, 1.0, -1.0])
    >>> y = torch.tensor([1.0, 1.0, -1.0, -1.0])
    >>> [round(float(decorrelation(torch.stack(features, dim=1))), 3) for features in ((x, y), (x, 2 * x), (x, -x, y))]
    [0.0, 1.0, 0.667]
    """
    if embeddings.ndim < 2:
        raise ValueError(f"decorrelation wants embeddings [..., N, D], got {list(embeddings.shape)}")
    with torch.autocast(embeddings.device.type, enabled=False):
        z = embeddings.float()
        num = sum_over_ranks(torch.full((), z.shape[-2], dtype=z.dtype, device=z.device))
        centred = z - sum_over_ranks(z.sum(-2, keepdim=True)) / num
        covariance = sum_over_ranks(centred.mT @ centred) / num
        scale = (covariance.diagonal(dim1=-2, dim2=-1) + 1e-6).rsqrt()
        correlation = covariance * scale.unsqueeze(-1) * scale.unsqueeze(-2)
        off_diagonal = correlation - torch.diag_embed(correlation.diagonal(dim1=-2, dim2=-1))
        return off_diagonal.square().sum((-2, -1)).mean() / z.shape[-1]


class Decorrelation(nn.Module):
    """`decorrelation` as a module.

    >>> bool(Decorrelation()(torch.randn(4096, 8)) < 0.01)
    True
    """

    def forward(self, embeddings: Tensor) -> Tensor:
        """Of embeddings `[..., N, D]`."""
        return decorrelation(embeddings)

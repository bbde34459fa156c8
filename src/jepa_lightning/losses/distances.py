"""Distances between predicted and target embeddings, and their means by weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_lightning.losses.distributed import num_ranks, sum_over_ranks

Distance = Literal["smooth_l1", "l1", "l2"]
_FUNCTIONS = {"smooth_l1": F.smooth_l1_loss, "l1": F.l1_loss, "l2": F.mse_loss}


def token_distance(prediction: Tensor, target: Tensor, distance: Distance = "smooth_l1") -> Tensor:
    """The distance of each token, averaged over its features.

    Args:
        prediction: `[..., D]`.
        target: the same shape.
        distance: `"smooth_l1"` (Huber with beta 1, as in I-JEPA's code), `"l1"` (as in V-JEPA's) or `"l2"` (squared
            error, as in I-JEPA's paper).

    Returns:
        `[...]`, zero or more.

    Raises:
        ValueError: shapes that differ.

    >>> import torch
    >>> token_distance(torch.zeros(2, 2), torch.tensor([[1.0, 1.0], [3.0, 0.0]]), "l1")
    tensor([1.0000, 1.5000])
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {list(prediction.shape)} and target {list(target.shape)} differ in shape")
    return _FUNCTIONS[distance](prediction, target, reduction="none").mean(-1)


def weighted_over_ranks(values: Tensor, weight: Tensor | None) -> Tensor:
    """`Σ weight · value / Σ weight` over the batch of all processes, of which the mean is what processes give.

    Without weights, the mean of the process's own batch: all of them have batches of one size.
    """
    if weight is None:
        return values.mean()
    total = weight_of([weight])
    return (values * weight).sum() * num_ranks() / torch.where(total > 0, total, 1.0)


def weight_of(weights: Sequence[Tensor]) -> Tensor:
    """What weights add up to over all processes."""
    return sum_over_ranks(torch.stack([weight.detach().float().sum() for weight in weights]).sum())

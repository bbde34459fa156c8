"""Distances between predicted and target embeddings."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Distance = Literal["smooth_l1", "l1", "l2"]


def latent_distance(prediction: Tensor, target: Tensor, distance: Distance = "smooth_l1") -> Tensor:
    """The distance of each sample, averaged over its tokens and features.

    Args:
        prediction: `[B, ..., D]`.
        target: the same shape.
        distance: `"smooth_l1"` (Huber with beta 1, as in I-JEPA's code), `"l1"` (as in V-JEPA's) or `"l2"` (squared
            error, as in I-JEPA's paper).

    Returns:
        `[B]`, zero or more.

    Raises:
        ValueError: shapes that differ.

    >>> import torch
    >>> latent_distance(torch.zeros(2, 1, 2), torch.tensor([[[1.0, 1.0]], [[3.0, 0.0]]]), "l1")
    tensor([1.0000, 1.5000])
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {list(prediction.shape)} and target {list(target.shape)} differ in shape")
    functions = {"smooth_l1": F.smooth_l1_loss, "l1": F.l1_loss, "l2": F.mse_loss}
    return functions[distance](prediction, target, reduction="none").flatten(1).mean(1)

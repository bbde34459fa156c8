"""Norms without weights."""

from __future__ import annotations

import torch
from torch import Tensor


def instance_norm(tokens: Tensor, valid: Tensor | None = None) -> Tensor:
    """Tokens `[B, N, D]` of which every feature has a mean of zero and a deviation of one over an observation's tokens.

    Args:
        tokens: `[B, N, D]`.
        valid: BoolTensor `[B, N]`, which tokens count; all without.

    >>> instance_norm(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]])).squeeze()
    tensor([-1.0000,  1.0000,  7.0000])
    """
    if valid is None:
        variance, mean = torch.var_mean(tokens, 1, correction=0, keepdim=True)
    else:
        weight = valid.unsqueeze(-1).to(tokens.dtype)
        weight = weight / weight.sum(1, keepdim=True).clamp(min=1)
        mean = (tokens * weight).sum(1, keepdim=True)
        variance = ((tokens - mean).square() * weight).sum(1, keepdim=True)
    return (tokens - mean) * (variance + 1e-5).rsqrt()

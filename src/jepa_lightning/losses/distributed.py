"""Statistics over the batch of all processes, with the gradient of that whole batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum over all ranks, of values and of gradients.

    Every rank then computes the same loss of the whole batch. The gradients that come back are added up over ranks, and
    DDP takes the mean of them: what is left is the gradient of one process with the whole batch.
    """
    return _SumOverRanks.apply(values) if num_ranks() > 1 else values


def gather_samples(values: Tensor) -> Tensor:
    """The samples of all ranks `[B · ranks, ...]`, without gradients, dealt out as a `DistributedSampler` does.

    That is, sample b of rank r is the one at b · ranks + r, as in the places of `Rng`.
    """
    ranks = num_ranks()
    if ranks == 1:
        return values.detach()
    gathered = [torch.empty_like(values) for _ in range(ranks)]
    dist.all_gather(gathered, values.detach().contiguous())
    return torch.stack(gathered, 1).flatten(0, 1)


def check_batch(samples: int) -> None:
    """Raise a ValueError if all ranks together have a single sample: there is nothing to tell it apart from."""
    if samples * num_ranks() < 2:
        raise ValueError(
            "a regulariser that keeps samples apart cannot train on a batch of one: raise the batch_size or, if this "
            "is what is left over at the end of an epoch, give the DataLoader drop_last=True"
        )


def num_ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _SumOverRanks(torch.autograd.Function):
    """An all-reduce whose backward is one too (torch.distributed.nn has it, and warns of its end)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient

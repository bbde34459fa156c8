"""Learning rate, weight decay and momentum as pure functions of the optimiser step, so that resuming replays nothing.

Steps count from zero. The official I-JEPA code advances its counter *before* the first step of learning rate and weight
decay, and after that of the momentum: the callers here add the one where it belongs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def linear(step: float, total: float, start: float, end: float) -> float:
    """From `start` at step 0 straight to `end` at `total`, and `end` from there on.

    >>> linear(5, 10, 0.996, 1.0)
    0.998
    """
    return start + min(step, total) / total * (end - start)


def cosine(step: float, total: float, start: float, end: float) -> float:
    """From `start` at step 0 along half a cosine to `end` at `total`, and `end` from there on.

    >>> round(cosine(5, 10, 0.04, 0.4), 6)
    0.22
    """
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(step, total) / total))


def warmup_cosine(step: float, total: float, warmup: float, start: float, peak: float, end: float) -> float:
    """Linear from `start` to `peak` over `warmup` steps, then along half a cosine to `end` at `total`.

    >>> [warmup_cosine(step, 30, 10, 0.0, 1.0, 0.0) for step in (0, 5, 10, 20, 30)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return linear(step, warmup, start, peak)
    return cosine(step - warmup, max(total - warmup, 1), peak, end)


def warmup_constant_cooldown(
    step: float, total: float, warmup: float, cooldown: float, start: float, peak: float, end: float
) -> float:
    """Linear from `start` to `peak` over `warmup` steps, constant, and linear to `end` over the last `cooldown` steps.

    >>> [warmup_constant_cooldown(step, 30, 10, 10, 0.0, 1.0, 0.0) for step in (0, 5, 10, 20, 25, 30)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return linear(step, warmup, start, peak)
    return linear(step - (total - cooldown), cooldown, peak, end) if cooldown and step > total - cooldown else peak


def tri_stage(step: float, total: float, warmup: float, hold: float, start: float, peak: float, end: float) -> float:
    """Linear from `start` to `peak` over `warmup` steps, constant for `hold` steps, exponential to `end` at `total`.

    >>> [round(tri_stage(step, 30, 10, 10, 0.0, 1.0, 0.01), 6) for step in (0, 5, 10, 20, 25, 30)]
    [0.0, 0.5, 1.0, 1.0, 0.1, 0.01]
    """
    if step < warmup:
        return linear(step, warmup, start, peak)
    past = max(0.0, step - warmup - hold) / max(total - warmup - hold, 1)
    return float(peak * (end / peak) ** min(past, 1.0)) if end else peak * (1 - min(past, 1.0))


class ScheduledOptions(LRScheduler):
    """Sets learning rate and weight decay of every parameter group from functions of the optimiser step.

    Its only state is the step, and loading it sets the values anew: a run resumed with another learning rate uses that
    one, where torch's schedulers go on with the checkpoint's.

    Args:
        optimizer: groups whose weight decay is zero keep it.
        lr: step to learning rate.
        weight_decay: step to weight decay.
        multipliers: of the learning rate of each group; 1 for all without.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr: Callable[[int], float],
        weight_decay: Callable[[int], float],
        multipliers: Sequence[float] | None = None,
    ) -> None:
        self.lr = lr
        self.multipliers = multipliers or [1.0] * len(optimizer.param_groups)
        self.weight_decay = weight_decay
        self.decayed = [group["weight_decay"] != 0 for group in optimizer.param_groups]
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """The learning rate of each group at the current step (also sets the weight decay)."""
        for group, decayed in zip(self.optimizer.param_groups, self.decayed, strict=True):
            group["weight_decay"] = self.weight_decay(self.last_epoch) if decayed else 0.0
        return [self.lr(self.last_epoch) * multiplier for multiplier in self.multipliers]

    def state_dict(self) -> dict[str, Any]:
        """The step alone: everything else follows from it."""
        return {"last_epoch": self.last_epoch, "_step_count": self._step_count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the step of a checkpoint and set the values that this run's schedule has there."""
        super().load_state_dict(state_dict)
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr

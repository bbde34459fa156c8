"""The teacher of a JEPA: an exponential moving average of the context encoder, and of what else a method gives it."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from jepa_lightning.schedules import linear


def students_and_teachers(module: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """The networks that a module's teachers follow, and the teachers: its `context_<name>` and `target_<name>`."""
    pairs = []
    for name, teacher in module.named_children():
        if name.startswith("target_"):
            student = getattr(module, name.replace("target_", "context_", 1))
            if student is not teacher:
                pairs.append((student, teacher))
    return pairs


class EMATargetEncoder(pl.Callback):
    """Moves every `target_<name>` towards its `context_<name>` after every optimiser step: ξ ← τ ξ + (1 − τ) θ.

    Every module of this package brings this callback along by itself; give the Trainer one to use another momentum.
    The momentum is a function of the optimiser step, so a resumed run needs no state of ours.

    Args:
        momentum: τ at the first step and at the end of the training, on a straight line between.
        stretch: the line is laid out for that many times the training's steps, and cut off at its end.

    Raises:
        ValueError: a momentum outside [0, 1].

    Source: I-JEPA (arXiv 2301.08243), section 3 and appendix A.1.
    """

    def __init__(self, momentum: tuple[float, float] = (0.996, 1.0), stretch: float = 1.0) -> None:
        if not all(0 <= value <= 1 for value in momentum):
            raise ValueError(f"momentum must lie in [0, 1] at start and end, got {tuple(momentum)}")
        self.momentum = momentum
        self.stretch = stretch
        self._last_step = 0
        self._total_steps = 1.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Refuse a half-precision teacher: with τ near one its updates would all round to nothing."""
        teachers = [teacher for _, teacher in students_and_teachers(pl_module)]
        dtypes = {p.dtype for teacher in teachers for p in teacher.parameters() if p.is_floating_point()}
        if not dtypes <= {torch.float32, torch.float64}:
            raise ValueError(
                f"the target encoder must be kept in float32, not {', '.join(map(str, dtypes))}: "
                "use precision 'bf16-mixed' or '16-mixed' instead of a 'true' half precision"
            )
        self._last_step = trainer.global_step
        self._total_steps = self.stretch * trainer.estimated_stepping_batches

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Move the teacher if this batch ended in an optimiser step (under gradient accumulation most do not)."""
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        momentum = linear(trainer.global_step - 1, self._total_steps, *self.momentum)
        for student, teacher in students_and_teachers(pl_module):
            torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1.0 - momentum)
            # Running statistics of a convolutional encoder are averages already.
            for mine, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
                mine.copy_(theirs)
        # A number would be copied to the device, which the host has to wait for; this is filled in there.
        pl_module.log("train/momentum", torch.full((), momentum, device=pl_module.device))

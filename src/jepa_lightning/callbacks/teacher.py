"""The teachers of a JEPA: exponential moving averages of its students."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from jepa_lightning.clock import clock, is_logged
from jepa_lightning.schedules import linear


def students_and_teachers(module: Any) -> list[tuple[nn.Module, nn.Module]]:
    """The networks that a module's teachers follow, and the teachers."""
    return [
        (module.get_submodule(each.student), module.get_submodule(each.teacher))
        for each in (module.teachers() if hasattr(module, "teachers") else ())
    ]


def relative_distance(pairs: Any) -> Tensor:
    """The distance between the weights of students and teachers, over the norm of the teachers'."""
    students = [parameter for student, _ in pairs for parameter in student.parameters()]
    teachers = [parameter for _, teacher in pairs for parameter in teacher.parameters()]
    differences = torch._foreach_sub(students, teachers)
    apart, norm = (torch.stack(torch._foreach_norm(tensors)).norm() for tensors in (differences, teachers))
    return apart / norm


class EMATargetEncoder(pl.Callback):
    """Moves every teacher towards its student after every training step: ξ ← τ ξ + (1 − τ) θ.

    Which networks are teachers, `JEPA.teachers` says, and with what momentum. Every module of this package that has one
    brings this callback along by itself; give the Trainer one to use another momentum for all of them. The momentum is
    a function of the training step, so a resumed run needs no state of ours.

    Args:
        momentum: τ at the first step and at the end of the training, on a straight line between; what the module says
            of each of its teachers without.
        stretch: the line is laid out for that many times the training's steps, and cut off at its end.

    Raises:
        ValueError: a momentum outside [0, 1], or a stretch without one.

    Source: I-JEPA (arXiv 2301.08243), section 3 and appendix A.1.
    """

    def __init__(self, momentum: tuple[float, float] | None = None, stretch: float = 1.0) -> None:
        if momentum is not None and not all(0 <= value <= 1 for value in momentum):
            raise ValueError(f"momentum must lie in [0, 1] at start and end, got {tuple(momentum)}")
        if momentum is None and stretch != 1.0:
            raise ValueError(f"stretch={stretch} stretches the line of a momentum: give one, or none of the two")
        self.momentum = momentum
        self.stretch = stretch
        self._last_step = 0
        # Of each teacher, its parameters, those of its student, and the buffers of both.
        self._pairs: list[tuple[list[Tensor], list[Tensor], list[tuple[Tensor, Tensor]]]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Refuse a half-precision teacher: with τ near one its updates would all round to nothing.

        Raises:
            ValueError: such a teacher, or one that is its student, or not like it; or no teacher at all.
        """
        if not students_and_teachers(pl_module):
            raise ValueError(f"EMATargetEncoder has nothing to move: {type(pl_module).__name__} names no teachers()")
        for (student, teacher), names in zip(students_and_teachers(pl_module), pl_module.teachers(), strict=True):
            shapes = [[value.shape for value in network.parameters()] for network in (student, teacher)]
            if student is teacher or shapes[0] != shapes[1]:
                raise ValueError(
                    f"the teacher {names.teacher} must be a network of its own with the parameters of {names.student}: "
                    "make it a copy"
                )
            dtypes = {value.dtype for value in teacher.parameters() if value.is_floating_point()}
            if not dtypes <= {torch.float32, torch.float64}:
                raise ValueError(
                    f"the target encoder must be kept in float32, not {', '.join(map(str, dtypes))}: "
                    "use precision 'bf16-mixed' or '16-mixed' instead of a 'true' half precision"
                )
        self._last_step = clock(trainer).step
        self._pairs = []  # looked up once, as it takes longer than to move small networks
        for student, teacher in students_and_teachers(pl_module):
            buffers = list(zip(teacher.buffers(), student.buffers(), strict=True))
            self._pairs.append((list(teacher.parameters()), list(student.parameters()), buffers))

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Move the teachers if this batch ended in an optimiser step (under gradient accumulation most do not)."""
        step, total = clock(trainer)
        if step == self._last_step:
            return
        self._last_step = step
        applied: dict[str, float] = {}
        for (slow, fast, buffers), names in zip(self._pairs, pl_module.teachers(), strict=True):
            if self.momentum is None:
                momentum = names.momentum(step - 1, total)
            else:
                momentum = linear(step - 1, self.stretch * total, *self.momentum)
            torch._foreach_lerp_(slow, fast, 1.0 - momentum)
            # Running statistics of a convolutional encoder are averages already.
            for mine, theirs in buffers:
                mine.copy_(theirs)
            applied[names.teacher] = momentum
        if not is_logged(trainer):
            return
        if len(set(applied.values())) == 1:
            applied = {"": next(iter(applied.values()))}
        for name, momentum in applied.items():
            # A number would be copied to the device, which the host has to wait for; this is filled in there.
            value = torch.full((), momentum, device=pl_module.device)
            pl_module.log(f"train/momentum/{name}" if name else "train/momentum", value)

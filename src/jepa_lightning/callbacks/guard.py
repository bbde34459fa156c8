"""What keeps a bad batch from spoiling a training: steps on gradients that cannot be right are not made."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

WINDOW = 100  # steps that the usual norm is the mean of, and that skipped ones are counted in
SETTLED = 20  # steps before which no norm is called usual


class BadStepsError(RuntimeError):
    """Too many steps had to be skipped."""


class GradientGuard(pl.Callback):
    """Skips the optimiser steps whose gradient is not finite or far larger than usual, and counts them.

    Nothing moves in such a step but the counters: neither the weights nor the optimiser's moments, where a single NaN
    would stay for good. Every module of this package brings this callback along by itself; give the Trainer one to set
    other limits. It logs `train/grad_norm`, before clipping, and `train/skipped_steps`.

    The usual norm is the geometric mean over the last 100 steps or so; the largest of 2,343 steps of
    `recipes/ijepa/shapes.yaml` was 2.3 times as large. Gradients are those of the whole batch, so all processes skip
    the same steps; under `16-mixed`, a gradient that is not finite is left to the loss scaler, for which it is an
    everyday matter.

    Args:
        spike: how many times larger than usual a norm may be, above 1.
        max_skipped: so many skipped steps among the last 100 end the training.

    Raises:
        ValueError: a limit out of its range.
    """

    def __init__(self, spike: float = 30.0, max_skipped: int = 10) -> None:
        if spike <= 1:
            raise ValueError(f"spike is how many times the usual norm a norm may be, above 1, got {spike}")
        if max_skipped < 1:
            raise ValueError(f"max_skipped must be at least 1, got {max_skipped}")
        self.spike = spike
        self.max_skipped = max_skipped
        self._log_norm = 0.0  # mean of the logarithms of the norms
        self._steps = 0  # that it is the mean of
        self._skipped: list[int] = []

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Take the gradients away, without which an optimiser does nothing, if they cannot be right.

        Raises:
            BadStepsError: too many of the last steps were skipped.
        """
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        total: Any = get_total_norm(gradients)
        norm = float(total.full_tensor() if hasattr(total, "full_tensor") else total)
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        usual = math.exp(self._log_norm)
        if not math.isfinite(norm) and not scaled:
            self._skip(trainer, optimizer, f"its gradient is not finite ({norm})")
        elif self._steps >= SETTLED and norm > self.spike * usual:
            self._skip(trainer, optimizer, f"its gradient has a norm of {norm:.3g}, where {usual:.3g} is usual")
        elif 0 < norm < math.inf:
            self._steps += 1
            self._log_norm += (math.log(norm) - self._log_norm) / min(self._steps, WINDOW)
            pl_module.log("train/grad_norm", norm)
        pl_module.log("train/skipped_steps", float(len(self._skipped)))

    def _skip(self, trainer: pl.Trainer, optimizer: Optimizer, why: str) -> None:
        step = trainer.global_step
        optimizer.zero_grad(set_to_none=True)
        self._skipped.append(step)
        lately = sum(step - skipped < WINDOW for skipped in self._skipped)
        message = f"optimiser step {step} was skipped: {why}"
        if lately > self.max_skipped:
            raise BadStepsError(
                f"{message}. So were {lately - 1} others of the last {WINDOW}, more than "
                f"max_skipped={self.max_skipped}; the weights are those of the last good step. Look at the data, lower "
                "the learning rate, or set GradientGuard's limits"
            )
        rank_zero_warn(message)

    def state_dict(self) -> dict[str, Any]:
        """The usual norm and the steps that were skipped."""
        return {"log_norm": self._log_norm, "steps": self._steps, "skipped": self._skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Those of the run that is resumed."""
        self._log_norm, self._steps = state_dict["log_norm"], state_dict["steps"]
        self._skipped = list(state_dict["skipped"])

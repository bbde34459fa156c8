"""What keeps a bad batch from spoiling a training: steps on gradients that cannot be right are not made."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from jepa_lightning.callbacks.memory import RememberingCallback
from jepa_lightning.clock import is_logged

WINDOW = 100  # steps that the usual norm is the mean of, and that skipped ones are counted in
SETTLED = 20  # steps before which no norm is called usual


class BadStepsError(RuntimeError):
    """Too many steps had to be skipped."""


class GradientGuard(RememberingCallback):
    """Skips the optimiser steps whose gradient is not finite and, on request, those far larger than usual; counts them.

    Neither the weights that are trained move in such a step nor the optimiser's moments and the running statistics of
    batch norms, where a single NaN would stay for good; teacher and schedules go on. Every module of this package
    brings this callback along by itself; give the Trainer one to set other limits. It logs `train/grad_norm`, before
    clipping, and `train/skipped_steps`.

    The usual norm is the geometric mean over the last 100 steps or so; the largest of 2,343 steps of
    `recipes/ijepa/shapes.yaml` was 2.3 times as large. But healthy runs of DMT-JEPA have spikes of 30 to 80 times the
    usual norm, which their optimisers bear; so a spike is skipped only if you say what is one. Gradients are those of
    the whole batch, so all processes skip the same steps; under `16-mixed`, a gradient that is not finite is left to
    the loss scaler, for which it is an everyday matter.

    With a fused optimiser, as the modules of this package have, no step waits for the decision: it is made and carried
    out on the device, and what was skipped is told when the Trainer logs (`log_every_n_steps`) and at the end of an
    epoch. Other optimisers are kept from their steps by the host, which reads the norm for that.

    Args:
        spike: how many times larger than usual a norm may be, above 1; any number of times without.
        max_skipped: so many skipped steps among the last 100 are borne; more end the training.

    Raises:
        ValueError: a limit out of its range.
    """

    def __init__(self, spike: float | None = None, max_skipped: int = 10) -> None:
        if spike is not None and spike <= 1:
            raise ValueError(f"spike is how many times the usual norm a norm may be, above 1, got {spike}")
        if max_skipped < 1:
            raise ValueError(f"max_skipped must be at least 1, got {max_skipped}")
        self.spike = spike
        self.max_skipped = max_skipped
        self.forget()

    def forget(self) -> None:
        """Be as new: no norm is usual, and no step was skipped."""
        # Of each optimiser, where a method has several:
        self._log_norm: list[Tensor] = []  # mean of the logarithms of the norms
        self._usual_steps: list[Tensor] = []  # that it is the mean of
        self._skipped = torch.zeros(())
        self._norms = torch.zeros(WINDOW)  # of the last steps, where they were skipped; 0 where not
        self._seen = self._told = 0
        self._statistics: list[Tensor] = []  # of batch norms
        self._before: list[Tensor] = []  # what they were before the step

    @property
    def skipped(self) -> int:
        """How many steps were skipped, of a resumed run those before too; the device is waited for."""
        return int(self._skipped)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look for batch norms."""
        norms = [part for part in pl_module.modules() if isinstance(part, _BatchNorm)]
        self._statistics, self._before = [buffer for norm in norms for buffer in norm.buffers()], []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember their statistics at the first batch of a step."""
        if batch_idx % trainer.accumulate_grad_batches == 0 or not self._before:
            self._before = [statistic.clone() for statistic in self._statistics]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Keep the optimiser from its step if the gradient cannot be right."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        total: Any = get_total_norm(gradients)
        norm: Tensor = (total.full_tensor() if hasattr(total, "full_tensor") else total).float()
        self._move_to(norm.device)
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        which = next(number for number, each in enumerate(trainer.optimizers) if each is optimizer)
        while len(self._log_norm) <= which:
            self._log_norm.append(torch.zeros_like(norm))
            self._usual_steps.append(torch.zeros_like(norm))
        usual_steps, log_norm = self._usual_steps[which], self._log_norm[which]
        finite = norm.isfinite()
        limit = math.inf if self.spike is None else self.spike
        spike = (usual_steps >= SETTLED) & (norm > limit * log_norm.exp())
        bad = (finite & spike) if scaled else (~finite | spike)
        good = finite & ~bad & (norm > 0)
        usual_steps += good
        change = (norm.log() - log_norm) / usual_steps.clamp(1, WINDOW)
        log_norm += torch.where(good, change, 0.0)
        self._skipped += bad
        self._norms[self._seen % WINDOW] = torch.where(bad, norm, 0.0)
        self._seen += 1
        if all(group.get("fused") for group in optimizer.param_groups) and not scaled:
            optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # with which a loss scaler skips steps
        elif bad:
            optimizer.zero_grad(set_to_none=True)
        for statistic, before in zip(self._statistics, self._before, strict=True):
            statistic.copy_(torch.where(bad | ~finite, before, statistic))
        if is_logged(trainer):
            several = f"/{which}" if len(trainer.optimizers) > 1 else ""
            pl_module.log(f"train/grad_norm{several}", norm)
            pl_module.log("train/skipped_steps", self._skipped)

    def on_train_batch_end(self, trainer: Any, pl_module: pl.LightningModule, *_: Any) -> None:
        """Tell of skipped steps where the Trainer logs.

        Raises:
            BadStepsError: too many of the last steps were skipped.
        """
        if trainer.log_every_n_steps and trainer.global_step % trainer.log_every_n_steps == 0:
            self._tell(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell of those since.

        Raises:
            BadStepsError: too many of the last steps were skipped.
        """
        self._tell(trainer)

    def _tell(self, trainer: pl.Trainer) -> None:
        new = self.skipped - self._told
        if not new:
            return
        self._told += new
        norms = self._norms.tolist()
        lately = [
            f"step {trainer.global_step - self._seen + step} ({norms[step % WINDOW]:.3g})"
            for step in range(max(0, self._seen - WINDOW), self._seen)
            if norms[step % WINDOW] != 0
        ]
        usual = " or ".join(f"{float(log_norm.exp()):.3g}" for log_norm in self._log_norm)
        spikes = "" if self.spike is None else f" or more than {self.spike:g} times the usual"
        message = (
            f"{new} optimiser step{'s were' if new > 1 else ' was'} skipped, for a gradient whose norm is not finite"
            f"{spikes} (usual: {usual}): {', '.join(lately[-new:])}"
        )
        if len(lately) > self.max_skipped:
            raise BadStepsError(
                f"{message}. Of the last {WINDOW} steps {len(lately)} were skipped, more than "
                f"max_skipped={self.max_skipped}; they have left the weights alone. Look at the data, lower the "
                "learning rate, or set GradientGuard's limits"
            )
        rank_zero_warn(message)

    def _move_to(self, device: torch.device) -> None:
        if self._norms.device != device:
            self._log_norm = [value.to(device) for value in self._log_norm]
            self._usual_steps = [value.to(device) for value in self._usual_steps]
            self._skipped, self._norms = self._skipped.to(device), self._norms.to(device)

    def state_dict(self) -> dict[str, Any]:
        """The usual norm and the steps that were skipped."""
        return {
            "log_norm": [float(value) for value in self._log_norm],
            "usual_steps": [int(value) for value in self._usual_steps],
            "skipped": self.skipped,
            "norms": self._norms.tolist(),
            "seen": self._seen,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Those of the run that is resumed."""
        log_norm, usual_steps = state_dict["log_norm"], state_dict["usual_steps"]
        if not isinstance(log_norm, list):  # of 0.1, which knew one optimiser
            log_norm, usual_steps = [log_norm], [usual_steps]
        self._log_norm = [torch.tensor(value) for value in log_norm]
        self._usual_steps = [torch.tensor(float(value)) for value in usual_steps]
        self._skipped = torch.tensor(float(state_dict["skipped"]))
        self._norms = torch.tensor(state_dict["norms"])
        self._seen, self._told = state_dict["seen"], state_dict["skipped"]

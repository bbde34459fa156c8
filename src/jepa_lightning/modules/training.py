"""What a training of any method is beside its method: optimiser, schedules, teachers' callback, sharding."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn

from jepa_lightning.callbacks.guard import GradientGuard
from jepa_lightning.callbacks.teacher import EMATargetEncoder
from jepa_lightning.checkpoints.plain import plain
from jepa_lightning.clock import clock
from jepa_lightning.draws import Rng
from jepa_lightning.errors import unknown_options
from jepa_lightning.modules.resumable import ResumableModule
from jepa_lightning.networks.sharding import recompute_activations, shard
from jepa_lightning.schedules import ScheduledOptions, cosine, warmup_cosine


class Teacher(NamedTuple):
    """A network that follows another, by the names that both have in the module.

    Attributes:
        student: what is followed.
        teacher: what follows, a network of its own: with a momentum of zero it is a copy of the student.
        momentum: from training step, counted from zero, and their total number to τ in ξ ← τ ξ + (1 − τ) θ.
    """

    student: str
    teacher: str
    momentum: Callable[[int, int], float]


class TrainingModule(ResumableModule):
    """The base of `JEPA`: how a method is trained, whatever it predicts.

    Args:
        lr: peak learning rate of AdamW.
        start_lr: learning rate at the start of the warm-up.
        final_lr: learning rate at the end.
        warmup: share of the training spent on the linear warm-up, in [0, 1).
        weight_decay: weight decay at the start and at the end, along half a cosine; biases and norms have none.
        betas: AdamW's, of the means of gradients and of their squares, in [0, 1).
        stretch: the schedules are laid out for that many times the training's steps and cut off at its end, which is
            what the official codes' `ipe_scale` does; 1 or more.
        weights: what this training starts from: a checkpoint of all networks, official or ours, or the checkpoint of
            each by its name, `{"context_encoder": path}`. Regularisers, and networks that are not named, start anew.
            Read when the Trainer starts and only then, so that a checkpoint of the run itself needs no other file.
        recompute_activations: keep of every block of context encoder and predictor its input only, and compute the rest
            again in the backward pass: a third more computation, for memory that no longer grows with the number of
            blocks.

    Raises:
        ValueError: a value out of its range.
        TypeError: an option that the method does not have; the message names the nearest that it has.
    """

    hparams: Any
    trainer: Any

    def __init__(
        self,
        lr: float = 1e-3,
        start_lr: float = 2e-4,
        final_lr: float = 1e-6,
        warmup: float = 0.1,
        weight_decay: tuple[float, float] = (0.04, 0.4),
        betas: tuple[float, float] = (0.9, 0.999),
        stretch: float = 1.0,
        weights: str | dict[str, str] | None = None,
        recompute_activations: bool = False,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            bases = [base for base in type(self).__mro__ if issubclass(base, TrainingModule)]
            known = {name for base in bases for name in inspect.signature(base).parameters}
            raise TypeError(unknown_options(type(self).__name__, list(unknown), known))
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup is the share of the training in [0, 1), got {warmup}")
        if not 1 <= stretch < math.inf:
            raise ValueError(f"schedules can be stretched, by 1 or more, but not shrunk: got stretch={stretch}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must lie in [0, 1), got {tuple(betas)}")
        rates = {"lr": (lr,), "start_lr": (start_lr,), "final_lr": (final_lr,), "weight_decay": weight_decay}
        for name, values in rates.items():
            if not all(0 <= value < math.inf for value in values):
                raise ValueError(f"{name} must not be negative, got {', '.join(map(str, values))}")
        self.save_hyperparameters()
        for name, value in self.hparams.items():
            with suppress(TypeError):  # what has no plain form is refused when a training starts
                self.hparams[name] = plain(value, name)
        self._hparams_initial = copy.deepcopy(self.hparams)
        # Not of `hparams`, where a method has no such options of its own.
        self.stretch, self.weights, self.recompute_activations = stretch, weights, recompute_activations
        self.betas = betas
        self._seed: int | None = None

    def teachers(self) -> list[Teacher]:
        """The networks that follow others; `EMATargetEncoder` moves them."""
        return []

    def rates(self) -> dict[str, float]:
        """What the learning rate of a network, by its name, is multiplied by; 0 freezes it: 1 for all others."""
        return {}

    def rng(self, batch_size: int, batch_idx: int) -> Rng:
        """The random numbers of a step: functions of seed, epoch, batch, and of the sample's place among all ranks'.

        Those of held-out data are the same in every epoch.
        """
        ranks = 1 if self._trainer is None else self._trainer.world_size
        seed = torch.initial_seed()
        if ranks > 1:  # processes that nobody has seeded alike have to agree
            if self._seed is None:
                self._seed = self.trainer.strategy.broadcast(seed)
            seed = self._seed
        epoch = self.current_epoch if self.training else -1
        return Rng(seed, batch_size, epoch, batch_idx, self.global_rank, ranks, self.device)

    def train(self, mode: bool = True) -> TrainingModule:
        """Put all but teachers and frozen networks into training mode: a teacher with dropout would aim at noise."""
        super().train(mode)
        frozen = [name for name, rate in self.rates().items() if rate == 0]
        for name in [teacher.teacher for teacher in self.teachers()] + frozen:
            self.get_submodule(name).eval()
        return self

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with step-wise warm-up cosine; tensors of less than two dimensions are not decayed."""
        hparams, total = self.hparams, clock(self.trainer).total
        clips = getattr(self.trainer, "gradient_clip_val", None)
        groups = self.parameter_groups(hparams.weight_decay[0])
        multipliers = [group.pop("multiplier") for group in groups]
        optimizer = torch.optim.AdamW(
            groups,
            lr=hparams.lr,
            betas=(self.betas[0], self.betas[1]),
            # One kernel for all tensors. With a gradient scaler it would take over the unscaling, too, which comes too
            # late for gradients to be clipped; Lightning refuses to clip them in any mixed precision.
            fused=self.device.type in ("cpu", "cuda")
            and self.trainer.precision != "16-mixed"
            and not (self.trainer.precision == "bf16-mixed" and clips),
        )
        # The official counter is advanced before the step that uses it: the first step is number one.
        scheduler = ScheduledOptions(
            optimizer,
            lr=lambda step: self.learning_rate(step + 1, total),
            weight_decay=lambda step: cosine(step + 1, self.stretch * total, *hparams.weight_decay),
            multipliers=multipliers,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """The trained parameters by the multiplier of their rate, those that are decayed before those that are not."""
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((self._multiplier(name), parameter.ndim > 1), []).append(parameter)
        return [
            {"params": parameters, "weight_decay": weight_decay if decayed else 0.0, "multiplier": multiplier}
            for (multiplier, decayed), parameters in groups.items()
            if parameters or multiplier == 1.0
        ]

    def _multiplier(self, parameter: str) -> float:
        """That of the innermost network with a rate of its own."""
        found = [name for name in self.rates() if parameter.startswith(f"{name}.")]
        return self.rates()[max(found, key=len)] if found else 1.0

    def learning_rate(self, step: int, total: int) -> float:
        """The learning rate of a step, counted from one, of a training of `total` steps."""
        hparams = self.hparams
        warmup, end = hparams.warmup * total, self.stretch * total
        return warmup_cosine(step, end, warmup, hparams.start_lr, hparams.lr, hparams.final_lr)

    def configure_callbacks(self) -> list[pl.Callback]:
        """The teachers' callback, if there is a teacher, and the guard, unless the Trainer was given its own."""
        callbacks: list[pl.Callback] = [GradientGuard()]
        if self.teachers():
            callbacks.append(EMATargetEncoder())
        given = {type(callback) for callback in self.trainer.callbacks}
        return [callback for callback in callbacks if not any(issubclass(kind, type(callback)) for kind in given)]

    def configure_model(self) -> None:
        """Freeze networks; shard them where the strategy is `ModelParallelStrategy` (FSDP2), teachers as students.

        Raises:
            ValueError: a rate for a network that there is not, or a strategy that is to split single layers too.
        """
        for name, rate in self.rates().items():
            try:
                network = self.get_submodule(name)
            except AttributeError as error:
                names = ", ".join(child for child, _ in self.named_children())
                raise ValueError(f"rates() names {name!r}, but the networks of this module are {names}") from error
            if not 0 <= rate < math.inf:
                raise ValueError(f"the rate of {name} must not be negative, got {rate}")
            if rate == 0:
                network.requires_grad_(False).eval()
        for each in self.teachers():
            self.get_submodule(each.teacher).eval()
        if self.recompute_activations:
            for name in ("context_encoder", "predictor"):
                if hasattr(self, name):
                    recompute_activations(self.get_submodule(name))
        if self.device_mesh is None:
            return
        if self.device_mesh["tensor_parallel"].size() > 1:
            raise ValueError(
                f"the networks are sharded, but not split within layers: give ModelParallelStrategy "
                f"tensor_parallel_size=1, not {self.device_mesh['tensor_parallel'].size()}"
            )
        shard(self, self.device_mesh["data_parallel"])

    def _start(self) -> None:
        self._seed = None  # that of an earlier run
        super()._start()

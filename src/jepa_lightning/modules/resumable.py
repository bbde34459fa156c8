"""What Lightning's checkpoints leave out of a training that is to go on as if it had not been interrupted."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.tensor import DTensor


class ResumableModule(pl.LightningModule):
    """Has random states and accumulated gradients in its checkpoints, beside what Lightning keeps."""

    def __init__(self) -> None:
        super().__init__()
        self._generators: dict[str, Tensor] = {}  # states to go on with
        self._gradients: dict[str, Tensor] = {}  # accumulated ones to go on with

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the states of torch's default generators, which dropout draws from, and accumulated gradients.

        The states are those of the first process, and of all where `seed_everything` has seeded them alike. Gradients
        are there where an optimiser step is not complete yet (`accumulate_grad_batches`), as means over processes; not
        those of sharded weights.
        """
        states = {"cpu": torch.get_rng_state()}
        if self.device.type != "cpu":
            states[self.device.type] = torch.get_device_module(self.device).get_rng_state()
        checkpoint["generators"] = states
        if self._trainer is None or self._trainer.state.fn != TrainerFn.FITTING:
            return
        batches = self._trainer.fit_loop.epoch_loop.batch_progress
        if batches.current.ready % self._trainer.accumulate_grad_batches and not batches.is_last_batch:
            checkpoint["gradients"] = {
                name: self._trainer.strategy.reduce(parameter.grad.clone(), reduce_op="mean")
                for name, parameter in self.named_parameters()
                if parameter.grad is not None and not isinstance(parameter.grad, DTensor)
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the states of the generators, and the gradients, of a training that is resumed."""
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self._generators = checkpoint.get("generators", {})
            self._gradients = checkpoint.get("gradients", {})

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Go on with them: no sooner, as the making of a loader draws from the generators, too."""
        if "cpu" in self._generators:
            torch.set_rng_state(self._generators["cpu"])
        if self.device.type in self._generators and self.device.type != "cpu":
            torch.get_device_module(self.device).set_rng_state(self._generators[self.device.type])
        for name, gradient in self._gradients.items():
            parameter = self.get_parameter(name)
            parameter.grad = gradient.to(parameter.device)
        self._generators, self._gradients = {}, {}

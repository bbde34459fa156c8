"""What Lightning's checkpoints leave out of a training that is to go on as if it had not been interrupted."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.tensor import DTensor

from jepa_lightning.checkpoints.plain import plain
from jepa_lightning.checkpoints.reading import uncompiled


class ResumableModule(pl.LightningModule):
    """Has random states and accumulated gradients in its checkpoints, beside what Lightning keeps.

    Gradients of batches that count by weights are accumulated by these: see `weigh`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._generators: dict[str, Tensor] = {}  # states to go on with
        self._gradients: dict[str, Tensor] = {}  # accumulated ones to go on with
        self._weight = torch.zeros(())  # of the batches that they are accumulated from

    def weigh(self, loss: Tensor, weight: Tensor, batch_idx: int) -> Tensor:
        """Let a batch count by its weight among those whose gradients are accumulated.

        A Trainer that accumulates takes the mean of its batches' losses, and does not know how the batches to come will
        count. So what is accumulated so far, the weighted mean of the batches before, is scaled down by this batch's
        share of the weight, and its loss is scaled to that share: it stays the weighted mean.

        Args:
            loss: of the batch, a mean by weights.
            weight: what the batch's weights add up to, over all processes.
            batch_idx: number of the batch in its epoch.

        Returns:
            The loss to be minimised.
        """
        batches = self.trainer.accumulate_grad_batches
        later = batch_idx % batches > 0
        self._weight = weight + (self._weight.to(weight.device) if later else 0.0)
        share = weight / torch.where(self._weight > 0, self._weight, 1.0)
        for parameter in self.parameters() if later else ():
            if parameter.grad is not None:
                parameter.grad.mul_(1.0 - share)
        return loss * share * batches

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the states of torch's default generators, which dropout draws from, and accumulated gradients.

        The states are those of the first process, and of all where `seed_everything` has seeded them alike. Gradients
        are there where an optimiser step is not complete yet (`accumulate_grad_batches`), as means over processes; not
        those of sharded weights.

        All of the checkpoint is made plain, and networks that are compiled have the names of those that are not.
        """
        checkpoint["state_dict"] = {uncompiled(name): value for name, value in checkpoint["state_dict"].items()}
        for name in checkpoint.keys() - {"state_dict"}:
            checkpoint[name] = plain(checkpoint[name], name)
        states = {"cpu": torch.get_rng_state()}
        if self.device.type != "cpu":
            states[self.device.type] = torch.get_device_module(self.device).get_rng_state()
        checkpoint["generators"] = states
        if self._trainer is None or self._trainer.state.fn != TrainerFn.FITTING:
            return
        batches = self._trainer.fit_loop.epoch_loop.batch_progress
        if batches.current.ready % self._trainer.accumulate_grad_batches and not batches.is_last_batch:
            checkpoint["gradients_weight"] = float(self._weight)
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
            self._weight = torch.tensor(checkpoint.get("gradients_weight", 0.0))

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

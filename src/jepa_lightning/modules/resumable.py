"""Where a training starts from, and what its checkpoints hold, so that it goes on as if it had not been interrupted."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor

from jepa_lightning.checkpoints import start_from
from jepa_lightning.checkpoints.plain import plain
from jepa_lightning.checkpoints.reading import uncompiled
from jepa_lightning.errors import differences


class ResumableModule(pl.LightningModule):
    """Starts from given weights, and has random states and accumulated gradients in its checkpoints.

    Gradients of batches that count by weights are accumulated by these: see `weigh`.
    """

    trainer: Any
    weights: Any = None  # what the training starts from

    def __init__(self) -> None:
        super().__init__()
        self._generators: dict[str, Tensor] = {}  # states to go on with
        self._gradients: dict[str, Tensor] = {}  # accumulated ones to go on with
        self._weight = torch.zeros(())  # of the batches that they are accumulated from
        self._has_weights = False  # whether others than the first ones: started from, trained, or loaded

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

        All of the checkpoint is made plain, and networks that are compiled have the names of those that are not. The
        class is there too, by which `load_planner` and `load_agent` find it.
        """
        checkpoint["class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"
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

    def on_fit_start(self) -> None:
        """Start from `weights`, unless a checkpoint of this run is being resumed.

        Raises:
            TypeError: options or states that the run's checkpoints could not hold.
        """
        # Lightning warns of modules in evaluation mode; of a teacher that is how it should be.
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
        self._has_weights = False
        self._start()
        for callback in self.trainer.callbacks:
            plain(callback.state_dict(), f"the state of {type(callback).__name__}")
        for owner in (self, self.trainer.datamodule):
            if owner is not None:
                plain(dict(owner.hparams), type(owner).__name__)

    def on_validation_start(self) -> None:
        """Start from `weights`, where the Trainer does nothing but validate."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self._start()

    def on_test_start(self) -> None:
        """Start from `weights`."""
        self._start()

    def on_predict_start(self) -> None:
        """Start from `weights`."""
        self._start()

    def _start(self) -> None:
        if self.weights is None or self._has_weights or self.trainer.ckpt_path is not None:
            return
        self._has_weights = True
        if anew := start_from(self, self.weights):
            rank_zero_warn(f"{self.weights} holds no weights for {', '.join(anew)}: these start anew")

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        """Load the weights of a checkpoint.

        Raises:
            ValueError: weights of another method, or of networks of other sizes.
        """
        self._has_weights = True
        own = {uncompiled(name): name for name in self.state_dict()}  # whichever networks are compiled, here and there
        state_dict = {own.get(uncompiled(name), name): value for name, value in state_dict.items()}
        try:
            return super().load_state_dict(state_dict, *args, **options)
        except RuntimeError as error:
            raise ValueError(
                f"these are not the weights of this {type(self).__name__}: "
                f"{differences(self.state_dict(), state_dict)}. Give it the options that they were trained with "
                "(config.yaml in the folder of their run), or start a new training from the networks that both have by "
                "--model.weights"
            ) from error

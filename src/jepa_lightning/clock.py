"""How far a training has come: the one clock that everything scheduled reads."""

from __future__ import annotations

import math
from typing import Any, NamedTuple


class Clock(NamedTuple):
    """Training steps.

    Attributes:
        step: how many have been made.
        total: how many there will be, at least 1.
    """

    step: int
    total: int

    @property
    def progress(self) -> float:
        """The share of the training that is over, in [0, 1]."""
        return min(1.0, self.step / self.total)


def clock(trainer: Any) -> Clock:
    """The training steps made, and those of the whole training.

    A training step ends with an optimiser step: under gradient accumulation it has several batches. A module that
    optimises by hand makes one with every batch, whatever the number of its optimisers, each of which `max_steps` and
    the Trainer's `global_step` count for themselves.

    Args:
        trainer: a Trainer that fits.

    Raises:
        ValueError: a training without an end, to which nothing can be scheduled; or one whose end is in `max_steps` of
            several optimisers that are not made yet.
    """
    module = trainer.lightning_module
    by_hand = module is not None and not module.automatic_optimization
    optimizers = max(1, len(trainer.optimizers)) if by_hand else 1
    step = trainer.fit_loop.epoch_loop.batch_progress.total.processed if by_hand else trainer.global_step
    total = math.inf
    if trainer.max_epochs != -1:
        if trainer.train_dataloader is None:
            trainer.fit_loop.setup_data()
        steps_an_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
        total = math.inf if math.isinf(steps_an_epoch) else math.ceil(steps_an_epoch) * max(trainer.max_epochs, 1)
    if trainer.max_steps != -1:
        if by_hand and not trainer.optimizers:
            raise ValueError(
                "max_steps counts the steps of each optimiser, and these are not made yet: read the clock in every "
                "step and not in configure_optimizers, or give the Trainer max_epochs"
            )
        total = min(total, math.ceil(trainer.max_steps / optimizers))
    if math.isinf(total):
        unknown = trainer.max_epochs != -1  # then it is the number of batches
        raise ValueError(
            "the schedules need an end: give the Trainer max_steps, as the length of the training data is not known"
            if unknown
            else "the schedules need an end: give the Trainer max_epochs or max_steps"
        )
    return Clock(step, max(1, int(total)))  # of a training without a batch there is nothing to schedule


def batches_done(trainer: Any) -> int:
    """How many batches of its epoch a Trainer has trained on, of a resumed epoch those before the checkpoint too."""
    done: int = trainer.fit_loop.batch_idx + 1
    return done


def is_logged(trainer: Any) -> bool:
    """Whether somebody reads what this step logs: a logger does every `log_every_n_steps`, others as an epoch ends.

    To log a number takes a tenth of a millisecond or two, which is a large share of the steps of small networks.
    """
    due: bool = trainer._logger_connector.should_update_logs  # no public name says the same under accumulation
    return due or trainer.is_last_batch

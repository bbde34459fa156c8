"""How many threads a training on a processor takes."""

from __future__ import annotations

import statistics
import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info

from jepa_lightning.callbacks.memory import RememberingCallback

FIRST = 3  # steps that are not timed: they build what later ones find
TRIED = 5  # steps that a number of threads is tried for
GAIN = 1.2  # how many times faster twice the threads must be
WATCHED = 50  # steps whose mean tells whether the machine has become busier or quieter
CHANGE = 1.5  # by how many times


class Threads(RememberingCallback):
    """Chooses how many threads the steps of a small model take on a processor, by trying.

    Threads that wait for one another cost a small model more than they gain, and on a machine with other work many
    times more. So the first steps of a training are made with one thread, with two, and so on, a few each; twice as
    many are kept as long as they make a step 1.2 times as fast. When 50 steps take 1.5 times as long as they did, or
    as short, the machine has other work to do, or no longer, and the numbers are tried again.

    Another number of threads rounds differently. The number is kept in the checkpoint, so that a resumed training goes
    on as it was; two trainings that must be alike to the last digit need the same number from the start, which
    `torch.set_num_threads` without this callback, or `jepa fit --threads 1`, sets. Nothing is tried where several
    processes train together, or on another device. Workers of a `DataLoader` have one thread each, by torch's own rule.
    """

    def forget(self) -> None:
        """Be as new: nothing is chosen."""
        self.number: int | None = None
        self._seconds: dict[int, float] = {}  # of a step, by the number of threads
        self._times: list[float] = []  # of the last steps
        self._skip = FIRST
        self._told: int | None = None
        self._active = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with one thread, or with the number that a checkpoint holds."""
        self._before = torch.get_num_threads()
        self._active = trainer.strategy.root_device.type == "cpu" and trainer.world_size == 1 and self._before > 1
        if self._active:
            torch.set_num_threads(min(self.number or 1, self._before))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Look at the clock."""
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note how long the step took; after some of them, go on to another number, choose one, or begin again."""
        if not self._active:
            return
        self._skip -= 1
        if self._skip >= 0:
            return
        self._times.append(time.perf_counter() - self._since)
        if self.number is None:
            self._try()
        elif len(self._times) == WATCHED:
            self._watch()

    def _try(self) -> None:
        """If the present number of threads has been tried enough, take twice as many, or choose."""
        number, fewer = torch.get_num_threads(), max(self._seconds, default=None)
        # Too slow is known before the last step: with other work on the machine one may take a hundred times as long.
        worse = fewer is not None and GAIN * sum(self._times) > TRIED * self._seconds[fewer]
        if not worse and len(self._times) < TRIED:
            return
        self._seconds[number], self._times = statistics.mean(self._times), []
        if not worse and number < self._before:
            self._set(min(2 * number, self._before))
            return
        self.number = chosen = fewer if fewer is not None and worse else number
        self._set(chosen)
        if self.number != self._told:
            self._told = self.number
            tried = ", ".join(f"{seconds:.3g} s with {number}" for number, seconds in self._seconds.items())
            rank_zero_info(f"Threads: {self.number} of {self._before}, as a step takes {tried} (--threads chooses)")

    def _watch(self) -> None:
        """Begin again if the steps no longer take what they took."""
        median, self._times = statistics.median(self._times), []
        usual = self._seconds.setdefault(torch.get_num_threads(), median)
        if not 1 / CHANGE < median / usual < CHANGE:
            self.number, self._seconds = None, {}
            self._set(1)

    def _set(self, number: int) -> None:
        torch.set_num_threads(number)
        self._skip = 1  # a new thread has to be made

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the process the number that it had."""
        if self._active:
            torch.set_num_threads(self._before)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """The same of a training that fails."""
        self.on_fit_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The number."""
        return {"number": self.number}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with that of the training that is resumed."""
        self.number = state_dict["number"]

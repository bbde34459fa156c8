"""How far a training is: a bar on a terminal, and a line every half minute elsewhere."""

from __future__ import annotations

import math
import shutil
import sys
import time
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar, Timer
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from jepa_lightning.callbacks.collapse import CollapseMonitor
from jepa_lightning.callbacks.guard import GradientGuard
from jepa_lightning.callbacks.probes import KNNProbe, Probe
from jepa_lightning.clock import clock

REFRESH = 0.5  # seconds between two drawings of a bar


class Progress(ProgressBar):
    """Says how far the whole training is, in one line: step, share, time left, loss, probe, alarm.

    On a terminal the line follows a bar, and is drawn twice a second. Elsewhere, as in the log of a cluster, it is
    printed at the start, every `every_seconds` and at the end. The loss is that of the last step. Of several probes the
    first kNN probe is shown, or else the first probe. What `CollapseMonitor` and `GradientGuard` have to tell is
    added. Values are read when a line is due and at the end of an epoch, so other steps do not wait for the device.

    Validations, tests and predictions say which batch they are at.

    Args:
        every_seconds: time between two lines where there is no terminal, above 0.

    Raises:
        ValueError: no time, or less.
    """

    def __init__(self, every_seconds: float = 30.0) -> None:
        super().__init__()
        if not every_seconds > 0:
            raise ValueError(f"every_seconds must be positive, got {every_seconds}")
        self.every_seconds = every_seconds
        self._enabled = True
        self._bar: Tqdm | None = None
        self._due = math.inf  # when the next line is

    def disable(self) -> None:
        """Say nothing, as on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Go on speaking."""
        self._enabled = True

    def print(self, *args: Any, **options: Any) -> None:
        """Print above the bar, if there is one."""
        if self._enabled:
            Tqdm.write(options.get("sep", " ").join(map(str, args)), file=sys.stdout)

    # --- Training ----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what is trained, and how many steps there are."""
        self._start, self._values = time.monotonic(), ""
        self._first, total = steps(trainer)
        sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in pl_module.named_children()}
        parts = ", ".join(f"{name} {count(size)}" for name, size in sizes.items() if size)
        length = "until it is stopped" if total is None else f"for {total:,} steps"
        resumed = f", from step {self._first:,} on" if self._first else ""
        where = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
        where += trainer.strategy.root_device.type
        self._open(
            f"training {type(pl_module).__name__} ({parts} parameters) on {where} {length}{resumed}", total, self._first
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say where the training is, if a line is due; read the values of the last step of an epoch too."""
        due = time.monotonic() >= self._due
        if self._enabled and (due or trainer.is_last_batch or trainer.global_step == trainer.max_steps):
            self._values = readings(trainer)
            if due:
                self._say(self._line(trainer), steps(trainer)[0])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say where it ended."""
        self._close(self._line(trainer), steps(trainer)[0])

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave what is printed next a line of its own."""
        self._close(None)

    def _line(self, trainer: pl.Trainer) -> str:
        step, total = steps(trainer)
        passed, made = time.monotonic() - self._start, step - self._first
        of_all = f"step {step:,}" if total is None else f"step {step:,} of {total:,} ({100 * step // total} %)"
        left = _time_left(trainer)
        if total is not None and made > 0:
            left = min(passed / made * (total - step), math.inf if left is None else left)
        return of_all + (f", {duration(left)} left" if left is not None and step != total else "") + self._values

    # --- Held-out data -----------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open a bar of its own if there is no training around it."""
        self._evaluate(trainer, "validating", trainer.num_val_batches)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Say where a validation is."""
        self._count("validating", trainer.state.fn != "fit")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read what it has found."""
        if trainer.state.fn != "fit":
            self._close(None)
        elif self._enabled and not trainer.sanity_checking:
            self._values = readings(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same of a test."""
        self._evaluate(trainer, "testing", trainer.num_test_batches)

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """The same of a test."""
        self._count("testing", alone=True)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same of a test."""
        self._close(None)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same of a prediction."""
        self._evaluate(trainer, "predicting", trainer.num_predict_batches)

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """The same of a prediction."""
        self._count("predicting", alone=True)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same of a prediction."""
        self._close(None)

    def _evaluate(self, trainer: pl.Trainer, what: str, batches: Any) -> None:
        total = sum(batches) if isinstance(batches, list) else batches
        self._batch, self._batches = 0, None if math.isinf(total) else int(total)
        if trainer.state.fn != "fit":
            self._open(f"{what}{'' if self._batches is None else f' {self._batches:,} batches'}", self._batches, 0)

    def _count(self, what: str, alone: bool) -> None:
        self._batch += 1
        if time.monotonic() >= self._due:
            of_all = "" if self._batches is None else f" of {self._batches:,}"
            self._say(f"{what}: batch {self._batch:,}{of_all}", self._batch if alone else None)

    # --- Saying it ---------------------------------------------------------------------------------------------------

    def _open(self, text: str, total: int | None, first: int) -> None:
        self._due = time.monotonic() + (REFRESH if sys.stdout.isatty() else self.every_seconds)
        if not self._enabled:
            return
        print(text, flush=True)
        if sys.stdout.isatty():
            form = "{desc}" if total is None else "{bar:20} {desc}"
            # A terminal that does not tell its size, as of a container, would hide the bar.
            columns, rows = shutil.get_terminal_size()
            self._bar = Tqdm(
                total=total, initial=first, file=sys.stdout, bar_format=form, ncols=columns - 1, nrows=rows
            )

    def _say(self, text: str, place: int | None = None) -> None:
        if not self._enabled:
            return
        if self._bar is None:
            self._due = time.monotonic() + self.every_seconds
            print(text, flush=True)
        else:
            self._due = time.monotonic() + REFRESH
            self._bar.n = self._bar.n if place is None else place
            self._bar.ncols = shutil.get_terminal_size().columns - 1
            self._bar.set_description_str(text)  # and draw

    def _close(self, text: str | None, place: int | None = None) -> None:
        if text is not None:
            self._say(text, place)
        if self._bar is not None:
            self._bar.close()
        self._bar, self._due = None, math.inf


def readings(trainer: pl.Trainer) -> str:
    """What a training's last step and validation gave, from loss to alarm; the device is waited for."""
    metrics, callbacks = trainer.callback_metrics, trainer.callbacks  # type: ignore[attr-defined]
    parts = [f"loss {float(metrics['train/loss']):.3g}"] if "train/loss" in metrics else []
    probes = [each for each in callbacks if isinstance(each, Probe) and each.source != "observation"]
    for probe in sorted(probes, key=lambda probe: not isinstance(probe, KNNProbe)):
        name = "kNN" if probe.name == "knn" else probe.name
        if f"probe/{probe.name}/accuracy" in metrics:
            parts.append(f"{name} {100 * float(metrics[f'probe/{probe.name}/accuracy']):.1f} %")
            break
        if f"probe/{probe.name}/r2" in metrics:
            parts.append(f"{name} R² {float(metrics[f'probe/{probe.name}/r2']):.2f}")
            break
    if any(isinstance(each, CollapseMonitor) and each.alarm is not None for each in callbacks):
        parts.append("ALARM: collapsed")
    if skipped := sum(each.skipped for each in callbacks if isinstance(each, GradientGuard)):
        parts.append(f"{skipped} step{'s' if skipped > 1 else ''} skipped")
    return "".join(f", {part}" for part in parts)


def duration(seconds: float) -> str:
    """A time in words, by its two largest units.

    >>> duration(130), duration(59.6), duration(4000), duration(200000)
    ('2 min 10 s', '1 min', '1 h 7 min', '2 d 8 h')
    """
    minutes = round(seconds / 60)
    if round(seconds) < 3600:
        large, small, names = *divmod(round(seconds), 60), ("min", "s")
    elif minutes < 1440:
        large, small, names = *divmod(minutes, 60), ("h", "min")
    else:
        large, small, names = *divmod(round(seconds / 3600), 24), ("d", "h")
    return " ".join(f"{number} {name}" for number, name in zip((large, small), names, strict=True) if number) or "0 s"


def count(number: int) -> str:
    """A number of parameters in words.

    >>> count(950), count(95_100), count(632_000_000)
    ('950', '95 K', '632.0 M')
    """
    if number < 1000:
        return str(number)
    return f"{number / 1e3:.0f} K" if number < 1e6 else f"{number / 1e6:.1f} M"


def steps(trainer: Any) -> tuple[int, int | None]:
    """Those made and those of the whole training, None of a training without an end."""
    try:
        return clock(trainer)
    except ValueError:
        return trainer.global_step, None


def _time_left(trainer: pl.Trainer) -> float | None:
    """Until `max_time` is over."""
    timers = [each for each in trainer.callbacks if isinstance(each, Timer)]  # type: ignore[attr-defined]
    left = [each.time_remaining() for each in timers]
    seconds = [value.total_seconds() if isinstance(value, timedelta) else value for value in left if value is not None]
    return min(seconds, default=None)

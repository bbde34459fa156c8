"""What a training has come to, in words, and the commands that go on from it."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from jepa_lightning.callbacks import CollapseMonitor, Episodes, GradientGuard, KNNProbe, Probe
from jepa_lightning.callbacks.progress import duration, steps
from jepa_lightning.cli.names import shown
from jepa_lightning.modules import JEPA


class SavedConfig(SaveConfigCallback):
    """Saves the configuration of a run, and remembers where, and when and at which step its training began."""

    path: str | None = None
    began: float | None = None
    first = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Save."""
        super().setup(trainer, pl_module, stage)
        self.path = os.path.join(trainer.log_dir or ".", self.config_filename)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember."""
        self.began, self.first = time.monotonic(), steps(trainer)[0]


def summary(trainer: Any, error: BaseException | None = None) -> str | None:
    """What a training has come to, a few lines; None of one without a step, or of a `fast_dev_run`.

    Args:
        trainer: one whose `fit` is over, with a `SavedConfig` among its callbacks.
        error: what ended it early.
    """
    saved = next((each for each in trainer.callbacks if isinstance(each, SavedConfig)), None)
    if saved is None or saved.began is None or (error is not None and steps(trainer)[0] == saved.first):
        return None
    lines = [_length(trainer, saved, error), *_read(trainer), _health(trainer)]
    config = None if saved.path is None else shown(saved.path)
    checkpoint = _checkpoint(trainer)
    lines.append(f"Checkpoint: {checkpoint}" if checkpoint else "No checkpoint was written.")
    if config:
        lines.append(f"Configuration: {config}")
        lines += _next(trainer, config, checkpoint, error is not None)
    return "\n".join(lines)


def _length(trainer: Any, saved: SavedConfig, error: BaseException | None) -> str:
    assert saved.began is not None
    step, total = steps(trainer)
    made = step - saved.first
    number = f"{made:,} step{'' if made == 1 else 's'}"
    if saved.first or (total is not None and step < total):
        number += f", up to step {step:,}{'' if total is None else f' of {total:,}'},"
    taken = duration(time.monotonic() - saved.began)
    name = type(trainer.lightning_module).__name__
    if error is None:
        return f"Trained {name} for {number} in {taken}."
    how = "was interrupted" if isinstance(error, SystemExit | KeyboardInterrupt) else f"ended by {type(error).__name__}"
    return f"The training of {name} {how} after {number} in {taken}."


def _read(trainer: Any) -> list[str]:
    """What the plans reach, and the probes read, the first kNN probe first; without any, what else tells of success."""
    metrics = trainer.callback_metrics
    if planned := [name for name in metrics if name.startswith("plan/") and name.endswith("/success")]:
        return [f"Its plans reach {100 * float(metrics[n]):.0f} % of the goals in {n.split('/')[1]}." for n in planned]
    probes = [each for each in trainer.callbacks if isinstance(each, Probe)]
    probes.sort(key=lambda probe: (probe.source == "observation", not isinstance(probe, KNNProbe)))
    found = [(probe, *reading) for probe in probes if (reading := _reading(probe, metrics))]
    if found:
        probe, value, what = found[0]
        name = "kNN" if probe.name == "knn" else probe.name
        baselines: dict[str, float] = getattr(probe, "readings", {})
        words = {"untrained": "untrained", "raw": "raw input"}
        beside = ", ".join(f"{words[key]} {100 * baselines[key]:.1f} %" for key in words if key in baselines)
        lines = [f"The {name} probe {what.format(f'{100 * value:.1f} %')}{f'; {beside}' if beside else ''}."]
        if others := ", ".join(f"{each.name} {100 * value:.1f} %" for each, value, _ in found[1:]):
            lines.append(f"The other probe{'s' if len(found) > 2 else ''}: {others}.")
        return lines
    if probes:
        return ["No probe was read, as there was no validation."]
    if not isinstance(trainer.lightning_module, JEPA):
        held_out = [f"{name.removeprefix('val/')} {float(metrics[name]):.3g}" for name in metrics if name[:4] == "val/"]
        return [f"On held-out data: {', '.join(held_out)}."] if held_out else []
    loss = f"The loss is {float(metrics['train/loss']):.3g}" if "train/loss" in metrics else "There is no loss yet"
    constant = metrics.get("train/constant_loss")
    beside = "" if constant is None else f", that of a constant prediction {float(constant):.3g}"
    return [
        f"{loss}{beside}. No probe says what the features are good for: "
        "if the data have labels, add --trainer.callbacks+=KNNProbe."
    ]


def _reading(probe: Probe, metrics: dict[str, Any]) -> tuple[float, str] | None:
    """The share that a probe has read, and what it is one of."""
    tag = f"probe/{probe.name}"
    if f"{tag}/r2" in metrics:
        return float(metrics[f"{tag}/r2"]), "explains {} of the variance of the held-out labels"
    if f"{tag}/accuracy" in metrics:
        patches = f"{tag}/miou" in metrics
        what = "patches of the held-out images" if patches else "held-out samples"
        return float(metrics[f"{tag}/accuracy"]), f"names {{}} of the {what}"
    return None


def _health(trainer: Any) -> str:
    """Whether anything has collapsed or was skipped, as far as somebody has looked."""
    monitors = [each for each in trainer.callbacks if isinstance(each, CollapseMonitor)]
    alarms = [each.alarm for each in monitors if each.alarm is not None]
    skipped = sum(each.skipped for each in trainer.callbacks if isinstance(each, GradientGuard))
    if alarms:
        collapse = alarms[0][0].upper() + alarms[0][1:]
    elif any(name.startswith("collapse/") for name in trainer.callback_metrics):
        collapse = "Nothing collapsed"
    else:
        collapse = "CollapseMonitor took no reading" if monitors else "No CollapseMonitor looked for a collapse"
    steps_skipped = f"{skipped or 'no'} step{'s were' if skipped > 1 else ' was'} skipped"
    return f"{collapse}; {steps_skipped}." if alarms else f"{collapse}, {steps_skipped}."


def _checkpoint(trainer: Any) -> str | None:
    """The last checkpoint that there is."""
    written = [each for each in trainer.callbacks if isinstance(each, ModelCheckpoint)]
    paths = [Path(path) for each in written for path in (each.last_model_path, each.best_model_path) if path]
    return next((shown(path) for path in paths if path.exists()), None)


def _next(trainer: Any, config: str, checkpoint: str | None, early: bool) -> list[str]:
    """The commands that go on."""
    commands = []
    if early:
        goes_on = f" --ckpt_path {shlex.quote(checkpoint)}" if checkpoint else ""
        commands.append(f"jepa fit --config {shlex.quote(config)}{goes_on}")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            commands.append(f"tensorboard --logdir {shlex.quote(shown(logger.root_dir))}")
    if checkpoint and not early:
        # Without labels there is nothing to evaluate, but there are features to write.
        uses = {Episodes: "plan", Probe: "evaluate"}
        used = [what for kind, what in uses.items() if any(isinstance(each, kind) for each in trainer.callbacks)]
        what = [*used, "predict"][0] if isinstance(trainer.lightning_module, JEPA) else "test"
        commands.append(f"jepa {what} --config {shlex.quote(config)} --ckpt_path {shlex.quote(checkpoint)}")
    start = "Go on" if early and checkpoint else "Start again" if early else "Next"
    return [f"{start}:", *(f"  {command}" for command in commands)] if commands else []

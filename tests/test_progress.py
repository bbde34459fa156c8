"""What a training says: lines or a bar while it runs, and a summary with commands at its end."""

import os
import pty
import re
import shlex
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from helpers import TINY, LabelledImages, loader, quiet_trainer, random_images
from lightning.pytorch.callbacks import ModelCheckpoint, Timer, TQDMProgressBar
from lightning.pytorch.demos.boring_classes import BoringModel

from jepa_lightning import IJEPA
from jepa_lightning.callbacks import CollapseMonitor, GradientGuard, KNNProbe, LinearProbe, Progress, RegressionProbe
from jepa_lightning.callbacks.progress import duration
from jepa_lightning.cli import main
from jepa_lightning.cli.summary import SavedConfig, summary

RUN = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_sanity_val_steps=0"]
MODEL = ["--model=IJEPA", *(f"--model.{name}={value}" for name, value in TINY.items())]
DATA = ["--data=ShapesDataModule", "--data.image_size=16", "--data.num_train=64", "--data.num_val=16"]
DATA += ["--data.batch_size=4", "--data.num_workers=0"]
PROBED = ["--trainer.callbacks+=KNNProbe"]
SAVED = ["--trainer.callbacks+={class_path: ModelCheckpoint, init_args: {save_last: true}}"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["jepa"])


def shown_by(callbacks: list[pl.Callback], module: Any = None, **options: Any) -> pl.Trainer:
    trainer = quiet_trainer(callbacks=callbacks, enable_progress_bar=True, **({"max_epochs": 2} | options))
    images = LabelledImages(16)
    trainer.fit(module or IJEPA(**TINY), loader(images), loader(images))
    return trainer


class Clockwork:
    """A clock that goes on by a second with every batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


class Ticks(pl.Callback):
    def __init__(self, clockwork: Clockwork) -> None:
        self.clockwork = clockwork

    def on_train_batch_start(self, *_: Any) -> None:
        self.clockwork.now += 10.0


# --- While it runs ---------------------------------------------------------------------------------------------------


def test_a_line_every_half_minute(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """At the start, at steps 3, 6, 9 of ten seconds each, and at the end; with what is left of the whole training."""
    ticks = Ticks(Clockwork(monkeypatch))
    trainer = shown_by([ticks, KNNProbe(), Progress()], max_epochs=5)
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first.startswith("training IJEPA (context_encoder ")
    assert first.endswith("parameters) on cpu for 10 steps")
    pattern = r"step (\d+) of 10 \((\d+) %\), (.+) left, loss 0\.\d+(, kNN \d+\.\d %)?"
    read = [re.fullmatch(pattern, line).groups() for line in lines]  # type: ignore[union-attr]
    assert [row[:3] for row in read] == [("3", "30", "1 min 10 s"), ("6", "60", "40 s"), ("9", "90", "10 s")]
    assert all(row[3] for row in read)  # the probe was validated after step 2
    accuracy, loss = (float(trainer.callback_metrics[name]) for name in ("probe/knn/accuracy", "train/loss"))
    assert last == f"step 10 of 10 (100 %), loss {loss:.3g}, kNN {100 * accuracy:.1f} %"


def test_other_intervals(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shown_by([Ticks(Clockwork(monkeypatch)), Progress(every_seconds=10)], max_steps=3, max_epochs=-1)
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()[1:]] == [
        "step 1 of 3 (33 %)", "step 2 of 3 (66 %)", "step 3 of 3 (100 %)", "step 3 of 3 (100 %)"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="every_seconds must be positive, got 0"):
        Progress(every_seconds=0)


def test_values_are_read_when_a_line_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading them waits for the device: once for each line, and at the end of an epoch and of a validation."""
    steps: list[int] = []

    def read(trainer: pl.Trainer) -> str:
        steps.append(trainer.global_step)
        return ""

    monkeypatch.setattr("jepa_lightning.callbacks.progress.readings", read)
    trainer = quiet_trainer(
        callbacks=[Ticks(Clockwork(monkeypatch)), Progress(40)], enable_progress_bar=True, max_epochs=2
    )
    images = LabelledImages(48)
    trainer.fit(IJEPA(**TINY), loader(images), loader(images))
    assert steps == [4, 6, 6, 8, 12, 12]


def test_a_resumed_training_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The share starts where the training was, and the time left is by the steps of this run."""
    saving = ModelCheckpoint(dirpath=".", save_last=True)
    shown_by([saving, Progress()], max_epochs=5, enable_checkpointing=True)
    capsys.readouterr()
    trainer = quiet_trainer(
        callbacks=[Ticks(Clockwork(monkeypatch)), Progress(20)], enable_progress_bar=True, max_epochs=10
    )
    trainer.fit(IJEPA(**TINY), loader(LabelledImages(16)), ckpt_path="last.ckpt")
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.endswith("for 20 steps, from step 10 on")
    assert second.startswith("step 12 of 20 (60 %), 1 min 20 s left")


def test_a_training_with_a_time_limit_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a module without schedules, which would need an end."""
    clockwork, timer = Clockwork(monkeypatch), Timer({"minutes": 1})
    monkeypatch.setattr(timer, "time_elapsed", lambda stage="train": clockwork.now)
    ticks = Ticks(clockwork)
    trainer = quiet_trainer(callbacks=[ticks, timer, Progress(20)], enable_progress_bar=True, max_epochs=-1)
    trainer.fit(BoringModel())
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "training BoringModel (layer 66 parameters) on cpu until it is stopped"
    assert lines[:2] == ["step 2, 40 s left", "step 4, 20 s left"]


def test_the_alarm_and_skipped_steps(capsys: pytest.CaptureFixture[str]) -> None:
    monitor, guard = CollapseMonitor(min_rank=1e6), GradientGuard()

    class Trouble(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            monitor.alarm = "the embeddings have collapsed"
            guard._skipped += 1

    shown_by([monitor, guard, Trouble(), Progress()], max_epochs=1)
    assert capsys.readouterr().out.splitlines()[-1].endswith(", ALARM: collapsed, 2 steps skipped")


def test_regressions_have_a_share_of_variance(capsys: pytest.CaptureFixture[str]) -> None:
    shown_by([RegressionProbe(label="other"), Progress()])
    assert re.search(r", regression R² -?\d+\.\d\d$", capsys.readouterr().out.strip())


def test_other_loops_say_their_batch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clockwork = Clockwork(monkeypatch)

    class Slow(IJEPA):
        def _step(self, *arguments: Any) -> Any:
            clockwork.now += 20
            return super()._step(*arguments)

    trainer = quiet_trainer(callbacks=[Progress()], enable_progress_bar=True)
    trainer.validate(Slow(**TINY), loader(LabelledImages(32)), verbose=False)
    trainer.test(Slow(**TINY), loader(LabelledImages(16)), verbose=False)
    trainer.predict(Slow(**TINY), loader(LabelledImages(16)))
    assert capsys.readouterr().out.splitlines() == [
        "validating 4 batches", "validating: batch 2 of 4", "validating: batch 4 of 4",
        "testing 2 batches", "testing: batch 2 of 2", "predicting 2 batches",
    ]  # fmt: skip


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    trainer = quiet_trainer(callbacks=[progress], enable_progress_bar=True, max_epochs=1)
    trainer.strategy._local_rank = trainer.strategy._node_rank = 0
    progress.disable()
    trainer.fit(IJEPA(**TINY), loader(random_images(16)))
    assert not capsys.readouterr().out


def on_a_terminal(run: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> str:
    """What `run` writes to a pseudo-terminal."""
    ours, theirs = pty.openpty()
    read = bytearray()

    def drain() -> None:
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:
                return
            if not piece:
                return
            read.extend(piece)

    reader = threading.Thread(target=drain)
    reader.start()
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", terminal)
        run()
    reader.join(5)
    os.close(ours)
    return read.decode()


def test_a_bar_over_the_whole_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bar, drawn in place, that ends full; no line more."""
    clockwork = Clockwork(monkeypatch)
    monkeypatch.setenv("COLUMNS", "120")
    printed = on_a_terminal(lambda: shown_by([Ticks(clockwork), KNNProbe(), Progress()], max_epochs=3), monkeypatch)
    lines = printed.strip().split("\r\n")
    assert len(lines) == 2
    assert lines[0].endswith("on cpu for 6 steps")
    drawn = [re.sub(r"\s+", " ", state) for state in lines[1].split("\r") if "step" in state]
    assert [re.search(r"step \d of 6 \(\d+ %\)", state)[0] for state in drawn[:6]] == [  # type: ignore[index]
        f"step {step} of 6 ({100 * step // 6} %)" for step in range(1, 7)
    ]
    assert re.fullmatch(r"█{20} step 6 of 6 \(100 %\), loss \S+, kNN \S+ % ?", drawn[-1])


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (3599.9, "1 h"), (86399, "1 d"), (1e6, "11 d 14 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# --- The command line's -----------------------------------------------------------------------------------------------


class Spy(pl.Callback):
    trainer: Any = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        Spy.trainer = trainer


SPY = ["--trainer.callbacks+=test_progress.Spy"]


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ([], Progress),
        (["--trainer.callbacks+=TQDMProgressBar"], TQDMProgressBar),
        (["--trainer.enable_progress_bar=false"], type(None)),
    ],
)
def test_the_bar_of_the_command_line(given: list[str], kind: type, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", *MODEL, *DATA, *RUN, *SPY, *given, "--trainer.max_epochs=1"])
    assert type(Spy.trainer.progress_bar_callback) is kind
    printed = capsys.readouterr()
    assert not re.search("Tip|litlogger|FLOPs|TPU|GPU available|LeafSpec", printed.out + printed.err)
    if kind is type(None):
        assert printed.out.startswith("\nTrained IJEPA for 16 steps in ")


def commands(printed: str) -> list[list[str]]:
    return [shlex.split(line) for line in printed.splitlines() if line.startswith("  ")]


# Four seconds: the encoder of the run is evaluated, with every probe.
def test_the_summary_and_its_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands run as they are, from a folder whose name has a space, too."""
    monitor = "--trainer.callbacks+={class_path: CollapseMonitor, init_args: {every_n_steps: 4}}"
    folder = f"--trainer.default_root_dir={tmp_path / 'my runs'}"
    main(["fit", *MODEL, *DATA, *RUN, *PROBED, monitor, *SAVED, *SPY, folder, "--trainer.max_epochs=2"])
    printed = capsys.readouterr().out
    told = printed[printed.index("\nTrained") + 1 :].splitlines()
    accuracy = float(Spy.trainer.callback_metrics["probe/knn/accuracy"])
    run = "my runs/lightning_logs/version_0"
    assert re.fullmatch(r"Trained IJEPA for 32 steps in \d+ s\.", told[0])
    assert told[1:] == [
        f"The kNN probe names {100 * accuracy:.1f} % of the held-out samples.",
        "Nothing collapsed, no step was skipped.",
        f"Checkpoint: {run}/checkpoints/last.ckpt",
        f"Configuration: {run}/config.yaml",
        "Next:",
        "  tensorboard --logdir 'my runs/lightning_logs'",
        f"  jepa evaluate --config '{run}/config.yaml' --ckpt_path '{run}/checkpoints/last.ckpt'",
    ]
    (board, looked_at), (jepa, *arguments) = commands(printed)[0][::2], commands(printed)[1]
    assert (board, jepa) == ("tensorboard", "jepa")
    assert [*Path(looked_at).rglob("events.*")]
    main([*arguments, "--steps=1", "--num_train=8"])
    assert "kNN" in (tmp_path / "my runs" / "evaluation.csv").read_text()


class Break(pl.Callback):
    """Interrupts a training once, as Ctrl-C does."""

    done = False

    def __init__(self, step: int, error: str = "KeyboardInterrupt") -> None:
        self.step, self.error = step, error

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not Break.done:
            Break.done = True
            raise {"KeyboardInterrupt": KeyboardInterrupt, "RuntimeError": RuntimeError}[self.error]


def test_an_interrupted_training_can_go_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Break, "done", False)
    broken = ["--trainer.callbacks+={class_path: test_progress.Break, init_args: {step: 20}}"]
    command = ["fit", *MODEL, *DATA, *RUN, *SAVED, *SPY, "--trainer.max_epochs=2", "--trainer.logger=CSVLogger"]
    command += ["--trainer.logger.save_dir=logs"]
    with pytest.raises(SystemExit):
        main([*command, *broken])
    printed = capsys.readouterr().out
    assert "The training of IJEPA was interrupted after 20 steps, up to step 20 of 32, in " in printed
    (goes_on,) = commands(printed)  # no TensorBoard
    assert goes_on[:3] == ["jepa", "fit", "--config"]
    assert "Go on:" in printed
    for checkpoint in ("last", goes_on[-1]):
        main([*goes_on[1:-1], checkpoint])  # after step 16, whose number does not come again
        assert Spy.trainer.global_step == 32
        assert "Trained IJEPA for 16 steps, up to step 32 of 32, in " in capsys.readouterr().out


def test_a_training_that_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is raised all the same; without a checkpoint, it starts again."""
    monkeypatch.setattr(Break, "done", False)
    broken = ["--trainer.callbacks+={class_path: test_progress.Break, init_args: {step: 3, error: RuntimeError}}"]
    with pytest.raises(RuntimeError):
        main(["fit", *MODEL, *DATA, *RUN, *broken, "--trainer.max_epochs=2"])
    printed = capsys.readouterr().out
    assert "The training of IJEPA ended by RuntimeError after 3 steps, up to step 3 of 32, in " in printed
    assert "No checkpoint was written." in printed
    assert commands(printed)[0] == ["jepa", "fit", "--config", "lightning_logs/version_0/config.yaml"]
    assert "Start again:" in printed


def test_a_training_that_does_not_begin_has_no_summary(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="grid"):
        main(["fit", *MODEL, *DATA, *RUN, "--data.image_size=32", "--trainer.max_epochs=1"])
    assert "training of" not in capsys.readouterr().out


class Unsaved(SavedConfig):
    def __init__(self) -> None:
        pass

    def setup(self, *_: Any, **__: Any) -> None:
        pass


def summed_up(*callbacks: pl.Callback, **options: Any) -> str:
    text = summary(shown_by([*callbacks, Progress(), Unsaved()], **options))
    assert text is not None
    return text


def test_baselines_stand_beside_a_reading() -> None:
    probe = KNNProbe(baselines=True)
    text = summed_up(LinearProbe(4), probe, KNNProbe("pixels", source="observation"))
    untrained, raw = (f"{100 * probe.readings[name]:.1f} %" for name in ("untrained", "raw"))
    assert re.search(
        rf"The kNN probe names \d+\.\d % of the held-out samples; untrained {untrained}, raw input {raw}\.\n"
        r"The other probes: linear \d+\.\d %, pixels \d+\.\d %\.\n",
        text,
    )


def test_a_regression_alone() -> None:
    text = summed_up(RegressionProbe(label="other"))
    assert re.search(r"The regression probe explains -?\d+\.\d % of the variance of the held-out labels\.\n", text)


def test_without_a_probe() -> None:
    text = summed_up(CollapseMonitor(every_n_steps=2))
    assert re.search(r"The loss is 0\.\d+, that of a constant prediction 0\.\d+\. No probe says .*KNNProbe\.\n", text)
    assert "Nothing collapsed, no step was skipped." in text


def test_what_nobody_has_looked_at_is_not_called_healthy() -> None:
    assert "No CollapseMonitor looked for a collapse, no step was skipped." in summed_up()
    with pytest.warns(UserWarning, match="takes no reading"):
        assert "CollapseMonitor took no reading, no step was skipped." in summed_up(CollapseMonitor())
    assert "No probe was read, as there was no validation." in summed_up(KNNProbe(), limit_val_batches=0)


def test_what_has_collapsed_and_was_skipped() -> None:
    guard = GradientGuard()

    class Skip(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            guard._skipped += 1

    monitor = CollapseMonitor(every_n_steps=1, max_cosine=-1.0)
    with pytest.warns(UserWarning, match="have collapsed"):
        text = summed_up(monitor, guard, Skip(), max_epochs=10)
    assert monitor.alarm is not None
    line = next(line for line in text.splitlines() if "collapsed" in line)
    assert line.startswith("The embeddings have collapsed, for 3 readings in a row until step 4: RankMe of the target")
    assert line.endswith("; 20 steps were skipped.")

"""The number of threads: what is chosen where steps take a given time, when it is tried anew, and that it is kept."""

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
from helpers import TINY, loader, quiet_trainer, random_images

from jepa_lightning import IJEPA
from jepa_lightning.callbacks import Threads, threads
from jepa_lightning.cli import main

ONE_PROCESS: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")), world_size=1)
NONE: Any = None


@pytest.fixture(autouse=True)
def _with_eight_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


class Machine:
    """A clock on which a step takes what a table says of the number of threads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float]) -> None:
        self.seconds, self.now = seconds, 0.0
        monkeypatch.setattr(threads.time, "perf_counter", lambda: self.now)

    def run(self, callback: Threads, steps: int) -> list[int]:
        """The number of threads of each step."""
        numbers = []
        for _ in range(steps):
            callback.on_train_batch_start(NONE, NONE, NONE, 0)
            numbers.append(torch.get_num_threads())
            self.now += self.seconds[numbers[-1]]
            callback.on_train_batch_end(NONE, NONE, NONE, NONE, 0)
        return numbers


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({1: 1.0, 2: 1.1}, 1),  # threads that cost more than they gain
        ({1: 1.0, 2: 0.9}, 1),  # or hardly gain
        ({1: 1.0, 2: 0.6, 4: 0.55}, 2),
        ({1: 1.0, 2: 0.5, 4: 0.3, 8: 0.2}, 8),
        ({1: 1.0, 2: 100.0}, 1),  # a busy machine
    ],
)
def test_the_number_that_pays(
    seconds: dict[int, float], chosen: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Twice the threads, while they make a step 1.2 times as fast; one line says so; the process gets its own back."""
    callback, machine = Threads(), Machine(monkeypatch, seconds)
    callback.forget()
    with caplog.at_level(logging.INFO):
        callback.on_train_start(ONE_PROCESS, NONE)
        numbers = machine.run(callback, 40)
    assert set(numbers) == set(seconds)
    assert numbers[-1] == callback.number == chosen
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [f"Threads: {chosen} of 8"]
    assert numbers.count(2) < 4 or seconds[2] < 100  # a step that takes ages is not made five times
    callback.on_fit_end(ONE_PROCESS, NONE)
    assert torch.get_num_threads() == 8


def test_a_machine_that_becomes_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other work makes steps slow: the numbers are tried again, and when it is done once more."""
    callback, machine = Threads(), Machine(monkeypatch, {1: 1.0, 2: 0.55, 4: 0.5})
    callback.forget()
    callback.on_train_start(ONE_PROCESS, NONE)
    assert machine.run(callback, 200)[-1] == 2
    machine.seconds = {1: 1.2, 2: 5.0}
    assert machine.run(callback, 150)[-1] == 1
    machine.seconds = {1: 1.1, 2: 0.5, 4: 0.45}  # with one thread nothing tells that two would pay again
    assert machine.run(callback, 200)[-1] == 1
    machine.seconds = {1: 0.6, 2: 0.3, 4: 0.25}
    assert machine.run(callback, 200)[-1] == 2


def test_resuming_keeps_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training goes on with the number of its checkpoint, and tries nothing."""
    callback, machine = Threads(), Machine(monkeypatch, {1: 1.0, 2: 0.5, 4: 0.5})
    callback.forget()
    callback.load_state_dict({"number": 4})
    callback.on_train_start(ONE_PROCESS, NONE)
    assert machine.run(callback, 60) == [4] * 60
    assert callback.state_dict() == {"number": 4}


def test_in_a_training() -> None:
    """The number is in the checkpoint, and the process has its own again, also after a failure."""

    class Failing(IJEPA):
        def on_train_batch_end(self, *_: Any) -> None:
            if self.global_step == 2:
                raise RuntimeError("on purpose")

    trainer = quiet_trainer(max_steps=20, callbacks=[callback := Threads()])
    trainer.fit(IJEPA(**TINY), loader(random_images(40), 2))
    assert callback.number in (1, 2, 4, 8)
    assert torch.get_num_threads() == 8
    with pytest.raises(RuntimeError, match="on purpose"):
        quiet_trainer(max_steps=20, callbacks=[Threads()]).fit(Failing(**TINY), loader(random_images(40), 2))
    assert torch.get_num_threads() == 8


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It tries, unless the environment or the user says how many threads there are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run = ["fit", "--config=recipes/ijepa/shapes.yaml", "--trainer.fast_dev_run=1", "--data.num_workers=0"]
    run += [f"--model.{name}={value}" for name, value in TINY.items() if name != "image_size"]
    run += [f"--trainer.default_root_dir={tmp_path}", "--trainer.callbacks+=test_threads.Spy"]
    main(run)
    assert Spy.seen == [(True, 1)]  # to begin with
    main([*run, "--threads=3"])
    assert Spy.seen == [(False, 3)]
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    torch.set_num_threads(8)
    main(run)
    assert Spy.seen == [(False, 8)]
    with pytest.raises(SystemExit):
        main([*run, "--threads=0"])
    assert "threads" in capsys.readouterr().err


class Spy(pl.Callback):
    """Tells whether the number is tried, and which one the first step has."""

    seen: ClassVar[list[tuple[bool, int]]] = []

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        tried = any(isinstance(callback, Threads) for callback in trainer.callbacks)
        Spy.seen[:] = [(tried, torch.get_num_threads())]

"""What goes wrong in a long training: bad batches, files that are not what they should be, a full disk."""

from __future__ import annotations

import os
import pickle
import re
import resource
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import (
    CASES,
    METHODS,
    TINY,
    Labelled,
    LabelledImages,
    in_two_processes,
    loader,
    made,
    observations,
    quiet_trainer,
)
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from toys import Rows

from jepa_lightning import CJEPA, IJEPA, load_encoder
from jepa_lightning.callbacks import (
    BadStepsError,
    CollapseMonitor,
    GradientGuard,
    KNNProbe,
    LinearProbe,
    RegressionProbe,
)
from jepa_lightning.checkpoints import SafeCheckpointIO
from jepa_lightning.cli import main

# --- Steps that cannot be right --------------------------------------------------------------------------------------


class Spoilt(LabelledImages):
    """Batches of eight, some of them multiplied by a factor."""

    def __init__(self, num_images: int, batches: set[int], factor: float) -> None:
        super().__init__(num_images)
        self.batches, self.factor = batches, factor

    def __getitem__(self, index: int) -> Labelled:
        sample = super().__getitem__(index)
        return sample._replace(image=sample.image * self.factor) if index // 8 in self.batches else sample


class Steps(pl.Callback):
    """The weights of the student and the moments of the optimiser after every step."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []
        self.moments: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        state = trainer.optimizers[0].state.values()
        self.weights.append(torch.cat([p.detach().flatten() for p in pl_module.context_encoder.parameters()]))
        self.moments.append(torch.cat([entry["exp_avg"].flatten() for entry in state if entry] or [torch.zeros(1)]))


def tiny(**options: Any) -> IJEPA:
    torch.manual_seed(0)
    return IJEPA(**TINY | options)


def test_a_gradient_that_is_not_finite(tmp_path: Path) -> None:
    """The step moves nothing, probes and monitors get over it, and what follows is finite."""
    steps, probes = Steps(), [LinearProbe(4), RegressionProbe(label="other"), KNNProbe()]
    module = tiny()
    trainer = quiet_trainer(tmp_path, max_epochs=2, callbacks=[steps, *probes, CollapseMonitor(1)])
    with pytest.warns(UserWarning, match=r"step 3 \(nan\)"):
        trainer.fit(module, loader(Spoilt(80, {3}, torch.nan)), loader(LabelledImages(16)))
    for step in range(1, 20):
        skipped = step in (3, 13)
        assert torch.equal(steps.weights[step], steps.weights[step - 1]) == skipped, step
        assert torch.equal(steps.moments[step], steps.moments[step - 1]) == skipped, step
    assert all(value.isfinite().all() for value in module.state_dict().values())
    assert trainer.callback_metrics["train/skipped_steps"] == 2
    for probe in probes[:2]:
        assert all(value.isfinite().all() for value in probe.state_dict()["head"].values())
    bank = probes[2].state_dict()
    assert bank["inputs"].isfinite().all()
    assert (bank["labels"] != -1).sum() == 2 * 72
    assert all(value.isfinite() for tag, value in trainer.callback_metrics.items() if not tag.startswith("collapse"))


@pytest.mark.parametrize("name", METHODS)
def test_nothing_that_is_not_finite_stays(name: str, tmp_path: Path) -> None:
    """A bad batch leaves no trace in any method's weights and statistics."""
    data = observations(name, 24)
    data[9] = torch.nan
    module = made(name)
    trainer = quiet_trainer(tmp_path, max_epochs=2, accumulate_grad_batches=2)
    with pytest.warns(UserWarning, match="skipped"):
        trainer.fit(module, loader(data, 4))
    assert trainer.callback_metrics["train/skipped_steps"] == 2
    assert all(value.isfinite().all() for value in module.state_dict().values() if isinstance(value, Tensor))


def test_a_spike(tmp_path: Path) -> None:
    """A loss a thousand times as large is no step; twice as large, and early on, it is."""
    steps, factors = Steps(), {5: 1000.0, 30: 1000.0, 35: 2.0}

    class Scaled(IJEPA):
        def loss(self, latents: Any) -> dict[str, Tensor]:
            loss = super().loss(latents)["loss"]
            return {"loss": factors.get(self.global_step, 1.0) * loss}

    torch.manual_seed(0)
    trainer = quiet_trainer(tmp_path, max_epochs=4, callbacks=[steps, GradientGuard(spike=30)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Scaled(**TINY), loader(LabelledImages(80)))
    (message,) = (str(w.message) for w in caught if "skipped" in str(w.message))
    assert re.search(r" 30 times .*: step 30 \([\d.e+]+\)$", message)
    still = [step for step in range(1, 40) if torch.equal(steps.weights[step], steps.weights[step - 1])]
    assert still == [30]


def test_spikes_are_no_faults_unless_asked(tmp_path: Path) -> None:
    """By default a gradient of any finite size is a step."""

    class Scaled(IJEPA):
        def loss(self, latents: Any) -> dict[str, Tensor]:
            return {"loss": (1e6 if self.global_step == 15 else 1.0) * super().loss(latents)["loss"]}

    trainer = quiet_trainer(tmp_path, max_epochs=2)
    trainer.fit(Scaled(**TINY), loader(LabelledImages(80)))
    assert trainer.callback_metrics["train/skipped_steps"] == 0


def test_the_usual_norm(tmp_path: Path) -> None:
    """The geometric mean of the norms so far, clipping or not, against the gradients themselves."""
    norms: list[float] = []

    class Norms(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            squares = [(p.grad.double() ** 2).sum() for p in pl_module.parameters() if p.grad is not None]
            norms.append(float(torch.stack(squares).sum().sqrt()))

    guard = GradientGuard()
    trainer = quiet_trainer(tmp_path, max_epochs=2, callbacks=[guard, Norms()], gradient_clip_val=1e-3)
    trainer.fit(tiny(), loader(LabelledImages(80)))
    state = guard.state_dict()
    assert state["seen"] == len(norms) == 20
    assert state["usual_steps"] == [20]
    assert state["skipped"] == sum(state["norms"]) == 0
    assert state["log_norm"] == pytest.approx([float(torch.tensor(norms).log().mean())], rel=1e-4)
    assert float(trainer.callback_metrics["train/grad_norm"]) == pytest.approx(norms[-1], rel=1e-4)


def test_too_many_bad_steps(tmp_path: Path) -> None:
    """An error, the weights are good, and so is the last checkpoint; another limit can be set."""
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True)
    module, data = tiny(), Spoilt(80, {1, 3, 4, 6}, torch.inf)
    trainer = quiet_trainer(
        tmp_path,
        max_epochs=1,
        callbacks=[saving, GradientGuard(max_skipped=3)],
        enable_checkpointing=True,
        log_every_n_steps=3,
    )
    message = r"step 6 \(nan\).* 100 .* 4 .* max_skipped=3"
    with pytest.raises(BadStepsError, match=message), pytest.warns(UserWarning, match=r"step 3 \(nan\), step 4 \(nan"):
        trainer.fit(module, loader(data))
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["global_step"] == 8  # the ninth was not saved, which ended in the error
    assert all(value.isfinite().all() for value in last["state_dict"].values())
    assert all(value.isfinite().all() for value in module.state_dict().values())
    with pytest.warns(UserWarning, match=r"4 .* step 3 \(nan\), step 4 \(nan\), step 6 \(nan\)$"):
        quiet_trainer(tmp_path, max_epochs=1).fit(tiny(), loader(data))


def test_rejected_limits() -> None:
    with pytest.raises(ValueError, match=r"spike .*1\.0"):
        GradientGuard(spike=1.0)
    with pytest.raises(ValueError, match=r"max_skipped .*0"):
        GradientGuard(max_skipped=0)


def two_processes(rank: int, folder: Path) -> dict[str, Any]:
    """One of two ranks, the first of which meets a bad batch in its second step."""
    steps = Steps()
    trainer = quiet_trainer(folder, devices=2, strategy="ddp", use_distributed_sampler=False, max_epochs=1)
    trainer.callbacks.append(steps)
    trainer.fit(tiny(), loader(Spoilt(32, {1} if rank == 0 else set(), torch.nan)))
    return {"weights": steps.weights, "skipped": float(trainer.callback_metrics["train/skipped_steps"])}


def test_all_ranks_skip_together(tmp_path: Path) -> None:
    a, b = in_two_processes(two_processes, tmp_path)
    assert a["skipped"] == b["skipped"] == 1
    for step, (mine, theirs) in enumerate(zip(a["weights"], b["weights"], strict=True)):
        assert torch.equal(mine, theirs)
        assert mine.isfinite().all()
        assert step == 0 or torch.equal(mine, a["weights"][step - 1]) == (step == 1)


# --- Options that cannot be met --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_of_one(name: str, tmp_path: Path) -> None:
    """Told before the first step where a regulariser keeps samples apart, trained on where none does."""
    module, data = made(name), Rows(CASES[name].data(4))
    callbacks = [CollapseMonitor(1), KNNProbe(), LinearProbe(2)]
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=callbacks)
    if name in ("C-JEPA", "LeJEPA"):  # SIGReg of context tokens has many samples of one image
        with pytest.raises(ValueError, match="batch_size"):
            trainer.fit(module, loader(data, 1))
        return
    trainer.fit(module, loader(data, 1), loader(data, 1))
    assert trainer.callback_metrics["train/loss"].isfinite()
    assert trainer.callback_metrics["train/skipped_steps"] == 0


# --- Files -----------------------------------------------------------------------------------------------------------


class Evil:
    """What a pickle runs when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training by the CLI, of two epochs."""
    folder = tmp_path_factory.mktemp("run")
    config = f"""
model:
  class_path: IJEPA
  init_args: {{{", ".join(f"{name}: {value}" for name, value in TINY.items())}}}
data:
  class_path: ShapesDataModule
  init_args: {{image_size: 16, num_train: 32, num_val: 16, batch_size: 8, num_workers: 0}}
trainer:
  accelerator: cpu
  max_epochs: 2
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {{dirpath: {folder}, save_last: true}}
    - class_path: jepa_lightning.callbacks.LinearProbe
      init_args: {{num_classes: 6}}
    - class_path: jepa_lightning.callbacks.KNNProbe
"""
    (folder / "run.yaml").write_text(config)
    main(["fit", "--config", str(folder / "run.yaml"), f"--trainer.default_root_dir={folder}"])
    return folder


def resume(run: Path, checkpoint: Path, *more: str) -> None:
    arguments = ["--trainer.max_epochs=3", f"--trainer.default_root_dir={checkpoint.parent}"]
    main(["fit", "--config", str(run / "run.yaml"), f"--ckpt_path={checkpoint}", *arguments, *more])


def test_what_a_file_wants_to_run_is_not_run(run: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    evil = tmp_path / "evil.ckpt"
    torch.save(checkpoint | {"more": Evil(tmp_path / "was here")}, evil)
    for read in (lambda: resume(run, evil), lambda: load_encoder(evil), lambda: IJEPA.load_from_checkpoint(evil)):
        with pytest.raises((ValueError, pickle.UnpicklingError), match="weights"):
            read()
    assert not (tmp_path / "was here").exists()
    # To be sure that it would have been.
    torch.load(evil, weights_only=False)
    assert (tmp_path / "was here").exists()


@pytest.mark.parametrize("kept", [0, 0.3, 0.999])
def test_a_checkpoint_cut_short(run: Path, kept: float, tmp_path: Path) -> None:
    whole = (run / "last.ckpt").read_bytes()
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"cut\.ckpt"):
        resume(run, cut)


def test_a_checkpoint_of_another_method(run: Path, tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path)
    torch.manual_seed(0)
    trainer.strategy.connect(CJEPA(**TINY))
    trainer.save_checkpoint(tmp_path / "cjepa.ckpt")
    with pytest.raises(ValueError, match=r"IJEPA.* \S*projector"):
        resume(run, tmp_path / "cjepa.ckpt")
    with pytest.raises(ValueError, match=r"\[1, 16, 16\] .*\[1, 16, 32\]"):
        resume(run, run / "last.ckpt", "--model.init_args.embed_dim=32")


def test_a_missing_checkpoint(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ckpt"):
        resume(run, tmp_path / "nowhere.ckpt")


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond 20 kB, nor may one that pytest reports to: not for longer than it takes."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk(tmp_path: Path) -> None:
    """The checkpoint of that name is still the one that was there, and nothing else is."""
    path = tmp_path / "last.ckpt"
    SafeCheckpointIO().save_checkpoint({"weights": torch.zeros(8)}, path)
    before = path.read_bytes()
    with full_disk(), pytest.raises(OSError, match=r"last\.ckpt"):
        SafeCheckpointIO().save_checkpoint({"weights": torch.zeros(80_000)}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert SafeCheckpointIO().load_checkpoint(path)["weights"].shape == (8,)


def test_the_cli_keeps_the_last_checkpoint(run: Path, tmp_path: Path) -> None:
    before = (run / "last.ckpt").read_bytes()
    with full_disk(), pytest.raises(OSError, match="--ckpt_path last"):
        resume(run, run / "last.ckpt")
    assert (run / "last.ckpt").read_bytes() == before

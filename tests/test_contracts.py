"""What a user gets of every method: the six that stand, and the toys of `toys.py` that broke version 1."""

from __future__ import annotations

import copy
import csv
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import toys
from helpers import (
    METHODS,
    TINY,
    assert_close,
    in_two_processes,
    quiet_trainer,
    random_clips,
    random_images,
)
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, DistributedSampler

from jepa_lightning import IJEPA, JEPA, MaskedJEPA, Prediction, evaluation
from jepa_lightning.callbacks import (
    AttentiveProbe,
    Cockpit,
    CollapseMonitor,
    EMATargetEncoder,
    FeatureWriter,
    KNNProbe,
    LinearProbe,
    RegressionProbe,
)
from jepa_lightning.cli import main
from jepa_lightning.clock import clock
from jepa_lightning.data.resume import Order, ResumableLoader
from jepa_lightning.modules.training import TrainingModule


class Image(NamedTuple):
    """Images or clips, and a class."""

    observation: Tensor
    kind: Tensor


def images(count: int = 16) -> Image:
    kind = torch.arange(count) % 2
    return Image(random_images(count) + 2 * kind.view(-1, 1, 1, 1), kind)


def clips(count: int = 16) -> Image:
    kind = torch.arange(count) % 2
    return Image(random_clips(count) + 2 * kind.view(-1, 1, 1, 1, 1), kind)


class Case(NamedTuple):
    """A method, its options, and its data."""

    method: type[Any]
    options: dict[str, Any]
    data: Callable[[int], Any]


OF_IMAGES = {"image_size": 16, "predictor_embed_dim": 8, "predictor_depth": 1, "warmup": 0.0}
CASES = {
    **{
        name: Case(method, options, clips if name.startswith("V-JEPA") else images)
        for name, (method, options) in METHODS.items()
    },
    "two encoders, three optimisers": Case(toys.TwoEncoders, {}, toys.transitions),
    "unequal lengths": Case(toys.SeriesJEPA, {"warmup": 0.0}, toys.series),
    "three predictions": Case(toys.ThreePredictions, {"warmup": 0.0}, toys.sets),
    "frozen encoder": Case(toys.Frozen, OF_IMAGES, images),
    "actions": Case(toys.ActionConditioned, {"warmup": 0.0}, toys.episodes),
}
BY_HAND = [name for name, case in CASES.items() if case.method is toys.TwoEncoders]


def made(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return CASES[name].method(**CASES[name].options | options)


class PlainSteps:
    """Plain gradient steps, which do not blow up rounding errors as Adam's do, with the rates that a method says."""

    def configure_optimizers(self: Any) -> Any:
        groups = self.parameter_groups(0.0)
        return torch.optim.SGD([{"params": g["params"], "lr": 0.05 * g["multiplier"]} for g in groups], lr=0.05)


def plain(name: str, **options: Any) -> Any:
    """A method with plain gradient steps; one that optimises by hand has them already."""
    case = CASES[name]
    bases = (case.method,) if name in BY_HAND else (PlainSteps, case.method)
    torch.manual_seed(0)
    return type(case.method.__name__, bases, {})(**case.options | options)


class Data(pl.LightningDataModule):
    """Training data in an order that can be resumed, and held-out data."""

    def __init__(self, name: str, batch_size: int = 4) -> None:
        super().__init__()
        self.name, self.size = name, batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        rows = toys.Rows(CASES[self.name].data(16))
        return ResumableLoader(rows, self.size, sampler=Order(rows, self.size, self.trainer, seed=0))

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(toys.Rows(CASES[self.name].data(12)), batch_size=self.size)

    test_dataloader = predict_dataloader = val_dataloader


class Steps(pl.Callback):
    """Students and teachers after every batch, before the teachers move; and the rates of every optimiser at work."""

    def __init__(self) -> None:
        self.students: list[dict[str, dict[str, Tensor]]] = []
        self.teachers: list[dict[str, dict[str, Tensor]]] = []
        self.rates: list[float] = []
        self._hook: Any = None

    def look(self, module: Any, field: str) -> dict[str, dict[str, Tensor]]:
        names = [getattr(teacher, field) for teacher in module.teachers()]
        return {n: {k: v.clone() for k, v in module.get_submodule(n).named_parameters()} for n in names}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        def look(optimizer: Any, args: Any, kwargs: Any) -> None:
            self.rates += [group["lr"] for group in optimizer.param_groups]

        self._hook = register_optimizer_step_pre_hook(look)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._hook.remove()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.teachers.append(self.look(pl_module, "teacher"))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.students.append(self.look(pl_module, "student"))


def probes(name: str) -> list[pl.Callback]:
    further: list[pl.Callback] = []
    if name == "actions":
        further = [RegressionProbe(4, name="position", label="position")]
    label = "kind" if name == "actions" else None
    return [
        LinearProbe(2, label=label),
        KNNProbe(label=label, bank_size=8),
        AttentiveProbe(2, label=label, num_heads=2),
        *further,
    ]


# --- Watching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_all_that_watches(name: str, tmp_path: Path) -> None:
    """Fit, validate, test and predict with monitor, probes and cockpit: every embedding and prediction is there."""
    module, watching = made(name), [CollapseMonitor(2), *probes(name), Cockpit(6)]
    trainer = quiet_trainer(
        tmp_path,
        max_epochs=2,
        callbacks=watching,
        log_every_n_steps=1,
        logger=TensorBoardLogger(tmp_path, version="it"),
    )
    trainer.fit(module, Data(name))
    latents = module.latents(CASES[name].data(4))
    assert module.loss(latents)["loss"].isfinite()
    assert module.energy(latents).shape == (4,)
    logged = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
    branches = [*latents.embeddings, *(f"prediction/{each}".rstrip("/") for each in latents.predictions)]
    expected = {f"collapse/{branch}/{metric}" for branch in branches for metric in ("rankme", "std", "cosine")}
    expected |= {"train/loss", "val/loss", "train/constant_loss", "train/skipped_steps"}
    expected |= {f"probe/{probe}/accuracy" for probe in ("linear", "knn", "attentive")}
    expected |= {"probe/position/r2"} if name == "actions" else set()
    assert expected <= logged.keys()
    assert all(torch.isfinite(torch.tensor(value)) for value in logged.values())
    assert logged["train/skipped_steps"] == 0
    events = EventAccumulator(str(tmp_path / "lightning_logs" / "it")).Reload()
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    assert (tmp_path / "lightning_logs" / "it" / "projector_config.pbtxt").exists()
    trainer = quiet_trainer(tmp_path)
    assert "val/loss" in trainer.validate(module, Data(name), verbose=False)[0]
    assert "test/loss" in trainer.test(module, Data(name), verbose=False)[0]
    predicted = trainer.predict(module, Data(name))
    features = torch.cat([batch["features"] for batch in predicted])
    everything = module.eval().features(CASES[name].data(12)).pooled()
    torch.testing.assert_close(features, everything, rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.cat([batch["kind"] for batch in predicted]), torch.arange(12) % 2)


@pytest.mark.parametrize("name", CASES)
def test_evaluate(name: str, tmp_path: Path) -> None:
    """A line for each probe of a class, of the module's own features."""
    module = made(name)
    readings = evaluation.evaluate(module, Data(name), steps=3, accelerator="cpu")
    assert {"linear", "kNN"} <= {reading.probe for reading in readings if reading.label == "kind"}
    assert all(reading.value <= 1 for reading in readings)
    if name == "actions":
        assert "regression" in {reading.probe for reading in readings if reading.label == "position"}


@pytest.mark.parametrize("name", ["two encoders, three optimisers", "unequal lengths", "actions", "LeJEPA"])
def test_evaluate_and_predict_on_the_command_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a checkpoint whose encoder nobody but its own method knows, the method's features."""
    monkeypatch.chdir(tmp_path)
    case, trainer = CASES[name], quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(module := made(name), Data(name))
    trainer.save_checkpoint("it.ckpt")
    recipe = {"class_path": f"{case.method.__module__}.{case.method.__qualname__}", "init_args": case.options}
    (tmp_path / "recipe.yaml").write_text(json.dumps({"model": recipe}))
    given = ["--config=recipe.yaml", "--data=test_contracts.Data", f"--data.name={name}", "--ckpt_path=it.ckpt"]
    given += ["--trainer.accelerator=cpu", "--trainer.logger=false"]
    main(["evaluate", *given, "--steps=3"])
    rows = (tmp_path / "evaluation.csv").read_text()
    assert "kind,linear,accuracy" in rows
    assert "kind,kNN,accuracy" in rows
    main(["predict", *given, "--trainer.enable_progress_bar=false"])
    features = np.load(tmp_path / "features.npz")["features"]
    expected = module.eval().features(case.data(12)).pooled()
    assert_close(torch.from_numpy(features), expected, "features")


# --- Teachers and rates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_momentum_and_rates_at_every_step(name: str, tmp_path: Path) -> None:
    """Teachers by hand, from the students after each step; no rate of any optimiser, probes' included, is negative."""
    module, steps = made(name), Steps()
    trainer = quiet_trainer(tmp_path, max_epochs=3, callbacks=[steps, *probes(name)])
    trainer.fit(module, Data(name))
    assert len(steps.students) == 12
    assert min(steps.rates) >= 0
    by_hand = steps.teachers[0]
    for step, students in enumerate(steps.students):
        after = [*steps.teachers, steps.look(module, "teacher")][step + 1]
        for teacher in module.teachers():
            momentum = teacher.momentum(step, 12)
            assert 0 <= momentum <= 1
            for key, value in by_hand[teacher.teacher].items():
                value.lerp_(students[teacher.student][key], 1 - momentum)
                torch.testing.assert_close(after[teacher.teacher][key], value, rtol=1e-5, atol=1e-6)
    # What follows a student that moves has moved, unless its momentum is one.
    for teacher in module.teachers():
        moved = any(not torch.equal(a, b) for a, b in zip(
            steps.look(module, "student")[teacher.student].values(),
            steps.students[0][teacher.student].values(), strict=True))  # fmt: skip
        assert moved == (name != "frozen encoder")


def test_a_callback_of_ones_own_replaces_all_momenta(tmp_path: Path) -> None:
    module = made("two encoders, three optimisers")
    quiet_trainer(tmp_path, max_epochs=1, callbacks=[EMATargetEncoder((0.0, 0.0))]).fit(
        module, Data("two encoders, three optimisers")
    )
    for teacher in module.teachers():
        student = module.get_submodule(teacher.student).state_dict()
        assert all(
            torch.equal(value, student[key])
            for key, value in module.get_submodule(teacher.teacher).state_dict().items()
        )


def test_a_teacher_is_a_network_of_its_own(tmp_path: Path) -> None:
    module = made("actions")
    module.teacher = module.encoder
    with pytest.raises(ValueError, match=r"teacher.*must be a network of its own"):
        quiet_trainer(tmp_path, max_epochs=1).fit(module, Data("actions"))


def test_frozen_networks_and_multipliers(tmp_path: Path) -> None:
    """A frozen encoder keeps its weights and its mode; the innermost rate counts."""
    module, rates = made("frozen encoder", lr=0.01, start_lr=0.01, final_lr=0.01), []
    before = copy.deepcopy(module.context_encoder.state_dict())

    class Look(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            assert not pl_module.context_encoder.training
            assert pl_module.predictor.training
            where = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
            rates.append({name: where.get(id(p)) for name, p in pl_module.named_parameters()})

    quiet_trainer(tmp_path, max_epochs=1, callbacks=[Look()]).fit(module, Data("frozen encoder"))
    assert all(torch.equal(value, before[name]) for name, value in module.context_encoder.state_dict().items())
    for name, rate in rates[-1].items():
        if name.startswith("predictor.predictor_embed"):
            assert rate == pytest.approx(0.01)
        elif name.startswith("predictor.") and not name.endswith("pos_embed"):
            assert rate == pytest.approx(0.02)
        else:
            assert rate is None

    class Misnamed(toys.Frozen):
        def rates(self) -> dict[str, float]:
            return {"encoder": 0.0}

    with pytest.raises(ValueError, match=r"names 'encoder', but the networks of this module are .*context_encoder"):
        quiet_trainer(tmp_path, max_epochs=1).fit(Misnamed(**OF_IMAGES), Data("frozen encoder"))


# --- Accumulation and clipping ---------------------------------------------------------------------------------------


def batches_of(name: str, size: int, count: int) -> list[Any]:
    loader = DataLoader(toys.Rows(CASES[name].data(16)), size)
    return [batch for batch, _ in zip(loader, range(count), strict=False)]


@pytest.mark.parametrize("name", CASES)
def test_accumulation(name: str, tmp_path: Path) -> None:
    """The step of two batches is that of the mean of their losses, each by the weight of what it has predicted."""
    module = plain(name)
    trainer = quiet_trainer(tmp_path, max_epochs=1, accumulate_grad_batches=2, limit_train_batches=2)
    data = DataLoader(toys.Rows(CASES[name].data(16)), 5)
    if name in BY_HAND:
        with pytest.raises(MisconfigurationException, match="accumulation is not supported for manual"):
            trainer.fit(module, data)
        return
    reference = copy.deepcopy(module).train()
    reference.configure_model()
    losses, weights = [], []
    for number, batch in enumerate(batches_of(name, 5, 2)):
        latents = reference.latents(batch, reference.draw(batch, reference.rng(5, number)))
        losses.append(reference.loss(latents)["loss"])
        given = [each.weight.sum() for each in latents.predictions.values() if each.weight is not None]
        weights.append(sum(given) if given else torch.tensor(1.0))
    loss = sum(w * each for w, each in zip(weights, losses, strict=True)) / sum(weights)
    loss.backward()
    reference.configure_optimizers().step()
    torch.manual_seed(0)
    module.teachers = lambda: []  # type: ignore[method-assign]  # which come after the step
    trainer.fit(module, data)
    assert trainer.global_step == 1
    for key, value in reference.named_parameters():
        torch.testing.assert_close(
            module.get_parameter(key), value, rtol=1e-4, atol=1e-6, msg=lambda t, key=key: f"{key}: {t}"
        )
    if name == "unequal lengths":
        assert float(weights[0]) != float(weights[1])


@pytest.mark.parametrize("name", CASES)
def test_clipping(name: str, tmp_path: Path) -> None:
    """No gradient is longer than the limit, of a network where each is clipped for itself; by hand, it is refused."""
    module = plain(name)
    trainer = quiet_trainer(tmp_path, max_epochs=1, gradient_clip_val=1e-4)
    if name in BY_HAND:
        with pytest.raises(MisconfigurationException, match="gradient clipping is not supported for manual"):
            trainer.fit(module, Data(name))
        return
    norms: list[float] = []

    def look(optimizer: Any, args: Any, kwargs: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    hook = register_optimizer_step_post_hook(look)
    trainer.fit(module, Data(name))
    hook.remove()
    assert len(norms) == 4
    assert 0 < max(norms) <= 1e-4 * (2**0.5 if name.startswith("V-JEPA") else 1) * 1.01


# --- Resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_resume_in_mid_epoch(name: str, tmp_path: Path) -> None:
    """Bit for bit: losses, weights, optimisers and probes."""

    class Losses(pl.Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.seen.append(float(outputs["loss"]))

    def run(ckpt_path: str | None) -> tuple[list[float], dict[str, Any]]:
        pl.seed_everything(0 if ckpt_path is None else 5, verbose=False)
        module, losses = CASES[name].method(**CASES[name].options), Losses()
        torch.manual_seed(0)  # what is drawn is a function of the seed
        saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
        watching = [losses, CollapseMonitor(3), *probes(name), saving]
        trainer = quiet_trainer(tmp_path, max_epochs=2, callbacks=watching, enable_checkpointing=True)
        trainer.fit(module, Data(name), ckpt_path=ckpt_path, weights_only=True)
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        return losses.seen, torch.load(tmp_path / "end.ckpt", weights_only=True)

    whole, expected = run(None)
    per_batch = 3 if name in BY_HAND else 1
    after, found = run(str(tmp_path / f"step={2 * per_batch}.ckpt"))
    assert len(whole) == 8
    assert after == whole[2:]
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert same(expected[part], found[part]), part
    kinds = ("LinearProbe", "KNNProbe", "AttentiveProbe", "RegressionProbe")
    watched = [key for key in expected["callbacks"] if key.startswith(kinds)]
    assert len(watched) == 3 + (name == "actions")
    assert all(same(expected["callbacks"][key], found["callbacks"][key]) for key in watched)


def test_resume_within_accumulated_batches(tmp_path: Path) -> None:
    """Of batches that count by weights: gradients and weight so far are in the checkpoint."""

    class Saves(pl.callbacks.Checkpoint):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2 and trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "within.ckpt")

    def run(**start: Any) -> dict[str, Tensor]:
        pl.seed_everything(0, verbose=False)
        module = made("unequal lengths")
        trainer = quiet_trainer(
            tmp_path, max_epochs=2, accumulate_grad_batches=2, callbacks=[Saves()], enable_checkpointing=True
        )
        trainer.fit(module, Data("unequal lengths"), **start)
        assert trainer.global_step == 4
        return module.state_dict()

    whole = run()
    saved = torch.load(tmp_path / "within.ckpt", weights_only=True)
    assert saved["gradients_weight"] > 0
    assert same(whole, run(ckpt_path=tmp_path / "within.ckpt", weights_only=True))
    del saved["gradients_weight"]
    torch.save(saved, tmp_path / "without.ckpt")
    assert not same(whole, run(ckpt_path=tmp_path / "without.ckpt", weights_only=True))


def same(a: Any, b: Any) -> bool:
    """Whether nested values are equal, tensors bit for bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


# --- Two processes ---------------------------------------------------------------------------------------------------

# The others' are in test_scale.py, beside their sharded trainings.
IN_TWO = [name for name in CASES if name not in METHODS]


def trained(name: str, folder: Path, devices: int) -> dict[str, Tensor]:
    """The weights after an epoch of four batches, of all processes together."""
    pl.seed_everything(0, verbose=False)
    module = plain(name, **({"momentum": (0.5, 0.5)} if issubclass(CASES[name].method, MaskedJEPA) else {}))
    rows = toys.Rows(CASES[name].data(16))
    # Lightning's own would shuffle on several ranks only.
    sampler = DistributedSampler(rows, shuffle=False) if devices > 1 else None  # type: ignore[arg-type,var-annotated]
    trainer = quiet_trainer(
        folder, max_epochs=1, devices=devices, strategy="ddp" if devices > 1 else "auto", callbacks=[CollapseMonitor(2)]
    )
    trainer.fit(module, DataLoader(rows, 4 // devices, sampler=sampler))
    logged = {
        tag: trainer.callback_metrics[tag].double() for tag in sorted(trainer.callback_metrics) if "target" in tag
    }
    return {key: torch.as_tensor(value) for key, value in module.state_dict().items()} | logged


def two_processes(rank: int, folder: Path) -> dict[str, Any]:
    return {name: trained(name, folder, 2) for name in IN_TWO}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_two_processes(two_processes, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", IN_TWO)
def test_two_processes_are_one(name: str, ranks: list[dict[str, Any]], tmp_path: Path) -> None:
    """Each draws for its own samples what one process draws for them, and losses by weights are of the whole batch."""
    expected = trained(name, tmp_path, 1)
    for rank in ranks:
        assert rank[name].keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(
                rank[name][key], value, rtol=1e-3, atol=1e-5, msg=lambda t, key=key: f"{key}: {t}"
            )


# --- Copies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_copies(name: str, tmp_path: Path) -> None:
    """A checkpoint, a deep copy and a pickle give the features of the module, and hparams that rebuild it."""
    module, data = made(name), CASES[name].data(4)
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, Data(name))
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    loaded = type(module).load_from_checkpoint(tmp_path / "it.ckpt", weights_only=True)
    assert dict(loaded.hparams) == dict(module.hparams)
    module.eval()
    expected = module.features(data)
    for each in (loaded, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        found = each.eval().features(data)
        assert torch.equal(found.values, expected.values)
        assert torch.equal(found.pooled(), expected.pooled())


# --- Batches of every kind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [dict, list, tuple, None], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_batches_of_every_kind(name: str, kind: Any) -> None:
    """Dict, list, tuple and NamedTuple hold the same: latents, features and labels."""
    module, batch = made(name).eval(), CASES[name].data(4)
    given = batch if kind is None else batch._asdict() if kind is dict else kind(batch)
    expected, found = (module.latents(each, module.draw(each, module.rng(4, 0))) for each in (batch, given))
    for prediction, other in zip(expected.predictions.values(), found.predictions.values(), strict=True):
        assert torch.equal(prediction.prediction, other.prediction)
        assert torch.equal(prediction.target, other.target)
    predicted = module.predict_step(given, 0)
    label = "kind" if kind in (None, dict) else "label" if name != "actions" else "label 2"
    assert torch.equal(predicted[label], batch.kind)
    assert torch.equal(predicted["features"], module.predict_step(batch, 0)["features"])


@pytest.mark.parametrize("name", ["I-JEPA", "two encoders, three optimisers", "unequal lengths", "actions"])
def test_trainings_on_batches_of_every_kind(name: str, tmp_path: Path) -> None:
    """Dicts, lists, tuples and NamedTuples give the same weights and readings."""
    ends = []
    for kind in (None, dict, list, tuple):
        label = "kind" if kind in (None, dict) else "label" if name != "actions" else "label 2"
        data = DataLoader(toys.Rows(CASES[name].data(8), kind), batch_size=4)
        watching = [CollapseMonitor(1), LinearProbe(2, label=label), KNNProbe(label=label, bank_size=8), Cockpit(4)]
        module, trainer = made(name), quiet_trainer(tmp_path, max_epochs=1, callbacks=watching)
        pl.seed_everything(0, verbose=False)
        trainer.fit(module, data, data)
        ends.append((module.state_dict(), {tag: value.clone() for tag, value in trainer.callback_metrics.items()}))
    assert {"probe/linear/accuracy", "probe/knn/accuracy", "train/constant_loss"} <= ends[0][1].keys()
    assert all(same(end, ends[0]) for end in ends[1:])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.method.reads])
def test_a_bare_tensor_is_a_batch(name: str, tmp_path: Path) -> None:
    module, batch = made(name).eval(), CASES[name].data(4)
    drawn = module.draw(batch[0], module.rng(4, 0))
    assert torch.equal(module.energy(module.latents(batch[0], drawn)), module.energy(module.latents(batch, drawn)))
    assert set(module.predict_step(batch[0], 0)) == {"features"}


def test_names_are_written_beside_the_features(tmp_path: Path) -> None:
    """Labels that are no tensors, as a dict may hold them."""
    rows = [{"image": image, "name": f"number {number}"} for number, image in enumerate(random_images(5))]
    for ending in ("npz", "csv"):
        writer = FeatureWriter(tmp_path / f"features.{ending}")
        quiet_trainer(tmp_path, callbacks=[writer]).predict(made("I-JEPA"), DataLoader(rows, batch_size=2))
    names = [row["name"] for row in rows]
    assert np.load(tmp_path / "features.npz")["name"].tolist() == names
    with open(tmp_path / "features.csv", newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == names


def test_what_is_missing_is_named() -> None:
    module, episode = made("actions"), toys.episodes(4)._asdict()
    del episode["action"]
    with pytest.raises(
        ValueError, match=r"reads observation, action, state, but .* observation, state, position, kind"
    ):
        module.latents(episode)
    with pytest.raises(ValueError, match=r"the probe 'linear': there is no label 'sort'.*the labels position, kind"):
        quiet_trainer(max_epochs=1, callbacks=[LinearProbe(2, label="sort")]).fit(module, Data("actions"))
    with pytest.raises(ValueError, match=r"reads 'phi', which this method does not have.*features, context, target"):
        quiet_trainer(max_epochs=1, callbacks=[LinearProbe(2, label="kind", source="phi")]).fit(module, Data("actions"))
    with pytest.raises(TypeError, match=r"first field of a batch is its observation.*'name' is a list"):
        made("I-JEPA").latents({"name": ["a"], "image": torch.zeros(1, 3, 16, 16)})


# --- Single contracts ------------------------------------------------------------------------------------------------


def test_padding_is_never_seen() -> None:
    """Whatever stands in the padding: features, predictions, loss and energy are the same."""
    module, batch = made("unequal lengths").eval(), toys.series(6)
    other = batch._replace(series=torch.where(batch.valid.unsqueeze(-1), batch.series, -7.0))
    drawn = module.draw(batch, module.rng(6, 0))
    first, second = module.latents(batch, drawn), module.latents(other, drawn)
    assert torch.equal(module.loss(first)["loss"], module.loss(second)["loss"])
    assert torch.equal(module.energy(first), module.energy(second))
    assert torch.equal(first.features.pooled(), second.features.pooled())
    assert first.predictions[""].weight.sum() < first.predictions[""].weight.numel()  # some targets are padding
    # The loss by hand: distances of what is there.
    prediction = first.predictions[""]
    distances = torch.nn.functional.smooth_l1_loss(prediction.prediction, prediction.target, reduction="none").mean(-1)
    expected = distances[prediction.weight > 0].mean()
    torch.testing.assert_close(module.loss(first)["loss"], expected)


def test_the_nearest_of_several_futures_counts() -> None:
    """By brute force; and the loss is the mean of three predictions, one of them by weights."""
    module, batch = made("three predictions"), toys.sets(6)
    latents = module.latents(batch)
    futures, target, _ = latents.predictions["futures"]
    nearest = torch.stack([(futures[i] - target[i]).abs().mean(-1).min() for i in range(6)])
    tokens, token_target, weight = latents.predictions["tokens"]
    by_token = (tokens - token_target).abs().mean(-1)
    of_tokens = (by_token * weight).sum(1) / weight.sum(1)
    mean, mean_target, _ = latents.predictions["mean"]
    energy = (of_tokens + (mean - mean_target).abs().mean(-1) + nearest) / 3
    torch.testing.assert_close(module.energy(latents), energy)
    terms = module.loss(latents)
    torch.testing.assert_close(terms["energy_futures"], nearest.mean())
    torch.testing.assert_close(
        terms["loss"], (terms["energy_tokens"] + terms["energy_mean"] + terms["energy_futures"]) / 3
    )
    with pytest.raises(ValueError, match="makes 3 predictions, tokens, mean, futures"):
        latents.prediction  # noqa: B018
    wrong = latents._replace(predictions={"": Prediction(tokens, token_target, weight[:, :1])})
    with pytest.raises(ValueError, match=r"weights \[6, 1\] are not of the shape \[6, 5\]"):
        module.loss(wrong)


def test_an_abstract_method_left_out() -> None:
    class Half(JEPA):
        def latents(self, batch: Any, drawn: Any = None) -> Any:
            return None

    with pytest.raises(TypeError, match="features"):
        Half()


@pytest.mark.parametrize("name", CASES)
def test_hparams_say_what_was_built(name: str) -> None:
    module = made(name)
    encoder = getattr(module, "context_encoder", None)
    for size in getattr(module, "encoder_sizes", ()):
        assert hasattr(encoder, size) == (size in module.hparams), size
    if isinstance(module, MaskedJEPA):
        assert module.hparams.get("embed_dim", 8) == encoder.embed_dim
    assert dict(module.hparams_initial) == dict(module.hparams)


def test_an_encoder_by_configuration(tmp_path: Path) -> None:
    """It is built from plain values, kept in hparams, rebuilt from a checkpoint, and loaded alone."""
    chosen = {"class_path": "toys.Dropping"}
    module = IJEPA(image_size=16, encoder=chosen, predictor_embed_dim=8, predictor_depth=1, warmup=0.0)
    assert (module.hparams.encoder, module.hparams.embed_dim, module.hparams.num_heads) == (chosen, 8, 2)
    assert "depth" not in module.hparams
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, Data("I-JEPA"))
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    from jepa_lightning import load_encoder

    observation = random_images(3)
    expected = module.eval().target_encoder(observation)
    again = IJEPA.load_from_checkpoint(tmp_path / "it.ckpt", weights_only=True).eval()
    assert torch.equal(again.target_encoder(observation), expected)
    alone = load_encoder(tmp_path / "it.ckpt")
    assert isinstance(alone, toys.Dropping)
    assert torch.equal(alone(observation), expected)
    readings = evaluation.evaluate(str(tmp_path / "it.ckpt"), Data("I-JEPA"), steps=2, accelerator="cpu")
    assert {"linear", "attentive", "kNN"} <= {reading.probe for reading in readings}
    sizes = {"name": "vit_tiny_patch16_224", "image_size": [64, 64]}
    with pytest.raises(ValueError, match=r"built for observations \[1, 3, 224, 224\].*the same size \(image_size"):
        IJEPA(encoder={"class_path": "jepa_lightning.networks.TimmEncoder", "init_args": sizes})
    with pytest.raises(ValueError, match="depth=3 is an option of the default encoder, but this one is a Dropping"):
        IJEPA(image_size=16, encoder=chosen, depth=3)
    with pytest.raises(ValueError, match=r"embed_dim=16 .* a Dropping with embed_dim=8"):
        IJEPA(image_size=16, encoder=chosen, embed_dim=16)
    for wrong, error in (
        ({"class_path": "os.getcwd"}, "not a class of networks"),
        ({"class_path": "toys.Missing"}, "there is no class toys.Missing"),
        ({"class": "toys.Dropping"}, "expected {class_path"),
    ):
        with pytest.raises(ValueError, match=error):
            IJEPA(image_size=16, encoder=wrong)
    with pytest.raises(TypeError, match="VisionTransformer has no option embed_dims; did you mean embed_dim"):
        IJEPA(
            image_size=16,
            encoder={"class_path": "jepa_lightning.networks.VisionTransformer", "init_args": {"embed_dims": 8}},
        )


def test_a_training_that_starts_from_parts(tmp_path: Path) -> None:
    """`weights` by network; the teacher starts as the student, and what starts anew is said."""
    source = made("I-JEPA", lr=0.1)
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(source, Data("I-JEPA"))
    trainer.save_checkpoint(path := tmp_path / "source.ckpt")

    class Started(IJEPA):
        def on_train_start(self) -> None:
            self.at_start = copy.deepcopy(self.state_dict())

    def start(weights: Any) -> Any:
        torch.manual_seed(9)
        module = Started(**TINY, weights=weights)
        quiet_trainer(tmp_path, max_steps=1).fit(module, Data("I-JEPA"))
        return module

    with pytest.warns(UserWarning, match="no weights for predictor"):
        module = start({"context_encoder": str(path)})
    for key, value in source.context_encoder.state_dict().items():
        for network in ("context_encoder", "target_encoder"):
            assert torch.equal(module.at_start[f"{network}.{key}"], value)
    whole = start(str(path))
    for key, value in source.state_dict().items():
        assert torch.equal(whole.at_start[key], value)
    teacher = start({"context_encoder": str(path), "target_encoder": str(path)})
    for key, value in source.target_encoder.state_dict().items():
        assert torch.equal(teacher.at_start[f"target_encoder.{key}"], value)
    trained = copy.deepcopy(teacher.state_dict())  # which nothing but another fit starts anew
    quiet_trainer().validate(teacher, Data("I-JEPA"), verbose=False)
    quiet_trainer().test(teacher, Data("I-JEPA"), verbose=False)
    assert same(trained, teacher.state_dict())
    trainer.strategy.connect(teacher)
    trainer.save_checkpoint(tmp_path / "trained.ckpt")
    loaded = Started.load_from_checkpoint(tmp_path / "trained.ckpt", weights_only=True)
    quiet_trainer().test(loaded, Data("I-JEPA"), verbose=False)
    assert same(trained, loaded.state_dict())
    with pytest.raises(ValueError, match="has no network encoder; weights are given for context_encoder"):
        start({"encoder": str(path)})
    with pytest.raises(FileNotFoundError):
        start({"predictor": str(tmp_path / "nowhere.ckpt")})
    # Outside of a fit they count as well.
    module = IJEPA(**TINY, weights=str(path))
    features = torch.cat([batch["features"] for batch in quiet_trainer().predict(module, Data("I-JEPA"))])
    assert_close(features, source.eval().features(images(12)).pooled(), "features")


def test_encoders_and_starts_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a recipe writes them: `encoder: {class_path, init_args}` and `weights: {network: path}`."""
    monkeypatch.chdir(tmp_path)
    sizes = {"image_size": [16, 16], "patch_size": [4, 4], "embed_dim": 12, "depth": 1, "num_heads": 2}
    encoder = {"class_path": "jepa_lightning.networks.VisionTransformer", "init_args": sizes}
    options = {"image_size": 16, "predictor_embed_dim": 8, "predictor_depth": 1, "encoder": encoder, "lr": 0.0}
    options |= {"start_lr": 0.0, "final_lr": 0.0}

    def fit(folder: str, seed: int, **further: Any) -> Any:
        recipe = {"class_path": "IJEPA", "init_args": options | further}
        (tmp_path / "recipe.yaml").write_text(json.dumps({"model": recipe}))
        data = ["--data=ShapesDataModule", "--data.image_size=16", "--data.num_train=8", "--data.num_val=8"]
        data += ["--data.batch_size=8", "--data.num_workers=0", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
        quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
        where = [f"--trainer.default_root_dir={folder}", f"--seed_everything={seed}"]
        main(["fit", "--config=recipe.yaml", *data, *quiet, *where])
        (path,) = (tmp_path / folder).rglob("*.ckpt")
        return path, IJEPA.load_from_checkpoint(path, weights_only=True)

    path, first = fit("first", 0)
    assert (first.hparams.embed_dim, first.context_encoder.depth) == (12, 1)
    with pytest.warns(UserWarning, match="no weights for predictor"):
        _, second = fit("second", 1, weights={"context_encoder": str(path)})
    same_weights = {
        name: all(
            torch.equal(a, b) for a, b in zip(*(getattr(m, name).parameters() for m in (first, second)), strict=True)
        )
        for name in ("context_encoder", "target_encoder", "predictor")
    }
    assert same_weights == {"context_encoder": True, "target_encoder": True, "predictor": False}


def test_schedules_need_an_end() -> None:
    """Data whose length nobody knows: with max_epochs alone there is none, for whatever is scheduled."""

    class Endless(torch.utils.data.IterableDataset[Tensor]):
        def __iter__(self) -> Any:
            yield from random_images(40)

    for module in (made("I-JEPA"), no_jepa()):
        with pytest.raises(ValueError, match="give the Trainer max_steps"):
            quiet_trainer(max_epochs=2).fit(module, DataLoader(Endless(), 4))
    module = made("I-JEPA")
    trainer = quiet_trainer(max_epochs=-1, max_steps=5)
    trainer.fit(module, DataLoader(Endless(), 4))
    assert trainer.global_step == 5


def test_clock_of_several_optimisers() -> None:
    """Steps are batches, however many optimisers count them; the end is that of the training, not of an optimiser."""
    seen: list[tuple[int, int]] = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            seen.append(tuple(clock(trainer)))

    name = "two encoders, three optimisers"
    trainer = quiet_trainer(max_epochs=-1, max_steps=18, callbacks=[Look()])
    trainer.fit(made(name), Data(name))
    assert trainer.global_step == 18
    assert seen == [(step, 6) for step in range(1, 7)]

    class Early(toys.TwoEncoders):
        def configure_optimizers(self) -> Any:
            clock(self.trainer)
            return super().configure_optimizers()

    with pytest.raises(ValueError, match="read the clock in every step"):
        quiet_trainer(max_epochs=-1, max_steps=18).fit(Early(), Data(name))
    quiet_trainer(max_epochs=1).fit(Early(), Data(name))


def no_jepa() -> Any:
    class Scheduled(TrainingModule):
        """What is trained without being a JEPA."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.layer(batch.mean((2, 3))).square().mean()

    return Scheduled()

"""What a user gets of every method: of those in METHODS, and of the toys of `toys.py`, which are unlike them."""

from __future__ import annotations

import copy
import csv
import json
import math
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toys
from helpers import (
    CASES,
    METHODS,
    OF_IMAGES,
    TINY,
    Data,
    assert_close,
    difference,
    images,
    made,
    plain,
    quiet_trainer,
    random_images,
    tensors,
)
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data import DataLoader

from jepa_lightning import IJEPA, JEPA, MaskedJEPA, Prediction, evaluation, load_encoder
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
from jepa_lightning.masking import PointMasks
from jepa_lightning.modules.training import TrainingModule


def probes(name: str) -> list[pl.Callback]:
    """Of the class, and of the position where there is one."""
    regression: list[pl.Callback] = []
    if "position" in CASES[name].data(2)._fields:
        regression = [RegressionProbe(4, name="position", label="position")]
    classes = {"label": "kind"}
    return [
        LinearProbe(2, **classes),
        KNNProbe(bank_size=8, **classes),
        AttentiveProbe(2, num_heads=2, **classes),
        *regression,
    ]


# --- Watching --------------------------------------------------------------------------------------------------------


# Two to three seconds each: every callback draws its pictures and curves, twice.
@pytest.mark.parametrize("name", CASES)
def test_all_that_watches(name: str, tmp_path: Path) -> None:
    """Monitor, probes and cockpit tell of every embedding and prediction, and nothing is trained otherwise for them."""
    rows = toys.Rows(CASES[name].data(12))

    def fit(watching: list[pl.Callback], logger: Any) -> tuple[Any, pl.Trainer]:
        module = made(name)
        trainer = quiet_trainer(tmp_path, max_epochs=2, callbacks=watching, log_every_n_steps=1, logger=logger)
        pl.seed_everything(5, verbose=False)
        # What a loader shuffles by comes from the generator that a callback may not touch.
        trainer.fit(module, DataLoader(rows, 4, shuffle=True), DataLoader(rows, 4))
        return module, trainer

    watching = [CollapseMonitor(2), *probes(name), Cockpit(6)]
    module, trainer = fit(watching, TensorBoardLogger(tmp_path, version="it"))
    assert not difference(module.state_dict(), fit([], False)[0].state_dict())
    latents = module.latents(CASES[name].data(4))
    logged = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
    branches = [*latents.embeddings, *(f"prediction/{each}".rstrip("/") for each in latents.predictions)]
    expected = {f"collapse/{branch}/{metric}" for branch in branches for metric in ("rankme", "std", "cosine")}
    expected |= {"train/loss", "val/loss", "train/constant_loss", "train/skipped_steps"}
    expected |= {f"probe/{probe}/accuracy" for probe in ("linear", "knn", "attentive")}
    expected |= {f"probe/{probe.name}/r2" for probe in watching if isinstance(probe, RegressionProbe)}
    assert expected <= logged.keys()
    assert all(math.isfinite(value) for value in logged.values())
    assert logged["train/skipped_steps"] == 0
    events = EventAccumulator(str(tmp_path / "lightning_logs" / "it")).Reload()
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    assert (tmp_path / "lightning_logs" / "it" / "projector_config.pbtxt").exists()


@pytest.mark.parametrize("name", CASES)
def test_validate_test_and_predict(name: str, tmp_path: Path) -> None:
    """Features are the module's own, of every sample in its place, with all labels."""
    module, trainer = made(name), quiet_trainer(tmp_path)
    assert "val/loss" in trainer.validate(module, Data(name), verbose=False)[0]
    assert "test/loss" in trainer.test(module, Data(name), verbose=False)[0]
    predicted = trainer.predict(module, Data(name))
    features = torch.cat([batch["features"] for batch in predicted])
    everything = module.eval().features(CASES[name].data(12)).pooled()
    torch.testing.assert_close(features, everything, rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.cat([batch["kind"] for batch in predicted]), torch.arange(12) % 2)


@pytest.mark.parametrize("name", CASES)
def test_evaluate(name: str) -> None:
    """A line for each probe of a class, of the module's own features."""
    readings = evaluation.evaluate(made(name), Data(name), steps=3, accelerator="cpu")
    assert {"linear", "kNN"} <= {reading.probe for reading in readings if reading.label == "kind"}
    assert all(reading.value <= 1 for reading in readings)
    if "position" in CASES[name].data(2)._fields:
        assert "regression" in {reading.probe for reading in readings if reading.label == "position"}


@pytest.mark.parametrize("name", ["unequal lengths", "LeJEPA", "TS-JEPA"])
def test_evaluate_and_predict_on_the_command_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a checkpoint whose encoder nobody but its own method knows, the method's features."""
    monkeypatch.chdir(tmp_path)
    case, trainer = CASES[name], quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(module := made(name), Data(name))
    trainer.save_checkpoint("it.ckpt")
    recipe = {"class_path": f"{case.method.__module__}.{case.method.__qualname__}", "init_args": case.options}
    (tmp_path / "recipe.yaml").write_text(json.dumps({"model": recipe}))
    given = ["--config=recipe.yaml", "--data=helpers.Data", f"--data.name={name}", "--ckpt_path=it.ckpt"]
    given += ["--trainer.accelerator=cpu", "--trainer.logger=false"]
    main(["evaluate", *given, "--steps=3"])
    rows = (tmp_path / "evaluation.csv").read_text()
    assert "kind,linear,accuracy" in rows
    assert "kind,kNN,accuracy" in rows
    main(["predict", *given, "--trainer.enable_progress_bar=false"])
    features = np.load(tmp_path / "features.npz")["features"]
    expected = module.eval().features(case.data(12)).pooled()
    assert_close(torch.from_numpy(features), expected, "features")


# --- Step ------------------------------------------------------------------------------------------------------------


def drawn(
    name: str, batch_idx: int = 0, epoch: int = 0, rank: int = 0, ranks: int = 1, seed: int = 1, training: bool = True
) -> list[Tensor]:
    """What a method draws for its part of 16 samples in one process of several, tensor by tensor."""
    module = made(name).train(training)
    first = SimpleNamespace(broadcast=lambda own: seed)  # whom all follow, however they have seeded themselves
    module.trainer = SimpleNamespace(world_size=ranks, global_rank=rank, current_epoch=epoch, strategy=first)
    batch = CASES[name].data(16)
    batch = type(batch)(*(field[rank::ranks] for field in batch))
    torch.manual_seed(seed + rank)
    torch.rand(3)  # how far the generator has come plays no part
    return tensors(module.draw(batch, module.rng(16 // ranks, batch_idx)))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.method.draw is not JEPA.draw])
def test_draws_follow_seed_epoch_batch_and_place(name: str) -> None:
    """A process draws for its own samples what one process would; held-out data have the same in every epoch."""

    def differ(other: list[Tensor]) -> bool:
        return all(bool((a != b).any()) for a, b in zip(one, other, strict=True))

    one = drawn(name)
    assert one
    assert not difference(one, drawn(name))
    assert all(differ(drawn(name, **place)) for place in ({"batch_idx": 1}, {"epoch": 1}, {"seed": 2}))
    for rank in range(2):
        assert not difference([each[rank::2] for each in one], drawn(name, rank=rank, ranks=2))
    held_out = drawn(name, training=False)
    assert differ(held_out)
    assert not difference(held_out, drawn(name, training=False, epoch=1))
    assert difference(held_out, drawn(name, training=False, batch_idx=1))


def contexts_of(module: Any, observation: Tensor, masks: Any) -> list[tuple[str, int, Tensor]]:
    """Of each context the name of its predictions, its number among theirs, and what of the observation it sees."""
    if isinstance(masks, PointMasks):  # a context for each target
        return [("", number, seen.unsqueeze(-1)) for number, seen in enumerate(masks.context.unbind(1))]
    grid, found = module.grid_of(observation), []
    for kind, (context, _) in module.kinds(masks).items():
        tokens = torch.zeros(len(context), math.prod(grid)).scatter(1, context, 1.0).view(len(context), 1, *grid)
        if len(grid) == 1:  # of series, whose channels come last
            seen = F.interpolate(tokens, observation.shape[1:2]).mT
        else:
            seen = F.interpolate(tokens, observation.shape[2:])
        found.append((kind, 0, seen.bool()))
    return found


@pytest.mark.parametrize("name", [name for name, (method, _) in METHODS.items() if issubclass(method, MaskedJEPA)])
def test_the_context_does_not_see_what_is_hidden(name: str) -> None:
    one = {"num_masks": 1} if "num_masks" in METHODS[name][1] else {}  # what one clone hides, another sees
    module, batch = plain(name, **one).eval(), CASES[name].data(3)
    observation = batch[0]
    masks = module.draw(observation, module.rng(3, 0))
    contexts = contexts_of(module, observation, masks)
    for kind, number, seen in contexts:
        assert 0 < seen.float().mean() < 1
        latents = [
            module.latents(each, masks)
            for each in (observation, torch.where(seen, observation, 9.0), torch.where(seen, 9.0, observation))
        ]
        several = sum(each == kind for each, _, _ in contexts)
        # Of several contexts the tokens, and what is predicted from them, come one context after another.
        context, prediction, target = (
            [each.unflatten(1, (several, -1))[:, number] for each in values]
            for values in (
                [each.embeddings[f"context/{kind}".rstrip("/")].values for each in latents],
                [each.predictions[kind].prediction for each in latents],
                [each.predictions[kind].target for each in latents],
            )
        )
        assert torch.equal(context[0], context[1])
        assert torch.equal(prediction[0], prediction[1])
        assert not torch.allclose(target[0], target[1])
        assert not torch.allclose(context[0], context[2])


@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str) -> None:
    """All that is to be trained has one, as DDP demands; no teacher has, and no target that a teacher makes."""
    module = plain(name).train()
    module.configure_model()
    latents = module.latents(CASES[name].data(6))
    module.loss(latents)["loss"].backward()
    teachers = tuple(f"{teacher.teacher}." for teacher in module.teachers())
    assert not (teachers and any(each.target.requires_grad for each in latents.predictions.values()))
    for key, parameter in module.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), key
        assert not (parameter.requires_grad and key.startswith(teachers)), key
        if parameter.requires_grad and parameter.ndim > 1:  # a bias may be without effect
            assert parameter.grad.any(), key
    assert any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_energies(name: str) -> None:
    """One for each sample, whatever else is in the batch; their mean is what the loss has of them."""
    module, batch = made(name).eval(), CASES[name].data(6)
    masks = module.draw(batch, module.rng(6, 0))
    latents = module.latents(batch, masks)
    terms, energy = module.loss(latents), module.energy(latents)
    assert energy.shape == (6,)
    torch.testing.assert_close(energy.mean(), terms.get("energy", terms["loss"]))
    other = module.latents(type(batch)(batch[0].index_fill(0, torch.tensor(5), 0.0), *batch[1:]), masks)
    torch.testing.assert_close(module.energy(other)[:5], energy[:5])


# --- Teachers and rates ----------------------------------------------------------------------------------------------


class Steps(pl.Callback):
    """Students and teachers after every batch, before the teachers move; and the rates of every optimiser at work."""

    def __init__(self) -> None:
        self.students: list[dict[str, dict[str, Tensor]]] = []
        self.teachers: list[dict[str, dict[str, Tensor]]] = []
        self.rates: list[float] = []
        self.hook: Any = None

    def look(self, module: Any, field: str) -> dict[str, dict[str, Tensor]]:
        names = [getattr(teacher, field) for teacher in module.teachers()]
        return {n: {k: v.clone() for k, v in module.get_submodule(n).named_parameters()} for n in names}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        def look(optimizer: Any, args: Any, kwargs: Any) -> None:
            self.rates += [group["lr"] for group in optimizer.param_groups]

        self.hook = register_optimizer_step_pre_hook(look)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.hook.remove()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.teachers.append(self.look(pl_module, "teacher"))
        for names in pl_module.teachers():
            assert not any(part.training for part in pl_module.get_submodule(names.teacher).modules())
            assert pl_module.get_submodule(names.student).training == (pl_module.rates().get(names.student) != 0)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.students.append(self.look(pl_module, "student"))


@pytest.mark.parametrize("name", CASES)
def test_momentum_and_rates_at_every_step(name: str, tmp_path: Path) -> None:
    """Teachers by hand, from the students after each step; no rate of any optimiser, probes' included, is negative."""
    module, steps = made(name), Steps()
    quiet_trainer(tmp_path, max_epochs=2, callbacks=[steps, *probes(name)], limit_val_batches=0).fit(module, Data(name))
    assert len(steps.students) == 8
    assert min(steps.rates) >= 0
    by_hand = steps.teachers[0]
    for teacher in module.teachers():  # which start as their students
        student = made(name).get_submodule(teacher.student)
        assert not difference(by_hand[teacher.teacher], dict(student.named_parameters()))
    for step, students in enumerate(steps.students):
        after = [*steps.teachers, steps.look(module, "teacher")][step + 1]
        for teacher in module.teachers():
            momentum = teacher.momentum(step, 8)
            assert 0 <= momentum <= 1
            for key, value in by_hand[teacher.teacher].items():
                value.lerp_(students[teacher.student][key], 1 - momentum)
                torch.testing.assert_close(after[teacher.teacher][key], value, rtol=1e-5, atol=1e-6)
    ends = steps.look(module, "student")
    for student in ends:
        frozen = module.rates().get(student) == 0
        assert bool(difference(ends[student], steps.students[0][student])) != frozen


def test_a_callback_of_ones_own_replaces_all_momenta(tmp_path: Path) -> None:
    """It is the only one; at momentum zero the teachers are their students."""
    name = "two encoders, three optimisers"
    module, ema = made(name), EMATargetEncoder((0.0, 0.0))
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[ema])
    trainer.fit(module, Data(name))
    assert [callback for callback in trainer.callbacks if isinstance(callback, EMATargetEncoder)] == [ema]
    for teacher in module.teachers():
        student, follower = (module.get_submodule(each).state_dict() for each in teacher[:2])
        assert not difference(student, follower)
    with pytest.raises(ValueError, match=r"\[0, 1\].*1\.1"):
        EMATargetEncoder((0.9, 1.1))


def test_a_teacher_is_a_network_of_its_own(tmp_path: Path) -> None:
    module = made("actions")
    module.teacher = module.encoder
    with pytest.raises(ValueError, match=r"teacher.*encoder"):
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
    assert not difference(module.context_encoder.state_dict(), before)
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

    with pytest.raises(ValueError, match=r"'encoder'.*context_encoder"):
        quiet_trainer(tmp_path, max_epochs=1).fit(Misnamed(**OF_IMAGES), Data("frozen encoder"))


# --- Accumulation and clipping ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_accumulation(name: str, tmp_path: Path) -> None:
    """The step of two batches is that of the mean of their losses, each by the weight of what it has predicted."""
    module = plain(name)
    trainer = quiet_trainer(tmp_path, max_epochs=1, accumulate_grad_batches=2)
    data = DataLoader(toys.Rows(CASES[name].data(10)), 5)
    if not module.automatic_optimization:
        with pytest.raises(MisconfigurationException, match="accumulation"):
            trainer.fit(module, data)
        return
    reference = copy.deepcopy(module).train()
    reference.configure_model()
    losses, weights = [], []
    for number, batch in enumerate(data):
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
    """Gradients, accumulated ones too, are as long as the limit; what optimises by hand refuses it.

    A method may clip each of its networks for itself.
    """
    module, limit = plain(name), 1e-4
    accumulate = 2 if module.automatic_optimization else 1
    trainer = quiet_trainer(
        tmp_path, max_epochs=1, gradient_clip_val=limit, accumulate_grad_batches=accumulate, limit_val_batches=0
    )
    if not module.automatic_optimization:
        with pytest.raises(MisconfigurationException, match="clipping"):
            trainer.fit(module, Data(name))
        return
    norms: list[float] = []

    def look(optimizer: Any, args: Any, kwargs: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    hook = register_optimizer_step_post_hook(look)
    trainer.fit(module, Data(name))
    hook.remove()
    assert len(norms) == 2
    longest = limit
    if CASES[name].method.configure_gradient_clipping is not JEPA.configure_gradient_clipping:
        longest *= len(list(module.children())) ** 0.5
    assert all(0.9 * limit < norm < 1.01 * longest for norm in norms)


# --- Resuming --------------------------------------------------------------------------------------------------------


class Losses(pl.Callback):
    """The loss of every batch."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(float(outputs["loss"]))


@pytest.mark.parametrize("name", CASES)
def test_resume_in_mid_epoch(name: str, tmp_path: Path) -> None:
    """Bit for bit: losses, weights, optimisers, schedules and probes, whatever has been seeded anew."""
    per_batch = 1 if made(name).automatic_optimization else 3

    def run(ckpt_path: Path | None = None) -> tuple[list[float], dict[str, Any]]:
        pl.seed_everything(0 if ckpt_path is None else 5, verbose=False)
        module, losses = CASES[name].method(**CASES[name].options), Losses()
        torch.manual_seed(0)  # what is drawn is a function of the seed
        saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3 * per_batch, save_top_k=-1)
        watching = [losses, CollapseMonitor(3), *probes(name), saving]
        trainer = quiet_trainer(tmp_path, max_epochs=2, callbacks=watching, enable_checkpointing=True)
        trainer.fit(module, Data(name), ckpt_path=ckpt_path, weights_only=True)
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        return losses.seen, torch.load(tmp_path / "end.ckpt", weights_only=True)

    whole, expected = run()
    after, found = run(tmp_path / f"step={3 * per_batch}.ckpt")
    assert len(whole) == 8
    assert after == whole[3:]
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert not difference(expected[part], found[part], part)
    kinds = ("LinearProbe", "KNNProbe", "AttentiveProbe", "RegressionProbe")
    watched = [key for key in expected["callbacks"] if key.startswith(kinds)]
    assert len(watched) == len(probes(name))
    assert not any(difference(expected["callbacks"][key], found["callbacks"][key], key) for key in watched)


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
    assert not difference(whole, run(ckpt_path=tmp_path / "within.ckpt", weights_only=True))
    del saved["gradients_weight"]
    torch.save(saved, tmp_path / "without.ckpt")
    assert difference(whole, run(ckpt_path=tmp_path / "without.ckpt", weights_only=True))


# --- Copies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_copies(name: str, tmp_path: Path) -> None:
    """A checkpoint, a deep copy and a pickle are the module again; another training starts where it ended."""
    module, data = made(name), CASES[name].data(4)
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, Data(name))
    trainer.save_checkpoint(path := tmp_path / "it.ckpt")
    loaded = type(module).load_from_checkpoint(path, weights_only=True)
    assert dict(loaded.hparams) == dict(module.hparams)
    module.eval()
    expected = module.features(data)
    for each in (loaded, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert not difference(each.state_dict(), module.state_dict())
        found = each.eval().features(data)
        assert torch.equal(found.values, expected.values)
        assert torch.equal(found.pooled(), expected.pooled())
    torch.manual_seed(9)
    started = type(module)(**CASES[name].options, weights=str(path))
    quiet_trainer(tmp_path).predict(started, Data(name))
    for key, parameter in started.named_parameters():  # but for regularisers, which start anew
        assert key.startswith("regularizers.") or torch.equal(parameter, module.get_parameter(key)), key


@pytest.mark.parametrize("name", METHODS)
def test_options_that_do_not_fit(name: str) -> None:
    """Are refused when the module is built, by their names."""
    method, options = METHODS[name]
    with pytest.raises(TypeError, match="wramup"):
        method(**options, wramup=0.0)
    with pytest.raises(ValueError, match="warmup"):
        method(**options | {"warmup": 1.0})
    with pytest.raises(ValueError, match="final_lr"):
        method(**options | {"final_lr": -1.0})


# --- Batches of every kind -------------------------------------------------------------------------------------------


def label_in_a_tuple(batch: Any, reads: tuple[str, ...]) -> str:
    """What `kind` is called where fields have no names."""
    labels = [field for field in batch._fields if field not in (reads or batch._fields[:1])]
    place = labels.index("kind")
    return f"label {place + 1}" if place else "label"


@pytest.mark.parametrize("name", CASES)
def test_batches_of_every_kind(name: str) -> None:
    """Dict, list, tuple and NamedTuple hold the same: latents, features and labels; so does a bare observation."""
    module, batch = made(name).eval(), CASES[name].data(4)
    choice = module.draw(batch, module.rng(4, 0))
    expected, features = module.latents(batch, choice), module.predict_step(batch, 0)["features"]
    label = label_in_a_tuple(batch, module.reads)
    kinds = [(batch, "kind"), (batch._asdict(), "kind"), (list(batch), label), (tuple(batch), label)]
    for given, kind in kinds if module.reads else [*kinds, (batch[0], None)]:
        assert not difference(tensors(module.draw(given, module.rng(4, 0))), tensors(choice))
        found = module.latents(given, choice)
        for mine, other in zip(expected.predictions.values(), found.predictions.values(), strict=True):
            assert torch.equal(mine.prediction, other.prediction)
            assert torch.equal(mine.target, other.target)
        predicted = module.predict_step(given, 0)
        assert torch.equal(predicted["features"], features)
        assert predicted.keys() == {"features"} if kind is None else torch.equal(predicted[kind], batch.kind)


@pytest.mark.parametrize("name", ["I-JEPA", "actions"])
def test_trainings_on_batches_of_every_kind(name: str, tmp_path: Path) -> None:
    """Dicts, lists, tuples and NamedTuples give the same weights and readings."""
    ends, label = [], label_in_a_tuple(CASES[name].data(2), CASES[name].method.reads)
    for kind in (None, dict, list, tuple):
        data = DataLoader(toys.Rows(CASES[name].data(8), kind), batch_size=4)
        chosen = {"label": "kind" if kind in (None, dict) else label}
        watching = [CollapseMonitor(1), LinearProbe(2, **chosen), KNNProbe(bank_size=8, **chosen), Cockpit(4)]
        module, trainer = made(name), quiet_trainer(tmp_path, max_epochs=1, callbacks=watching)
        pl.seed_everything(0, verbose=False)
        trainer.fit(module, data, data)
        ends.append((module.state_dict(), {tag: value.clone() for tag, value in trainer.callback_metrics.items()}))
    assert {"probe/linear/accuracy", "probe/knn/accuracy", "train/constant_loss"} <= ends[0][1].keys()
    assert not any(difference(end, ends[0]) for end in ends[1:])


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
    with pytest.raises(ValueError, match=r"observation, action, state.*observation, state, position, kind"):
        module.latents(episode)
    with pytest.raises(ValueError, match=r"'linear'.*'sort'.*position, kind"):
        quiet_trainer(max_epochs=1, callbacks=[LinearProbe(2, label="sort")]).fit(module, Data("actions"))
    with pytest.raises(ValueError, match=r"'phi'.*features, context, target"):
        quiet_trainer(max_epochs=1, callbacks=[LinearProbe(2, label="kind", source="phi")]).fit(module, Data("actions"))
    with pytest.raises(TypeError, match=r"'name' is a list"):
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
    with pytest.raises(ValueError, match="tokens, mean, futures"):
        latents.prediction  # noqa: B018
    wrong = latents._replace(predictions={"": Prediction(tokens, token_target, weight[:, :1])})
    with pytest.raises(ValueError, match=r"\[6, 1\].*\[6, 5\]"):
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
    with pytest.raises(ValueError, match=r"\[1, 3, 224, 224\].*image_size"):
        IJEPA(encoder={"class_path": "jepa_lightning.networks.TimmEncoder", "init_args": sizes})
    with pytest.raises(ValueError, match=r"depth=3.*Dropping"):
        IJEPA(image_size=16, encoder=chosen, depth=3)
    with pytest.raises(ValueError, match=r"embed_dim=16.*Dropping.*embed_dim=8"):
        IJEPA(image_size=16, encoder=chosen, embed_dim=16)
    for wrong, named in (
        ({"class_path": "os.getcwd"}, "os.getcwd"),
        ({"class_path": "toys.Missing"}, "toys.Missing"),
        ({"class": "toys.Dropping"}, "class_path"),
    ):
        with pytest.raises(ValueError, match=named):
            IJEPA(image_size=16, encoder=wrong)
    with pytest.raises(TypeError, match=r"embed_dims.*embed_dim"):
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

    with pytest.warns(UserWarning, match="predictor"):
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
    assert not difference(trained, teacher.state_dict())
    trainer.strategy.connect(teacher)
    trainer.save_checkpoint(tmp_path / "trained.ckpt")
    loaded = Started.load_from_checkpoint(tmp_path / "trained.ckpt", weights_only=True)
    quiet_trainer().test(loaded, Data("I-JEPA"), verbose=False)
    assert not difference(trained, loaded.state_dict())
    with pytest.raises(ValueError, match=r"no network encoder.*context_encoder"):
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
    with pytest.warns(UserWarning, match="predictor"):
        _, second = fit("second", 1, weights={"context_encoder": str(path)})
    same_weights = {
        name: all(
            torch.equal(a, b) for a, b in zip(*(getattr(m, name).parameters() for m in (first, second)), strict=True)
        )
        for name in ("context_encoder", "target_encoder", "predictor")
    }
    assert same_weights == {"context_encoder": True, "target_encoder": True, "predictor": False}


def test_schedules_need_an_end() -> None:
    """Epochs of data whose length nobody knows have none, nor has a training without limit."""

    class Endless(torch.utils.data.IterableDataset[Tensor]):
        def __iter__(self) -> Any:
            yield from random_images(40)

    for module in (made("I-JEPA"), no_jepa()):
        with pytest.raises(ValueError, match="max_steps"):
            quiet_trainer(max_epochs=2).fit(module, DataLoader(Endless(), 4))
    with pytest.raises(ValueError, match=r"max_epochs.*max_steps"):
        quiet_trainer(max_epochs=-1).fit(made("I-JEPA"), Data("I-JEPA"))
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

    with pytest.raises(ValueError, match="clock"):
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

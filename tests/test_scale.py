"""What every method must do at scale: processes that train as one, shards, mixed precision, compiled steps."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import toys
from helpers import (
    CASES,
    METHODS,
    SHARDS_ON_CPU,
    in_two_processes,
    loader,
    made,
    observations,
    plain,
    quiet_trainer,
    shards_on_cpu,
)
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.data import DataLoader, DistributedSampler

from jepa_lightning.callbacks import CollapseMonitor, KNNProbe, LinearProbe
from jepa_lightning.losses import SIGReg
from jepa_lightning.masking import MultiBlockMasking

# --- Two processes ---------------------------------------------------------------------------------------------------

BOTH = {"vicreg": {"weight": 0.1}, "sigreg": {"weight": 0.1, "num_slices": 16}}
FURTHER: dict[str, tuple[str, dict[str, Any]]] = {
    "I-JEPA, started": ("I-JEPA", {"weights": "start.ckpt"}),
    "I-JEPA, recomputed": ("I-JEPA", {"recompute_activations": True}),
    "V-JEPA, regularised": ("V-JEPA", {"regularizers": BOTH}),  # both kinds of masks
    "V-JEPA 2, official": ("V-JEPA 2", {"official": True, "num_mask_tokens": 10}),  # nine of them are never used
}
TRAININGS = {**{name: (name, {}) for name in CASES}, **FURTHER}
SHARDED = [*METHODS, "I-JEPA, started", "I-JEPA, recomputed"]


def fit(name: str, folder: Path, strategy: Any, devices: int = 2) -> dict[str, Any]:
    """The weights that a rank ends with after two steps, what it logs, and whether its parameters are parts only."""
    method, options = TRAININGS[name]
    if "weights" in options:
        options = {"weights": str(folder / options["weights"])}
    module = plain(method, **options)
    clipping = {"gradient_clip_val": 0.5} if module.automatic_optimization else {}
    trainer = quiet_trainer(
        folder, devices=devices, strategy=strategy, max_epochs=2, callbacks=[CollapseMonitor(2)], **clipping
    )
    rows = toys.Rows(CASES[method].data(8))
    # Lightning's own would shuffle on several ranks only.
    sampler = DistributedSampler(rows, shuffle=False) if devices > 1 else None  # type: ignore[arg-type,var-annotated]
    trainer.fit(module, DataLoader(rows, 8 // devices, sampler=sampler))
    parts = all(isinstance(parameter, DTensor) for parameter in module.parameters())
    trainer.save_checkpoint(folder / "last.ckpt")
    weights = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    return {"weights": weights, "logged": {k: float(v) for k, v in trainer.callback_metrics.items()}, "parts": parts}


def two_processes(rank: int, folder: Path) -> dict[str, Any]:
    """Everything with whole networks and with sharded ones."""
    os.environ["PL_GLOBAL_SEED"] = "0"  # that of `plain`, to which the strategy goes back
    result = {f"{name}, whole": fit(name, folder, "ddp") for name in TRAININGS}
    sharding = {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": False}
    for name in SHARDED if SHARDS_ON_CPU else ():
        result[f"{name}, sharded"] = fit(name, folder, ModelParallelStrategy(**sharding))  # type: ignore[arg-type]
    return result


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder with the checkpoint that one of the trainings starts from, and what both ranks have."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save({"state_dict": plain("I-JEPA").apply(shrink).state_dict()}, folder / "start.ckpt")
    return folder, in_two_processes(two_processes, folder)


def shrink(network: nn.Module) -> None:
    """To other weights than those that a training starts with by itself."""
    for parameter in network.parameters(recurse=False):
        parameter.data.mul_(0.5)


def assert_weights(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        one, other = torch.as_tensor(found[key]), torch.as_tensor(value)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


# The first of these takes twenty seconds, in which two processes train everything.
@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_train_as_one(name: str, ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    """With half of the batch each: weights, teacher, what is logged of the embeddings, and the mean of their losses."""
    folder, results = ranks
    one, both = fit(name, folder, "auto", devices=1), [result[f"{name}, whole"] for result in results]
    if any(isinstance(part, nn.BatchNorm1d) for part in made(TRAININGS[name][0]).modules()):
        # `sync_batchnorm` makes them one of all processes, on GPUs only.
        statistics = ("running_mean", "running_var")
        first, second = ({k: v for k, v in e["weights"].items() if not k.endswith(statistics)} for e in both)
        assert_weights(first, second)
        return
    for rank in both:
        assert not rank["parts"]
        assert_weights(rank["weights"], one["weights"])
    for tag, value in one["logged"].items():
        readings = [rank["logged"][tag] for rank in both]
        assert sum(readings) / 2 == pytest.approx(value, rel=1e-3, abs=1e-5, nan_ok=True), tag


@shards_on_cpu
@pytest.mark.parametrize("name", SHARDED)
def test_sharded_networks_train_as_whole_ones(name: str, ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    """Weights, teacher and all that is logged, under FSDP2 as under DDP; and the checkpoint is an ordinary one."""
    for result in ranks[1]:
        whole, sharded = (result[f"{name}, {kind}"] for kind in ("whole", "sharded"))
        assert sharded["parts"]
        assert_weights(sharded["weights"], whole["weights"])
        assert sharded["logged"] == pytest.approx(whole["logged"], rel=1e-3, abs=1e-5, nan_ok=True)
    method, options = TRAININGS[name]
    made(method, **options).load_state_dict(ranks[1][0][f"{name}, sharded"]["weights"])


@shards_on_cpu
def test_the_start_matters(ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    """What was started from a checkpoint ends elsewhere; with recomputed activations a training ends where it would."""
    usual, started, recomputed = (
        ranks[1][0][f"I-JEPA{kind}, sharded"]["weights"] for kind in ("", ", started", ", recomputed")
    )
    key = "context_encoder.blocks.0.mlp.fc1.weight"
    assert not torch.allclose(usual[key], started[key], atol=0.1)
    assert_weights(recomputed, usual)


# --- One process -----------------------------------------------------------------------------------------------------


class Kept(pl.Callback):
    """Bytes that the forward passes of a training keep for the backward ones."""

    def __init__(self) -> None:
        self.bytes = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.count, lambda tensor: tensor)

    def count(self, tensor: Tensor) -> Tensor:
        self.bytes += tensor.nbytes
        return tensor

    def on_train_batch_start(self, *_: Any) -> None:
        self.hooks.__enter__()

    def on_before_backward(self, *_: Any) -> None:
        self.hooks.__exit__()


def recompute(name: str, folder: Path, **options: Any) -> float:
    """The share of memory that a training needs that recomputes; it ends with the same weights to the last bit."""
    ends, kept = [], []
    for recomputed in (False, True):
        module, counter = plain(name, recompute_activations=recomputed, **options), Kept()
        trainer = quiet_trainer(folder, max_epochs=1, callbacks=[counter])
        trainer.fit(module, loader(observations(name, 8), 8))
        trainer.validate(module, loader(observations(name, 8), 8), verbose=False)
        ends.append(module.state_dict())
        kept.append(counter.bytes)
    assert ends[0].keys() == ends[1].keys()
    for key, value in ends[0].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(ends[1][key])), key
    return kept[1] / kept[0]


@pytest.mark.parametrize("name", METHODS)
def test_recomputed_activations(name: str, tmp_path: Path) -> None:
    """The same weights in the end, for less memory."""
    assert recompute(name, tmp_path) < 1


def test_recomputed_activations_of_many_blocks(tmp_path: Path) -> None:
    """Half of the memory or less for a network of eight blocks."""
    assert recompute("I-JEPA", tmp_path, depth=8) < 0.5


@pytest.mark.parametrize("name", CASES)
def test_mixed_precision(name: str, tmp_path: Path) -> None:
    """Weights and teacher stay in single precision, and the loss is the same to three digits or so."""
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        module, watching = plain(name), [CollapseMonitor(1), LinearProbe(2, label="kind"), KNNProbe(label="kind")]
        trainer = quiet_trainer(tmp_path, max_epochs=1, precision=precision, callbacks=watching)
        trainer.fit(module, DataLoader(toys.Rows(CASES[name].data(8)), 8))
        losses.append(float(trainer.callback_metrics["train/loss"]))
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]


# --- Waiting for the device ------------------------------------------------------------------------------------------


class Reads(TorchDispatchMode):
    """Where the host wants to know a number that a GPU would still be computing, or hands it one."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        reads = {"_local_scalar_dense", "equal", "lift_fresh", "masked_select", "nonzero"}
        indices = [i for arg in args if isinstance(arg, list | tuple) for i in arg if isinstance(i, Tensor)]
        if name in reads or (name in ("index", "index_put_") and any(i.dtype == torch.bool for i in indices)):
            self.found.append(name)
        return func(*args, **kwargs or {})


class Watch(pl.Callback):
    """Watches the second epoch, as metrics of what is logged are made in the first; and a read of its own after it."""

    def __init__(self) -> None:
        self.mode = Reads()
        self.of_steps: list[str] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == 0:
            self.mode.__enter__()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 0:
            return
        self.of_steps = [*self.mode.found]
        float(trainer.callback_metrics["train/loss"])
        self.mode.__exit__(None, None, None)


@pytest.mark.parametrize("name", METHODS)
def test_no_step_waits_for_the_device(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the masks of images, which are drawn without a look at them where there is something to wait for."""
    draw = MultiBlockMasking.__call__

    def unwatched(*args: Any) -> Any:
        with _disable_current_modes():
            return draw(*args)

    monkeypatch.setattr(MultiBlockMasking, "__call__", unwatched)
    watch = Watch()
    trainer = quiet_trainer(tmp_path, max_epochs=2, callbacks=[watch, CollapseMonitor()])
    trainer.fit(made(name), loader(observations(name, 24), 8))
    assert watch.of_steps == []
    assert watch.mode.found == ["_local_scalar_dense"]


# --- torch.compile ---------------------------------------------------------------------------------------------------


def compile_steps(name: str, backend: str, steps: int) -> None:
    """Loss and gradients are as without; all is one graph, and none is compiled after the warm-up of two steps.

    But for SIGReg, whose random directions come from a generator of their own, between two graphs.
    """
    module = plain(name)
    reference = copy.deepcopy(module)
    whole = not any(isinstance(part, SIGReg) for part in module.modules())

    def loss(module: Any, observation: Tensor, masks: Any) -> Tensor:
        return module.loss(module.latents(observation, masks))["loss"]

    torch.compiler.reset()
    counters.clear()
    compiled = torch.compile(loss, backend=backend, fullgraph=whole)
    graphs = []
    for step in range(steps):
        observation = observations(name, 8) + step
        masks = module.draw(observation, module.rng(8, step))
        results = []
        for function, networks in ((compiled, module), (loss, reference)):
            networks.zero_grad()
            value = function(networks, observation, masks)
            value.backward()
            results.append([value.detach(), *(p.grad for p in networks.parameters() if p.grad is not None)])
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * max(1.0, float(theirs.abs().max())))
        graphs.append(counters["stats"]["unique_graphs"])
    assert 0 < graphs[0] <= graphs[1] == graphs[-1]
    assert not whole or graphs[-1] == 1


# One to three seconds each: what Dynamo takes to read a step.
@pytest.mark.parametrize("name", [name for name, (_, options) in METHODS.items() if "regularizers" not in options])
def test_a_compiled_step_is_one_graph(name: str) -> None:
    compile_steps(name, "eager", steps=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_compiled_step_and_its_gradients(name: str) -> None:
    compile_steps(name, "aot_eager", steps=4)

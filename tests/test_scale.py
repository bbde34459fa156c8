"""Sharded networks, recomputed activations, accumulation, clipping and mixed precision, with every method."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import (
    METHODS,
    SHARDS_ON_CPU,
    LabelledImages,
    eager,
    in_two_processes,
    loader,
    made,
    observations,
    quiet_trainer,
    shards_on_cpu,
)
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch._dynamo.utils import counters
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from jepa_lightning.callbacks import CollapseMonitor, KNNProbe, LinearProbe
from jepa_lightning.draws import Rng
from jepa_lightning.masking import MultiBlockMasking

# --- Two processes ---------------------------------------------------------------------------------------------------


def fit(
    name: str, folder: Path, strategy: Any, devices: int = 2, **options: Any
) -> tuple[dict[str, Tensor], dict[str, float], bool]:
    """The weights that a rank ends with after two steps and what it logs; whether its parameters are parts only."""
    module = made(name, **options)
    monitor = CollapseMonitor(2)
    trainer = quiet_trainer(
        folder, devices=devices, strategy=strategy, max_epochs=2, callbacks=[monitor], gradient_clip_val=0.5
    )
    data = TensorDataset(observations(name, 8))
    # Lightning's own would shuffle on several ranks only.
    sampler = DistributedSampler(data, shuffle=False) if devices > 1 else None
    trainer.fit(module, DataLoader(data, 8 // devices, sampler=sampler))
    sharded = all(isinstance(parameter, DTensor) for parameter in module.parameters())
    trainer.save_checkpoint(folder / "last.ckpt")
    saved = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    return saved, {tag: float(value) for tag, value in trainer.callback_metrics.items()}, sharded


def cases(folder: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """The methods as they are, and one started from a checkpoint, and one with recomputed activations."""
    further = {"weights": {"weights": str(folder / "start.ckpt")}, "recomputed": {"recompute_activations": True}}
    return {name: (name, {}) for name in METHODS} | {name: ("I-JEPA", options) for name, options in further.items()}


def two_processes(rank: int, folder: Path) -> dict[str, Any]:
    """Everything with whole networks and with sharded ones."""
    os.environ["PL_GLOBAL_SEED"] = "0"  # as `made`: the strategy goes back to what another test may have left here
    result: dict[str, Any] = {}
    sharding = {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": False}
    for name, (method, options) in cases(folder).items():
        strategies: dict[str, Any] = {"whole": "ddp"}
        if SHARDS_ON_CPU:
            strategies["sharded"] = ModelParallelStrategy(**sharding)  # type: ignore[arg-type]
        for kind, strategy in strategies.items():
            weights, logged, parts = fit(method, folder, strategy, **options)
            result[f"{name}, {kind}"] = {"weights": weights, "logged": logged, "parts": parts}
    return result


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    trainer = quiet_trainer(folder)
    trainer.strategy.connect(eager(made("I-JEPA")))
    trainer.save_checkpoint(folder / "start.ckpt")
    return in_two_processes(two_processes, folder)


# LeJEPA's projector has batch norms, which `sync_batchnorm` makes one of all processes, on GPUs only.
@pytest.mark.parametrize("name", [name for name in METHODS if name != "LeJEPA"])
def test_two_processes_train_as_one(name: str, ranks: list[dict[str, Any]], tmp_path: Path) -> None:
    """With half of the batch each: weights, teacher, what is logged of the embeddings, and the mean of their losses."""
    weights, logged, _ = fit(name, tmp_path, "auto", devices=1)
    both = [rank[f"{name}, whole"] for rank in ranks]
    for rank in both:
        assert rank["weights"].keys() == weights.keys()
        for key, value in weights.items():
            got, expected = torch.as_tensor(rank["weights"][key]), torch.as_tensor(value)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
    for tag, value in logged.items():
        readings = [rank["logged"][tag] for rank in both]
        assert sum(readings) / 2 == pytest.approx(value, rel=1e-3, abs=1e-5, nan_ok=True), tag


@shards_on_cpu
@pytest.mark.parametrize("name", cases(Path()))
def test_sharded_networks_train_as_whole_ones(name: str, ranks: list[dict[str, Any]]) -> None:
    """Weights, teacher and all that is logged, under FSDP2 as under DDP; and the checkpoint is an ordinary one."""
    for rank in ranks:
        whole, sharded = (rank[f"{name}, {kind}"] for kind in ("whole", "sharded"))
        assert sharded["parts"]
        assert not whole["parts"]
        assert sharded["weights"].keys() == whole["weights"].keys()
        for key, value in whole["weights"].items():
            got, expected = torch.as_tensor(sharded["weights"][key]), torch.as_tensor(value)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
        assert sharded["logged"].keys() == whole["logged"].keys()
        for tag, value in whole["logged"].items():
            assert sharded["logged"][tag] == pytest.approx(value, rel=1e-3, abs=1e-5, nan_ok=True), tag
    made(cases(Path())[name][0]).load_state_dict(ranks[0][f"{name}, sharded"]["weights"])


@shards_on_cpu
def test_the_start_matters(ranks: list[dict[str, Any]]) -> None:
    """What was started from a checkpoint ends elsewhere; with recomputed activations a training ends where it would."""
    plain, started, recomputed = (
        ranks[0][f"{name}, sharded"]["weights"] for name in ("I-JEPA", "weights", "recomputed")
    )
    key = "context_encoder.blocks.0.mlp.fc1.weight"
    assert not torch.allclose(plain[key], started[key], atol=0.1)
    torch.testing.assert_close(plain, recomputed, rtol=1e-4, atol=1e-6)


# --- One process -----------------------------------------------------------------------------------------------------


class Kept(pl.Callback):
    """Bytes that the forward passes of a training keep for the backward ones."""

    def __init__(self) -> None:
        self.bytes = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._count, lambda tensor: tensor)

    def _count(self, tensor: Tensor) -> Tensor:
        self.bytes += tensor.nbytes
        return tensor

    def on_train_batch_start(self, *_: Any) -> None:
        self._hooks.__enter__()

    def on_before_backward(self, *_: Any) -> None:
        self._hooks.__exit__()


@pytest.mark.parametrize("name", METHODS)
def test_recomputed_activations(name: str, tmp_path: Path) -> None:
    """Half of the memory or less for a network of eight blocks, and the same weights in the end."""
    ends, kept = [], []
    for recomputed in (False, True):
        counter = Kept()
        module = made(name, recompute_activations=recomputed, depth=8)
        trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[counter])
        trainer.fit(module, loader(observations(name, 8), 8))
        trainer.validate(module, loader(observations(name, 8), 8), verbose=False)
        ends.append(module.state_dict())
        kept.append(counter.bytes)
    assert 0 < kept[1] < 0.5 * kept[0]
    assert ends[0].keys() == ends[1].keys()
    for key, value in ends[0].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(ends[1][key])), key


@pytest.mark.parametrize("name", METHODS)
def test_accumulated_gradients(name: str, tmp_path: Path) -> None:
    """Two halves of a batch make the step of the whole, where the loss is a mean over images."""
    module, reference = made(name), made(name)
    means = name not in ("I-JEPA with SIGReg", "C-JEPA", "LeJEPA")  # whose statistics are those of a batch
    masks = module.draw(observations(name, 8), Rng(1, batch_size=8))

    def drawn(starts: Iterator[int], batch: Any, rng: Rng) -> Any:
        start = next(starts)
        part = slice(start, start + rng.batch_size)
        of = [type(kind)(*(each[part] for each in kind)) for kind in (masks if isinstance(masks, list) else [masks])]
        return of if isinstance(masks, list) else of[0]

    for each, size in ((module, 4), (reference, 8)):
        each.draw = partial(drawn, iter(range(0, 8, size)))
        trainer = quiet_trainer(tmp_path, max_epochs=1, accumulate_grad_batches=8 // size, gradient_clip_val=0.1)
        trainer.fit(each, loader(observations(name, 8), size))
        assert trainer.global_step == 1
    for key, value in reference.state_dict().items():
        if means and value.is_floating_point():
            torch.testing.assert_close(module.state_dict()[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_mixed_precision(name: str, tmp_path: Path) -> None:
    """Weights and teacher stay in single precision, and the loss is the same to three digits or so."""
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        module = made(name)
        probes = [LinearProbe(4), KNNProbe()] if not name.startswith("V-JEPA") else []
        trainer = quiet_trainer(tmp_path, max_steps=1, precision=precision, callbacks=[CollapseMonitor(1), *probes])
        trainer.fit(module, loader(observations(name) if name.startswith("V-JEPA") else LabelledImages(16)))
        losses.append(float(trainer.callback_metrics["train/loss"]))
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


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
    """Watches all steps of a training but the first."""

    def __init__(self) -> None:
        self.mode, self.steps = Reads(), 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.steps += 1
        if self.steps == 2:
            self.mode.__enter__()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.mode.__exit__(None, None, None)


@pytest.mark.parametrize("name", METHODS)
def test_no_step_waits_for_the_device(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the masks of images, which are drawn without a look at them where there is something to wait for."""
    base, tiny = METHODS[name]
    draw = MultiBlockMasking.__call__

    def unwatched(*args: Any) -> Any:
        with _disable_current_modes():
            return draw(*args)

    monkeypatch.setattr(MultiBlockMasking, "__call__", unwatched)
    watch = Watch()
    quiet_trainer(tmp_path, max_epochs=1, callbacks=[watch, CollapseMonitor()]).fit(
        base(**tiny), loader(observations(name, 40))
    )
    assert watch.steps == 5
    assert watch.mode.found == []


def test_reads_are_found() -> None:
    """The watch sees what it looks for."""
    with Reads() as reads:
        x = torch.ones(3)
        assert x.sum() > 2
        assert len(x[x > 0]) == 3
        x.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert {"_local_scalar_dense", "lift_fresh"} <= set(reads.found)
    assert len(reads.found) == 3


# --- torch.compile ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_compiled_step_is_one_graph(name: str) -> None:
    """Loss and gradients as without, whatever the masks, and nothing compiled after the warm-up of two steps.

    But for SIGReg, whose random directions come from a generator of their own, between two graphs.
    """
    base, tiny = METHODS[name]
    torch.manual_seed(0)
    module: Any = eager(base(**tiny))
    reference = copy.deepcopy(module)

    def loss(module: Any, observation: Tensor, masks: Any) -> Tensor:
        return module.loss(module.latents(observation, masks))["loss"]

    torch.compiler.reset()
    counters.clear()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph="SIGReg" not in name and name != "LeJEPA")
    graphs = []
    for step in range(4):
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
    assert graphs[-1] == 1 or "SIGReg" in name or name == "LeJEPA"

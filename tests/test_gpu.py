"""What only a GPU shows: no step waits for it, compiled networks stay compiled, and it computes the same."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import METHODS, eager, observations, quiet_trainer, random_images
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")

STEPS = 8
# Official masks are drawn with a look at what was drawn before, and on grids that are not too small.
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {name: (name, 16, {}) for name in METHODS} | {
    "I-JEPA, official": ("I-JEPA", 48, {"image_size": 48, "official_masks": True}),
    "V-JEPA 2, official": ("V-JEPA 2", 16, {"official": True}),
}


class NoWaiting(pl.Callback):
    """Makes it an error to wait for the GPU, in all steps but the first two."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == STEPS - 1:
            torch.cuda.set_sync_debug_mode("default")


def fit(module: pl.LightningModule, data: Tensor, folder: Path, **options: Any) -> None:
    """Eight steps in bfloat16."""
    trainer = quiet_trainer(folder, accelerator="gpu", precision="bf16-mixed", max_epochs=1, **options)
    try:
        trainer.fit(module, DataLoader(TensorDataset(data), len(data) // STEPS, pin_memory=True))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.global_step == STEPS


@pytest.mark.parametrize("name", CASES)
def test_no_step_waits_for_the_gpu(name: str, tmp_path: Path) -> None:
    method, size, options = CASES[name]
    base, tiny = METHODS[method]
    data = random_images(8 * STEPS, size) if size != 16 else observations(method, 8 * STEPS)
    fit(base(**tiny | options), data, tmp_path, callbacks=[NoWaiting()])


def test_waiting_is_found(tmp_path: Path) -> None:
    class Reads(METHODS["I-JEPA"][0]):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            outputs = super().training_step(batch, batch_idx)
            float(outputs["loss"])
            return outputs

    with pytest.raises(RuntimeError, match="synchronizing"):
        fit(Reads(**METHODS["I-JEPA"][1]), observations("I-JEPA", 8 * STEPS), tmp_path, callbacks=[NoWaiting()])


def test_a_step_that_is_not_finite_is_skipped_without_waiting(tmp_path: Path) -> None:
    base, tiny = METHODS["I-JEPA"]
    weights = []

    class Remember(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            weights.append(pl_module.context_encoder.blocks[0].mlp.fc1.weight.clone())

    data = observations("I-JEPA", 8 * STEPS)
    data[8 * 5] = torch.nan
    with pytest.warns(UserWarning, match="1 optimiser step was skipped"):
        fit(base(**tiny), data, tmp_path, callbacks=[NoWaiting(), Remember()])
    moved = [not torch.equal(before, after) for before, after in pairwise(weights)]
    assert moved == [True] * 4 + [False] + [True] * 2


# SIGReg draws its directions on the device.
@pytest.mark.parametrize("name", [name for name in METHODS if "SIGReg" not in name and name != "LeJEPA"])
def test_loss_and_gradients_are_those_of_the_processor(name: str) -> None:
    """In float32, with the same masks."""
    base, tiny = METHODS[name]
    torch.manual_seed(0)
    module: Any = eager(base(**tiny))
    other = copy.deepcopy(module).to("cuda")
    observation = observations(name, 8)
    masks = module.draw(observation, module.rng(8, 0))
    results = []
    for networks in (module, other):
        device = networks.device
        value = networks.loss(networks.latents(observation.to(device), move_data_to_device(masks, device)))["loss"]
        value.backward()
        results.append([value.detach().cpu(), *(p.grad.cpu() for p in networks.parameters() if p.grad is not None)])
    assert len(results[0]) > 10
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-2, atol=2e-3 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("name", METHODS)
def test_compiled_networks_stay_compiled(name: str, tmp_path: Path) -> None:
    """Whatever masks are drawn."""
    base, tiny = METHODS[name]
    module: Any = base(**tiny)
    torch.compiler.reset()
    module.latents = torch.compile(module.latents)

    class NoCompiling(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            torch._dynamo.config.error_on_recompile = batch_idx >= 2

    try:
        fit(module, observations(name, 8 * STEPS), tmp_path, callbacks=[NoCompiling()])
    finally:
        torch._dynamo.config.error_on_recompile = False

"""TD-JEPA: whole updates against traces of the official code (`golden/td_jepa`), and what the traces do not have."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_close, quiet_trainer
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from jepa_lightning import TDJEPA
from jepa_lightning.checkpoints.families import tdjepa as official
from jepa_lightning.draws import Rng
from jepa_lightning.modules.tdjepa import Drawn

GOLDEN = Path(__file__).parent / "golden" / "td_jepa"
VARIANTS = ("asymmetric", "symmetric", "flow")
FIELDS = ("observation", "action", "next_observation", "terminated")


@cache
def trace(variant: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / variant / "trace.safetensors")


def config(variant: str) -> dict[str, Any]:
    return json.loads((GOLDEN / variant / "config.json").read_text())


def golden_draws(variant: str) -> Drawn:
    names = ("z_normal", "goal_permutation", "goal_uniform", "next_action_noise", "actor_noise", "flow_x0", "flow_time")
    return Drawn(*(trace(variant).get(f"draw/{name}") for name in names))


def golden_batch(variant: str) -> dict[str, Tensor]:
    return {name: trace(variant)[name] for name in FIELDS}


class Step(TDJEPA):
    """With the draws of a trace."""

    variant: str

    def draw(self, batch: Any, rng: Rng) -> Drawn:
        return golden_draws(self.variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward(variant: str) -> None:
    """What is seen, drawn and predicted, all targets and every term of the losses."""
    module, theirs = TDJEPA.from_official(str(GOLDEN / variant / "checkpoint")), trace(variant)
    drawn = golden_draws(variant)
    seen = module.see(golden_batch(variant), drawn)
    task = module.tasks(seen, drawn)
    assert_close(task, theirs["z"], "tasks")
    latents = module.predict(seen, task, drawn)
    for name in ("phi", "psi") if variant != "symmetric" else ("phi",):
        each = latents.predictions[name]
        assert_close(latents.embeddings[name].values[:, 0], theirs[name], name)
        assert_close(each.prediction.transpose(0, 1), theirs[f"{name}_prediction"], f"prediction of {name}")
        assert_close(each.target[:, 1], theirs[f"td_target_{name}"], f"target of {name}")
    terms = module.loss(latents)
    assert_close(terms["loss"], theirs["metric/total_loss"][0], "loss")
    again = module.latents(golden_batch(variant), drawn)
    assert torch.equal(again.predictions["phi"].prediction, latents.predictions["phi"].prediction)
    for ours, metric in {"phi_td": "phi_tdjepa_loss", "phi_ortho": "phi_orth_loss"}.items():
        assert_close(terms[ours], theirs[f"metric/{metric}"][0], ours)


@pytest.mark.parametrize("variant", VARIANTS)
def test_update(variant: str) -> None:
    """Every gradient, every parameter after the step, ψ's moment, and then a task of rewards and its actions."""
    Step.variant, theirs = variant, trace(variant)
    module = Step.from_official(str(GOLDEN / variant / "checkpoint"))
    trainer = quiet_trainer(max_epochs=1, log_every_n_steps=1)
    trainer.fit(module, DataLoader([golden_batch(variant)], batch_size=None))
    found = dict(module.named_parameters())
    ours = {
        name: official.renamed(name_in_checkpoint(name)) for name in theirs if name.startswith(("grad/", "after_step/"))
    }
    gradients = {ours[name]: value for name, value in theirs.items() if name.startswith("grad/")}
    after = {ours[name]: value for name, value in theirs.items() if name.startswith("after_step/")}
    assert_close(module.task_moment, after.pop("task_moment"), "moment")
    assert found.keys() == after.keys()
    assert {name for name, value in found.items() if value.grad is not None} == gradients.keys()
    for name, value in gradients.items():
        assert_close(found[name].grad, value, f"gradient of {name}")
    for name, value in after.items():
        rounding = gradients[name].abs() <= 1e-5 * gradients[name].abs().max() if name in gradients else None
        assert_close(found[name], value, f"{name} after the step", rounding)
    for metric, term in {"total_loss": "loss", "actor_loss": "actor_loss", "q": "value"}.items():
        logged = trainer.callback_metrics[f"train/{term}"]
        assert_close(logged, theirs[f"metric/{metric}"][0], metric)
    task = module.infer_task(theirs["inference/next_observation"], theirs["inference/reward"])
    assert_close(task, theirs["inference/z"][0], "task")
    noise = theirs.get("draw/inference_noise")
    actions = module.act(theirs["inference/act_observation"], task, noise)
    assert_close(actions, theirs["inference/action"], "actions")


def name_in_checkpoint(name: str) -> str:
    """Of a name in a trace, that in the official checkpoint."""
    name = name.split("/", 1)[1].replace("/", ".")
    name = {"z_covariance": "z_cov"}.get(name, name).replace("phi_encoder", "phi_mlp_encoder")
    return "_" + name.replace("psi_encoder", "psi_mlp_encoder")

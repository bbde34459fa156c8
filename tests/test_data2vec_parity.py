"""data2vec and data2vec 2.0: forward, loss, gradients and the step of six traces of the official code."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_close
from safetensors.torch import load_file
from torch import Tensor

from jepa_lightning import Data2Vec, Data2Vec2
from jepa_lightning.checkpoints.families.data2vec import kind_of, read, renamed
from jepa_lightning.masking import Masks
from jepa_lightning.modules.data2vec2 import Clones

GOLDEN = Path(__file__).parent / "golden" / "data2vec"
K = {"num_layers": 3}
# What no file tells, where the traces differ from the published runs.
OPTIONS: dict[str, dict[str, Any]] = {
    "vision": K,
    "audio": K | {"official": True, "strides": [5, 2, 2]},
    "text": K,
    "v2_image": K | {"cls_weight": 0.06},  # 0.01 of each of six clones
    "v2_audio": K | {"strides": [5, 2, 2]},
    "v2_text": K | {"official": True},
}


@cache
def trace(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / name / "trace.safetensors")


@cache
def config(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name / "config.json").read_text())


def part(name: str, prefix: str) -> dict[str, Tensor]:
    """A part of a trace by our networks and names."""
    found = {key.removeprefix(prefix): value for key, value in trace(name).items() if key.startswith(prefix)}
    kind = kind_of(trace_names(name))
    assert kind
    return {f"{n}.{key}": value for n, state in renamed(found, kind).items() for key, value in state.items()}


def trace_names(name: str) -> dict[str, Tensor]:
    return torch.load(GOLDEN / name / "checkpoint.pt", weights_only=True)["model"]


def batch(name: str) -> Any:
    """Observations, and where there is padding, which steps there are."""
    given = trace(name)
    if "images" in given:
        return given["images"]
    if "waveform" in given:
        return {"wave": given["waveform"].unsqueeze(-1), "valid": ~given["padding_mask"]}
    return {"words": given["tokens"], "valid": given["tokens"] != 1}


def as_masks(hidden: Tensor) -> Masks:
    """Of a BoolTensor `[B, N]`; of a sample with fewer, a place of the padding at the end goes with the targets."""
    most = int(hidden.sum(1).max())
    missing = most - hidden.sum(1, keepdim=True)
    place = torch.arange(hidden.shape[1])
    hidden = hidden | (place >= hidden.shape[1] - missing)
    order = (~hidden).long().argsort(dim=1, stable=True)
    return Masks(order[:, most:], order[:, None, :most])


@cache
def module(name: str) -> Any:
    """From the official file, with the gradients of its loss."""
    options = OPTIONS[name] | {"num_heads": config(name)["model"].get("num_heads", 2)}
    method = Data2Vec2 if name.startswith("v2") else Data2Vec
    return method.from_official(str(GOLDEN / name / "checkpoint.pt"), **options)


def hidden(name: str) -> Tensor:
    return trace(name)["mask"].bool().flatten(1) if "mask" in trace(name) else trace(name)["masked_tokens"] == 34


@pytest.mark.parametrize("name", ["vision", "audio", "text"])
def test_data2vec(name: str) -> None:
    """Targets, predictions, loss, and every gradient."""
    ours, theirs = module(name), trace(name)
    latents = ours.latents(batch(name), as_masks(hidden(name)))
    weight = latents.predictions[""].weight
    counted = torch.ones(latents.prediction.shape[:-1], dtype=torch.bool) if weight is None else weight > 0
    assert_close(latents.target[counted], theirs["target"], "target")
    assert_close(latents.prediction[counted], theirs["prediction"], "prediction")
    loss = ours.loss(latents)["loss"]
    assert_close(loss * theirs["sample_size"][0], theirs["loss"][0], "loss")
    loss.backward()
    assert_gradients(ours, part(name, "grad/"))


@pytest.mark.parametrize("name", ["v2_image", "v2_audio", "v2_text"])
def test_data2vec_2(name: str) -> None:
    """What is encoded, targets of all places, predictions with the noise of the trace, losses, and every gradient."""
    ours, theirs = module(name), trace(name)
    mask = theirs["mask"].bool()
    context, targets = as_masks(mask)
    noise = theirs["decoder_input"].gather(1, targets.mT.expand(-1, -1, 24))
    clones = (part.reshape(-1, 3, *part.shape[1:]) for part in (context, targets.squeeze(1), noise))
    latents = ours.latents(batch(name), Clones(*clones))
    prediction, target, _ = latents.predictions[""]
    assert_close(target.flatten(0, -2), theirs["target"], "target")
    assert_close(prediction.flatten(0, -2), theirs["prediction"], "prediction")
    order, first = theirs["ids_keep"].argsort(1), int("cls" in latents.predictions)
    seen = theirs["context_features"][:, first:].gather(1, order.unsqueeze(-1).expand(-1, -1, 24))
    assert_close(latents.embeddings["context"].values.flatten(0, 1), seen.flatten(0, 1), "context")
    if first:
        assert_close(latents.predictions["cls"].prediction.flatten(0, 1), theirs["cls_prediction"], "class tokens")
        assert_close(latents.predictions["cls"].target.flatten(0, 1), theirs["cls_target"], "mean targets")
    terms = ours.loss(latents)
    assert_close(terms["loss"] * theirs["sample_size"][0], theirs["loss"][0], "loss")
    terms["loss"].backward()
    assert_gradients(ours, part(name, "grad/"))


def assert_gradients(ours: Any, theirs: dict[str, Tensor]) -> None:
    """Those of the trace and no others; the bias of the keys has none but rounding."""
    width = ours.context_encoder.embed_dim
    found = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    for name, grad in theirs.items():
        mine = found.pop(name)
        if name.endswith("attn.qkv.bias"):
            keys = slice(width, 2 * width)
            assert mine[keys].abs().max() <= 1e-5 * mine.abs().max()
            mine[keys], grad[keys] = 0.0, 0.0
        assert_close(mine, grad, f"gradient of {name}")
    assert not found


# --- The step --------------------------------------------------------------------------------------------------------


def fairseqs_adam(name: str, parameters: dict[str, Any], gradients: dict[str, Tensor]) -> None:
    """Its first step: decoupled decay, and an epsilon that is not divided by the root of 1 − β₂ as torch's is."""
    given = config(name)["optimizer"]
    (first, second), lr = given["betas"], given["lr"]
    for key, parameter in parameters.items():
        if key not in gradients:
            continue
        spared = parameter.ndim == 1 or key.endswith(("bias", "bias.scale"))
        decay = 0.0 if spared and not given["decay_1d"] else given["weight_decay"]
        gradient = gradients[key]
        mean, square = (1 - first) * gradient, (1 - second) * gradient**2
        parameter.mul_(1 - lr * decay)
        parameter.sub_(lr * (1 - second) ** 0.5 / (1 - first) * mean / (square.sqrt() + given["eps"]))


@pytest.mark.parametrize("name", OPTIONS)
def test_step(name: str) -> None:
    """The weights after fairseq's Adam, transcribed, with the traced gradients; our teachers, from them; and features.

    Ours is torch's AdamW, whose epsilon counts more in the first steps.
    """
    method = Data2Vec2 if name.startswith("v2") else Data2Vec
    options = OPTIONS[name] | {"num_heads": config(name)["model"].get("num_heads", 2)}
    options |= {"momentum": (0.99, 0.999), "momentum_steps": 50}
    ours = method.from_official(str(GOLDEN / name / "checkpoint.pt"), **options)
    with torch.no_grad():
        fairseqs_adam(name, dict(ours.named_parameters()), part(name, "grad/"))
        for teacher in ours.teachers():
            momentum = teacher.momentum(0, 100)
            assert momentum in (0.0, pytest.approx(config(name)["ema_decay_used"]))
            student = ours.get_submodule(teacher.student)
            for mine, followed in zip(
                ours.get_submodule(teacher.teacher).parameters(), student.parameters(), strict=True
            ):
                mine.lerp_(followed, 1 - momentum)
    after: dict[str, Any] = {}
    for key, value in trace(name).items():
        if key.startswith("after_step/"):
            after[key.removeprefix("after_step/")] = value
    followed = {key[15:]: value for key, value in trace(name).items() if key.startswith("after_step_ema/")}
    after["encoder._ema" if name == "text" else "_ema"] = followed
    for network, state in read({"model": after}).states.items():
        mine = dict(ours.get_submodule(network).named_parameters())
        if network != "predictor" or mine:
            assert state.keys() == mine.keys()
            for key, value in state.items():
                assert_close(mine[key], value, f"{network}.{key} after the step")
    (observation,), valid = ours.observations(batch(name)), ours.valid(batch(name))
    features = ours.encode(ours.context_encoder, observation, None, valid).values
    there = torch.ones(features.shape[:2], dtype=torch.bool) if valid is None else valid
    assert_close(features[there], trace(name)["features"][there], "features")

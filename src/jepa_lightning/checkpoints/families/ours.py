"""Checkpoints of this package, as a Trainer writes them."""

from __future__ import annotations

from typing import Any

from jepa_lightning.checkpoints.reading import Networks, StateDict, uncompiled

_TOLD = ("image_size", "num_frames", "num_points", "patch_size", "num_heads", "encoder")


def matches(checkpoint: dict[str, Any]) -> bool:
    """Whether it holds the state of a module."""
    return isinstance(checkpoint.get("state_dict"), dict)


def read(checkpoint: dict[str, Any]) -> Networks:
    """The module's networks, by the names they have there."""
    states: dict[str, StateDict] = {}
    for key, value in checkpoint["state_dict"].items():
        network, _, name = uncompiled(key).partition(".")
        states.setdefault(network, {})[name] = value
    hparams = checkpoint.get("hyper_parameters", {})
    options = {name: hparams[name] for name in _TOLD if hparams.get(name) is not None}
    if "num_frames" in hparams and "encoder" not in options:
        # V-JEPA 2 has the option `official`, V-JEPA has not.
        rotary = "tiled_rope" if hparams.get("official") else "rope"
        options["positions"] = rotary if "official" in hparams else "sincos"
    return Networks(states, options)

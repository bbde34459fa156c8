"""Official checkpoints of TS-JEPA (Sennadir/TS_JEPA)."""

from __future__ import annotations

from typing import Any

from jepa_lightning.checkpoints.reading import Networks, StateDict

_NAMES = {"tokenizer.": "patch_embed.", "predictor_blocks.": "blocks.", "encoder_norm.": "norm."}


def matches(checkpoint: dict[str, Any]) -> bool:
    """Whether it holds an encoder with that tokenizer."""
    encoder = checkpoint.get("encoder")
    return isinstance(encoder, dict) and "tokenizer.proj.weight" in encoder


def read(checkpoint: dict[str, Any]) -> Networks:
    """The networks by our names; of a file without a teacher, as the official code writes it, the encoder is it."""
    encoder = _renamed(checkpoint["encoder"])
    teacher = _renamed(checkpoint["encoder_ema"]) if "encoder_ema" in checkpoint else dict(encoder)
    states = {"context_encoder": encoder, "target_encoder": teacher}
    if "predictor" in checkpoint:
        predictor = dict(checkpoint["predictor"])
        predictor["predictor_pos_embed"] = predictor.pop("pos_embed")
        states["predictor"] = predictor
    return Networks(states, {"epsilon": 1e-5})


def _renamed(state: StateDict) -> StateDict:
    found = {}
    for name, value in state.items():
        prefix = next((theirs for theirs in _NAMES if name.startswith(theirs)), "")
        found[_NAMES.get(prefix, "") + name.removeprefix(prefix)] = value
    return found

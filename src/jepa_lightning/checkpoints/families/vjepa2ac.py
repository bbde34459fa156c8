"""Official checkpoints of V-JEPA 2-AC (facebookresearch/vjepa2): a frozen encoder, and a predictor with actions."""

from __future__ import annotations

from typing import Any

from jepa_lightning.checkpoints.families import ijepa
from jepa_lightning.checkpoints.reading import Networks

UNUSED = ("extrinsics_encoder.weight", "extrinsics_encoder.bias")  # in the file, but not in the published model


def matches(checkpoint: dict[str, Any]) -> bool:
    """Whether it holds an encoder, and a predictor that takes actions."""
    predictor = checkpoint.get("predictor")
    return (
        "encoder" in checkpoint and isinstance(predictor, dict) and any("action_encoder" in name for name in predictor)
    )


def read(checkpoint: dict[str, Any]) -> Networks:
    """Both networks, in our names."""
    predictor = ijepa.strip(checkpoint["predictor"])
    states = {
        "target_encoder": ijepa.strip(checkpoint["encoder"]),
        "predictor": {name: value for name, value in predictor.items() if name not in UNUSED},
    }
    return Networks(states, {"positions": "tiled_rope"})

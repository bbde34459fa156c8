"""Official checkpoints of V-JEPA and V-JEPA 2 (facebookresearch/jepa and vjepa2), in the layout of I-JEPA's."""

from __future__ import annotations

from typing import Any

import torch

from jepa_lightning.checkpoints.families import ijepa
from jepa_lightning.checkpoints.reading import Networks


def matches(checkpoint: dict[str, Any]) -> bool:
    """Whether it holds the three networks, and an encoder on tubelets."""
    if not ijepa.matches(checkpoint):
        return False
    encoder = ijepa.strip(checkpoint["target_encoder"])
    return encoder.get("patch_embed.proj.weight", torch.empty(0)).ndim == 5


def read(checkpoint: dict[str, Any]) -> Networks:
    """The three networks, and which of the two methods they are of."""
    states, _ = ijepa.read(checkpoint)
    # V-JEPA 2's files may have positions left over. The predictor gives it away: V-JEPA's has positions too, and two
    # mask tokens, V-JEPA 2's has ten.
    predictor = states["predictor"]
    unused = bool(predictor) and ("predictor_pos_embed" not in predictor or "mask_tokens.9" in predictor)
    added = "pos_embed" in states["target_encoder"] and not unused
    return Networks(states, {"positions": "sincos" if added else "tiled_rope"})

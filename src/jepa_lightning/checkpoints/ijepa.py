"""Official checkpoints of I-JEPA (facebookresearch/ijepa), and what those of the whole family have in common."""

from __future__ import annotations

import re
from typing import Any

import torch

from jepa_lightning.checkpoints.files import Networks, StateDict

# The official names of the networks, and ours.
OFFICIAL_NETWORKS = {"encoder": "context_encoder", "predictor": "predictor", "target_encoder": "target_encoder"}


def matches(checkpoint: dict[str, Any], axes: int = 2) -> bool:
    """Whether it holds the three networks, and an encoder on patches of so many axes."""
    if not set(OFFICIAL_NETWORKS) <= set(checkpoint):
        return False
    return strip(checkpoint["target_encoder"]).get("patch_embed.proj.weight", torch.empty(0)).ndim == axes + 2


def read(checkpoint: dict[str, Any]) -> Networks:
    """The three networks, in our names."""
    return Networks({ours: strip(checkpoint[theirs]) for theirs, ours in OFFICIAL_NETWORKS.items()}, {})


def strip(state: StateDict) -> StateDict:
    """Without the names of the wrappers: DDP's (`module.`) and, of networks for video, one more (`backbone.`)."""
    return {re.sub(r"^(module\.|backbone\.)+", "", name): value for name, value in state.items()}

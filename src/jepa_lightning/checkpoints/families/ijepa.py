"""Official checkpoints of I-JEPA (facebookresearch/ijepa), and what those of the whole family have in common."""

from __future__ import annotations

import re
from typing import Any

from jepa_lightning.checkpoints.reading import Networks, StateDict

# The official names of the networks, and ours.
OFFICIAL_NETWORKS = {"encoder": "context_encoder", "predictor": "predictor", "target_encoder": "target_encoder"}


def matches(checkpoint: dict[str, Any]) -> bool:
    """Whether it holds the three networks."""
    return set(OFFICIAL_NETWORKS) <= set(checkpoint)


def read(checkpoint: dict[str, Any]) -> Networks:
    """The three networks, in our names."""
    return Networks({ours: strip(checkpoint[theirs]) for theirs, ours in OFFICIAL_NETWORKS.items()}, {})


def strip(state: StateDict) -> StateDict:
    """Without the names of the wrappers: DDP's (`module.`) and, of networks for video, one more (`backbone.`)."""
    return {re.sub(r"^(module\.|backbone\.)+", "", name): value for name, value in state.items()}

"""What callbacks read of a step's outputs."""

from __future__ import annotations

from typing import Any


def predictions(outputs: Any) -> list[Any]:
    """The `Latents` of each prediction of a step: one of most methods, one for each kind of mask of V-JEPA.

    Their `features` are the same.
    """
    latents = outputs["latents"]
    return latents if isinstance(latents, list) else [latents]

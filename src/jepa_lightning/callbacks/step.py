"""What callbacks read of a step's outputs and of its batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

UNLABELLED = -1  # the class of images without one in a partly labelled data set, as in torchvision's STL10


def predictions(outputs: Any) -> list[Any]:
    """The `Latents` of each prediction of a step: one of most methods, one for each kind of mask of V-JEPA.

    Their `features` are the same.
    """
    latents = outputs["latents"]
    return latents if isinstance(latents, list) else [latents]


def label_of(batch: Any, label: str | None) -> Tensor:
    """A label of a batch: the field of that name, or the batch's second item without a name.

    Raises:
        ValueError: a batch that has no such label; the message names those it has.
    """
    try:
        found: Tensor | None = getattr(batch, label) if label else batch[1]
    except (AttributeError, IndexError):
        found = None
    if isinstance(batch, Tensor) or found is None:
        fields = getattr(batch, "_fields", None)
        raise ValueError(
            f"there is no label {label or 'at the second place'} in a batch, which has "
            + (f"the fields {', '.join(fields)}" if fields else "none: give labelled data, or drop what reads labels")
        )
    return found

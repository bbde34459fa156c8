"""Masks, and what maskings of every kind do with the numbers that they draw."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from jepa_lightning.draws import Rng


class Masks(NamedTuple):
    """Token indices into the flattened grid.

    Attributes:
        context: LongTensor `[B, K_c]`, what the context encoder sees.
        targets: LongTensor `[B, M, K_t]`, the M blocks to predict.
    """

    context: Tensor
    targets: Tensor


def checked(rng: Rng | None, batch_size: int, lengths: Tensor | None = None) -> Rng:
    """The source of a masking's numbers: the given one if it is for so many samples, a fresh one without.

    Raises:
        ValueError: one for another number of samples, or lengths for a masking of whole grids.
    """
    if lengths is not None:
        raise ValueError("this masking is for whole grids of tokens: it takes no lengths")
    rng = rng or Rng.fresh(batch_size)
    if rng.batch_size != batch_size:
        raise ValueError(f"the rng draws for {rng.batch_size} samples, but masks are wanted for {batch_size}")
    return rng


def on_device(masks: Masks, rng: Rng) -> Masks:
    """Masks drawn on the processor, where those of `rng` would be; nobody waits for the copy."""
    if rng.device.type != "cuda":
        return masks
    return Masks(*(part.pin_memory().to(rng.device, non_blocking=True) for part in masks))


def between(numbers: Tensor, low: float, high: float) -> Tensor:
    """Numbers uniform in [0, 1) made uniform in [low, high)."""
    return numbers * (high - low) + low


def skipping_gaps(masks: Masks, valid: Tensor) -> Masks:
    """Masks that were drawn for sequences of so many tokens, for those that have gaps between their tokens.

    Args:
        masks: drawn for lengths of `valid.sum(1)`.
        valid: BoolTensor `[B, N]`, which tokens there are.
    """
    # The places of the first token that is there, of the second, and so on; then those where there is none.
    place = valid.logical_not().long().argsort(dim=1, stable=True)
    return Masks(*(place.gather(1, part.flatten(1)).view(part.shape) for part in masks))

"""Series brought to one scale, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from jepa_lightning.errors import check_choice

Kind = Literal["train", "series", "none"]
Array = NDArray[Any]


class Scaling:
    """Standardises channels: by the training part, by each series itself, or not at all.

    Args:
        kind: `train`: by mean and standard deviation of the training part, which are the same for all; `series`: by
            those of the window at hand (RevIN without its learned factors); `none`.
        mean: of each channel of the training part.
        std: of each channel of the training part.

    Raises:
        ValueError: another kind.

    Source: RevIN: Kim et al. (ICLR 2022), "Reversible instance normalization", section 3.

    >>> scaled, undo = Scaling("series").apply(np.array([[1.0], [3.0]]))
    >>> scaled.tolist(), undo(scaled + 1).tolist()
    ([[-1.0], [1.0]], [[2.0], [4.0]])
    """

    def __init__(self, kind: Kind = "train", mean: Sequence[float] = (), std: Sequence[float] = ()) -> None:
        check_choice("scaling", kind, get_args(Kind))
        self.kind = kind
        self.mean, self.std = np.array(mean, np.float64), np.array(std, np.float64)

    def fit(self, parts: Sequence[Array]) -> None:
        """Take mean and standard deviation of what is there of some series `[L, C]`, if these are what scales.

        Raises:
            ValueError: a channel without any number.
        """
        if self.kind != "train":
            return
        count = sum(np.isfinite(part).sum(0) for part in parts)
        if not np.all(count):
            raise ValueError(f"channel {int(np.argmin(count))} has no number in the training part: leave it out")
        self.mean = sum(np.nansum(part, 0, dtype=np.float64) for part in parts) / count
        squares = sum(np.nansum((part - self.mean) ** 2, 0, dtype=np.float64) for part in parts)
        self.std = _positive(np.sqrt(squares / count))

    def apply(self, window: Array) -> tuple[Array, Undo]:
        """A window `[L, C]` on one scale, NaN where nothing is, and what brings numbers `[..., C]` back.

        Raises:
            ValueError: another number of channels than the training part's.
        """
        mean, std = np.zeros(window.shape[1]), np.ones(window.shape[1])
        if self.kind == "train":
            if len(self.mean) != window.shape[1]:
                raise ValueError(
                    f"a series of {window.shape[1]} channels, but {len(self.mean)} were scaled in training"
                )
            mean, std = self.mean, self.std
        elif self.kind == "series":
            there = np.isfinite(window)
            count = there.sum(0).clip(1)
            mean = np.where(there, window, 0).sum(0, dtype=np.float64) / count
            squares = np.where(there, (window - mean) ** 2, 0).sum(0, dtype=np.float64)
            std = _positive(np.sqrt(squares / count))
        undo = Undo(mean, std)
        return undo.scale(window), undo

    def state(self) -> dict[str, Any]:
        """Plain values, to be stored in a checkpoint."""
        return {"kind": self.kind, "mean": self.mean.tolist(), "std": self.std.tolist()}


class Undo:
    """Brings numbers of a scaled window back to the units of the data.

    Args:
        mean: of each channel.
        std: of each channel.
    """

    def __init__(self, mean: Array, std: Array) -> None:
        self.mean, self.std = mean, std

    def __call__(self, scaled: Array) -> Array:
        """Scaled numbers `[..., C]` in the units of the data."""
        return scaled * self.std + self.mean

    def scale(self, values: Array) -> Array:
        """Numbers `[..., C]` in the units of the data on the scale of the window."""
        return (values - self.mean) / self.std


def _positive(std: Array) -> Array:
    """What a constant channel is divided by: one."""
    return np.where(std > 1e-8, std, 1.0)

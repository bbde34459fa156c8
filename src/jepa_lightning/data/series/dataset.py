"""Windows of series, scaled, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from jepa_lightning.batches import UNLABELLED, Series
from jepa_lightning.data.series.scaling import Scaling


class SeriesWindows(Dataset[Series]):
    """Windows of some series, all of one length, a batch at a time.

    What is behind the end of a series, and steps without a number in any channel, are not valid; a number that is
    missing beside others is zero, the mean on most scales.

    Args:
        series: each `[L, C]` float32, NaN where there is nothing.
        labels: int64 or float32: of each series one, `[N]`, or one for each of its steps, `[L]` each, of which a window
            has the most frequent, or the mean; unlabelled without.
        length: steps of a sample.
        window: steps of a window; without, each series is a sample, of which it takes the whole.
        stride: steps from a window to the next; the last one ends with its series.
        scaling: of the windows.

    Attributes:
        labels: of each window, `[M]`.
        starts: LongTensor `[M, 2]`: of each window its series, and the step that it starts with.
        dropped: windows left out since there is nothing in them.
    """

    def __init__(
        self,
        series: Sequence[NDArray[Any]],
        labels: Sequence[Any] | NDArray[Any] | None,
        length: int,
        window: int | None,
        stride: int,
        scaling: Scaling,
    ) -> None:
        self.series, self.length, self.scaling = list(series), length, scaling
        starts, self.dropped = [], 0
        for number, each in enumerate(self.series):
            last = max(0, len(each) - window) if window else 0
            there = np.isfinite(each).any(1).cumsum()
            for start in sorted({*range(0, last + 1, stride), last}):
                end = min(start + length, len(each))
                if end and there[end - 1] - (there[start - 1] if start else 0) > 0:
                    starts.append((number, start))
                else:
                    self.dropped += 1
        self.starts = torch.tensor(starts, dtype=torch.long).view(-1, 2)
        self.labels = torch.full((len(starts),), UNLABELLED)
        if labels is not None and starts:
            self.labels = torch.from_numpy(np.stack([_label(labels[number], s, s + length) for number, s in starts]))

    def __len__(self) -> int:
        return len(self.starts)

    def __getitems__(self, indices: list[int]) -> Series:
        chosen = self.starts[indices]
        channels = self.series[0].shape[1]
        values = np.full((len(chosen), self.length, channels), np.nan, np.float32)
        for row, (number, start) in enumerate(chosen.tolist()):
            window = self.series[number][start : start + self.length]
            values[row, : len(window)] = self.scaling.apply(window)[0]
        valid = torch.from_numpy(np.isfinite(values).any(2))
        return Series(torch.from_numpy(np.nan_to_num(values, nan=0.0)), valid, self.labels[indices])


def _label(labels: Any, start: int, end: int) -> Any:
    """The label of a window: the series', or what is told of its steps."""
    if np.ndim(labels) == 0:
        return labels
    there = labels[start:end]
    if np.issubdtype(there.dtype, np.floating):
        there = there[np.isfinite(there)]
        return np.float32(there.mean() if len(there) else np.nan)
    there = there[there != UNLABELLED]
    return np.int64(np.bincount(there).argmax() if len(there) else UNLABELLED)

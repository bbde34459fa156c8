"""Even grids: rows at any times, put where a step of the grid is, and what was missing or moved."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jepa_lightning.data.frames import pandas_or_say, stamps_of

SLACK = 0.01  # of a step, by which time stamps may be beside the grid
SPARSE = 100  # steps for each row, from which on a grid is a mistake


class Counts(NamedTuple):
    """What was not as it should be in the rows of some series, by number.

    Attributes:
        rows: rows that were read.
        steps: steps of the even grid.
        missing: steps without a single number.
        holes: further numbers that are missing, in steps that have others.
        moved: rows between the steps, averaged into the nearest.
        doubled: rows of a time that another row has, too, averaged with it.
        unsorted: rows earlier than the one before.
    """

    rows: int = 0
    steps: int = 0
    missing: int = 0
    holes: int = 0
    moved: int = 0
    doubled: int = 0
    unsorted: int = 0

    def __str__(self) -> str:
        parts = {
            "steps without a number": self.missing,
            "single numbers missing": self.holes,
            "rows between steps, averaged into the nearest": self.moved,
            "rows of a time that there was already, averaged": self.doubled,
            "rows out of order, sorted": self.unsorted,
        }
        told = [f"{count} {what}" for what, count in parts.items() if count]
        return f"{self.rows} rows, {self.steps} steps; " + ("; ".join(told) or "no gaps")

    def plus(self, other: Counts) -> Counts:
        """Those of both."""
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))

    def of(self, values: NDArray[Any]) -> Counts:
        """The same with the steps of a series `[L, C]` on its grid, and what these lack."""
        missing = np.isnan(values).all(1)
        holes = int(np.isnan(values[~missing]).sum())
        return self._replace(steps=len(values), missing=int(missing.sum()), holes=holes)


def on_grid(
    times: NDArray[Any], values: NDArray[Any], step: float | None, name: str
) -> tuple[NDArray[Any], Counts, NDArray[Any]]:
    """Rows at any times, put on an even grid that begins with the first.

    Args:
        times: `[R]`, numbers.
        values: `[R, C]`.
        step: the time between steps; the median distance of rows without.
        name: of the series.

    Returns:
        `[L, C]`, of each step the mean of the rows nearest to it, NaN where there are none; what was counted; and the
        last of the rows nearest to each step, LongArray `[L]`, -1 where there are none.

    Raises:
        ValueError: times that make no grid.

    >>> on_grid(np.array([0.0, 1.0, 4.0]), np.array([[1.0], [2.0], [3.0]]), 1.0, "it")[0].ravel().tolist()
    [1.0, 2.0, nan, nan, 3.0]
    """
    unsorted = int((np.diff(times) < 0).sum())
    order = np.argsort(times, kind="stable")
    times, values = times[order], values[order]
    distances = np.diff(times)
    doubled = int((distances == 0).sum())
    if step is None:
        apart = distances[distances > 0]
        step = float(np.median(apart)) if len(apart) else 1.0
    places = (times - times[0]) / step
    nearest = np.round(places).astype(np.int64)
    length = int(nearest[-1]) + 1
    if length > SPARSE * len(times):
        raise ValueError(
            f"{name} has {len(times)} rows, and {length} steps of {step:g} from the first to the last: give another "
            "frequency, or tell several series apart by series_id"
        )
    there = np.isfinite(values)
    sums, numbers = np.zeros((length, values.shape[1])), np.zeros((length, values.shape[1]))
    np.add.at(sums, nearest, np.where(there, values, 0.0))
    np.add.at(numbers, nearest, there)
    gridded = np.where(numbers > 0, sums / numbers.clip(1), np.nan)
    moved = int((np.abs(places - nearest) > SLACK).sum())
    rows = np.full(length, -1)
    rows[nearest] = order
    return gridded, Counts(rows=len(times), moved=moved, doubled=doubled, unsorted=unsorted), rows


def times_of(
    column: Any, name: str, time: str, frequency: str | float | None = None
) -> tuple[NDArray[Any], float | None]:
    """Times as numbers, in seconds where they are time stamps, and the step in the same unit.

    Args:
        column: of a data frame.
        name: of the series.
        time: name of the column.
        frequency: the time between steps.

    Raises:
        ValueError: times that are missing or cannot be read.
    """
    pandas = pandas_or_say("series")
    if pandas.api.types.is_numeric_dtype(column):
        times = column.to_numpy(np.float64)
        if isinstance(frequency, str):
            raise ValueError(
                f"the times {time!r} of {name} are numbers: give frequency in their unit, not {frequency!r}"
            )
        step = frequency
    else:
        stamps = stamps_of(column, f"the column {time!r} of {name}", "series")
        times = (stamps - stamps.min()).dt.total_seconds().to_numpy(np.float64)
        try:
            step = None if frequency is None else pandas.Timedelta(frequency).total_seconds()
        except ValueError as error:
            raise ValueError(f"frequency={frequency!r} is no time such as '15min': {error}") from error
    if not np.isfinite(times).all():
        raise ValueError(f"{int((~np.isfinite(times)).sum())} rows of {name} have no time in {time!r}")
    if step is not None and not step > 0:
        raise ValueError(f"frequency must be above zero, got {frequency}")
    return times, step


def interpolated(values: NDArray[Any]) -> NDArray[Any]:
    """Series `[L, C]` with gaps between numbers filled along lines; what is before the first or after the last stays.

    >>> interpolated(np.array([[np.nan], [1.0], [np.nan], [3.0]])).ravel().tolist()
    [nan, 1.0, 2.0, 3.0]
    """
    filled = values.copy()
    for channel in filled.T:
        there = np.flatnonzero(np.isfinite(channel))
        if len(there):
            inner = np.arange(there[0], there[-1] + 1)
            channel[inner] = np.interp(inner, there, channel[there])
    return filled

"""Series in tables: a column a channel, a time stamp, and a column that tells several series apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jepa_lightning.data.series.labels import labels_of

TABLES = (".csv", ".parquet")
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


class Table(NamedTuple):
    """The series of a data frame.

    Attributes:
        series: by name, each `[L, C]` float32 on an even grid, NaN where there is nothing.
        labels: of each series one for every step, `[L]`: strings, None where there is none, or float32, NaN where there
            is none; without a column of labels, None.
        channels: names of the channels.
        counts: what was missing or moved.
    """

    series: dict[str, NDArray[Any]]
    labels: dict[str, NDArray[Any]] | None
    channels: list[str]
    counts: Counts


def read_tables(source: Any) -> dict[str, Any]:
    """The data frames of a source by name: a file, a folder or pattern of files, a data frame, or a list of these.

    Raises:
        ImportError: pandas is missing.
        FileNotFoundError: there is no such file.
        ValueError: a file that cannot be read.
    """
    pandas = pandas_or_say()
    if isinstance(source, pandas.DataFrame):
        return {"frame": source}
    if not isinstance(source, str | Path):
        if not all(isinstance(frame, pandas.DataFrame) for frame in source):
            raise ValueError(f"expected data frames, got {', '.join(sorted({type(each).__name__ for each in source}))}")
        return {f"frame {number}": frame for number, frame in enumerate(source)}
    path = Path(source)
    if path.is_dir():
        paths = sorted(file for file in path.iterdir() if file.suffix in TABLES)
    else:
        paths = [path] if path.is_file() else sorted(path.parent.glob(path.name)) if path.parent.is_dir() else []
    if not paths:
        raise FileNotFoundError(f"{path.absolute()} is no table, and holds none ({', '.join(TABLES)})")
    return {file.stem: _read(file) for file in paths}


def is_table(source: Any) -> bool:
    """Whether a source is one of tables: data frames, `.csv` or `.parquet` files, or a folder or pattern of these."""
    if not isinstance(source, str | Path):
        return True
    path = Path(source)
    return path.suffix in TABLES or (path.is_dir() and any(file.suffix in TABLES for file in path.iterdir()))


def series_of(
    frame: Any,
    name: str,
    time: str | None = None,
    series_id: str | None = None,
    channels: Sequence[str] | None = None,
    frequency: str | float | None = None,
    label: str | None = None,
) -> Table:
    """The series of a data frame.

    Args:
        frame: the data frame.
        name: of the frame.
        time: the column of time stamps or numbers; rows are steps without.
        series_id: the column that tells series apart; one series without.
        channels: the columns of the channels; all others that are numbers without.
        frequency: the time between steps, such as `"15min"` or, where times are numbers, a number; the median distance
            of rows without.
        label: the column of labels: words or whole numbers, which are classes, or other numbers. Of rows in one step,
            the last one's.

    Raises:
        ValueError: columns that there are not or that are no numbers, or times that make no grid.
    """
    pandas = pandas_or_say()
    named = {"time": time, "series_id": series_id, "label": label}
    for option, column in (*named.items(), *(("channels", each) for each in channels or ())):
        if column is not None and column not in frame.columns:
            raise ValueError(f"{name} has no column {column!r} ({option}); it has {', '.join(map(str, frame.columns))}")
    if not len(frame):
        raise ValueError(f"{name} has no rows")
    if channels is None:
        numeric = frame.select_dtypes("number").columns
        channels = [column for column in numeric if column not in named.values()]
    if not channels:
        beside = ", ".join(str(column) for column in named.values() if column is not None)
        raise ValueError(
            f"{name} has no column of numbers" + (f" beside {beside}" if beside else "") + ": name the channels"
        )
    if wrong := [each for each in channels if not pandas.api.types.is_numeric_dtype(frame[each])]:
        raise ValueError(
            f"the channels {', '.join(map(str, wrong))} of {name} are no numbers but {frame[wrong[0]].dtype}"
        )
    if series_id is not None and (lost := int(frame[series_id].isna().sum())):
        raise ValueError(f"{lost} rows of {name} have no {series_id!r}, which tells series apart")
    groups = {name: np.arange(len(frame))} if series_id is None else frame.groupby(series_id).indices
    told = None if label is None else labels_of(frame[label])
    found: dict[str, NDArray[Any]] = {}
    labels: dict[str, NDArray[Any]] = {}
    counts = Counts()
    for group, places in groups.items():
        key, part = str(group), frame.iloc[places]
        values = part[list(channels)].to_numpy(np.float64, copy=True, na_value=np.nan)
        values[~np.isfinite(values)] = np.nan
        own, rows = Counts(len(values)), np.arange(len(values))
        if time is not None:
            times, step = times_of(part[time], key, time, frequency)
            values, own, rows = on_grid(times, values, step, key)
        counts = counts.plus(own.of(values))
        found[key] = values.astype(np.float32)
        if told is not None:
            labels[key] = told[np.append(places, -1)[rows]]
    return Table(found, None if label is None else labels, [str(channel) for channel in channels], counts)


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
    pandas = pandas_or_say()
    if pandas.api.types.is_numeric_dtype(column):
        times = column.to_numpy(np.float64)
        if isinstance(frequency, str):
            raise ValueError(
                f"the times {time!r} of {name} are numbers: give frequency in their unit, not {frequency!r}"
            )
        step = frequency
    else:
        try:
            stamps = pandas.to_datetime(column, utc=True)
        except (ValueError, TypeError) as error:
            raise ValueError(f"the column {time!r} of {name} holds no time stamps: {error}") from error
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


def _read(path: Path) -> Any:
    pandas = pandas_or_say()
    try:
        return pandas.read_csv(path) if path.suffix == ".csv" else pandas.read_parquet(path)
    except ImportError as error:
        raise ImportError("Parquet is read by pyarrow: pip install 'jepa-lightning[series]'") from error
    except Exception as error:  # whatever pandas and pyarrow come across
        raise ValueError(f"{path} cannot be read: {error}") from error


def pandas_or_say() -> Any:
    """The library that reads tables.

    Raises:
        ImportError: it is missing; the message says how to get it.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("tables are read by pandas: pip install 'jepa-lightning[series]'") from error
    return pandas

"""Series in tables: a column a channel, a time stamp, and a column that tells several series apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from jepa_lightning.data.frames import pandas_or_say, read_csv, stamps_of
from jepa_lightning.data.series.grid import Counts, on_grid, times_of
from jepa_lightning.data.series.labels import labels_of

TABLES = (".csv", ".csv.gz", ".parquet")


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
    pandas = pandas_or_say("series")
    if isinstance(source, pandas.DataFrame):
        return {"frame": source}
    if not isinstance(source, str | Path):
        if not all(isinstance(frame, pandas.DataFrame) for frame in source):
            raise ValueError(f"expected data frames, got {', '.join(sorted({type(each).__name__ for each in source}))}")
        return {f"frame {number}": frame for number, frame in enumerate(source)}
    path = Path(source)
    if path.is_dir():
        paths = sorted(file for file in path.iterdir() if file.name.lower().endswith(TABLES))
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
    names = [path.name, *(file.name for file in path.iterdir())] if path.is_dir() else [path.name]
    return any(name.lower().endswith(TABLES) for name in names)


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
        time: the column of time stamps or numbers, or the index by its name; without, the index if it is one of time
            stamps, else rows are steps.
        series_id: the column that tells series apart; one series without.
        channels: the columns of the channels; without, all others that are numbers or truth values, and what is left
            out is said.
        frequency: the time between steps, such as `"15min"` or, where times are numbers, a number; the median distance
            of rows without.
        label: the column of labels: words or whole numbers, which are classes, or other numbers. Of rows in one step,
            the last one's.

    Raises:
        ValueError: columns that there are not or that are no numbers, or times that make no grid.
    """
    pandas = pandas_or_say("series")
    named = {"time": time, "series_id": series_id, "label": label}
    if time is None and isinstance(frame.index, pandas.DatetimeIndex):
        time = named["time"] = str(frame.index.name or "index")
        frame = frame.rename_axis(time)
    if any(each in frame.index.names and each not in frame.columns for each in named.values() if each is not None):
        frame = frame.reset_index()
    for option, column in (*named.items(), *(("channels", each) for each in channels or ())):
        if column is not None and column not in frame.columns:
            raise ValueError(f"{name} has no column {column!r} ({option}); it has {', '.join(map(str, frame.columns))}")
    if not len(frame):
        raise ValueError(f"{name} has no rows")
    if channels is None:
        others = [column for column in frame.columns if column not in named.values()]
        channels = [column for column in others if pandas.api.types.is_numeric_dtype(frame[column])]
        left_out = [column for column in others if column not in channels]
        for column in left_out:
            _check_numbers(frame[column], f"the column {column!r} of {name}")
        if channels and left_out:
            rank_zero_info(f"{', '.join(map(str, left_out))} of {name}: no numbers, left out")
    if not channels:
        beside = ", ".join(str(column) for column in named.values() if column is not None)
        raise ValueError(
            f"{name} has no column of numbers" + (f" beside {beside}" if beside else "") + ": name the channels"
        )
    if wrong := [each for each in channels if not pandas.api.types.is_numeric_dtype(frame[each])]:
        _check_numbers(frame[wrong[0]], f"the channel {wrong[0]!r} of {name}")
        raise ValueError(
            f"the channels {', '.join(map(str, wrong))} of {name} are no numbers but {frame[wrong[0]].dtype}"
        )
    if series_id is not None and (lost := int(frame[series_id].isna().sum())):
        raise ValueError(f"{lost} rows of {name} have no {series_id!r}, which tells series apart")
    if time is not None and not pandas.api.types.is_numeric_dtype(frame[time]):
        # All of them at once: the dates of one series may tell how those of another are meant.
        frame = frame.assign(**{time: stamps_of(frame[time], f"the column {time!r} of {name}", "series")})
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


def _check_numbers(column: Any, name: str) -> None:
    """Raise a ValueError where most of a column are numbers, and the rest is neither numbers nor nothing."""
    read = pandas_or_say("series").to_numeric(column, errors="coerce")
    broken = np.flatnonzero((read.isna() & column.notna()).to_numpy())
    if read.notna().sum() > len(broken) > 0:
        raise ValueError(
            f"{name} holds numbers, but {column.iloc[broken[0]]!r} in row {broken[0] + 1}"
            + (f" and others in {len(broken) - 1} more" if len(broken) > 1 else "")
            + ": mend these, or name the channels without it"
        )


def _read(path: Path) -> Any:
    pandas = pandas_or_say("series")
    try:
        return pandas.read_parquet(path) if path.name.lower().endswith(".parquet") else read_csv(path, "series")
    except ImportError as error:
        raise ImportError("Parquet is read by pyarrow: pip install 'jepa-lightning[series]'") from error
    except Exception as error:  # whatever pandas and pyarrow come across
        raise ValueError(f"{path} cannot be read: {error}") from error

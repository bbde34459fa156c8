"""Archives whose numbers carry their times: `.ts` files with `@timeStamps true`."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepa_lightning.data.frames import pandas_or_say
from jepa_lightning.data.series.grid import Counts, on_grid, times_of

MISSING = ("?", "nan", "")
PAIR = re.compile(r"\(([^()]*),([^(),]*)\)")  # (2007-01-01 00:00:00,241.97) or (3,241.97)


def is_stamped(path: Path) -> bool:
    """Whether the head of a `.ts` file says that its numbers carry times."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            words = line.lower().split()
            if words[:1] == ["@data"]:
                break
            if words[:1] == ["@timestamps"]:
                return words[1:] == ["true"]
    return False


def read_stamped(path: Path) -> tuple[list[NDArray[Any]], list[Any], Counts]:
    """The series `[L, C]` of such a file on an even grid, NaN where there is nothing; labels; and what was counted.

    Labels are strings, numbers where the file is one of regression, and none where it says so.

    The step of the grid is the median distance of times in the file. aeon's reader keeps neither the times nor the sign
    of a number, nor numbers without a decimal point.

    Raises:
        ValueError: a line that cannot be read, or times that make no grid.
    """
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    head = {words[0].lower(): words[1:] for line in lines if line.startswith("@") and (words := line.split())}
    classes, numbers = (head.get(name, ["false"])[0].lower() == "true" for name in ("@classlabel", "@targetlabel"))
    start = next(number for number, line in enumerate(lines) if line.lower().startswith("@data")) + 1
    cases: list[tuple[NDArray[Any], NDArray[Any]]] = []
    labels: list[Any] = []
    for number, line in enumerate(lines[start:], start + 1):
        if not line:
            continue
        # Times have colons, too: what is between brackets is of no part's border.
        parts = re.split(r":(?![^()]*\))", line)
        try:
            if classes or numbers:
                label = parts.pop().strip().lower()
                labels.append(float(label) if numbers else label)
            cases.append(_case(parts))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    if len({values.shape[1] for _, values in cases}) > 1:
        raise ValueError(f"series of {', '.join(str(values.shape[1]) for _, values in cases)} channels")
    apart = np.concatenate([np.diff(np.sort(times)) for times, _ in cases] or [np.empty(0)])
    step = float(np.median(apart[apart > 0])) if (apart > 0).any() else 1.0
    found, counts = [], Counts()
    for number, (times, values) in enumerate(cases):
        series, own, _ = on_grid(times, values, step, f"series {number}")
        counts = counts.plus(own.of(series))
        found.append(series)
    return found, labels, counts


def _case(channels: list[str]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The rows of a series: times `[R]` and values `[R, C]`; what channels say of one time is one row."""
    rows: dict[tuple[str, int], NDArray[Any]] = {}
    for place, channel in enumerate(channels):
        if PAIR.sub("", channel).strip(" ,"):
            raise ValueError(f"expected (time,number) pairs, got {channel[:60]!r}")
        seen: Counter[str] = Counter()
        for time, value in PAIR.findall(channel):
            row = rows.setdefault((time.strip(), seen[time]), np.full(len(channels), np.nan))
            row[place] = np.nan if value.strip().lower() in MISSING else float(value)
            seen[time] += 1
    if not rows:
        raise ValueError("a series without a number")
    column = pandas_or_say("series").Series([time for time, _ in rows])
    with contextlib.suppress(ValueError):  # of dates
        column = column.astype(float)
    return times_of(column, "it", "timeStamps")[0], np.array(list(rows.values()))

"""Tables: the library that reads them, which not every installation has; files of commas; and time stamps."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

# 3/4/2024, 03.04.24: of which nobody knows whether the month or the day comes first.
EITHER_WAY = re.compile(r"\s*\d{1,2}[/.-]\d{1,2}[/.-]\d{2,4}\b")


def pandas_or_say(extra: str) -> Any:
    """Pandas.

    Args:
        extra: of this package that brings it along.

    Raises:
        ImportError: it is missing; the message says how to get it.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError(f"tables are read by pandas: pip install 'jepa-lightning[{extra}]'") from error
    return pandas


def read_csv(path: Path, extra: str) -> Any:
    """The data frame of a file whose columns are separated by commas.

    Raises:
        ImportError: pandas is missing.
        ValueError: they are separated by something else.
    """
    pandas = pandas_or_say(extra)
    frame = pandas.read_csv(path)
    (only, *others) = map(str, frame.columns)
    if not others and (found := next((sign for sign in (";", "\t", "|") if sign in only), None)):
        raise ValueError(
            f"its columns are separated by {found!r}, not by commas: give a data frame instead, "
            f"pandas.read_csv({path.name!r}, sep={found!r}), with decimal=',' where numbers have commas"
        )
    return frame


def stamps_of(column: Any, name: str, extra: str) -> Any:
    """A column of time stamps as such, in UTC; those without a zone are taken for it.

    Raises:
        ValueError: other values, or dates that can be read in two ways.
    """
    pandas = pandas_or_say(extra)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Parsing dates in", UserWarning)  # where the day has to come first
        try:
            stamps = pandas.to_datetime(column, utc=True)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name} holds no time stamps: {error}") from error
        there = column.dropna()
        first = there.iloc[0] if len(there) else ""
        if isinstance(first, str) and EITHER_WAY.match(first):
            try:
                other = pandas.to_datetime(column, utc=True, dayfirst=True)
            except (ValueError, TypeError):
                return stamps
            if not other.equals(stamps):
                raise ValueError(
                    f"the dates of {name}, such as {first!r}, can be read with the month or with the day first: write "
                    "them as 2024-12-31, or give a data frame with pandas.to_datetime(…, dayfirst=True)"
                )
    return stamps

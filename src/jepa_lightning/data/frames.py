"""The library that reads tables, which not every installation has."""

from __future__ import annotations

from typing import Any


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

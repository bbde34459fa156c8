"""Labels of series, and of their steps: classes by their names, and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepa_lightning.batches import UNLABELLED


def class_names(labels: NDArray[Any]) -> list[str]:
    """The classes in order, by number where they are numbers.

    >>> class_names(np.array(["10", "-1", "2", "10"]))
    ['-1', '2', '10']
    """
    names = sorted({str(label) for label in labels})
    try:
        return sorted(names, key=float)
    except ValueError:
        return names


def numbered(labels: NDArray[Any], classes: Sequence[str], path: Path) -> NDArray[Any]:
    """The numbers of labels among the classes.

    Raises:
        ValueError: a class that the training part does not have.
    """
    number = {name: place for place, name in enumerate(classes)}
    if unknown := sorted({str(label) for label in labels} - set(number)):
        raise ValueError(f"{path} has classes that the training part does not have: {', '.join(unknown)}")
    return np.array([number[str(label)] for label in labels], np.int64)


def as_numbers(labels: Sequence[NDArray[Any]]) -> tuple[list[NDArray[Any]], list[str]]:
    """Labels of steps as numbers: those of classes in int64, -1 where there is none, and the names of the classes.

    Raises:
        ValueError: classes in one series, and numbers in another.

    >>> as_numbers([np.array(["b", None, "a"], object)])
    ([array([ 1, -1,  0])], ['a', 'b'])
    """
    kinds = {each.dtype.kind for each in labels}
    if len(kinds) > 1:
        raise ValueError("the labels of some tables are classes, those of others are numbers")
    if kinds != {"O"}:
        return list(labels), []
    names = class_names(np.array([word for each in labels for word in each if word is not None]))
    number = {name: place for place, name in enumerate(names)} | {None: UNLABELLED}
    return [np.array([number[word] for word in each], np.int64) for each in labels], names


def labels_of(column: Any) -> NDArray[Any]:
    """The labels of rows, and a last one for steps without a row: that of none."""
    there = column.dropna()
    if getattr(column.dtype, "kind", "O") == "f":
        if not (there == there.round()).all():
            return np.append(column.to_numpy(np.float32, na_value=np.nan), np.float32(np.nan))
        there = there.astype(int)  # classes that a gap made numbers of
    words = np.full(len(column) + 1, None, object)
    words[np.flatnonzero(column.notna())] = there.astype(str)
    return words

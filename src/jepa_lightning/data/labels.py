"""Labels of several kinds beside observations: classes by their words, numbers, sequences of words, and intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from jepa_lightning.batches import UNLABELLED
from jepa_lightning.data.series.labels import class_names


class Interval(NamedTuple):
    """A stretch of an observation that has a label: from a start to before an end, in seconds or in characters."""

    start: float
    end: float
    word: str


class Vocabulary:
    """The classes of the labels of training samples, and the numbers of all samples' words among them.

    A label is a word, or a number, or a list of words, such as the letters that are spoken, or of `Interval`s. Numbers
    are classes like words, unless some are not whole.

    Args:
        rows: the labels of each training sample by name.

    Attributes:
        classes: the names of each label's classes in the order of their numbers; none where the label is a number.

    >>> words = Vocabulary([{"family": "reed", "hertz": 440.0}, {"family": "brass", "hertz": 261.6}])
    >>> words.classes, words.numbered({"family": "reed", "hertz": None}, "b.wav")
    ({'family': ['brass', 'reed'], 'hertz': []}, {'family': 1, 'hertz': nan})
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        words: dict[str, set[str]] = {}
        self._timed: set[str] = set()  # the labels that are lists of intervals
        for row in rows:
            for name, value in row.items():
                words.setdefault(name, set()).update(_words(value))
                if isinstance(value, list) and value and isinstance(value[0], Interval):
                    self._timed.add(name)
        self.classes = {
            name: [] if found and all(map(_is_number, found)) and not all(map(_is_whole, found)) else _in_order(found)
            for name, found in words.items()
        }
        self._number = {
            name: {word: place for place, word in enumerate(found)} for name, found in self.classes.items() if found
        }

    def numbered(self, row: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The labels of a sample as numbers: classes as ints, -1 for none, others as floats, sequences as arrays.

        Of intervals it is a list of start, end and class, with nothing in it for none.

        Args:
            row: its labels by name.
            where: what it is, for errors.

        Raises:
            ValueError: a class that the training samples do not have, or something that is no number.
        """
        return {name: self._of(name, value, where) for name, value in row.items() if name in self.classes}

    def _of(self, name: str, value: Any, where: str) -> Any:
        if not self.classes[name]:
            try:
                return math.nan if value is None or value == [] else float(value)
            except (TypeError, ValueError):
                raise ValueError(f"{where}: the {name} {value!r} is no number, as those of others are") from None
        if value is None or value == []:
            return [] if name in self._timed else UNLABELLED if value is None else np.zeros(0, np.int64)
        number = self._number[name]
        if unknown := [word for word in _words(value) if word not in number]:
            shown = ", ".join(self.classes[name][:5]) + ", …" * (len(number) > 5)
            raise ValueError(f"{where} has a {name}, {unknown[0]!r}, that no training sample has; they have {shown}")
        if isinstance(value, list):
            if isinstance(value[0], Interval):
                return [(each.start, each.end, number[each.word]) for each in value]
            return np.array([number[str(word)] for word in value], np.int64)
        return number[str(value)]


def _words(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, list):
        return [each.word if isinstance(each, Interval) else str(each) for each in value]
    return [str(value)]


def _in_order(words: set[str]) -> list[str]:
    return class_names(np.array(sorted(words), object)) if words else []


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _is_whole(word: str) -> bool:
    return word.lstrip("+-").isdigit()


def per_step(
    intervals: Sequence[tuple[float, float, int]], steps: int, rate: float, first: float = 0.0
) -> NDArray[Any]:
    """The class of each step, `[steps]`: that of the last interval that its middle lies in, -1 outside of all.

    Args:
        intervals: start, end and class.
        steps: how many there are.
        rate: steps a unit of the intervals.
        first: where the first step begins.

    >>> per_step([(0.0, 1.0, 3), (2.0, 3.0, 5)], steps=6, rate=2.0)
    array([ 3,  3, -1, -1,  5,  5])
    """
    found = np.full(steps, UNLABELLED, np.int64)
    for start, end, number in intervals:
        low, high = (math.ceil((each - first) * rate - 0.5) for each in (start, end))
        found[max(0, low) : max(0, high)] = number
    return found


def collated(labels: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """The labels of a batch: ints `[B]` int64, floats `[B]` float32, and arrays `[B, T]` int64, filled up with -1."""
    found = {}
    for name in labels[0]:
        values = [each[name] for each in labels]
        if any(isinstance(value, np.ndarray) for value in values):
            arrays = [value if isinstance(value, np.ndarray) else np.zeros(0, np.int64) for value in values]
            rows = [torch.from_numpy(value) for value in arrays]
            found[name] = pad_sequence(rows, batch_first=True, padding_value=float(UNLABELLED))
        else:
            kind = torch.float32 if isinstance(values[0], float) else torch.int64
            found[name] = torch.tensor(values, dtype=kind)
    return found

"""Batches of words: texts one by one, or packed without a gap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from jepa_lightning.batches import UNLABELLED
from jepa_lightning.data.labels import collated
from jepa_lightning.data.text.tokenizers import Encoded, Tokenizer


class Texts(Dataset[dict[str, Tensor]]):
    """Texts as tokens, a batch at a time; all of them are kept in memory, in four bytes a token.

    A batch is a dict: `words` `[B, L]` int64, `valid` `[B, L]`, and the labels: `[B]` of texts, `[B, L]` of tokens.

    A text stands between the tokenizer's start and end. One with more than `max_tokens` is cut into several samples.
    Packed texts follow one another, and a sample is the next `max_tokens` of them, whatever texts they are of: the
    labels of texts are then those of their tokens.

    Args:
        texts: their tokens.
        labels: of each text, as `Vocabulary` numbers them; those of `Interval`s are of tokens.
        tokenizer: what made the tokens.
        max_tokens: of a sample.
        packing: whether texts are packed.
    """

    def __init__(
        self,
        texts: Sequence[Encoded],
        labels: Sequence[Mapping[str, Any]],
        tokenizer: Tokenizer,
        max_tokens: int,
        packing: bool,
    ) -> None:
        self.pad, self.labels = tokenizer.pad, list[dict[str, Any]]()
        before, after = ([] if each is None else [each] for each in (tokenizer.start, tokenizer.end))
        room = max_tokens - len(before) - len(after)
        ids: list[NDArray[Any]] = []
        told: dict[str, list[NDArray[Any]]] = {}
        bounds = [0]
        for text, own in zip(texts, labels, strict=True):
            pieces = 1 if packing else max(1, math.ceil(len(text.ids) / room))
            of_tokens = {
                name: _of_tokens(value, text.spans) if isinstance(value, list) else _alike(value, len(text.ids))
                for name, value in own.items()
                if packing or isinstance(value, list)
            }
            for number in range(pieces):
                piece = slice(None) if packing else slice(number * room, (number + 1) * room)
                ids.append(np.concatenate([before, text.ids[piece], after]).astype(np.int32))
                for name, value in of_tokens.items():
                    around = [np.full(len(each), _none(value), value.dtype) for each in (before, after)]
                    told.setdefault(name, []).append(np.concatenate([around[0], value[piece], around[1]]))
                bounds.append(bounds[-1] + len(ids[-1]))
                self.labels.append({name: value for name, value in own.items() if name not in of_tokens})
        self.ids = np.concatenate(ids)
        self.told = {name: np.concatenate(each) for name, each in told.items()}
        if packing:
            bounds = [*range(0, len(self.ids), max_tokens), len(self.ids)]
            self.labels = [{}] * (len(bounds) - 1)
        self.bounds = np.array(bounds)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        slices = [slice(self.bounds[index], self.bounds[index + 1]) for index in indices]
        words = self._padded(self.ids, slices, self.pad).long()
        lengths = torch.tensor([each.stop - each.start for each in slices])
        valid = torch.arange(words.shape[1]) < lengths.unsqueeze(1)
        labels = collated([self.labels[index] for index in indices])
        tokens = {name: self._padded(each, slices, _none(each)) for name, each in self.told.items()}
        return {"words": words, "valid": valid, **labels, **tokens}

    def _padded(self, values: NDArray[Any], slices: list[slice], fill: float) -> Tensor:
        """Stretches of values, `[B, L]`, filled up."""
        found = np.full((len(slices), max(each.stop - each.start for each in slices)), fill, values.dtype)
        for row, each in enumerate(slices):
            found[row, : each.stop - each.start] = values[each]
        return torch.from_numpy(found)


def _alike(value: float, tokens: int) -> NDArray[Any]:
    """The label of a text, for each of its tokens."""
    return np.full(tokens, value, np.float32 if isinstance(value, float) else np.int64)


def _none(values: NDArray[Any]) -> float:
    """The label of what has none."""
    return math.nan if values.dtype.kind == "f" else UNLABELLED


def _of_tokens(intervals: list[tuple[int, int, int]], spans: NDArray[np.int64]) -> NDArray[np.int64]:
    """The class of each token: that of the last interval that has its first character, or else any of it."""
    found = np.full(len(spans), UNLABELLED, np.int64)
    for any_of_it in (True, False):
        for start, end, number in intervals:
            last = spans[:, 1] if any_of_it else spans[:, 0] + 1
            found[(spans[:, 0] < end) & (last > start)] = number
    return found

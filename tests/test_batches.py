"""What is observation and what is label, in batches of every kind; and labels that are checked."""

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from jepa_lightning import batches


class Pair(NamedTuple):
    """A batch."""

    image: Tensor
    species: Tensor


X, Y, Z = torch.zeros(2, 3), torch.tensor([0, 1]), torch.tensor([1, 1])


@pytest.mark.parametrize(
    ("batch", "reads", "names"),
    [
        (X, (), ["observation"]),
        (X, ("state",), ["state"]),
        ([X], (), ["observation"]),
        ((X, Y, Z), (), ["observation", "label", "label 2"]),
        ([X, X, Y], ("state", "action"), ["state", "action", "label"]),
        (Pair(X, Y), (), ["image", "species"]),
        ({"image": X, "label": Y}, (), ["image", "label"]),
        (OrderedDict(label=Y, image=X), ("image",), ["label", "image"]),
    ],
)
def test_fields(batch: Any, reads: tuple[str, ...], names: list[str]) -> None:
    assert list(batches.fields(batch, reads)) == names
    read = batches.observations(batch, reads)
    assert len(read) == max(1, len(reads))
    assert all(value is X for value in read)
    labels = batches.labels(batch, reads)
    assert list(labels) == [name for name in names if name not in (reads or names[:1])]
    if labels:
        assert batches.label(batch, None, reads) is Y
        assert batches.label(batch, list(labels)[-1], reads) is list(labels.values())[-1]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: batches.fields("abc"), TypeError, "str"),
        (lambda: batches.fields(()), ValueError, "empty"),
        (lambda: batches.fields({}), ValueError, "empty"),
        (lambda: batches.observations({"name": ["a"], "image": X}), TypeError, "'name' is a list.*name, image"),
        (lambda: batches.observations(Pair(X, Y), ("series",)), ValueError, "image, species.*series is missing"),
        (lambda: batches.observations((X,), ("state", "action")), ValueError, "action is missing"),
        (lambda: batches.label(Pair(X, Y), "kind"), ValueError, "'kind'.*species"),
        (lambda: batches.label(X), ValueError, "no label.*none"),
        (lambda: batches.label({"image": X, "name": ["a"]}), ValueError, "'name'.* list"),
    ],
)
def test_what_cannot_be_read(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_field_that_is_read_can_be_a_label_by_name() -> None:
    """Such as an action that is to be read off the features."""
    assert batches.label({"state": X, "action": Y}, "action", ("state", "action")) is Y


@pytest.mark.parametrize(
    ("given", "options", "expected"),
    [
        ([0, 2, 1], {"num_classes": 3}, [0, 2, 1]),
        ([[0], [2]], {"num_classes": 3}, [0, 2]),
        ([-1, -100, 5], {}, [-1, -1, 5]),
        ([], {"num_classes": 3}, []),
        ([[[0, 1], [2, -1]]], {"num_classes": 3, "maps": True}, [[[0, 1], [2, -1]]]),
    ],
)
def test_classes(given: Any, options: dict[str, Any], expected: Any) -> None:
    for dtype in (torch.int64, torch.int32, torch.int16):
        found = batches.classes(torch.tensor(given, dtype=dtype), **options)
        assert found.dtype == torch.int64
        assert found.tolist() == expected


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (torch.tensor([3]), {"num_classes": 3}, "3 classes"),
        (torch.tensor([-2]), {"num_classes": 3}, "-2 .*3 classes"),
        (torch.tensor([10**9]), {}, "1000000000"),
        (torch.tensor([0.0]), {}, "float32"),
        (torch.zeros(2, 3, dtype=torch.long), {}, r"\[2, 3\]"),
        (torch.zeros(2, 3, 3, dtype=torch.long), {}, r"\[2, 3, 3\]"),
        (torch.zeros(2, 3, 3), {"maps": True}, "float32"),
    ],
)
def test_classes_that_are_none(given: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batches.classes(given, **options)


def test_numbers() -> None:
    given = torch.arange(12).view(2, 3, 2)
    assert batches.numbers(given, 4).tolist() == [[0, 1, 2, 3], [6, 7, 8, 9]]
    assert batches.numbers(torch.tensor([1, 2]), 1).tolist() == [[1], [2]]
    for wrong in (torch.zeros(2), torch.tensor([[0.0, torch.nan], [0, 0]])):
        with pytest.raises(ValueError, match="2 finite numbers"):
            batches.numbers(wrong, 2)


def test_the_first_samples() -> None:
    found = batches.first({"a": torch.arange(5), "b": Pair(torch.arange(5), torch.arange(5) * 2)}, 2)
    assert found["a"].tolist() == [0, 1]
    assert found["b"].species.tolist() == [0, 2]

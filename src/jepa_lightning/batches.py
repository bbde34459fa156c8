"""What is observation and what is label in a batch: the one place that reads batches, of whatever kind they are.

A batch is a tensor, a tuple or list, a NamedTuple, or a dict. Which of its fields a method reads is said by
`JEPA.reads`: their names, which a plain tuple has in that order; without names, the first field is the observation. All
other fields are labels, but for one that is named `valid`: which steps there are of observations of unequal lengths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

UNLABELLED = -1  # the class of samples without one, as in torchvision's STL10
IGNORED = -100  # the same in the words of torch's cross-entropy
MAX_CLASSES = 2**20  # a class above is no class but an identifier, for which there would be no memory


class Series(NamedTuple):
    """A batch of time series (or, without the leading `B`, one).

    Attributes:
        series: `[B, L, C]` float32: steps of channels; whatever stands where nothing was measured.
        valid: BoolTensor `[B, L]`, at which steps there is anything.
        label: `[B]`, the class, int64 and -1 without one; or a number, float32.
    """

    series: Tensor
    valid: Tensor
    label: Tensor


class Trajectories(NamedTuple):
    """A batch of tracks (or, without the leading `B`, one).

    Attributes:
        cells: `[B, L, 9 D]` float32: of each point the embedding of its cell, and of the eight around it.
        valid: BoolTensor `[B, L]`, which points there are.
        track: `[B, L, 2]` float32, metres to the east and north of the area's centre.
    """

    cells: Tensor
    valid: Tensor
    track: Tensor


class Transitions(NamedTuple):
    """A batch of steps of an environment, each from a state to the next.

    Attributes:
        observation: `[B, F]` float32; or frames `[B, C, H, W]` uint8, of which stacked ones are channels.
        action: `[B, A]` float32, each number in [−1, 1].
        next_observation: as `observation`, what was seen afterwards.
        terminated: `[B]` bool, whether nothing can follow, so that no value is left; an episode that was only cut off
            is not terminated.
        reward: `[B]` float32, of data that have any; NaN of others.
    """

    observation: Tensor
    action: Tensor
    next_observation: Tensor
    terminated: Tensor
    reward: Tensor


def fields(batch: Any, reads: Sequence[str] = ()) -> dict[str, Any]:
    """All fields of a batch by name.

    Items of a plain tuple beyond those that are read are called `label`, `label 2`, `label 3` and so on.

    Raises:
        TypeError: something that is no batch.
        ValueError: an empty batch.

    >>> list(fields((torch.zeros(2, 3), torch.zeros(2), torch.ones(2))))
    ['observation', 'label', 'label 2']
    >>> list(fields([torch.zeros(2, 3), torch.zeros(2, 1)], reads=("state", "action")))
    ['state', 'action']
    """
    if isinstance(batch, Mapping):
        found = dict(batch)
    elif isinstance(batch, tuple) and hasattr(batch, "_fields"):  # a NamedTuple
        found = dict(zip(batch._fields, batch, strict=True))
    elif isinstance(batch, Tensor | tuple | list):
        items = [batch] if isinstance(batch, Tensor) else list(batch)
        names = list(reads or ("observation",))[: len(items)]
        names += [f"label {number}" if number > 1 else "label" for number in range(1, 1 + len(items) - len(names))]
        found = dict(zip(names, items, strict=True))
    else:
        raise TypeError(
            f"a batch is a tensor, a tuple, a NamedTuple or a dict of tensors, got a {type(batch).__name__}"
        )
    if not found:
        raise ValueError("the batch is empty: it has no field at all")
    return found


def observations(batch: Any, reads: Sequence[str] = ()) -> tuple[Any, ...]:
    """The fields that a method reads, in the order of `reads`.

    Raises:
        ValueError: a batch without one of them; the message names those that it has.
        TypeError: a first field that is no tensor, where none is named.
    """
    found = fields(batch, reads)
    if not reads:
        name, first = next(iter(found.items()))
        if not isinstance(first, Tensor):
            raise TypeError(
                f"the first field of a batch is its observation, a tensor, but {name!r} is a {type(first).__name__}; "
                f"the fields are {', '.join(found)}: set the module's `reads` to the name of the one to read"
            )
        return (first,)
    if missing := [name for name in reads if name not in found]:
        raise ValueError(
            f"this method reads {', '.join(reads)}, but a batch has the fields {', '.join(map(str, found))}: "
            f"{', '.join(missing)} is missing"
        )
    return tuple(found[name] for name in reads)


def labels(batch: Any, reads: Sequence[str] = ()) -> dict[str, Any]:
    """All fields that a method does not read, by name."""
    found = fields(batch, reads)
    read = {"valid", *(reads or (next(iter(found)),))}
    return {name: value for name, value in found.items() if name not in read}


def valid(batch: Any, steps: Sequence[int]) -> Tensor | None:
    """At which steps there is anything: the field `valid` of a batch that has one, as a NamedTuple or dict may.

    Args:
        batch: any batch.
        steps: the shape that it has to have, `[B, L]`.

    Raises:
        ValueError: a field of another type or shape.

    >>> valid({"series": torch.zeros(2, 3, 1), "valid": torch.ones(2, 3, dtype=torch.bool)}, (2, 3)).all()
    tensor(True)
    """
    found = fields(batch).get("valid")
    if found is None:
        return None
    if not isinstance(found, Tensor) or found.dtype != torch.bool or found.shape != torch.Size(steps):
        kind = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"valid says of each step whether it is there, torch.bool {list(steps)}, got {kind}")
    return found


def label(batch: Any, name: str | None = None, reads: Sequence[str] = ()) -> Tensor:
    """A label of a batch: the one of that name, or the first without a name.

    Raises:
        ValueError: a batch that has no such label, or one that is no tensor; the message names the labels it has.
    """
    found = labels(batch, reads)
    # A field that the method reads may be asked for too, such as an action that is to be read off the features.
    everything = found if name is None else fields(batch, reads)
    chosen = name if name is not None else next(iter(found), None)
    if chosen is None or chosen not in everything:
        wanted = "there is no label" + (f" {name!r}" if name else "") + " in a batch, which has "
        raise ValueError(wanted + (f"the labels {', '.join(found)}" if found else "none: give labelled data"))
    value = everything[chosen]
    if not isinstance(value, Tensor):
        raise ValueError(f"the label {chosen!r} of a batch is a {type(value).__name__}, not a tensor of numbers")
    return value


def classes(given: Tensor, num_classes: int | None = None, maps: bool = False) -> Tensor:
    """Labels that are classes, checked, as int64; those of samples without a class are all -1.

    Args:
        given: integers `[B]` (`[B, 1]` is taken too), or with `maps` also `[B, T]` and `[B, H, W]`. No class
            is -1 or -100.
        num_classes: how many there are; of probes that take any number, 2^20 at most.
        maps: whether there may be a class for each step, `[B, T]`, or pixel.

    Raises:
        ValueError: labels of another type or shape, or out of range.

    >>> classes(torch.tensor([2, -100, 0]), num_classes=3)
    tensor([ 2, -1,  0])
    """
    given = given.squeeze(1) if given.ndim == 2 and given.shape[1] == 1 else given
    if given.ndim not in ((1, 2, 3) if maps else (1,)) or given.is_floating_point() or given.is_complex():
        raise ValueError(
            "expected one class a sample, integers [B]"
            + (", or one a step or pixel, [B, T] or [B, H, W]" if maps else "")
            + f", got {given.dtype} {list(given.shape)}"
        )
    given = given.long()
    given = given.masked_fill(given == IGNORED, UNLABELLED)
    if given.numel():
        low, high = torch.stack(given.aminmax()).tolist()  # on a GPU, waited for once
        limit = MAX_CLASSES if num_classes is None else num_classes
        if low < UNLABELLED or high >= limit:
            raise ValueError(
                f"labels from {low} to {high} do not fit the {limit} classes from 0 to {limit - 1} that there are"
                + (" at most" if num_classes is None else "")
                + "; samples without a class have -1 or -100"
            )
    return given


def numbers(given: Tensor, count: int) -> Tensor:
    """The first `count` numbers of each sample's label, checked, `[B, count]` in float32.

    Raises:
        ValueError: labels with fewer numbers, or with some that are not finite.
    """
    found = given.reshape(len(given), -1)[:, :count].float()
    if found.shape[1] < count or not found.isfinite().all():
        raise ValueError(
            f"expected {count} finite numbers a sample, the first of its label, got {given.dtype} {list(given.shape)}"
            + ("" if found.isfinite().all() else " with some that are not")
        )
    return found


def joined(parts: Sequence[Tensor]) -> Tensor:
    """A field of several batches, one after the other; where its steps `[B, T]` differ in number, filled up.

    >>> joined([torch.tensor([[1, 2]]), torch.tensor([[3]])])
    tensor([[ 1,  2],
            [ 3, -1]])
    """
    if all(part.shape[1:] == parts[0].shape[1:] for part in parts) or any(part.ndim != 2 for part in parts):
        return torch.cat(list(parts))
    longest, fill = max(part.shape[1] for part in parts), math.nan if parts[0].is_floating_point() else UNLABELLED
    return torch.cat([F.pad(part, (0, longest - part.shape[1]), value=fill) for part in parts])


def first(batch: Any, count: int) -> Any:
    """The batch of the first samples only."""
    return apply_to_collection(batch, Tensor, lambda field: field[:count])

"""Plain values: what a checkpoint may hold beside tensors, so that it can be read without running what it says."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Set
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


def plain(value: Any, name: str) -> Any:
    """The same in plain values: a path becomes a string, NumPy's numbers Python's, and any mapping a dict.

    Args:
        value: of any kind, or a dict, list and so on of such.
        name: where it stands, for the error.

    Raises:
        TypeError: something that has no such form, as a network, a function or an object of a class.

    >>> plain({"root": os.path.curdir, "lr": np.float64(0.5), "sizes": (1, np.int64(2))}, "options")
    {'root': '.', 'lr': 0.5, 'sizes': (1, 2)}
    """
    if type(value) in _PLAIN or isinstance(value, Tensor):
        return value
    if isinstance(value, Enum):
        return plain(value.value, name)
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist(), name)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    for kind in (int, float, str):  # subclasses of these
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {plain(key, name): plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(plain(item, f"{name}[{number}]") for number, item in enumerate(value))
    if isinstance(value, Set):
        return {plain(item, name) for item in value}
    if isinstance(value, Sequence):
        return [plain(item, f"{name}[{number}]") for number, item in enumerate(value)]
    if hasattr(value, "__dict__") and type(value).__name__ == "Namespace":  # jsonargparse's
        return plain(vars(value), name)
    raise TypeError(
        f"{name} is a {type(value).__module__}.{type(value).__qualname__}, which no checkpoint can hold that is to be "
        "read safely: give plain values, or keep it out by save_hyperparameters(ignore=[…])"
    )

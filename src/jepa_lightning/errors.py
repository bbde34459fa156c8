"""Checks of options, and messages for options and weights that do not fit."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor


class UnknownEncoderError(ValueError):
    """A checkpoint's encoder is none of this package's, and the file does not say how to build it."""


def differences(own: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """In what the entries of two state dicts differ, the first of each kind by name."""
    kinds = {
        "it lacks": [name for name in own if name not in given],
        "it has, and this module has not,": [name for name in given if name not in own],
        "of another shape are": [
            f"{name} ({list(given[name].shape)} instead of {list(value.shape)})"
            for name, value in own.items()
            if isinstance(value, Tensor) and name in given and given[name].shape != value.shape
        ],
    }
    parts = (f"{kind} {', '.join(names[:3])}{', …' * (len(names) > 3)}" for kind, names in kinds.items() if names)
    return "; ".join(parts)


def unknown_options(name: str, unknown: list[str], known: Iterable[str]) -> str:
    """The error for options that a class does not take, with the nearest that it does."""
    near = [match for option in unknown for match in difflib.get_close_matches(option, known, n=2)]
    hint = f"; did you mean {' or '.join(near)}?" if near else f"; it takes {', '.join(sorted(known))}"
    return f"{name} has no option {', '.join(unknown)}{hint}"


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise a ValueError, with the nearest ones there are, for what is none of the choices of an option."""
    lower = {choice.lower(): choice for choice in choices}
    if value in lower.values():
        return
    near = [lower[match] for match in difflib.get_close_matches(value.lower(), lower, n=2, cutoff=0.5)]
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"choose one of {', '.join(lower.values())}."
    raise ValueError(f"{name}={value!r} is unknown; {hint}")


def check_numbers(options: Mapping[str, Any], least: float, most: float = math.inf, below: float = math.inf) -> None:
    """Raise a ValueError for the first option that is out of range or not finite; None stands for none given.

    >>> check_numbers({"heads": 0}, 1)
    Traceback (most recent call last):
    ValueError: heads=0 must be at least 1
    >>> check_numbers({"discount": 1.0}, 0, below=1)
    Traceback (most recent call last):
    ValueError: discount=1.0 must lie in [0, 1)
    """
    end = "" if math.isinf(min(most, below)) else f"{most}]" if most < below else f"{below})"
    for name, value in options.items():
        if value is not None and not (least <= value <= most and value < below):
            raise ValueError(f"{name}={value} must " + (f"lie in [{least}, {end}" if end else f"be at least {least}"))

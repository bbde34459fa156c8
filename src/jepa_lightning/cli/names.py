"""The names that a command line or a configuration can have, and the nearest to a misspelt one."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger

import jepa_lightning

BASES = {"model": pl.LightningModule, "data": pl.LightningDataModule, "callbacks": pl.Callback, "logger": Logger}


def did_you_mean(near: Iterable[str], known: Iterable[str] = ()) -> str:
    """The end of a sentence: the nearest names or, if none is near, those there are."""
    if near := [*near]:
        return f"; did you mean {' or '.join(near)}?"
    return f"; there {'are' if len(known) > 1 else 'is'} {', '.join(known)}" if (known := [*known]) else ""


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The known names that come nearest to a dotted one: at most two, and the second only if it is about as near.

    >>> nearest("trainer.max_epoch", ["trainer.max_epochs", "trainer.min_epochs", "trainer.logger"])
    ['trainer.max_epochs']
    >>> nearest("lr", ["model.lr", "trainer.logger"])
    ['model.lr']
    """
    group, _, last = name.rpartition(".")
    scores = {}
    for each in known:
        its_group, _, its_last = each.rpartition(".")
        scores[each] = min(_likeness(last, its_last), _likeness(group, its_group) if group else 1.0)
    best = max(scores.values(), default=0.0)
    near = [each for each, score in scores.items() if score >= max(0.6, best - 0.05)]
    return sorted(near, key=lambda each: (-scores[each], each))[:2]


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio()


def parameters(class_path: str) -> dict[str, inspect.Parameter]:
    """What a constructor takes, with what it hands on to those of its bases."""
    module, _, name = class_path.rpartition(".")
    return _parameters(getattr(importlib.import_module(module), name))


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    known: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        options = inspect.signature(base).parameters
        known = {**options, **known}
        if not any(option.kind is option.VAR_KEYWORD for option in options.values()):
            break
    return {name: option for name, option in known.items() if option.kind is not option.VAR_KEYWORD}


def options_of_classes() -> set[str]:
    """The options of this package's modules and data, whichever is chosen: `model.lr`, `data.batch_size` and so on."""
    classes = [getattr(jepa_lightning, name) for name in jepa_lightning.__all__]
    return {
        f"{key}.{option}"
        for key in ("model", "data")
        for each in classes
        if isinstance(each, type) and issubclass(each, BASES[key])
        for option in _parameters(each)
    }


def subclasses(base: type) -> list[str]:
    """The names of all classes that can stand for one, as far as they are imported."""
    names: set[str] = set()
    waiting: list[Any] = [base]
    while waiting:
        for each in waiting.pop().__subclasses__():
            waiting.append(each)
            unfinished = any(getattr(getattr(each, name, None), "__isabstractmethod__", False) for name in dir(each))
            if not unfinished and not each.__name__.startswith("_"):
                names.add(each.__name__)
    return sorted(names)


def configurations(folder: Path) -> list[str]:
    """The package's recipes, and the YAML files of a folder."""
    root = jepa_lightning.RECIPES
    recipes = {f"recipes/{each.relative_to(root).as_posix()}" for each in root.rglob("*.yaml")}
    return sorted(recipes | {shown(each) for each in folder.glob("*.y*ml")})


def shown(path: str | Path) -> str:
    """A path as a user would write it: from the working directory, if it is in there."""
    inside = os.path.relpath(path)
    return str(path) if inside.startswith("..") else inside

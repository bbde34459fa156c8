"""What the command line says of mistakes: the nearest names, and nulls where there must be a value."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

import jepa_lightning
from jepa_lightning import callbacks


class NearMissParser(LightningArgumentParser):
    """A parser whose errors name the option or class that a misspelt one comes nearest to."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Leave with the message, and the nearest known names in front of it."""
        hints = "\n".join(_near_misses(self, message))
        return super().error(f"{hints}\n{message}" if hints else message, ex)


def _near_misses(parser: LightningArgumentParser, message: str) -> list[str]:
    """A line for every unknown name in an error message of jsonargparse."""
    subcommands = parser._subcommands_action.choices.values() if parser._subcommands_action else []
    known_options = {action.dest for one in (parser, *subcommands) for action in one._actions}
    lines = []
    for path, option in re.findall(r"class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted", message):
        lines.append(_hint(f"option {option!r} of {path}", option, _parameters(path)))
    for group, option in re.findall(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message):
        names = {dest.removeprefix(f"{group}.") for dest in known_options if dest.startswith(f"{group}.")}
        lines.append(_hint(f"option {option!r} of {group}", option, names))
    for option in re.findall(r"Subcommand '\w+' does not accept option '([\w.]+)'", message):
        lines.append(_hint(f"option {option!r}", option, known_options))
    for option in re.findall(r"unrecognized arguments: --([\w.]+)", message):
        lines.append(_hint(f"option --{option}", option, known_options))
    for name in re.findall(r"Expected a dot import path string: ([\w.]+)", message)[:1]:
        packages = (jepa_lightning, callbacks, pl.callbacks)
        lines.append(_hint(f"class {name!r}", name, {known for package in packages for known in package.__all__}))
    return lines


def _parameters(class_path: str) -> dict[str, inspect.Parameter]:
    """What a constructor takes, with what it hands on to those of its bases."""
    module, _, name = class_path.rpartition(".")
    known: dict[str, inspect.Parameter] = {}
    for base in getattr(importlib.import_module(module), name).__mro__:
        options = inspect.signature(base).parameters
        known = {**options, **known}
        if not any(option.kind is option.VAR_KEYWORD for option in options.values()):
            break
    return known


def nulls(config: Any) -> Iterator[str]:
    """A line for every `null` of a configuration that the option's type does not allow, which the parser lets pass."""
    if isinstance(config, list):
        for item in config:
            yield from nulls(item)
    elif isinstance(config, Namespace | dict):
        given = vars(config) if isinstance(config, Namespace) else config
        options = given.get("init_args") if isinstance(given.get("class_path"), str) else None
        if options is not None and "." in given["class_path"]:  # a short name is told apart by whoever builds it
            known = _parameters(given["class_path"])
            for name, value in (vars(options) if isinstance(options, Namespace) else options).items():
                kind = known[name].annotation if name in known else inspect.Parameter.empty
                if value is None and kind is not inspect.Parameter.empty and not _allows_none(kind):
                    yield f"option {name!r} of {given['class_path']} must not be null; it takes {_written(kind)}"
        for item in given.values():
            yield from nulls(item)


def _allows_none(kind: Any) -> bool:
    return any(word in str(kind) for word in ("None", "Any", "Optional"))


def _written(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _hint(what: str, name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    return f"unknown {what}" + (f"; did you mean {' or '.join(near)}?" if near else "")

"""The command line's parser: what is wrong is said in one sentence; nulls where there must be a value are found."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from jepa_lightning.cli.mistakes import explain
from jepa_lightning.cli.names import parameters, shown


class NearMissParser(LightningArgumentParser):
    """A parser whose errors are a sentence, which names the option or class that a misspelt one comes nearest to."""

    reading: str | None = None  # the configuration file
    given: Sequence[str] = ()  # the command line

    def parse_args(self, args: Any = None, *more: Any, **options: Any) -> Namespace:  # type: ignore[override]
        """Parse the command line, whose subcommand errors are to go by."""
        self.given = args or ()
        return super().parse_args(args, *more, **options)

    def parse_path(self, path: Any, *args: Any, **options: Any) -> Namespace:
        """Parse a configuration file, which errors are to name."""
        self.reading = shown(path)
        parsed = super().parse_path(path, *args, **options)
        self.reading = None
        return parsed

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Leave with status 2 and the sentence; a parser of a nested class tells the one around it."""
        if not self.exit_on_error:
            return super().error(message, ex)
        subcommands = self._subcommands_action.choices if self._subcommands_action else {}
        parsers = [self, *subcommands.values()]
        chosen = next((subcommands[word] for word in self.given if word in subcommands), None)
        speaking = getattr(ex, "subcommand_parser", None) or chosen
        options = {action.dest for parser in ([speaking] if speaking else parsers) for action in parser._actions}
        reading = next((parser.reading for parser in parsers if parser.reading), None)
        sentence = explain(message, options, subcommands)
        self.exit(2, f"error: {f'{reading}: ' if reading else ''}{sentence}\n")


def nulls(config: Any) -> Iterator[str]:
    """A line for every `null` of a configuration that the option's type does not allow, which the parser lets pass."""
    if isinstance(config, list):
        for item in config:
            yield from nulls(item)
    elif isinstance(config, Namespace | dict):
        given = vars(config) if isinstance(config, Namespace) else config
        options = given.get("init_args") if isinstance(given.get("class_path"), str) else None
        if options is not None and "." in given["class_path"]:  # a short name is told apart by whoever builds it
            known = parameters(given["class_path"])
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

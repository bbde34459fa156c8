"""One sentence for a mistake on the command line or in a configuration: what is wrong, and what comes nearest to it.

The parser tells of a mistake by every type that the value is not of, nested as the options are. Here its text is read;
what is not recognised is said in the parser's own words, without its objects.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from jepa_lightning.cli.names import (
    BASES,
    configurations,
    did_you_mean,
    nearest,
    options_of_classes,
    parameters,
    shown,
    subclasses,
)

# What the parser takes for the class where none is named, and tries besides those that are.
BASE = r"lightning\.(?:Callback|LightningModule|LightningDataModule)"
KEY = re.compile(r'^( *)(?:- )?Parser key "([\w.]+)"', re.MULTILINE)
TYPES = {
    "int": ["a whole number"],
    "float": ["a number"],
    "bool": ["true", "false"],
    "str": ["a text"],
    "tuple": ["a list"],
    "list": ["a list"],
    "dict": ["a mapping"],
    "NoneType": ["null"],
}


def explain(message: str, options: set[str], subcommands: Iterable[str]) -> str:
    """The sentence for an error message of jsonargparse.

    Args:
        message: the parser's.
        options: all that the command line takes, such as `trainer.max_epochs`.
        subcommands: all there are.
    """
    tried = rf"- Problem with given class_path '{BASE}':\n\s+Option '[\w.]+' is not accepted\n?"
    if "Problem with given class_path" in (others := re.sub(tried, "", message)):
        message = others
    key, about = _innermost(message)
    return (
        _of_command_line(message, options, [*subcommands])
        or _of_file(message)
        or _of_option(message, key, options)
        or _of_class(message, key)
        or _of_value(message, key, about)
        or _in_its_own_words(message, key)
    )


def _innermost(message: str) -> tuple[str, str]:
    """The option that the mistake is in, whose keys the parser nests, and what is said about it."""
    keys, about, depth = [], message, -1
    for found in KEY.finditer(message):
        if len(found[1]) > depth:
            depth = len(found[1])
            keys.append(found[2])
            inside = rf"(?:.*\n)(?:(?: {{{depth + 1},}}.*)?(?:\n|$))*"
            about = re.match(inside, message[found.start() :] + "\n")[0]  # type: ignore[index]
    return ".".join(keys), about


def _of_command_line(message: str, options: set[str], subcommands: list[str]) -> str | None:
    """Its own words."""
    if found := re.search(r"argument subcommand: invalid choice: '([^']+)'", message):
        return f"unknown subcommand {found[1]!r}{did_you_mean(nearest(found[1], subcommands), subcommands)}"
    if 'expected "subcommand"' in message:
        return f"a subcommand is missing: {', '.join(subcommands)} (`jepa --help` says what each does)"
    if found := re.match(r"the following arguments are required: (.+)", message):
        missing = sorted(f"--{name.partition('.')[2]}" for name in found[1].split(", "))
        by_recipe = ", or a recipe: --config recipes/ijepa/shapes.yaml" if {"--model", "--data"} & {*missing} else ""
        return f"{' and '.join(missing)} must be given{by_recipe}"
    if found := re.search(r"argument (?:-\w/)?(--[\w.]+): expected one argument", message):
        return f"{found[1]} needs a value"
    if not (found := re.search(r"unrecognized arguments: (.+)", message)):
        return None
    unknown = found[1].split()
    known = {f"--{each}" for each in options | options_of_classes()}
    names = [re.sub("[+]?=.*", "", word) for word in unknown if re.match("-+[a-zA-Z]", word)]
    hints = [did_you_mean(nearest(name, known)) or " (`jepa fit --help` lists all)" for name in names]
    if names:
        return ", ".join(f"unknown option {name}{hint}" for name, hint in zip(names, hints, strict=True))
    meant = did_you_mean([f"--config {unknown[0]}"] if unknown[0].endswith((".yaml", ".yml")) else [])
    return f"unknown argument {unknown[0]!r}{meant or '; options begin with --'}"


def _of_file(message: str) -> str | None:
    """Configurations that there are not, or that are none."""
    if found := re.search(r"(?:File does not exist|Path is not a file): '(.+)'", message):
        path = Path(found[1])
        name, files = shown(path), configurations(path if path.is_dir() else path.parent)
        inside = [each for each in files if each.startswith(f"{name}/")]
        near = [each for each in files if each.endswith(f"/{name}")] or difflib.get_close_matches(name, files, n=1)
        wrong = f"{name} is a folder" if path.is_dir() else f"there is no file {name}"
        return wrong + did_you_mean([] if inside else near, inside)
    if found := re.search(r"Problems parsing config: (.+)", message, re.DOTALL):
        place = re.search(r"line (\d+), column (\d+)", found[1])
        problem = found[1].partition("\n  in ")[0].replace("\n", ", ")
        return f"not valid YAML{f' at line {place[1]}, column {place[2]}' if place else ''}: {problem}"
    if found := re.search(r"Unexpected config: (.+)", message):
        return f"a configuration is a mapping with model, data and trainer, got {found[1]!r}"
    return None


def _of_option(message: str, key: str, options: set[str]) -> str | None:
    """Options that a class, a group or the command does not have, or has to have."""
    if found := re.search(r"class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted", message):
        path, option = found.groups()
        if not re.fullmatch(BASE, path):
            known = [*parameters(path)]
            return f"{path.rpartition('.')[2]} has no option {option!r}{did_you_mean(nearest(option, known), known)}"
        option, keys = option.partition(".")[0], ["class_path", "init_args"]
        if option in keys:  # because of another
            option = next(each for each in re.findall(r"'(\w+)':", message) if each not in keys)
        if near := nearest(option, keys):
            return f"{key} has no key {option!r}{did_you_mean(near)}"
        return (
            f"{key} has {option!r} and no class: name it by class_path (here: --{key} CLASS), its options by init_args"
        )
    if found := re.search(r"class_path '([\w.]+)':\s+the following arguments are required: (.+)", message):
        return f"{found[1].rpartition('.')[2]} needs the option {' and '.join(map(repr, found[2].split(', ')))}"
    if found := re.search(r"(?:Group|Subcommand) '[\w.]+' does not accept option '([\w.]+)'", message):
        group, _, _ = found[1].partition(".")
        groups = {each.partition(".")[0] for each in options}
        known_too = options | options_of_classes()
        near = nearest(found[1], known_too) if group in groups or group == found[1] else nearest(group, groups)
        return f"unknown option {found[1] if group in groups else group!r}{did_you_mean(near, sorted(groups))}"
    return None


def _of_class(message: str, key: str) -> str | None:
    """Classes that there are not, or that are of another kind."""
    base = BASES.get(key.rpartition(".")[2])
    known = [] if base is None else subclasses(base)
    if found := re.search(r"Expected a dot import path string: ([\w.]+)", message):
        name = found[1]
        kind = next((each.__name__ for each in BASES.values() if each is not base and name in subclasses(each)), None)
        if base and kind:
            return f"{key} must be a {base.__name__}, and {name} is a {kind}"
        expected = f"; it must be a {base.__name__}" if base else ""
        return f"{key}: unknown class {name!r}{did_you_mean(nearest(name, known)) or expected}"
    if found := re.search(r"class_path '([\w.]+)':\s+(No module named .+|module .+ has no attribute .+)", message):
        near = nearest(found[1].rpartition(".")[2], known) if found[1].startswith("jepa_lightning.") else []
        return f"{key}: unknown class {found[1]!r}{did_you_mean(near) or f': {found[2][0].lower()}{found[2][1:]}'}"
    if found := re.search(r"does not correspond to a subclass of (\w+)", message):
        given = re.search(r"Given value: .*?([\w.]+\.\w+)", message)
        return f"{key} must be a {found[1]}, and {given[1] if given else 'the class'} is none"
    return None


def _of_value(message: str, key: str, about: str) -> str | None:
    """Values that are not of the option's type."""
    kinds = re.findall(r"^ *(?:- )?Expected an? ([\w.]+\[.+?\]|<class '[\w.]+'>)", about, re.MULTILINE)
    given = re.search(r"(?:Got|Given) value: (.*)", about)
    if not key or not kinds or not given:
        return None
    expected: list[str] = []
    for kind in kinds:
        name = re.sub(r"<class '(?:\w+\.)*|'>$", "", kind)
        expected += re.findall(r"'([\w-]+)'", kind) if kind.startswith("typing.Literal") else TYPES.get(name, [name])
    if near := nearest(given[1], [each for each in expected if " " not in each]):
        return f"{key} is {given[1]!r}{did_you_mean(near)}"
    *others, last = dict.fromkeys(expected)
    classes, option = re.findall(r"class_path '([\w.]+)'", message), key.rpartition(".")[2]
    taken = parameters(classes[-1]).get(option) if classes else None
    example = f", such as {[*taken.default]}" if taken and isinstance(taken.default, tuple | list) else ""
    return f"{key} is {given[1]!r}, but must be {', '.join(others)}{' or ' if others else ''}{last}{example}"


def _in_its_own_words(message: str, key: str) -> str:
    """The first thing that is said, without objects."""
    lines = [line.strip(" -") for line in message.splitlines()]
    frame = r"Parser key|Does not validate|Subtypes|Given|.*:$"
    said = [line for line in lines if line and not re.match(frame, line)]
    return f"{key}: {said[0]}" if key and said else " ".join(lines)

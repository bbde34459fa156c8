"""Texts with their labels, out of files, JSON lines and shards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jepa_lightning.data.faults import UnreadableError
from jepa_lightning.data.labels import Interval
from jepa_lightning.data.samples import Listed
from jepa_lightning.data.shards import open_shards

TEXT_EXTENSIONS = (".txt", ".text", ".md", "")
Topic = Literal["folder", "file", "none"]


class Record(NamedTuple):
    """A text.

    Attributes:
        where: it is from.
        text: all of it, or what is between two separators, without white space around.
        labels: by name, see `Vocabulary`.
    """

    where: str
    text: str
    labels: dict[str, Any]


def read_folder(folder: Path, topic: Topic, separator: str | None) -> list[Record]:
    """The texts in the files below a folder.

    Args:
        folder: where they are; names that begin with a dot do not count.
        topic: what the label is: the folder right in this one, the name of the file, or none.
        separator: the line between two texts of a file; an empty one for blank lines. A file is one text without.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is not written in UTF-8, or one that is in no folder, where that is the label.
    """
    inside = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix.lower() in TEXT_EXTENSIONS]
    paths = [path for path in inside if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not paths:
        raise FileNotFoundError(f"{folder.absolute()} holds no texts (.txt, or without an ending), at any depth.")
    in_folders = [len(path.relative_to(folder).parts) > 1 for path in paths]
    if topic == "folder" and any(in_folders) and not all(in_folders):
        raise ValueError(
            f"{folder} has texts in folders, which are their labels, and others, such as "
            f"{paths[in_folders.index(False)].name}: move these into folders, or give topic=file or none"
        )
    records = []
    for path in paths:
        parts = path.relative_to(folder).parts
        labels = {"label": path.stem} if topic == "file" else {}
        if topic == "folder" and len(parts) > 1:
            labels = {"label": parts[0]}
        records += [Record(str(path), text, labels) for text in split_texts(read_text(path), separator)]
    return records


def split_texts(text: str, separator: str | None) -> list[str]:
    r"""The texts between lines that are the separator; between blank lines, where it is empty.

    >>> split_texts("one\n%\ntwo\nlines\n%\n", "%")
    ['one', 'two\nlines']
    """
    if separator is None:
        return [text.strip()]
    found: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip() == separator:
            found.append([])
        else:
            found[-1].append(line)
    return [each for lines in found if (each := "\n".join(lines).strip())]


def read_lines(path: Path, text_field: str, labels: Sequence[str]) -> list[Record]:
    """The texts of a file of JSON lines: an object a line.

    Args:
        path: of the file.
        text_field: the field of an object that is the text.
        labels: the fields that are labels: words or numbers, or lists of [first character, after the last, word].

    Raises:
        ValueError: a line that is no such object.
    """
    records = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            found = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where} is not JSON: {error}") from error
        if not isinstance(found, dict) or not isinstance(found.get(text_field), str):
            names = ", ".join(found) if isinstance(found, dict) else type(found).__name__
            raise ValueError(f"{where} has no text {text_field!r}, but {names or 'nothing'}")
        text = found[text_field]
        told = {name: _label(found.get(name), f"{where}, {name}", len(text)) for name in labels}
        records.append(Record(where, text, told))
    return records


def _label(value: Any, where: str, characters: int) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    try:
        intervals = [Interval(int(start), int(end), str(word)) for start, end, word in value]
        if isinstance(value, list) and all(0 <= each.start < each.end <= characters for each in intervals):
            return intervals
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"{where} is neither a word or number, nor a list of [first character, that after the last, word] within "
        f"{characters} characters: {json.dumps(value)[:80]}"
    )


def read_shards(root: str, role: str, separator: str | None) -> list[Record] | None:
    """The texts of shards that can be listed; none without held-out ones.

    Raises:
        ValueError: shards that can only be streamed, or a text that is not written in UTF-8.
    """
    source = open_shards(root, role, (TEXT_EXTENSIONS[:-1],), None, 1, 0, 0)
    if source is None:
        return None
    if not isinstance(source, Listed):
        raise ValueError(f"{root} is an index of shards to stream, but texts are read into memory: give the shards")
    return list(_of_members(source, separator))


def _of_members(source: Listed, separator: str | None) -> Iterator[Record]:
    for sample in source.samples:
        try:
            content = sample.read()
            text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        except (UnreadableError, UnicodeDecodeError) as error:
            raise ValueError(f"{sample.name} cannot be read: {error}") from error
        for each in split_texts(text, separator):
            yield Record(sample.name, each, {} if sample.label is None else {"label": sample.label})


def read_text(path: Path) -> str:
    """A text in UTF-8, whose lines end with line feeds.

    Raises:
        ValueError: another encoding.
    """
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not written in UTF-8: {error}. Convert it, for instance with iconv.") from error

"""Lists of sounds: tables with a column of files, and fairseq's manifests."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jepa_lightning.data.labels import Interval

FILE_COLUMNS = ("file", "path", "filename", "file_name")


class Row(NamedTuple):
    """A sound of a list.

    Attributes:
        path: of its file.
        labels: by name, see `Vocabulary`.
        samples: how many it has, if the list says so.
    """

    path: str
    labels: dict[str, Any]
    samples: int | None = None


def read_table(path: Path, labels: Sequence[str] | None) -> list[Row]:
    """The sounds of a CSV file with a header; relative paths start from its folder.

    With columns `start` and `end`, in seconds, a row labels that stretch of its file, which may have many rows.

    Args:
        path: of the file.
        labels: the columns that are labels; all others than the file's without.

    Raises:
        ValueError: a file that is no such table, or lacks a column.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            header = [name for name in reader.fieldnames or [] if name]
            lines = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    column = next((name for name in header if name.lower() in FILE_COLUMNS), None)
    if column is None:
        raise ValueError(
            f"{path} has no column {', '.join(FILE_COLUMNS)}: its header is {', '.join(header) or 'empty'}"
        )
    timed = {"start", "end"} <= set(header)
    told = [name for name in header if name not in {column, *(("start", "end") if timed else ())}]
    if missing := [name for name in labels or () if name not in told]:
        raise ValueError(f"{path} has no column {', '.join(missing)}, but {', '.join(told) or 'none beside the files'}")
    names = told if labels is None else list(labels)
    rows: dict[str, Row] = {}
    for number, line in enumerate(lines, 2):
        file_name = (line[column] or "").strip()
        if not file_name or None in line:
            raise ValueError(f"{path}, line {number}: {'no file' if not file_name else 'more fields than its header'}")
        words = {name: (line[name] or "").strip() or None for name in names}
        row = Row(os.path.join(path.parent, file_name), {} if timed else words)
        if not timed:
            if file_name in rows:
                raise ValueError(
                    f"{path}, line {number}: {file_name} is there twice; only with start and end it may be"
                )
            rows[file_name] = row
            continue
        try:
            start, end = float(line["start"]), float(line["end"])
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: start and end are no numbers of seconds: {error}") from error
        inside = rows.setdefault(file_name, row).labels
        for name, word in words.items():
            inside.setdefault(name, []).extend([] if word is None else [Interval(start, end, word)])
    if not rows:
        raise ValueError(f"{path} is empty: it must have a row for each sound.")
    return list(rows.values())


def read_manifest(path: Path, labels: Sequence[str] | None) -> list[Row]:
    """The sounds of a manifest as fairseq's `wav2vec_manifest.py` writes it, with the labels of files beside.

    Its first line is a folder, all others a path from there, a tab, and the number of samples. A label `ltr` of
    `train.tsv` is in `train.ltr`, a line for each sound: a word, or several with spaces between them.

    Args:
        path: of the manifest.
        labels: the endings of the files beside that are read; those that there are of ltr, wrd, phn, lbl and km
            without.

    Raises:
        ValueError: something else than such a file.
        FileNotFoundError: without a file of labels that is asked for.
    """
    folder, *lines = _lines(path)
    rows = []
    for number, line in enumerate(lines, 2):
        name, tab, count = line.partition("\t")
        if not tab or not count.strip().isdigit():
            raise ValueError(f"{path}, line {number}: {line!r} is not a path, a tab and a number of samples")
        rows.append(Row(os.path.join(path.parent, folder.strip(), name), {}, int(count)))
    if not rows:
        raise ValueError(f"{path} is empty: its first line is a folder, and each other one a sound.")
    beside = {name: path.with_suffix(f".{name}") for name in labels or ("ltr", "wrd", "phn", "lbl", "km")}
    for name, file in beside.items():
        if not file.is_file():
            if labels:
                raise FileNotFoundError(
                    f"{file.absolute()} does not exist, where the label {name} of {path.name} would be."
                )
            continue
        words = [line.split() for line in _lines(file)]
        if len(words) != len(rows):
            raise ValueError(f"{file} has {len(words)} lines for the {len(rows)} sounds of {path.name}")
        single = all(len(each) <= 1 for each in words)
        for row, each in zip(rows, words, strict=True):
            row.labels[name] = (each[0] if each else None) if single else each
    return rows


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not written in UTF-8: {error}. Convert it, for instance with iconv.") from error

"""The table of an evaluation: printed, or written to a file."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table


class Reading(NamedTuple):
    """A line of the table.

    Attributes:
        label: what was read off the features.
        probe: by what.
        metric: `accuracy`, `miou` or `r2`, each at most 1.
        value: on the test data.
        untrained: the same of the encoder with its weights drawn anew, what features are worth without any training.
        constant: what the best constant answer scores there.
        num_labels: labelled samples that the probe was fitted on.
        chosen: the setting that did best on the held-out part of the training data.
    """

    label: str
    probe: str
    metric: str
    value: float
    untrained: float
    constant: float
    num_labels: int
    chosen: str


def print_table(readings: list[Reading]) -> None:
    """Print the lines as a table."""
    table = Table(*_HEADER)
    for cells in _cells(readings):
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def write_table(readings: list[Reading], path: str | Path) -> None:
    """Write the lines to a file: as Markdown if its name ends in `.md`, as CSV, with all digits, if it does in `.csv`.

    Raises:
        ValueError: another ending.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".md"):
        raise ValueError(f"expected a file that ends in .csv or .md, got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            csv.writer(file).writerows([Reading._fields, *readings])
        else:
            lines = [_HEADER, ["---"] * len(_HEADER), *_cells(readings)]
            file.writelines(f"| {' | '.join(cells)} |\n" for cells in lines)


_HEADER = ["label", "probe", "metric", "value", "untrained", "constant", "labels", "chosen"]


def _cells(readings: list[Reading]) -> list[list[str]]:
    return [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in reading] for reading in readings]

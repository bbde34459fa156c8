"""What agents reached for rewards: returns, their intervals, and what they are normalised by."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Score(NamedTuple):
    """What was reached for a reward: returns of episodes.

    Attributes:
        name: of the reward.
        mean: of the agents' returns.
        low: the lower end of the mean's interval of 95 %, over agents where there are several, else over episodes.
        high: the upper end.
        random: the mean return of random actions.
        data: what an episode of the data's steps would return.
        expert: the expert's mean return; NaN where none is known.
        steps: of an episode.
    """

    name: str
    mean: float
    low: float
    high: float
    random: float
    data: float
    expert: float
    steps: int

    def normalised(self, value: float) -> float:
        """A return on the scale from random actions, 0, to the expert, 1; of a step, where no expert is known.

        There is no such scale, and this is NaN, where the expert is no better than random actions.
        """
        if np.isnan(self.expert):
            return value / self.steps
        if self.expert <= self.random:
            return float("nan")
        return (value - self.random) / (self.expert - self.random)


def interval(values: Array) -> tuple[float, float, float]:
    """Mean and its interval of 95 % by Student's t; both ends are NaN of a single value.

    >>> [round(end, 3) for end in interval(np.array([1.0, 2.0, 3.0]))]
    [2.0, -0.484, 4.484]
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = _student(len(values) - 1) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return mean, mean - half, mean + half


def table(scores: Sequence[Score]) -> list[list[str]]:
    """Rows of text, the first one with their names: normalised returns, then returns."""
    head = ["reward", "normalised", "from", "to", "return", "random", "data", "expert"]
    rows = [head]
    for each in scores:
        normalised = [each.normalised(value) for value in (each.mean, each.low, each.high)]
        rest = [each.mean, each.random, each.data, each.expert]
        rows.append([each.name, *(f"{value:.3f}" for value in normalised), *(f"{value:.1f}" for value in rest)])
    rows.append(["mean", f"{mean_normalised(scores):.3f}", "", "", "", "", "", ""])
    return rows


def mean_normalised(scores: Sequence[Score]) -> float:
    """The mean normalised return of rewards, but for those whose experts make no scale; NaN if none is left."""
    found = [value for value in (each.normalised(each.mean) for each in scores) if not np.isnan(value)]
    return float(np.mean(found)) if found else float("nan")


def write_scores(scores: Sequence[Score], folder: Path) -> None:
    """As `evaluation.csv` and `evaluation.md`."""
    rows = table(scores)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "evaluation.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    lines = [f"| {' | '.join(row)} |" for row in rows]
    (folder / "evaluation.md").write_text("\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n")


def _student(degrees: int) -> float:
    """The quantile 0.975 of Student's t: by x = √ν tan θ its density is that of cos^(ν − 1) θ."""
    angle = np.linspace(0, np.pi / 2, 100_001)
    mass = np.cumsum(np.cos(angle) ** (degrees - 1))
    return float(degrees**0.5 * np.tan(angle[np.searchsorted(mass, 0.95 * mass[-1])]))

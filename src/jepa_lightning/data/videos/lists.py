"""Lists of videos, as the official V-JEPA code reads them."""

import os
import re
from pathlib import Path

from jepa_lightning.data.samples import Sample


def open_list(root: Path, role: str) -> list[Sample] | None:
    """The videos that `root/train.csv` or `root/val.csv` lists; none without such a file of validation videos.

    Raises:
        FileNotFoundError: without a list of training videos.
        ValueError: a list that cannot be read.
    """
    path = root if root.suffix == ".csv" else root / ("train.csv" if role == "train" else "val.csv")
    if role != "train" and (root.suffix == ".csv" or not path.is_file()):
        return None
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.absolute()} does not exist: give as root the folder that has train.csv and val.csv, or a CSV file "
            "of training videos."
        )
    try:
        lines = path.read_text("utf-8-sig").splitlines()  # some editors put a mark in front
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not written in UTF-8: {error}. Convert it, for instance with iconv.") from error
    samples = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            if (match := re.fullmatch(r'\s*"?(.+?)"?\s*(?:::|[\s,])\s*(-?\d+)\s*', line)) is None:
                raise ValueError(
                    f"{path}, line {number}: {line!r} is not a path and a whole number for a label, with a space, a "
                    "comma or :: between them."
                )
            video = os.path.join(path.parent, match[1])
            samples.append(Sample(video, int(match[2]), video))
    if not samples:
        raise ValueError(f"{path} is empty: it must have a line with a path and a label for each video.")
    return samples

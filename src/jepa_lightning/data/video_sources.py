"""Where videos are: in folders, and in lists as the official V-JEPA code reads them."""

import os
import re
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from jepa_lightning.data.entries import Entry

VIDEO_EXTENSIONS = (
    *(".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg"),
    *(".ts", ".mts", ".m2ts", ".vob", ".ogv", ".flv", ".wmv", ".3gp"),
)
_EXTENSIONS = (*VIDEO_EXTENSIONS, *IMG_EXTENSIONS)


def open_folder(root: Path, role: str) -> list[Entry] | None:
    """The videos of `root/train/<class>` or `root/val/<class>`, or the unlabelled ones below a folder; none without."""
    train = root / "train"
    if not train.is_dir():
        if root.is_dir():
            return _list_videos(root, None) if role == "train" else None
        raise FileNotFoundError(
            f"{train.absolute()} does not exist: give as root the folder that has train/<class>/*.mp4 and "
            "val/<class>/*.mp4, or videos."
        )
    folder = train if role == "train" else root / "val"
    if not folder.is_dir():
        return None
    classes = _class_names(folder)
    # Labels number the classes of the training videos, and a folder's own only where those have none.
    return _list_videos(folder, classes and (_class_names(train) or classes))


def _class_names(folder: Path) -> list[str] | None:
    """The folders in a folder, unless it has videos of its own."""
    with os.scandir(folder) as scan:
        entries = list(scan)
    if any(entry.name.lower().endswith(_EXTENSIONS) for entry in entries):
        return None
    return sorted(entry.name for entry in entries if entry.is_dir()) or None


def _list_videos(folder: Path, classes: list[str] | None) -> list[Entry]:
    """The videos below a folder, at any depth, labelled by the folders right in it if `classes` are given."""
    paths = sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(_EXTENSIONS)
    )
    if not paths:
        raise FileNotFoundError(f"{folder} holds no videos ({', '.join(VIDEO_EXTENSIONS)}) or images, at any depth.")
    if classes is None:
        return [Entry(path, None, path) for path in paths]
    number = {name: label for label, name in enumerate(classes)}
    names = [os.path.relpath(path, folder).split(os.sep)[0] for path in paths]
    if unknown := sorted(set(names) - set(number)):
        raise ValueError(
            f"{folder} has classes that the training videos do not have: {', '.join(unknown)}. "
            "Name its folders as those of the training videos."
        )
    return [Entry(path, number[name], path) for path, name in zip(paths, names, strict=True)]


def open_list(root: Path, role: str) -> list[Entry] | None:
    """The videos that `root/train.csv` or `root/val.csv` lists; none without such a file of validation videos."""
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
    entries = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            if (match := re.fullmatch(r'\s*"?(.+?)"?\s*(?:::|[\s,])\s*(-?\d+)\s*', line)) is None:
                raise ValueError(
                    f"{path}, line {number}: {line!r} is not a path and a whole number for a label, with a space, a "
                    "comma or :: between them."
                )
            video = os.path.join(path.parent, match[1])
            entries.append(Entry(video, int(match[2]), video))
    if not entries:
        raise ValueError(f"{path} is empty: it must have a line with a path and a label for each video.")
    return entries

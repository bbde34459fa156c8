"""Files in folders, labelled by the folders of their classes, and lists of files."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from jepa_lightning.data.samples import Sample


class Files(Sequence[Sample]):
    """Files and the numbers of their classes, if they have any; a `Sample` is made when it is asked for."""

    def __init__(self, paths: list[str], labels: list[int] | None) -> None:
        self.paths, self.labels = paths, labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        path = self.paths[index]
        return Sample(path, None if self.labels is None else self.labels[index], path)


def open_folder(root: Path, role: str, extensions: tuple[str, ...], kind: str) -> Files | None:
    """The files of `root/train/<class>` or `root/val/<class>`, or the unlabelled ones below a folder.

    Hidden files and folders do not count, nor do folders without such files. Links are followed, but not back up.

    Args:
        root: the folder; one without a folder `train` holds unlabelled training files, at any depth.
        role: "train"; "val" and "test" are the held-out files.
        extensions: of the files, in lower case.
        kind: what they are, "images" or "videos".

    Returns:
        None if there are no held-out files.

    Raises:
        FileNotFoundError: if there is no such folder, or there are no files in it.
        ValueError: held-out classes that the training files do not have.
    """
    train = root / "train"
    if not train.is_dir():
        if root.is_dir():
            return _list_files(root, None, extensions, kind) if role == "train" else None
        raise FileNotFoundError(
            f"{train.absolute()} does not exist: give as root the folder that has train/<class>/*{extensions[0]} and "
            f"val/<class>/*{extensions[0]}, or {kind}."
        )
    folder = train if role == "train" else root / "val"
    if not folder.is_dir():
        return None
    classes = class_names(folder, extensions)
    # Labels number the classes of the training files, and a folder's own only where those have none.
    return _list_files(folder, classes and (class_names(train, extensions) or classes), extensions, kind)


def class_names(folder: Path, extensions: tuple[str, ...]) -> list[str] | None:
    """The folders in a folder that have files in them, unless it has files of its own."""
    with os.scandir(folder) as scan:
        entries = list(scan)
    if any(_is_one(entry.name, extensions) for entry in entries):
        return None
    inside = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(name for name in inside if next(_walk(os.path.join(folder, name), extensions), None)) or None


def find_list(root: Path, role: str, suffix: str) -> Path | None:
    """The list of a role: `root/train.csv`, and val, valid or test; or root itself, of training samples.

    Where there is none to test, it is that to validate.

    Raises:
        FileNotFoundError: without a list of training samples.
    """
    if root.suffix == suffix:
        if root.is_file():
            return root if role == "train" else None
        raise FileNotFoundError(f"{root.absolute()} does not exist.")
    names = {"train": ("train",), "val": ("val", "valid"), "test": ("test", "val", "valid")}[role]
    for path in (root / f"{name}{suffix}" for name in names):
        if path.is_file():
            return path
    if role == "train":
        raise FileNotFoundError(
            f"{(root / f'train{suffix}').absolute()} does not exist: give as root the folder that has train{suffix} "
            f"and val{suffix}, or a {suffix} file of training samples."
        )
    return None


def _list_files(folder: Path, classes: list[str] | None, extensions: tuple[str, ...], kind: str) -> Files:
    """The files below a folder, at any depth, labelled by the folders right in it if `classes` are given."""
    paths = sorted(_walk(str(folder), extensions))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no {kind} ({', '.join(extensions)}), at any depth.")
    if classes is None:
        rank_zero_info(f"{folder}: {len(paths)} {kind} without labels")
        return Files(paths, None)
    number = {name: label for label, name in enumerate(classes)}
    names = [os.path.relpath(path, folder).split(os.sep)[0] for path in paths]
    if unknown := sorted(set(names) - set(number)):
        raise ValueError(
            f"{folder} has classes that the training {kind} do not have: {', '.join(unknown)}. "
            f"Name its folders as those of the training {kind}."
        )
    shown = ", ".join(classes[:3]) + (f", … {classes[-1]}" if len(classes) > 3 else "")
    rank_zero_info(f"{folder}: {len(paths)} {kind} of {len(classes)} classes ({shown})")
    return Files(paths, [number[name] for name in names])


def _walk(folder: str, extensions: tuple[str, ...], above: frozenset[str] = frozenset()) -> Iterator[str]:
    """The files below a folder; `above` are the real paths of the folders that it is in, to which links may lead."""
    real = os.path.realpath(folder)
    above = (above or frozenset(map(str, Path(real).parents))) | {real}
    # os.scandir makes no object of a path for each file: on ImageNet that is seconds where Path.rglob takes minutes.
    with os.scandir(folder) as scan:
        entries = list(scan)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if not entry.is_symlink() or os.path.realpath(entry.path) not in above:
                yield from _walk(entry.path, extensions, above)
        elif _is_one(entry.name, extensions):
            yield entry.path


def _is_one(name: str, extensions: tuple[str, ...]) -> bool:
    return name.lower().endswith(extensions) and not name.startswith(".")

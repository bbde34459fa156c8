"""Labelled series of the UCR and UEA archives: files, folders, or names."""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from jepa_lightning.data.series.stamped import is_stamped, read_stamped

ENDINGS = (".ts", ".arff", ".tsv")


def find_archive(source: str, root: Path) -> dict[str, Path]:
    """The files of an archive, `train` and, if there is one, `test`.

    Args:
        source: a file, a folder with `*_TRAIN.ts` (or `.arff`, `.tsv`), or the name of an archive.
        root: where archives are looked up by their names, before those that aeon brings along.

    Raises:
        FileNotFoundError: there is no such archive; the message says how to get it.
    """
    path = Path(source)
    if path.is_file():
        return _with_test(path)
    folders = [path, root / source, _shipped() / source]
    for folder in folders:
        trains = [file for ending in ENDINGS for file in sorted(folder.glob(f"*_TRAIN{ending}"))]
        named = [file for file in trains if file.stem == f"{folder.name}_TRAIN"] or trains
        if named:
            return _with_test(named[0])
    known = sorted({file.parent.name for place in (root, _shipped()) for file in place.glob("*/*_TRAIN.ts")})
    near = difflib.get_close_matches(source, known, n=2)
    hint = f"; did you mean {' or '.join(near)}?" if near else f" (there are {', '.join(known)})." if known else "."
    raise FileNotFoundError(
        f"there is no archive {source!r}: neither a file, nor a folder with *_TRAIN.ts, nor a name in "
        f"{root.absolute()}{hint} Where there is internet, set download=True; or unpack {source}.zip of "
        f"https://timeseriesclassification.com into {root / source}"
    )


def download_archive(name: str, root: Path) -> None:
    """Get an archive by its name, if that is not there yet.

    Raises:
        FileNotFoundError: it could not be had.
    """
    try:
        find_archive(name, root)
        return
    except FileNotFoundError as error:
        missing = error
    if "/" in name or "." in name:
        raise missing
    from aeon.datasets import download_dataset

    try:
        download_dataset(name, save_path=str(root))
    except Exception as error:  # aeon's and urllib's own
        raise FileNotFoundError(f"{missing} (the download failed: {error})") from error


def read_archive(path: Path) -> tuple[list[NDArray[Any]], NDArray[Any] | None]:
    """The series `[L, C]` of a file in float32, NaN where a number is missing, and their labels `[N]`, if it has some.

    Labels are strings in lower case, or numbers where the archive is one of regression. Numbers that carry times are
    put on an even grid, and what was missing or moved there is said.

    Raises:
        ImportError: aeon is missing.
        ValueError: a file of another kind, or one that cannot be read.
    """
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path} is none of {', '.join(ENDINGS)}")
    try:
        series, labels = _read_ts(path) if path.suffix == ".ts" else _by_aeon(path)
    except ImportError:
        raise
    except Exception as error:  # whatever aeon's parsers come across
        raise ValueError(f"{path} cannot be read as {path.suffix}: {error}") from error
    if not series or len(labels) not in (0, len(series)):
        raise ValueError(f"{path} has {len(series)} series and {len(labels)} labels")
    series = [np.ascontiguousarray(each, np.float32) for each in series]
    if not len(labels):
        return series, None
    labels = np.asarray(labels)
    if path.suffix == ".tsv":  # whose classes aeon gives as numbers
        labels = labels.astype(int).astype(str)
    if labels.dtype.kind in "UO":  # in lower case, as aeon gives those of `.ts`
        classes, labels = set(labels), np.char.lower(labels.astype(str))
        if len(set(labels)) < len(classes):
            raise ValueError(f"{path} has classes that only capitals tell apart: {', '.join(sorted(classes))}")
    return series, labels


def _read_ts(path: Path) -> tuple[list[NDArray[Any]], Any]:
    if not is_stamped(path):
        return _by_aeon(path)
    series, labels, counts = read_stamped(path)
    rank_zero_info(f"{path}, by its time stamps: {counts}")
    return series, labels


def _by_aeon(path: Path) -> tuple[list[NDArray[Any]], Any]:
    """The series `[L, C]` and labels of a file."""
    try:
        from aeon import datasets
    except ImportError as error:
        raise ImportError("the UCR and UEA archives are read by aeon: pip install 'jepa-lightning[series]'") from error
    readers = {
        ".ts": datasets.load_from_ts_file,
        ".arff": datasets.load_from_arff_file,
        ".tsv": datasets.load_from_tsv_file,
    }
    cases, labels = readers[path.suffix](str(path))
    return [np.asarray(case).T for case in cases], labels


def _with_test(path: Path) -> dict[str, Path]:
    test = path.with_name(path.name.replace("_TRAIN", "_TEST"))
    if test != path and test.is_file():
        return {"train": path, "test": test}
    others = [test.with_suffix(ending) for ending in ENDINGS if test != path and test.with_suffix(ending).is_file()]
    return {"train": path} | ({"test": others[0]} if others else {})


def _shipped() -> Path:
    """The folder of the archives in aeon's wheel."""
    found = importlib.util.find_spec("aeon")
    if found is None or found.origin is None:
        return Path("/nonexistent")
    return Path(found.origin).parent / "datasets" / "data"

"""Where tracks come from: files, folders, patterns, data frames, and the flights of the wheel `traffic`."""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jepa_lightning.data.frames import pandas_or_say, read_csv
from jepa_lightning.data.trajectories.formats import (
    Columns,
    Points,
    names_of,
    of_geojson,
    of_geolife,
    of_t_drive,
    of_table,
)

ENDINGS = (".csv", ".csv.gz", ".parquet", ".plt", ".txt", ".geojson", ".json", ".json.gz")


def read_points(source: Any, columns: Columns) -> Points:
    """All points of a source.

    Args:
        source: a file, a folder of these (also in folders within), a pattern, the name of a collection in the wheel
            `traffic`, a data frame, or a list of data frames.
        columns: of tables.

    Raises:
        ImportError: pandas is missing.
        FileNotFoundError: there is no such file.
        ValueError: a file that cannot be read as what its ending says.
    """
    pandas = pandas_or_say("trajectories")
    if isinstance(source, pandas.DataFrame):
        return of_table(source, "the frame", columns)
    if not isinstance(source, str | Path):
        return _together(of_table(frame, f"frame {number}", columns) for number, frame in enumerate(source))
    paths = find_files(source)
    return _together(read_file(path, columns) for path in paths)


def find_files(source: str | Path) -> list[Path]:
    """The files of a source that is no data frame.

    Raises:
        FileNotFoundError: there are none; the message says what there might be.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.name.lower().endswith(ENDINGS) and file.is_file())
        if any(file.suffix.lower() == ".plt" for file in found):  # GeoLife has the modes of transport beside its tracks
            found = [file for file in found if file.name.lower() != "labels.txt"]
        if found:
            return found
        raise FileNotFoundError(f"{path.absolute()} holds no tracks ({', '.join(ENDINGS)})")
    if path.parent.is_dir() and (found := sorted(path.parent.glob(path.name))):
        return found
    collections = _shipped()
    if str(source) in collections:
        return [collections[str(source)]]
    there = f"; the wheel traffic has {', '.join(sorted(collections))}" if collections else ""
    raise FileNotFoundError(
        f"there are no tracks {str(source)!r}: neither a file, nor a folder or pattern of these, nor a collection of "
        f"the wheel traffic (pip install --no-deps traffic){there}"
    )


def read_file(path: Path, columns: Columns) -> Points:
    """The points of a file.

    Raises:
        ValueError: a file that cannot be read as what its ending says.
    """
    pandas, name = pandas_or_say("trajectories"), path.name.lower()
    try:
        if name.endswith(".plt"):
            return of_geolife(path)
        if name.endswith(".txt"):
            return of_t_drive(path)
        if name.endswith((".json", ".geojson", ".json.gz")):
            opened = gzip.open if name.endswith(".gz") else open
            with opened(path, "rt", encoding="utf-8") as file:
                content = json.load(file)
            if isinstance(content, dict):
                return of_geojson(content, path)
            return of_table(pandas.DataFrame(content), str(path), columns)
        table = pandas.read_parquet(path) if name.endswith(".parquet") else read_csv(path, "trajectories")
        return of_table(table, str(path), columns)
    except ImportError as error:
        raise ImportError("Parquet is read by pyarrow: pip install 'jepa-lightning[trajectories]'") from error
    except Exception as error:  # whatever the parsers come across
        raise ValueError(f"{path} cannot be read as {''.join(path.suffixes[-2:])}: {error}") from error


def _together(parts: Iterable[Points]) -> Points:
    several = list(parts)
    filled = [part for part in several if len(part.place)]
    if not filled:
        return Points(names_of([]), np.empty((0, 3)), sum(part.incomplete for part in several))
    union = pandas_or_say("trajectories").api.types.union_categoricals
    names = union([part.name for part in filled], sort_categories=True)
    places = np.concatenate([part.place for part in filled])
    return Points(names, places, sum(part.incomplete for part in several))


def _shipped() -> dict[str, Path]:
    """The collections of flights in the wheel `traffic` by their names; it is not imported."""
    found = importlib.util.find_spec("traffic")
    if found is None or found.origin is None:
        return {}
    files = (Path(found.origin).parent / "data" / "samples" / "collections").glob("*.json.gz")
    return {file.name.removesuffix(".json.gz"): file for file in files}

"""Files of episodes: which layout they have, and the columns of each episode."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jepa_lightning.data.episodes.columns import Array, ArrayColumn, Column, Episode, HDF5Array, HDF5File, VideoColumn

# What says where the episodes of a table end, and how; the first that a table has counts.
_ENDS: dict[str, Callable[[Array], Array]] = {
    "ep_len": lambda lengths: np.cumsum(lengths),
    "episode_lengths": lambda lengths: np.cumsum(lengths),
    "episode_ends": lambda ends: np.asarray(ends),
    "ep_idx": lambda numbers: _changes(numbers),
    "episode_index": lambda numbers: _changes(numbers),
    "terminals": lambda flags: np.flatnonzero(flags) + 1,
    "timeouts": lambda flags: np.flatnonzero(flags) + 1,
}
_FLAGS = ("terminals", "timeouts")  # columns of the episodes, too
_INDEX = ("ep_offset", *(name for name in _ENDS if name not in _FLAGS))  # columns that are not
_FILES = (".npz", ".h5", ".hdf5", ".parquet")
_VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov")


def open_episodes(root: Path) -> list[Episode]:
    """The episodes of a file or folder, in order.

    - a file `.npz`, `.h5` or `.hdf5` of one table, whose rows are the steps of all episodes, one after the other. Where
      each ends is said by `ep_len`, `episode_ends`, `ep_idx` or `episode_index`, or, as ogbench's, `terminals`
      (flags), or, as D4RL's, `terminals` and `timeouts`; without, it is one episode.
    - `.h5` or `.hdf5` with a group for each episode (`episode_0`, …, as minari's; robomimic's `data/demo_0`, …).
    - a folder of such files, each an episode or several, with videos of the same name beside them (`0.npz`, `0.mp4`),
      whose frames are the column `video`; or, as DROID's, folders of a `trajectory.h5` and videos at any depth, whose
      columns are `video/<name>`, or by a `metadata_….json`, `video/<camera>`.
    - a folder of minari (`data/main_data.hdf5`), and one of LeRobot (`meta/info.json`, `data/**/*.parquet`, `videos`).

    Columns in groups are named by their paths, `observation/state`.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file that cannot be read, or has another layout.
        ImportError: a library that is missing; the message says which.
    """
    if not root.exists():
        raise FileNotFoundError(f"there are no episodes at {root}")
    if root.is_file():
        return _open_file(root)
    if (root / "data" / "main_data.hdf5").is_file():
        return _open_file(root / "data" / "main_data.hdf5")
    if (root / "meta" / "info.json").is_file():
        return _open_lerobot(root)
    files = sorted(path for path in root.rglob("*") if path.suffix in _FILES)
    if not files:
        raise FileNotFoundError(f"{root} has no files of episodes: expected some of {', '.join(_FILES)}")
    episodes: list[Episode] = []
    for file in files:
        found = _open_file(file)
        videos = _videos_of(file, root)
        if videos and len(found) != 1:
            raise ValueError(f"{file} has {len(found)} episodes, so that {videos} cannot be the video of one")
        episodes += [{**episode, **{name: VideoColumn(path) for name, path in videos.items()}} for episode in found]
    return episodes


def _open_file(path: Path) -> list[Episode]:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return _cut({name: file[name] for name in file.files}, path)
        if path.suffix == ".parquet":
            return _cut(_read_parquet(path), path)
        return _open_hdf5(path)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as episodes: {error}") from error


def _open_hdf5(path: Path) -> list[Episode]:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            'HDF5 files are read by h5py, which is in the extra `control`: pip install "jepa-lightning[control]"'
        ) from error
    shared = HDF5File(str(path))
    with h5py.File(path, "r") as file:
        top = file["data"] if set(file) == {"data"} and isinstance(file["data"], h5py.Group) else file
        groups = [name for name in top if isinstance(top[name], h5py.Group) and name.rpartition("_")[2].isdigit()]
        if groups:
            groups.sort(key=lambda name: int(name.rpartition("_")[2]))
            found = [_hdf5_arrays(shared, top[group]) for group in groups]
            return [{name: ArrayColumn(array) for name, array in arrays.items()} for arrays in found]
        arrays = _hdf5_arrays(shared, file)
        index = {name: file[name][:] for name in arrays if name in (*_INDEX, *_FLAGS)}
        return _cut({**arrays, **index}, path)


def _hdf5_arrays(file: HDF5File, group: Any) -> dict[str, HDF5Array]:
    """All data sets of a group by their paths in it, one row a step."""
    import h5py

    found: dict[str, HDF5Array] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim and not name.startswith("metadata/"):  # D4RL's, of no steps
            found[name] = HDF5Array(file, item.name, tuple(item.shape))

    group.visititems(visit)
    return found


def _read_parquet(path: Path) -> dict[str, Array]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError(
            'Parquet files are read by pyarrow, which is in the extra `control`: pip install "jepa-lightning[control]"'
        ) from error
    table = parquet.read_table(path)
    columns = {}
    for name in table.column_names:
        values = table.column(name).to_pylist()
        if values and isinstance(values[0], int | float | bool | list):
            columns[name] = np.array(values)
    return columns


def _cut(arrays: Mapping[str, Any], path: Path) -> list[Episode]:
    """The episodes of one table."""
    columns = {name: array for name, array in arrays.items() if name not in _INDEX and len(array.shape)}
    if not columns:
        raise ValueError(f"it has no columns, only {', '.join(arrays) or 'nothing'}")
    rows = max(len(array) for array in columns.values())
    told = next((name for name in _ENDS if name in arrays), None)
    ends = np.array([rows]) if told is None else _ENDS[told](np.asarray(arrays[told][:]))
    if told == "terminals" and "timeouts" in arrays:  # D4RL's, where either ends an episode
        ends = np.union1d(ends, _ENDS["timeouts"](np.asarray(arrays["timeouts"][:])))
    if told in _FLAGS and (not len(ends) or ends[-1] != rows):
        ends = np.append(ends, rows)  # the last episode may have been cut short
    if not len(ends) or ends[-1] != rows or (np.diff(ends, prepend=0) <= 0).any():
        raise ValueError(f"its {rows} rows are not those of episodes that end at {ends.tolist()[:5]}… by {told}")
    if uneven := [name for name, array in columns.items() if len(array) != rows]:
        raise ValueError(f"its columns differ in length: {uneven[0]} has {len(columns[uneven[0]])} rows, not {rows}")
    starts = [0, *ends[:-1].tolist()]
    return [
        {name: ArrayColumn(array, start, stop) for name, array in columns.items()}
        for start, stop in zip(starts, ends.tolist(), strict=True)
    ]


def _changes(numbers: Array) -> Array:
    return np.append(np.flatnonzero(np.diff(numbers)) + 1, len(numbers))


def _videos_of(file: Path, root: Path) -> dict[str, Path]:
    """The videos that belong to a file: of its name, or, if it is `trajectory.h5`, all of its folder."""
    if file.stem == "trajectory":
        inside = {path.name: path for path in sorted(file.parent.rglob("*")) if path.suffix in _VIDEOS}
        # DROID's files have the serial numbers of cameras as names; which camera that is, is in metadata_….json.
        names = {path.name: path.stem for path in inside.values()}
        for metadata in file.parent.glob("metadata*.json"):
            told = json.loads(metadata.read_text())
            cameras = {key.removesuffix("_mp4_path"): told[key] for key in told if key.endswith("_mp4_path")}
            names |= {Path(path).name: camera for camera, path in cameras.items() if Path(path).name in inside}
        return {f"video/{name}": inside[file_name] for file_name, name in names.items()}
    beside = [path for ending in _VIDEOS if (path := file.with_suffix(ending)).exists()]
    return {"video": beside[0]} if beside else {}


def _open_lerobot(root: Path) -> list[Episode]:
    """LeRobot's data sets, of versions 2 (a file an episode) and 3 (many episodes in a file)."""
    info = json.loads((root / "meta" / "info.json").read_text())
    episodes: list[dict[str, Column]] = []
    for file in sorted((root / "data").rglob("*.parquet")):
        table = _read_parquet(file)
        for start, stop in _stretches(table["episode_index"]):
            columns: dict[str, Column] = {name: ArrayColumn(array, start, stop) for name, array in table.items()}
            episodes.append(columns)
    if not episodes:
        raise FileNotFoundError(f"{root / 'data'} has no Parquet files")
    cameras = [name for name, feature in info["features"].items() if feature.get("dtype") == "video"]
    whole = info.get("codebase_version", "v2.1").startswith("v3")
    placed = _lerobot_places(root) if whole and cameras else {}
    for columns in episodes:
        number = int(columns["episode_index"].read(0, 1)[0])
        for camera in cameras:
            if whole:
                chunk, index, second = placed[number, camera]
                path = info["video_path"].format(video_key=camera, chunk_index=chunk, file_index=index)
                first = round(second * info["fps"])
                columns[camera] = VideoColumn(root / path, first, first + len(columns["episode_index"]))
            else:
                chunk = number // info.get("chunks_size", 1000)
                path = info["video_path"].format(video_key=camera, episode_chunk=chunk, episode_index=number)
                columns[camera] = VideoColumn(root / path)
    return list(episodes)


def _lerobot_places(root: Path) -> dict[tuple[int, str], tuple[int, int, float]]:
    """Chunk, file and first second of each episode's video, by camera, as version 3 has them in meta/episodes."""
    places = {}
    for file in sorted((root / "meta" / "episodes").rglob("*.parquet")):
        table = _read_parquet(file)
        for name in table:
            if name.startswith("videos/") and name.endswith("/from_timestamp"):
                camera = name.removeprefix("videos/").removesuffix("/from_timestamp")
                chunks, files = (table[f"videos/{camera}/{kind}_index"] for kind in ("chunk", "file"))
                for row, number in enumerate(table["episode_index"]):
                    places[int(number), camera] = (int(chunks[row]), int(files[row]), float(table[name][row]))
    return places


def _stretches(numbers: Array) -> list[tuple[int, int]]:
    ends = _changes(numbers).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))

"""An episode as columns, whatever file they lie in: `{"action": Column, …}`, each read a stretch at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]


class Column(Protocol):
    """What an episode has at each step, `len(column)` rows of one shape."""

    shape: tuple[int, ...]  # of a row

    def __len__(self) -> int:
        """The number of rows."""

    def read(self, start: int, stop: int, step: int = 1) -> Array:
        """Rows `[start:stop:step]`."""


Episode = Mapping[str, Column]


class ArrayColumn:
    """Rows of something that is sliced like an array: in memory, or in an HDF5 file.

    Args:
        array: `[N, ...]`.
        start: the episode's first row.
        stop: the row after its last one.
    """

    def __init__(self, array: Any, start: int = 0, stop: int | None = None) -> None:
        self.array, self.start = array, start
        self.stop = len(array) if stop is None else stop
        self.shape: tuple[int, ...] = tuple(array.shape[1:])

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self, start: int, stop: int, step: int = 1) -> Array:
        """Rows `[start:stop:step]`."""
        return np.asarray(self.array[self.start + start : self.start + min(stop, len(self)) : step])


class HDF5File:
    """An HDF5 file that is opened where it is read first: in each process anew, and no longer than anything reads it.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: Any = None
        self._process = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_file": None, "_process": 0}

    def read(self, name: str, rows: slice) -> Array:
        """Rows of a data set."""
        import h5py

        if self._file is None or self._process != os.getpid():
            self._file, self._process = h5py.File(self.path, "r"), os.getpid()
        return np.asarray(self._file[name][rows])


class HDF5Array:
    """A data set of an HDF5 file.

    Args:
        file: the file.
        name: of the data set.
        shape: its shape.
    """

    def __init__(self, file: HDF5File, name: str, shape: tuple[int, ...]) -> None:
        self.file, self.name, self.shape = file, name, shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Array:
        return self.file.read(self.name, rows)


class VideoColumn:
    """The frames of a video file, `[rows, columns, 3]` uint8.

    Args:
        path: the file.
        start: the episode's first frame.
        stop: the frame after its last one; the end of the file without.

    Raises:
        UnreadableError: if it is no video.
    """

    def __init__(self, path: Path, start: int = 0, stop: int | None = None) -> None:
        from jepa_lightning.data.videos.decoding import PyAVVideo

        self.video = PyAVVideo(str(path))
        self.start, self.stop = start, len(self.video.times) if stop is None else stop
        first = self.video.frames([start])
        self.shape: tuple[int, ...] = (*first.shape[2:], 3)

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self, start: int, stop: int, step: int = 1) -> Array:
        """Frames `[start:stop:step]`."""
        wanted = list(range(self.start + start, self.start + min(stop, len(self)), step))
        frames: Array = self.video.frames(wanted).permute(0, 2, 3, 1).numpy()
        return frames

"""The cells of an area: a local map in metres, a grid on it, and an embedding of each cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
EARTH = 6_371_008.8  # metres, the mean radius
MARGIN = 5  # cells around what the training tracks touch, as in the official code
MOST_CELLS = 2**18
FARTHEST = 2_500_000.0  # metres from the centre, where the map stretches by 2.6 %
# (row, column) of a cell's neighbourhood in the order of the official code, but the true neighbours: itself, and from
# the south west to the north east.
AROUND = ((0, 0), (-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


def centre_of(places: Array) -> tuple[float, float]:
    """The middle of places `[N, 2]` on the sphere, latitude and longitude in degrees, also across the date line."""
    x, y, z = _vectors(places).mean(0)
    return float(np.degrees(np.arctan2(z, np.hypot(x, y)))), float(np.degrees(np.arctan2(y, x)))


def _vectors(places: Array) -> Array:
    latitude, longitude = np.radians(places).T
    return np.stack([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], 1)


def to_metres(places: Array, centre: tuple[float, float]) -> Array:
    """Places `[N, 2]` in degrees on a map around a centre, `[N, 2]`: metres to the east and to the north.

    The azimuthal equidistant projection: distances from the centre are true, others up to 0.1 % within 500 km of it.

    >>> to_metres(np.array([[0.0, -179.0]]), (0.0, 179.0)).round(-1).tolist()
    [[222390.0, 0.0]]
    """
    latitude, longitude = np.radians(places).T
    middle, meridian = np.radians(centre)
    east = longitude - meridian
    away = np.sin(middle) * np.sin(latitude) + np.cos(middle) * np.cos(latitude) * np.cos(east)
    x = np.cos(latitude) * np.sin(east)
    y = np.cos(middle) * np.sin(latitude) - np.sin(middle) * np.cos(latitude) * np.cos(east)
    length = np.hypot(x, y)
    angle = np.arctan2(length, away)
    scale = EARTH * np.where(length > 1e-12, angle / np.maximum(length, 1e-12), 1.0)
    return np.stack([x * scale, y * scale], 1)


class Cells:
    """A grid of square cells around a centre, each with an embedding.

    Args:
        centre: latitude and longitude in degrees.
        corner: metres to the east and north of the centre, where the south-western cell begins.
        rows: cells from south to north.
        columns: cells from west to east.
        cell_size: metres.
        table: `[rows * columns, D]` float32, the embeddings; from west to east, then from south to north.
        visited: BoolTensor `[rows * columns]`, in which cells there were training points.
    """

    def __init__(
        self,
        centre: Sequence[float],
        corner: Sequence[float],
        rows: int,
        columns: int,
        cell_size: float,
        table: Tensor,
        visited: Tensor,
    ) -> None:
        self.centre, self.corner = (float(centre[0]), float(centre[1])), (float(corner[0]), float(corner[1]))
        self.rows, self.columns, self.cell_size = rows, columns, cell_size
        self.table, self.visited = table, visited
        # What is beyond the border is zero.
        self._padded = torch.cat([table, torch.zeros(1, table.shape[1])])
        self._around = torch.from_numpy(neighbours(rows, columns))

    @classmethod
    def around(cls, places: Array, cell_size: float, embed: Any) -> Cells:
        """The cells that places `[N, 2]` in degrees are in, and some around them.

        Args:
            places: of the training tracks.
            cell_size: metres.
            embed: from rows and columns to their embeddings `[rows * columns, D]`.

        Raises:
            ValueError: places too far apart for one map, or more cells than can be embedded.
        """
        centre = centre_of(places)
        metres = to_metres(places, centre)
        farthest = float(np.hypot(*metres.T).max())
        if farthest > FARTHEST:
            raise ValueError(
                f"the tracks reach {farthest / 1000:.0f} km from their middle, {centre[0]:.2f}, {centre[1]:.2f}: on "
                f"one map up to {FARTHEST / 1000:.0f} km are fine. Give an extent, [west, south, east, north]"
            )
        low = np.floor(metres.min(0) / cell_size).astype(int) - MARGIN
        high = np.floor(metres.max(0) / cell_size).astype(int) + MARGIN + 1
        columns, rows = (int(each) for each in high - low)
        if rows * columns > MOST_CELLS:
            raise ValueError(
                f"{rows} x {columns} cells of {cell_size:g} m are more than the {MOST_CELLS} that can be embedded: "
                "give a larger cell_size, or an extent, [west, south, east, north] in degrees, without stray points"
            )
        table = torch.as_tensor(embed(rows, columns), dtype=torch.float32)
        visited = torch.zeros(rows * columns, dtype=torch.bool)
        cells = cls(centre, low * cell_size, rows, columns, cell_size, table, visited)
        visited[torch.from_numpy(cells.index(metres))] = True
        return cells

    def state(self) -> dict[str, Any]:
        """What it was made of, in plain values and tensors."""
        named = {name: getattr(self, name) for name in ("rows", "columns", "cell_size", "table", "visited")}
        return {"centre": list(self.centre), "corner": list(self.corner), **named}

    def metres(self, places: Array) -> Array:
        """Places `[N, 2]` in degrees on the map, `[N, 2]`."""
        return to_metres(places, self.centre)

    def outside(self, metres: Array) -> Array:
        """Which points `[N, 2]` lie beyond the border."""
        column, row = self._place(metres).T
        return (row < 0) | (row >= self.rows) | (column < 0) | (column >= self.columns)

    def index(self, metres: Array) -> Array:
        """The cell of each point `[N, 2]`; beyond the border the nearest one."""
        column, row = self._place(metres).T
        return row.clip(0, self.rows - 1) * self.columns + column.clip(0, self.columns - 1)

    def embedded(self, metres: Array) -> Tensor:
        """Of each point `[N, 2]` the embedding of its cell, and those of the cells around, `[N, 9 D]`."""
        return self._padded[self._around[torch.from_numpy(self.index(metres))]].flatten(1)

    def _place(self, metres: Array) -> Array:
        return np.floor((metres - np.asarray(self.corner)) / self.cell_size).astype(np.int64)


def neighbours(rows: int, columns: int) -> Array:
    """Of each cell the nine around and including it, `[rows * columns, 9]`; `rows * columns` beyond the border.

    >>> neighbours(2, 2)[0].tolist()
    [0, 4, 4, 4, 4, 1, 4, 2, 3]
    """
    row, column = np.divmod(np.arange(rows * columns), columns)
    rows_of, columns_of = (part[:, None] + np.array(AROUND)[:, axis] for axis, part in enumerate((row, column)))
    there = (rows_of >= 0) & (rows_of < rows) & (columns_of >= 0) & (columns_of < columns)
    return np.where(there, rows_of * columns + columns_of, rows * columns)

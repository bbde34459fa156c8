"""The DataModule of trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray

from jepa_lightning.data.datamodule import ROLES, SplitDataModule
from jepa_lightning.data.trajectories.cells import Cells
from jepa_lightning.data.trajectories.cleaning import Counts, trips_of
from jepa_lightning.data.trajectories.dataset import Tracks
from jepa_lightning.data.trajectories.formats import Columns
from jepa_lightning.data.trajectories.node2vec import node2vec
from jepa_lightning.data.trajectories.sources import find_files, read_points


class TrajectoriesDataModule(SplitDataModule):
    """Tracks of GPS points, as embeddings of the cells that they pass: batches are `batches.Trajectories`.

    The source is a file, a folder of these (also in folders within), a pattern, a data frame, a list of data frames, or
    the name of a collection of flights in the wheel `traffic`, such as `switzerland`. Files are

    - `.csv` and `.parquet`: a row a point, with an id, a time, a latitude and a longitude; or Porto's file, a row a
      trip, with a `POLYLINE`;
    - `.plt`: GeoLife; `.txt`: T-Drive; `.geojson`: lines, or points with an id and a time; `.json`, `.json.gz`: lists
      of points, as traffic writes them.

    Trips end at gaps and where a track goes on elsewhere; what else is amiss is mended or left out, counted and said.
    The trips of one id are all in the same part. The area's map, its extent and the embeddings of its cells (see
    `node2vec`) come from the training part; held-out points beyond its border are counted, and taken for those of the
    nearest cell.

    Args:
        source: see above.
        batch_size: trips per batch. Training drops an incomplete last batch.
        num_workers: worker processes per loader; 0 loads in the training process.
        cell_size: metres of a cell's side.
        cell_dim: width D of a cell's embedding; the model's `embed_dim`.
        max_gap: seconds, after which another trip begins.
        max_speed: metres a second, above which a point is a jump.
        min_points: trips of fewer points are left out.
        max_points: trips of more points are cut into pieces.
        extent: west, south, east and north in degrees; points outside are left out. All points without.
        track_id: of tables, the column of the id; usual names are tried without, as of all columns.
        time: of tables, the column of time stamps, or of seconds (or milliseconds) since 1970.
        latitude: of tables, the column of the latitude in degrees.
        longitude: of tables, the column of the longitude in degrees.
        val_share: share of the ids that validates.
        test_share: share of the ids that tests.
        seed: of the parts, and of the cells' embeddings.

    Attributes:
        cells: the `Cells` of the area, which checkpoints of a training store.
        counts: what was amiss.
        parts: of each role the trips, each `[L, 2]`, latitude and longitude in degrees.

    Raises:
        ValueError: for an argument out of range, data that cannot be read, or too few of them.
        FileNotFoundError: from `setup`, if the data are missing.
    """

    def __init__(
        self,
        source: Any,
        batch_size: int = 64,
        num_workers: int = 0,
        cell_size: float = 100.0,
        cell_dim: int = 256,
        max_gap: float = 300.0,
        max_speed: float = 100.0,
        min_points: int = 20,
        max_points: int = 200,
        extent: Sequence[float] | None = None,
        track_id: str | None = None,
        time: str | None = None,
        latitude: str | None = None,
        longitude: str | None = None,
        val_share: float = 0.1,
        test_share: float = 0.2,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers)
        for name, value in {
            "cell_size": cell_size,
            "cell_dim": cell_dim,
            "max_gap": max_gap,
            "max_speed": max_speed,
        }.items():
            if not value > 0:
                raise ValueError(f"{name} must be above zero, got {value}")
        if not 2 <= min_points <= max_points:
            raise ValueError(f"trips have 2 points or more: min_points={min_points}, max_points={max_points}")
        if min(val_share, test_share) < 0 or val_share + test_share >= 1:
            raise ValueError(f"val_share={val_share} and test_share={test_share} must leave a share to train on")
        if extent is not None and not (len(extent) == 4 and -90 <= extent[1] < extent[3] <= 90):
            raise ValueError(f"extent is [west, south, east, north] in degrees, got {list(extent)}")
        self.save_hyperparameters(logger=False, ignore=[] if isinstance(source, str) else ["source"])
        self.source, self.columns = source, Columns(track_id, time, latitude, longitude)
        self.cell_size, self.cell_dim, self.seed = cell_size, cell_dim, seed
        self.limits: dict[str, Any] = {
            "max_gap": max_gap,
            "max_speed": max_speed,
            "min_points": min_points,
            "max_points": max_points,
        }
        self.extent = extent
        self.val_share, self.test_share = val_share, test_share
        self.cells: Cells | None = None
        self.counts: Counts | None = None
        self.parts: dict[str, list[NDArray[Any]]] = {}

    def prepare_data(self) -> None:
        """Look whether the data are there (Lightning calls this in one process only)."""
        if isinstance(self.source, str):
            find_files(self.source)

    def setup(self, stage: str | None = None) -> None:
        """Read the points, split them into trips and parts, and embed the cells; for all stages.

        Raises:
            FileNotFoundError: if the data are missing; the message says how to get them.
            ValueError: data that cannot be read, or fewer training trips than a batch holds.
        """
        if not self.parts:
            trips = trips_of(read_points(self.source, self.columns), **self.limits, extent=self.extent)
            self.counts = trips.counts
            rank_zero_info(f"{type(self).__name__}: {trips.counts}")
            roles = self._roles(int(trips.owner.max()) + 1 if len(trips.owner) else 0)[trips.owner]
            self.parts = {
                role: [trips.places[trip] for trip in np.flatnonzero(roles == number)]
                for number, role in enumerate(ROLES)
            }
            if len(self.parts["train"]) < self.batch_size:
                fast = self.counts.jumps > self.counts.points / 2
                raise ValueError(
                    f"there are {len(self.parts['train'])} training trips, fewer than batch_size={self.batch_size}, "
                    f"and incomplete batches are dropped: {self.counts}"
                    + (f". Is max_speed={self.limits['max_speed']:g} m/s too low for these tracks?" if fast else "")
                )
            if self.val_share + self.test_share and len(set(trips.owner.tolist())) == 1:
                rank_zero_warn(
                    "all trips are of one id, and so in the training part: name the column that tells several apart, "
                    "track_id, and some are held out"
                )
        if self.cells is None:
            embed = partial(node2vec, dim=self.cell_dim, seed=self.seed)
            self.cells = Cells.around(np.concatenate(self.parts["train"]), self.cell_size, embed)
            rank_zero_info(
                f"{self.cells.rows} x {self.cells.columns} cells of {self.cell_size:g} m, "
                f"{int(self.cells.visited.sum())} of them with training points"
            )
        if not self.sets:
            self.sets = {role: Tracks(places, self.cells) for role, places in self.parts.items() if places}
            self._tell()

    def state_dict(self) -> dict[str, Any]:
        """The cells, which whoever uses the encoder needs."""
        return {} if self.cells is None else {"cells": self.cells.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the cells of a checkpoint's training, whatever data these are."""
        if "cells" in state_dict:
            self.cells = Cells(**state_dict["cells"])
            self.sets = {role: Tracks(places, self.cells) for role, places in self.parts.items() if places}

    def _roles(self, owners: int) -> NDArray[Any]:
        """The number of the role of each id, `[owners]`."""
        shares = (1 - self.val_share - self.test_share, self.val_share, self.test_share)
        ends = np.round(np.cumsum(shares) * owners).astype(int)
        roles = np.searchsorted(ends, np.arange(owners), side="right").clip(max=len(ROLES) - 1)
        return np.random.default_rng(self.seed).permutation(roles)

    def _tell(self) -> None:
        """Say how many held-out points are where no training points were."""
        held_out = [metres for role in ("val", "test") if role in self.sets for metres in self.sets[role].metres]
        if not held_out or self.cells is None:
            return
        metres = np.concatenate(held_out)
        outside = int(self.cells.outside(metres).sum())
        unseen = int((~self.cells.visited.numpy()[self.cells.index(metres)]).sum())
        rank_zero_info(
            f"{unseen} of {len(metres)} held-out points are in cells without training points: the walks on the grid "
            "embed these, too"
        )
        if outside:
            rank_zero_warn(
                f"{outside} of {len(metres)} held-out points are beyond the border of the training part, and are taken "
                "for those of the nearest cell"
            )

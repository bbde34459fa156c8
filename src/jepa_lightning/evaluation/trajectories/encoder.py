"""A frozen encoder of tracks as a transformer of scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jepa_lightning.checkpoints import load_encoder
from jepa_lightning.checkpoints.reading import read_file
from jepa_lightning.data.trajectories.cells import Cells
from jepa_lightning.data.trajectories.dataset import together
from jepa_lightning.evaluation.features import FeatureTransformer
from jepa_lightning.networks import TrackTransformer
from jepa_lightning.step import Tokens

Array = NDArray[Any]


class TrajectoryEncoder(FeatureTransformer):
    """Tracks to the features of a checkpoint's encoder, on the map and the cells of its training.

    A track is an array `[L, 2]` of latitudes and longitudes in degrees, of at least one point. Of a track with more
    points than the encoder has positions as many are taken, evenly. Nothing is fitted: `transform` may be called right
    away, and an index of scikit-learn or faiss takes what it gives. Points that are beyond the border of the training's
    area are taken for those of the nearest cell; `outside` tells how many there are.

    Args:
        path: a checkpoint of `TJEPA` that was trained on a `TrajectoriesDataModule`.
        network: `context_encoder`, which the official code evaluates, or `target_encoder`.
        batch_size: tracks that are encoded at once.
        cells: of another area (`TrajectoriesDataModule.cells`), to encode tracks there.

    Raises:
        FileNotFoundError: nothing is at the path.
        ValueError: a checkpoint of another kind, or, of `transform`, tracks of another shape.
    """

    def __init__(
        self, path: str | Path, network: str = "context_encoder", batch_size: int = 256, cells: Cells | None = None
    ) -> None:
        self.path = path
        self.network = network
        self.batch_size = batch_size
        self.cells = cells

    def read(self) -> None:
        """Read the checkpoint."""
        encoder = load_encoder(self.path, self.network)
        if not isinstance(encoder, TrackTransformer):
            raise ValueError(f"{self.path} holds a {type(encoder).__name__}, not an encoder of tracks")
        told = read_file(Path(self.path)).get("TrajectoriesDataModule", {})
        if self.cells is None and "cells" not in told:
            raise ValueError(f"{self.path} does not hold the cells that it was trained on: give them, cells=…")
        self.encoder_, self.cells_ = encoder, self.cells or Cells(**told["cells"])

    def transform(self, X: Any) -> Array:  # noqa: N803
        """The features `[n, D]` of tracks, float32: the mean over their points."""
        return self.tokens(X).pooled().numpy()

    @torch.no_grad()
    def tokens(self, X: Any) -> Tokens:  # noqa: N803
        """The tokens `[n, L, D]` of tracks, in float32 on the CPU."""
        self.fit()
        most = self.encoder_.num_points
        metres = []
        for each in as_tracks(X):
            places = np.linspace(0, len(each) - 1, min(len(each), most)).round().astype(int)
            metres.append(self.cells_.metres(each[places]))
        length = max(len(each) for each in metres)
        values = torch.zeros(len(metres), length, self.encoder_.embed_dim)
        valid = torch.zeros(len(metres), length, dtype=torch.bool)
        # Tracks of like lengths go together: attention pays for padding.
        order = np.argsort([len(each) for each in metres], kind="stable")
        for first in range(0, len(order), self.batch_size):
            chosen = order[first : first + self.batch_size]
            batch = together([metres[number] for number in chosen], self.cells_)
            there = batch.valid.shape[1]
            values[chosen, :there] = self.encoder_(batch.cells, None, batch.valid)
            valid[chosen, :there] = batch.valid
        return Tokens(values, valid)

    def outside(self, X: Any) -> Array:  # noqa: N803
        """How many points of each track are beyond the border of the area, `[n]`."""
        self.fit()
        return np.array([self.cells_.outside(self.cells_.metres(each)).sum() for each in as_tracks(X)])

    def metres(self, X: Any) -> list[Array]:  # noqa: N803
        """The tracks on the map, each `[L, 2]` in metres to the east and north of the area's centre."""
        self.fit()
        return [self.cells_.metres(each) for each in as_tracks(X)]


def as_tracks(X: Sequence[Any]) -> list[Array]:  # noqa: N803
    """Tracks as a list of arrays `[L, 2]`, float64.

    Raises:
        ValueError: another shape, or places that are none on earth.
    """
    tracks = [np.asarray(each, np.float64) for each in X]
    if not tracks:
        raise ValueError("there is no track")
    for number, each in enumerate(tracks):
        if each.ndim != 2 or each.shape[1] != 2 or not len(each):
            raise ValueError(f"expected tracks [L, 2] of latitudes and longitudes, got {list(each.shape)}")
        if not np.isfinite(each).all() or np.abs(each[:, 0]).max() > 90 or np.abs(each[:, 1]).max() > 360:
            raise ValueError(
                f"track {number} has a place that is none on earth, up to {np.abs(each).max(0).tolist()}: a point is a "
                "latitude and a longitude in degrees"
            )
    return tracks

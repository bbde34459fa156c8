"""Trajectories: GPS tracks in tables, Porto's, GeoLife's and T-Drive's files, GeoJSON, and flights."""

from jepa_lightning.data.trajectories.cells import Cells
from jepa_lightning.data.trajectories.datamodule import TrajectoriesDataModule

__all__ = ["Cells", "TrajectoriesDataModule"]

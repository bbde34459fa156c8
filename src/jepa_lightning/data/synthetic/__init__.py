"""Rendered data, which need no download: the same bytes on every machine."""

from jepa_lightning.data.synthetic.moving_shapes import MovingShapesBatch, MovingShapesDataModule, MovingShapesDataset
from jepa_lightning.data.synthetic.shapes import ShapesBatch, ShapesDataModule, ShapesDataset

__all__ = [
    "MovingShapesBatch",
    "MovingShapesDataModule",
    "MovingShapesDataset",
    "ShapesBatch",
    "ShapesDataModule",
    "ShapesDataset",
]

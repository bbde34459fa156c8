"""Data modules: rendered shapes and moving shapes, which need no download, image data sets, and videos."""

from jepa_lightning.data.images import ImageBatch, ImageDataModule
from jepa_lightning.data.moving_shapes import MovingShapesBatch, MovingShapesDataModule, MovingShapesDataset
from jepa_lightning.data.order import Draw, Order, ResumableLoader, seeded
from jepa_lightning.data.shapes import ShapesBatch, ShapesDataModule, ShapesDataset
from jepa_lightning.data.videos import VideoBatch, VideoDataModule

__all__ = [
    "Draw",
    "ImageBatch",
    "ImageDataModule",
    "MovingShapesBatch",
    "MovingShapesDataModule",
    "MovingShapesDataset",
    "Order",
    "ResumableLoader",
    "ShapesBatch",
    "ShapesDataModule",
    "ShapesDataset",
    "VideoBatch",
    "VideoDataModule",
    "seeded",
]

"""Data modules: rendered shapes, which need no download, and image data sets."""

from jepa_lightning.data.images import ImageBatch, ImageDataModule
from jepa_lightning.data.shapes import ShapesBatch, ShapesDataModule, ShapesDataset

__all__ = ["ImageBatch", "ImageDataModule", "ShapesBatch", "ShapesDataModule", "ShapesDataset"]

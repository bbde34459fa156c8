"""Data modules: rendered shapes and clips, which need no download, images, videos, series, episodes and their steps."""

from jepa_lightning.data.episodes import EmbodimentsDataModule, EpisodeBatch, EpisodesDataModule
from jepa_lightning.data.images import ImageBatch, ImageDataModule
from jepa_lightning.data.resume import Order, ResumableLoader, Visit, Visits, seeded
from jepa_lightning.data.series import SeriesDataModule
from jepa_lightning.data.synthetic import (
    MovingShapesBatch,
    MovingShapesDataModule,
    MovingShapesDataset,
    ShapesBatch,
    ShapesDataModule,
    ShapesDataset,
)
from jepa_lightning.data.trajectories import TrajectoriesDataModule
from jepa_lightning.data.transitions import TransitionsDataModule
from jepa_lightning.data.videos import VideoBatch, VideoDataModule

__all__ = [
    "EmbodimentsDataModule",
    "EpisodeBatch",
    "EpisodesDataModule",
    "ImageBatch",
    "ImageDataModule",
    "MovingShapesBatch",
    "MovingShapesDataModule",
    "MovingShapesDataset",
    "Order",
    "ResumableLoader",
    "SeriesDataModule",
    "ShapesBatch",
    "ShapesDataModule",
    "ShapesDataset",
    "TrajectoriesDataModule",
    "TransitionsDataModule",
    "VideoBatch",
    "VideoDataModule",
    "Visit",
    "Visits",
    "seeded",
]

"""Data modules: data made here, images, videos, series, tracks, sounds, texts, episodes and their steps."""

from jepa_lightning.data.audio import WaveformDataModule
from jepa_lightning.data.episodes import EmbodimentsDataModule, EpisodeBatch, EpisodesDataModule
from jepa_lightning.data.images import ImageBatch, ImageDataModule
from jepa_lightning.data.lengths import LengthOrder
from jepa_lightning.data.resume import Order, ResumableLoader, Visit, Visits, seeded
from jepa_lightning.data.series import SeriesDataModule
from jepa_lightning.data.synthetic import (
    MovingShapesBatch,
    MovingShapesDataModule,
    MovingShapesDataset,
    SentencesBatch,
    SentencesDataModule,
    SentencesDataset,
    ShapesBatch,
    ShapesDataModule,
    ShapesDataset,
    TonesBatch,
    TonesDataModule,
    TonesDataset,
)
from jepa_lightning.data.text import TextDataModule
from jepa_lightning.data.trajectories import TrajectoriesDataModule
from jepa_lightning.data.transitions import TransitionsDataModule
from jepa_lightning.data.videos import VideoBatch, VideoDataModule

__all__ = [
    "EmbodimentsDataModule",
    "EpisodeBatch",
    "EpisodesDataModule",
    "ImageBatch",
    "ImageDataModule",
    "LengthOrder",
    "MovingShapesBatch",
    "MovingShapesDataModule",
    "MovingShapesDataset",
    "Order",
    "ResumableLoader",
    "SentencesBatch",
    "SentencesDataModule",
    "SentencesDataset",
    "SeriesDataModule",
    "ShapesBatch",
    "ShapesDataModule",
    "ShapesDataset",
    "TextDataModule",
    "TonesBatch",
    "TonesDataModule",
    "TonesDataset",
    "TrajectoriesDataModule",
    "TransitionsDataModule",
    "VideoBatch",
    "VideoDataModule",
    "Visit",
    "Visits",
    "WaveformDataModule",
    "seeded",
]

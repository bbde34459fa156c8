"""Rendered data, which need no download: the same bytes on every machine."""

from jepa_lightning.data.synthetic.moving_shapes import MovingShapesBatch, MovingShapesDataModule, MovingShapesDataset
from jepa_lightning.data.synthetic.sentences import SentencesBatch, SentencesDataModule, SentencesDataset
from jepa_lightning.data.synthetic.shapes import ShapesBatch, ShapesDataModule, ShapesDataset
from jepa_lightning.data.synthetic.tones import TonesBatch, TonesDataModule, TonesDataset

__all__ = [
    "MovingShapesBatch",
    "MovingShapesDataModule",
    "MovingShapesDataset",
    "SentencesBatch",
    "SentencesDataModule",
    "SentencesDataset",
    "ShapesBatch",
    "ShapesDataModule",
    "ShapesDataset",
    "TonesBatch",
    "TonesDataModule",
    "TonesDataset",
]

"""jepa-lightning: train joint-embedding predictive architectures with PyTorch Lightning, and see whether they learn."""

from importlib.metadata import version
from pathlib import Path

from jepa_lightning import callbacks, evaluation, losses, masking, metrics, networks, planning, schedules
from jepa_lightning.checkpoints import load_encoder, save_for_timm, save_for_transformers
from jepa_lightning.data import (
    EmbodimentsDataModule,
    EpisodesDataModule,
    ImageDataModule,
    MovingShapesDataModule,
    SentencesDataModule,
    SeriesDataModule,
    ShapesDataModule,
    TextDataModule,
    TonesDataModule,
    TrajectoriesDataModule,
    TransitionsDataModule,
    VideoDataModule,
    WaveformDataModule,
)
from jepa_lightning.modules import (
    CJEPA,
    DMTJEPA,
    IJEPA,
    JEPA,
    TDJEPA,
    TJEPA,
    TSJEPA,
    VJEPA,
    VJEPA2,
    VJEPA2AC,
    Data2Vec,
    Data2Vec2,
    LeJEPA,
    MaskedJEPA,
    Teacher,
)
from jepa_lightning.planning import load_agent, load_planner
from jepa_lightning.step import Latents, Prediction, Tokens

__version__ = version("jepa-lightning")

_package = Path(__file__).parent
# In a wheel the recipes lie inside the package, in a checkout beside `src`; `jepa_lightning.recipes` are both.
RECIPES = _package / "recipes"
if not RECIPES.is_dir():
    RECIPES = _package.parents[1] / "recipes"
    __path__.append(str(RECIPES.parent))

__all__ = [
    "CJEPA",
    "DMTJEPA",
    "IJEPA",
    "JEPA",
    "RECIPES",
    "TDJEPA",
    "TJEPA",
    "TSJEPA",
    "VJEPA",
    "VJEPA2",
    "VJEPA2AC",
    "Data2Vec",
    "Data2Vec2",
    "EmbodimentsDataModule",
    "EpisodesDataModule",
    "ImageDataModule",
    "Latents",
    "LeJEPA",
    "MaskedJEPA",
    "MovingShapesDataModule",
    "Prediction",
    "SentencesDataModule",
    "SeriesDataModule",
    "ShapesDataModule",
    "Teacher",
    "TextDataModule",
    "Tokens",
    "TonesDataModule",
    "TrajectoriesDataModule",
    "TransitionsDataModule",
    "VideoDataModule",
    "WaveformDataModule",
    "callbacks",
    "evaluation",
    "load_agent",
    "load_encoder",
    "load_planner",
    "losses",
    "masking",
    "metrics",
    "networks",
    "planning",
    "save_for_timm",
    "save_for_transformers",
    "schedules",
]

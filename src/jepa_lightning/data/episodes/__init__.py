"""Recorded episodes: files of several layouts, recordings from environments, and windows of both."""

from jepa_lightning.data.episodes.datamodule import EpisodesDataModule
from jepa_lightning.data.episodes.dataset import EpisodeBatch, Windows
from jepa_lightning.data.episodes.embodiments import EmbodimentsDataModule, MixedWindows
from jepa_lightning.data.episodes.formats import open_episodes
from jepa_lightning.data.episodes.policies import ExpertPolicy, Mixture, RandomPolicy, WalkPolicy
from jepa_lightning.data.episodes.preparation import Preparation, Scale
from jepa_lightning.data.episodes.record import make_environment, record, write, write_minari

__all__ = [
    "EmbodimentsDataModule",
    "EpisodeBatch",
    "EpisodesDataModule",
    "ExpertPolicy",
    "MixedWindows",
    "Mixture",
    "Preparation",
    "RandomPolicy",
    "Scale",
    "WalkPolicy",
    "Windows",
    "make_environment",
    "open_episodes",
    "record",
    "write",
    "write_minari",
]

"""The teacher, and what tells whether a model learns: collapse monitor, probes, pictures, progress, throughput."""

from jepa_lightning.callbacks.cockpit import Cockpit
from jepa_lightning.callbacks.collapse import CollapseError, CollapseMonitor
from jepa_lightning.callbacks.episodes import Episodes
from jepa_lightning.callbacks.features import FeatureWriter
from jepa_lightning.callbacks.guard import BadStepsError, GradientGuard
from jepa_lightning.callbacks.lidar import LiDARMonitor
from jepa_lightning.callbacks.pictures import (
    LatentPictures,
    NeighbourPictures,
    SeriesPictures,
    TrackPictures,
    WavePictures,
    WordPictures,
)
from jepa_lightning.callbacks.probes import AttentiveProbe, KNNProbe, LinearProbe, Probe, RegressionProbe
from jepa_lightning.callbacks.progress import Progress
from jepa_lightning.callbacks.teacher import EMATargetEncoder
from jepa_lightning.callbacks.threads import Threads
from jepa_lightning.callbacks.throughput import Throughput

__all__ = [
    "AttentiveProbe",
    "BadStepsError",
    "Cockpit",
    "CollapseError",
    "CollapseMonitor",
    "EMATargetEncoder",
    "Episodes",
    "FeatureWriter",
    "GradientGuard",
    "KNNProbe",
    "LatentPictures",
    "LiDARMonitor",
    "LinearProbe",
    "NeighbourPictures",
    "Probe",
    "Progress",
    "RegressionProbe",
    "SeriesPictures",
    "Threads",
    "Throughput",
    "TrackPictures",
    "WavePictures",
    "WordPictures",
]

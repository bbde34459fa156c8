"""The teacher, and what tells whether a model learns: collapse monitor, probes, pictures, throughput."""

from jepa_lightning.callbacks.collapse import CollapseMonitor
from jepa_lightning.callbacks.ema import EMATargetEncoder
from jepa_lightning.callbacks.pictures import LatentPictures, NeighbourPictures
from jepa_lightning.callbacks.probes import KNNProbe, LinearProbe, Probe
from jepa_lightning.callbacks.throughput import Throughput

__all__ = [
    "CollapseMonitor",
    "EMATargetEncoder",
    "KNNProbe",
    "LatentPictures",
    "LinearProbe",
    "NeighbourPictures",
    "Probe",
    "Throughput",
]

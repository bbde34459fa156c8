"""Probes that follow the training: what could be read off the features right now."""

from jepa_lightning.callbacks.probes.attentive import AttentiveProbe
from jepa_lightning.callbacks.probes.base import Probe
from jepa_lightning.callbacks.probes.knn import KNNProbe, vote
from jepa_lightning.callbacks.probes.linear import LinearProbe, RegressionProbe

__all__ = ["AttentiveProbe", "KNNProbe", "LinearProbe", "Probe", "RegressionProbe", "vote"]

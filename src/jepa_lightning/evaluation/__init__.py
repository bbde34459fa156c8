"""What is fitted after pretraining: probes of a frozen encoder, and fine-tuning."""

from jepa_lightning.evaluation.fine_tuning import FineTuning
from jepa_lightning.evaluation.frozen import Features, FrozenEncoder, FrozenProbe
from jepa_lightning.evaluation.held_out import HeldOut
from jepa_lightning.evaluation.knn import KNNProbe
from jepa_lightning.evaluation.probes import (
    AttentiveProbe,
    LinearProbe,
    RegressionProbe,
    SegmentationProbe,
)
from jepa_lightning.evaluation.table import Reading, evaluate, print_table, write_table

__all__ = [
    "AttentiveProbe",
    "Features",
    "FineTuning",
    "FrozenEncoder",
    "FrozenProbe",
    "HeldOut",
    "KNNProbe",
    "LinearProbe",
    "Reading",
    "RegressionProbe",
    "SegmentationProbe",
    "evaluate",
    "print_table",
    "write_table",
]

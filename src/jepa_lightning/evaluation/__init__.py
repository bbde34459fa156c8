"""What is fitted after pretraining: probes of a frozen encoder, and fine-tuning."""

from jepa_lightning.evaluation.all_probes import evaluate
from jepa_lightning.evaluation.fine_tuning import FineTuning
from jepa_lightning.evaluation.knn import KNNEvaluation
from jepa_lightning.evaluation.linear import LinearEvaluation, RegressionEvaluation
from jepa_lightning.evaluation.probe import Features, FrozenEncoder, FrozenProbe
from jepa_lightning.evaluation.report import Reading, print_table, write_table
from jepa_lightning.evaluation.splits import HeldOut
from jepa_lightning.evaluation.tokens import AttentiveEvaluation, SegmentationEvaluation

__all__ = [
    "AttentiveEvaluation",
    "Features",
    "FineTuning",
    "FrozenEncoder",
    "FrozenProbe",
    "HeldOut",
    "KNNEvaluation",
    "LinearEvaluation",
    "Reading",
    "RegressionEvaluation",
    "SegmentationEvaluation",
    "evaluate",
    "print_table",
    "write_table",
]

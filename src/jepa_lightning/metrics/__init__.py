"""Metrics of embeddings, as torchmetrics classes on pure functions of additive moments."""

from jepa_lightning.metrics.embedding import (
    EmbeddingMetric,
    FeatureStd,
    MeanCosine,
    Moments,
    RankMe,
    feature_std,
    mean_cosine,
    moments,
    rankme,
)

__all__ = [
    "EmbeddingMetric",
    "FeatureStd",
    "MeanCosine",
    "Moments",
    "RankMe",
    "feature_std",
    "mean_cosine",
    "moments",
    "rankme",
]

"""Metrics of embeddings, as torchmetrics classes on pure functions."""

from jepa_lightning.metrics.embedding import (
    DeadFeatures,
    EmbeddingMetric,
    FeatureStd,
    MeanCorrelation,
    MeanCosine,
    Moments,
    dead_features,
    feature_std,
    mean_correlation,
    mean_cosine,
    moments,
    std_per_feature,
)
from jepa_lightning.metrics.lidar import LiDAR, Scatter, lidar, scatter
from jepa_lightning.metrics.rank import RankMe, eigenvalues, rankme

__all__ = [
    "DeadFeatures",
    "EmbeddingMetric",
    "FeatureStd",
    "LiDAR",
    "MeanCorrelation",
    "MeanCosine",
    "Moments",
    "RankMe",
    "Scatter",
    "dead_features",
    "eigenvalues",
    "feature_std",
    "lidar",
    "mean_correlation",
    "mean_cosine",
    "moments",
    "rankme",
    "scatter",
    "std_per_feature",
]

"""Metrics of embeddings, as torchmetrics classes on pure functions."""

from jepa_lightning.metrics.embedding import (
    DeadFeatures,
    EmbeddingMetric,
    FeatureStd,
    MeanCorrelation,
    MeanCosine,
    Moments,
    NonOrthonormality,
    dead_features,
    feature_std,
    mean_correlation,
    mean_cosine,
    moments,
    non_orthonormality,
    std_per_feature,
)
from jepa_lightning.metrics.lidar import LiDAR, Scatter, lidar, scatter
from jepa_lightning.metrics.rank import CovarianceSpectrum, RankMe, eigenvalues, rankme

__all__ = [
    "CovarianceSpectrum",
    "DeadFeatures",
    "EmbeddingMetric",
    "FeatureStd",
    "LiDAR",
    "MeanCorrelation",
    "MeanCosine",
    "Moments",
    "NonOrthonormality",
    "RankMe",
    "Scatter",
    "dead_features",
    "eigenvalues",
    "feature_std",
    "lidar",
    "mean_correlation",
    "mean_cosine",
    "moments",
    "non_orthonormality",
    "rankme",
    "scatter",
    "std_per_feature",
]

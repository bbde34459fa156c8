"""Distances between predicted and target embeddings, and regularisers that keep embeddings from collapsing."""

from jepa_lightning.losses.decorrelation import Decorrelation, decorrelation
from jepa_lightning.losses.distances import (
    Distance,
    token_distance,
    weight_of,
    weighted_over_ranks,
)
from jepa_lightning.losses.orthonormality import orthonormality
from jepa_lightning.losses.sigreg import SIGReg, sigreg
from jepa_lightning.losses.vicreg import VICReg, vicreg_terms

__all__ = [
    "Decorrelation",
    "Distance",
    "SIGReg",
    "VICReg",
    "decorrelation",
    "orthonormality",
    "sigreg",
    "token_distance",
    "vicreg_terms",
    "weight_of",
    "weighted_over_ranks",
]

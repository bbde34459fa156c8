"""Distances between predicted and target embeddings, and regularisers that keep embeddings from collapsing."""

from jepa_lightning.losses.distances import Distance, latent_distance
from jepa_lightning.losses.sigreg import SIGReg
from jepa_lightning.losses.vicreg import VICReg

__all__ = ["Distance", "SIGReg", "VICReg", "latent_distance"]

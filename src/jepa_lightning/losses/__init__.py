"""Distances between embeddings."""

from jepa_lightning.losses.distances import Distance, latent_distance

__all__ = ["Distance", "latent_distance"]

"""Pictures of what a model sees, predicts and makes of it."""

from jepa_lightning.callbacks.pictures.drawing import as_shown
from jepa_lightning.callbacks.pictures.latents import LatentPictures, draw_clips, draw_latents
from jepa_lightning.callbacks.pictures.neighbours import NeighbourPictures, draw_neighbours
from jepa_lightning.callbacks.pictures.series import SeriesPictures, draw_series
from jepa_lightning.callbacks.pictures.tracks import TrackPictures, draw_found, draw_tracks
from jepa_lightning.callbacks.pictures.waves import WavePictures, draw_waves
from jepa_lightning.callbacks.pictures.words import WordPictures, draw_words

__all__ = [
    "LatentPictures",
    "NeighbourPictures",
    "SeriesPictures",
    "TrackPictures",
    "WavePictures",
    "WordPictures",
    "as_shown",
    "draw_clips",
    "draw_found",
    "draw_latents",
    "draw_neighbours",
    "draw_series",
    "draw_tracks",
    "draw_waves",
    "draw_words",
]

"""Sounds from files, lists and shards."""

from jepa_lightning.data.audio.datamodule import WaveformDataModule

__all__ = ["WaveformDataModule"]

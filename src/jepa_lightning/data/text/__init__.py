"""Texts from files, JSON lines and shards."""

from jepa_lightning.data.text.datamodule import TextDataModule

__all__ = ["TextDataModule"]

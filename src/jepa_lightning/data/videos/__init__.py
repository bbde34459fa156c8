"""Videos: in folders, in lists and in shards."""

from jepa_lightning.data.videos.clips import VideoBatch
from jepa_lightning.data.videos.datamodule import VideoDataModule

__all__ = ["VideoBatch", "VideoDataModule"]

"""Samples in webdataset shards: tar files whose members `key.jpg`, `key.cls` and so on are one sample."""

from jepa_lightning.data.shards.opening import open_shards

__all__ = ["open_shards"]

"""Images: data sets of torchvision by name, folders and shards."""

from jepa_lightning.data.images.datamodule import ImageBatch, ImageDataModule

__all__ = ["ImageBatch", "ImageDataModule"]

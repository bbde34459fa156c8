"""The image data sets of torchvision by name, where they are held in memory, and how to get those that are missing."""

import gzip
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from torch import Tensor

from jepa_lightning.data.crops import IMAGENET
from jepa_lightning.data.datamodule import ROLES

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist


class Known(NamedTuple):
    """How torchvision builds a data set, and what its images are like."""

    arguments: tuple[dict[str, Any], dict[str, Any], dict[str, Any]]  # to torchvision, for each of ROLES
    layout: str  # what a complete download leaves in root
    size: int = 224
    statistics: tuple[list[float], list[float]] = IMAGENET  # mean and standard deviation of each channel


def _split(train: str, val: str, test: str, **fixed: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    return {"split": train, **fixed}, {"split": val, **fixed}, {"split": test, **fixed}


_FLAG = ({"train": True}, {"train": False}, {"train": False})
_IDX = "raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte (four files, gunzipped)"
KNOWN = {
    "MNIST": Known(_FLAG, f"MNIST/{_IDX}", 28, ([0.1307], [0.3081])),
    "FashionMNIST": Known(_FLAG, f"FashionMNIST/{_IDX}", 28, ([0.2860], [0.3530])),
    "CIFAR10": Known(_FLAG, "cifar-10-batches-py/", 32, ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])),
    "CIFAR100": Known(_FLAG, "cifar-100-python/", 32, ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762])),
    "SVHN": Known(_split("train", "test", "test"), "{train,test}_32x32.mat", 32),
    "STL10": Known(_split("unlabeled", "test", "test"), "stl10_binary/", 96),
    "Imagenette": Known(_split("train", "val", "val", size="320px"), "imagenette2-320/"),
    "Flowers102": Known(_split("train", "val", "test"), "flowers-102/{jpg/,imagelabels.mat,setid.mat}"),
    "OxfordIIITPet": Known(_split("trainval", "test", "test"), "oxford-iiit-pet/{images/,annotations/}"),
    "Food101": Known(_split("train", "test", "test"), "food-101/{images/,meta/}"),
}


class Arrays:
    """Images held in memory `[N, C, H, W]`; here, a list of indices gives a batch of images and their labels."""

    def __init__(self, images: Tensor, labels: Tensor | None) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> list[int]:
        """[rows, columns] of the images."""
        return list(self.images.shape[-2:])

    def __getitem__(self, index: int | list[int]) -> tuple[Tensor, Tensor | None]:
        return self.images[index], None if self.labels is None else self.labels[index]


def open_known(root: Path, role: str, dataset: str, train_split: str | None, download: bool) -> Any:
    """Open a data set of torchvision, after downloading it where it is missing if `download`.

    Raises:
        FileNotFoundError: if it is not there.
    """
    known = KNOWN[dataset]
    if dataset == "FashionMNIST" and DEBIAN_FASHION_MNIST.is_dir() and not (root / dataset).is_dir():
        return _read_debian(train=role == "train")
    arguments = dict(known.arguments[ROLES.index(role)])
    if role == "train" and train_split is not None:
        arguments["split"] = train_split
    build = getattr(torchvision.datasets, dataset)
    try:
        return _in_memory(build(root, **arguments))
    except RuntimeError as error:  # torchvision's for "not found or corrupted"
        reason: Exception = error
    if download:
        try:
            return _in_memory(build(root, **arguments, download=True))
        except (RuntimeError, OSError) as error:
            reason = error
    listed = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    raise FileNotFoundError(
        f"{dataset} was not found in {root.absolute()} ({reason}). Ways to get it:\n"
        f"- where there is internet, set download=True, or run the following and copy the folder here:\n"
        f"    from torchvision.datasets import {dataset}\n"
        f"    {dataset}({str(root)!r}, {listed}, download=True)\n"
        f"- download and unpack it by hand, to {root / known.layout}\n"
        f"- set root to the folder of a copy that you have, or dataset='folder' for other images"
        + ("\n- apt install dataset-fashion-mnist (on Debian)" if dataset == "FashionMNIST" else "")
    ) from reason


def _read_debian(train: bool) -> Arrays:
    prefix = DEBIAN_FASHION_MNIST / ("train" if train else "t10k")
    # After headers of 16 and 8 bytes, the IDX format holds the bare bytes.
    images = np.frombuffer(gzip.decompress(Path(f"{prefix}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress(Path(f"{prefix}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    return Arrays(torch.tensor(images).view(-1, 1, 28, 28), torch.tensor(labels, dtype=torch.int64))


def _in_memory(dataset: Any) -> Any:
    """The arrays of a torchvision data set that holds them, which saves a detour through Pillow; others as they are."""
    if not hasattr(dataset, "data"):
        return dataset
    images = torch.as_tensor(dataset.data)
    if images.ndim == 3:  # grey, [N, H, W]
        images = images[:, None]
    elif images.shape[-1] == 3:  # [N, H, W, C]
        images = images.permute(0, 3, 1, 2).contiguous()
    labels = torch.as_tensor(dataset.targets if hasattr(dataset, "targets") else dataset.labels, dtype=torch.int64)
    # STL10 labels unlabelled images -1; where it mixes them with others, that is what tells them apart.
    return Arrays(images, None if (labels < 0).all() else labels)

"""Where images come from: torchvision's data sets by name, folders, and webdataset shards.

A source has a length. An index gives an (image, label) pair, an 8-bit tensor `[C, H, W]` or a Pillow image and a whole
number or None; or, of files that may be spoilt, `candidates` gives the file of an index and others in its place.
"""

import gzip
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from jepa_lightning.data.decoding import UnreadableError
from jepa_lightning.data.entries import PATIENCE, Entry

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
ROLES = ("train", "val", "test")


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

    def __getitem__(self, index: int | list[int]) -> tuple[Tensor, Tensor | None]:
        return self.images[index], None if self.labels is None else self.labels[index]


class Files:
    """Image files below a folder, at any depth, labelled by the folders right in it if `classes` are given."""

    def __init__(self, folder: Path, classes: list[str] | None) -> None:
        # os.walk makes no object for each file: on ImageNet that is seconds where Path.rglob takes minutes.
        self.paths = sorted(
            os.path.join(parent, name)
            for parent, _, names in os.walk(folder, followlinks=True)
            for name in names
            if name.lower().endswith(IMG_EXTENSIONS)
        )
        if not self.paths:
            raise FileNotFoundError(f"{folder} holds no images ({', '.join(IMG_EXTENSIONS)}), at any depth.")
        self.labels: list[int] | None = None
        if classes is not None:
            number = {name: label for label, name in enumerate(classes)}
            names = [os.path.relpath(path, folder).split(os.sep)[0] for path in self.paths]
            if unknown := sorted(set(names) - set(number)):
                raise ValueError(
                    f"{folder} has classes that the training images do not have: {', '.join(unknown)}. "
                    "Name its folders as those of the training images."
                )
            self.labels = [number[name] for name in names]

    def __len__(self) -> int:
        return len(self.paths)

    def candidates(self, index: int) -> Iterator[Entry]:
        """The image of that index, then those that follow: neighbours, of the same class as a rule."""
        for place in range(index, index + min(PATIENCE, len(self))):
            path = self.paths[place % len(self)]
            yield Entry(path, None if self.labels is None else self.labels[place % len(self)], path)


def read_image(entry: Entry) -> Image.Image:
    """Decode an image, to RGB.

    Raises:
        UnreadableError: if it is none; the message says why.
    """
    content = entry.read()
    try:
        with Image.open(BytesIO(content) if isinstance(content, bytes) else content) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # all of them Pillow's
        raise UnreadableError(str(error)) from error


def open_folder(root: Path, role: str, dataset: str) -> Files | None:
    """Open the training or held-out images of `root`, or None if it has no such folder.

    Raises:
        FileNotFoundError: if there are no training images, or no images in a folder.
        ValueError: if classes are missing (from ImageNet) or differ between the folders.
    """
    train = root / "train"
    if not train.is_dir():
        if root.is_dir() and dataset == "folder":
            return Files(root, None) if role == "train" else None
        raise FileNotFoundError(
            f"{train.absolute()} does not exist, and dataset={dataset!r} downloads nothing: give as root the folder "
            "that has train/<class>/*.jpg and val/<class>/*.jpg" + (" or images." if dataset == "folder" else ".")
        )
    folder = train if role == "train" else root / "val"
    if not folder.is_dir():
        return None
    classes = _class_names(folder)
    if classes is None and dataset == "ImageNet":
        raise ValueError(f"{folder} has no folders of classes: sort ImageNet's images into {folder}/<class>/*.JPEG.")
    # Labels number the classes of the training images, and a folder's own only where those have none.
    return Files(folder, classes and (_class_names(train) or classes))


def _class_names(folder: Path) -> list[str] | None:
    """The folders in a folder, unless it has images of its own."""
    with os.scandir(folder) as scan:
        entries = list(scan)
    if any(entry.name.lower().endswith(IMG_EXTENSIONS) for entry in entries):
        return None
    return sorted(entry.name for entry in entries if entry.is_dir()) or None


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

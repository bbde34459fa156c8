"""A few random images in the formats that data sets have on disk."""

import pickle
import struct
from pathlib import Path

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)


def write_mnist(root: Path, name: str, train: int = 40, test: int = 12) -> None:
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for prefix, number in (("train", train), ("t10k", test)):
        images = RNG.integers(0, 256, (number, 28, 28), np.uint8)
        labels = RNG.integers(0, 10, number).astype(np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, number, 28, 28) + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, number) + labels.tobytes())


def write_images(root: Path, *paths: str, size: tuple[int, int] = (20, 24)) -> list[Path]:
    """Write random images of (columns, rows) to the paths."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(root / path)
    return [root / path for path in paths]


def write_cifar(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        entry = {"data": RNG.integers(0, 256, (6, 3072), np.uint8), "labels": RNG.integers(0, 10, 6).tolist()}
        (folder / name).write_bytes(pickle.dumps(entry))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))


def write_stl10(root: Path) -> None:
    folder = root / "stl10_binary"
    folder.mkdir()
    for name, number in (("train", 5), ("test", 4), ("unlabeled", 7)):
        RNG.integers(0, 256, (number, 3, 96, 96), np.uint8).tofile(folder / f"{name}_X.bin")
        RNG.integers(1, 11, number).astype(np.uint8).tofile(folder / f"{name}_y.bin")
    (folder / "class_names.txt").write_text("a\nb\n")


def write_imagenette(root: Path) -> None:
    for split in ("train", "val"):
        for wnid in ("n01440764", "n03888257"):
            write_images(root / "imagenette2-320", *(f"{split}/{wnid}/{i}.JPEG" for i in range(4)), size=(60, 40))


def write_imagenet(root: Path) -> None:
    for split in ("train", "val"):
        write_images(root, *(f"{split}/{wnid}/{i}.JPEG" for wnid in ("n01440764", "n01443537") for i in range(4)))

"""The samples of a split: files, members of shards, or what could not be read, and others to take in their places."""

import struct
from collections.abc import Iterator, Sequence, Sized
from io import BytesIO
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from jepa_lightning.data.faults import PATIENCE, UnreadableError
from jepa_lightning.data.resume import Visit


class Member(NamedTuple):
    """A file within a shard."""

    shard: str
    offset: int
    size: int


class Sample(NamedTuple):
    """A video, image, sound or text: where it is or what is in it, or why it cannot be read.

    Its label is the number of a class, or None; or a dict of several labels.
    """

    name: str
    label: Any
    content: str | bytes | Member | UnreadableError

    def read(self) -> str | bytes:
        """What decoders take: a path, or the bytes of a file.

        Raises:
            UnreadableError: if it cannot be read.
        """
        if isinstance(self.content, UnreadableError):
            raise self.content
        if isinstance(self.content, Member):
            try:
                with open(self.content.shard, "rb") as shard:
                    shard.seek(self.content.offset)
                    return shard.read(self.content.size)
            except OSError as error:
                raise UnreadableError(str(error)) from error
        return self.content


@runtime_checkable
class Samples(Sized, Protocol):
    """The samples of a split."""

    def candidates(self, visit: Visit) -> Iterator[Sample]:
        """The sample that is wanted, and others to take if it cannot be read."""


class Listed:
    """Samples that are known beforehand."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def candidates(self, visit: Visit) -> Iterator[Sample]:
        """The sample of an index, then others at random."""
        index, seen = visit.index, set[int]()
        while len(seen) < min(PATIENCE, len(self)):
            seen.add(index)
            yield self.samples[index]
            index = int(torch.randint(len(self), ()))


def read_image(sample: Sample) -> Tensor:
    """Decode an image, to RGB `[3, H, W]` uint8, turned as its camera says.

    Raises:
        UnreadableError: if it is none, or its pixels have no known range; the message says why.
    """
    content = sample.read()
    try:
        with Image.open(BytesIO(content) if isinstance(content, bytes) else content) as image:
            return pixels(image)
    except (
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:  # Pillow's
        raise UnreadableError(str(error)) from error


def pixels(image: Image.Image) -> Tensor:
    """The pixels `[3, H, W]` uint8 of an image of any kind, upright.

    Of 16 bits the upper eight are taken, and floating-point numbers are from 0 to 1: Pillow itself clips both at 255.

    Raises:
        UnreadableError: numbers whose range nobody says, as whole ones of 32 bits.
    """
    is_png = image.format == "PNG"  # of whole numbers up to 16 bits
    image = ImageOps.exif_transpose(image)
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return F.pil_to_tensor(image.convert("RGB"))
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F" and low >= 0 and high <= 1:
        levels = np.round(values * 255)
    elif image.mode != "F" and low >= 0 and high < 2**16 and (image.mode != "I" or is_png):
        levels = values >> 8
    else:
        raise UnreadableError(
            f"its pixels are numbers from {low} to {high} of mode {image.mode!r}, whose range is not known: convert it "
            "to 8 or 16 bits, or to numbers from 0 to 1"
        )
    return torch.from_numpy(levels.astype(np.uint8)).expand(3, -1, -1)


def as_labels(labels: Sequence[int | None], kind: str) -> Tensor | None:
    """The labels of a batch, or None where there are none.

    Raises:
        RuntimeError: if some have one and others none.
    """
    if None not in labels:
        return torch.tensor([int(label) for label in labels if label is not None])
    if any(label is not None for label in labels):
        raise RuntimeError(f"some of the {kind} in a batch have labels and others none: label all of them, or none.")
    return None

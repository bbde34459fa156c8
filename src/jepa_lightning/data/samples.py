"""The samples of a split: files, members of shards, or what could not be read, and others to take in their places."""

from collections.abc import Iterator, Sequence, Sized
from io import BytesIO
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from PIL import Image
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
    """A video or image: where it is or what is in it, or why it cannot be read."""

    name: str
    label: int | None
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
    """Decode an image, to RGB `[3, H, W]`.

    Raises:
        UnreadableError: if it is none; the message says why.
    """
    content = sample.read()
    try:
        with Image.open(BytesIO(content) if isinstance(content, bytes) else content) as image:
            return F.pil_to_tensor(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # all of them Pillow's
        raise UnreadableError(str(error)) from error

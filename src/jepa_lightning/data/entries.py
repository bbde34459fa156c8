"""The samples of a split: files, members of shards, or what could not be read, and others to take in their places."""

from collections.abc import Iterator, Sized
from typing import NamedTuple, Protocol

import torch

from jepa_lightning.data.decoding import UnreadableError

PATIENCE = 10  # unreadable samples in a row that end a run


class Member(NamedTuple):
    """A file within a shard."""

    shard: str
    offset: int
    size: int


class Entry(NamedTuple):
    """A video or image: where it is or what is in it, or why it cannot be read."""

    name: str
    label: int | None
    content: str | bytes | Member | UnreadableError

    def read(self) -> str | bytes:
        """What decoders take: a path, or the bytes of a file."""
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


class Source(Sized, Protocol):
    """The samples of a split."""

    def candidates(self, index: int) -> Iterator[Entry]:
        """The sample of an index, and others to take if it cannot be read."""


class Listed:
    """Samples that are known beforehand."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    def candidates(self, index: int) -> Iterator[Entry]:
        """The sample of that index, then others at random."""
        seen = set[int]()
        while len(seen) < min(PATIENCE, len(self)):
            seen.add(index)
            yield self.entries[index]
            index = int(torch.randint(len(self), ()))

"""Samples in webdataset shards: tar files whose members `key.jpg`, `key.cls` and so on are one sample."""

import json
import os
import random
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from jepa_lightning.data.decoding import UnreadableError
from jepa_lightning.data.order import Draw, rank_and_ranks

PATIENCE = 10  # unreadable samples in a row that end a run
_SHUFFLE_BUFFER = 100  # encoded samples of a shard, which stay in memory

Kinds = Sequence[tuple[str, ...]]  # of files that may be the sample's observation, by their extensions, the best first


class _Member(NamedTuple):
    """A file within a shard."""

    shard: str
    offset: int
    size: int


class Entry(NamedTuple):
    """A video or image: where it is or what is in it, or why it cannot be read."""

    name: str
    label: int | None
    content: str | bytes | _Member | UnreadableError

    def read(self) -> str | bytes:
        """What decoders take: a path, or the bytes of a file."""
        if isinstance(self.content, UnreadableError):
            raise self.content
        if isinstance(self.content, _Member):
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


class Streamed:
    """The samples of shards, as they come.

    Every reader (a worker of a rank) has shards of its own in each epoch, drawn by the seed and the epoch, and starts
    again with them when it has seen all. It takes its next sample for whatever index it is asked. In an epoch that is
    resumed it reads up to the first batch that it is asked for, without decoding.

    Args:
        shards: their paths or URLs.
        kinds: of files to read.
        samples_per_epoch: the length of an epoch, over all ranks.
        batch_size: samples of a batch on this rank.
        num_workers: that read, on this rank; 0, like 1, for one reader.
        seed: of the order.

    Raises:
        ValueError: fewer shards than readers.
    """

    def __init__(
        self, shards: list[str], kinds: Kinds, samples_per_epoch: int, batch_size: int, num_workers: int, seed: int
    ) -> None:
        self.shards, self.kinds, self.samples_per_epoch, self.seed = shards, kinds, samples_per_epoch, seed
        self.batch_size, self.workers = batch_size, max(1, num_workers)
        self.rank, self.ranks = rank_and_ranks()
        self._at = (-1, -1)
        if len(shards) < self.ranks * self.workers:
            raise ValueError(
                f"num_workers={num_workers} on {self.ranks} ranks are too many for {len(shards)} shards, since each "
                "worker reads shards of its own: give fewer workers, or smaller shards."
            )

    def __len__(self) -> int:
        return self.samples_per_epoch

    def candidates(self, index: int) -> Iterator[Entry]:
        """The next samples."""
        if not isinstance(index, Draw):
            raise TypeError("shards are a stream: a sample of theirs cannot be asked for by its index")
        # Workers take turns with the batches. Who begins depends on where an epoch is resumed, so a reader goes by
        # the batch and not by the worker's number.
        round_, reader = divmod(index.batch, self.workers)
        if (index.epoch, reader) != self._at:
            self._at = index.epoch, reader
            self._samples = islice(self._read(index.epoch, reader), round_ * self.batch_size, None)
        return islice(self._samples, PATIENCE)

    def _read(self, epoch: int, reader: int) -> Iterator[Entry]:
        from webdataset.filters import shuffle

        shards = list(self.shards)
        random.Random(f"{self.seed} {epoch}").shuffle(shards)  # the same for all readers
        shards = shards[self.rank * self.workers + reader :: self.ranks * self.workers]
        generator = random.Random(f"{self.seed} {epoch} {shards[0]}")
        while True:
            is_empty = True
            read = chain.from_iterable(_read_shard(shard, self.kinds) for shard in shards)
            for entry in shuffle(_SHUFFLE_BUFFER, rng=generator)(read):
                is_empty = False
                yield entry
            if is_empty:
                raise _without_samples(shards, self.kinds)


def open_shards(
    root: str,
    role: str,
    kinds: Kinds,
    samples_per_epoch: int | None,
    batch_size: int,
    num_workers: int,
    seed: int,
) -> Source | None:
    """The samples of the shards in a folder, or that a pattern names.

    Args:
        root: a folder with `train/*.tar` or `*.tar`, and `val/*.tar` where there are held-out samples; or a path or
            URL of training shards, with braces as in `{000..099}.tar` for several.
        role: "train"; "val" and "test" are the held-out samples.
        kinds: of files to read.
        samples_per_epoch: of the stream that training shards are with it; without, they are listed.
        batch_size: of a stream.
        num_workers: of a stream.
        seed: of a stream.

    Returns:
        A stream of the training samples or a list of samples; none without held-out samples.

    Raises:
        ImportError: without webdataset.
        FileNotFoundError: without shards, or samples in them.
        ValueError: shards that cannot be listed, or too few for the workers.
        RuntimeError: a shard that cannot be listed as it is damaged.
    """
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise ImportError("dataset='shards' needs webdataset: pip install webdataset") from error
    folder, training = Path(root), role == "train"
    if folder.is_dir():
        train = folder / "train"
        inside = (train if train.is_dir() else folder) if training else folder / "val"
        shards = [str(shard) for shard in sorted(inside.glob("*.tar"))]
        if training and not shards:
            raise FileNotFoundError(f"neither {train.absolute()} nor {folder.absolute()} holds shards (*.tar).")
    else:
        shards = expand_urls(root) if training else []
        if missing := [shard for shard in shards if ":" not in shard and not Path(shard).is_file()]:
            raise FileNotFoundError(f"{missing[0]} does not exist: give as root a folder of shards (*.tar), or shards.")
    if not shards:
        return None
    if training and samples_per_epoch is not None:
        return Streamed(shards, kinds, samples_per_epoch, batch_size, num_workers, seed)
    if remote := [shard for shard in shards if not Path(shard).is_file()]:
        raise ValueError(
            f"samples_per_epoch={samples_per_epoch}, but {remote[0]} is no file here, so that nobody knows how many "
            "samples it holds: give samples_per_epoch, how many make an epoch."
        )
    entries = [entry for shard in shards for entry in _index_shard(shard, kinds)]
    if training and not entries:
        raise _without_samples(shards, kinds)
    return Listed(entries) if entries else None


def _without_samples(shards: Sequence[str], kinds: Kinds) -> FileNotFoundError:
    return FileNotFoundError(f"{', '.join(shards)}: no member of these shards is one of {', '.join(chain(*kinds))}.")


def _read_shard(shard: str, kinds: Kinds) -> Iterator[Entry]:
    from webdataset.tariterators import tarfile_samples

    try:
        for sample in tarfile_samples(iter([{"url": shard}])):
            if extension := _find_observation(sample, kinds):
                name = f"{shard}/{sample['__key__']}.{extension}"
                yield Entry(name, _read_label(name, sample), sample[extension])
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or error.args[0]  # webdataset adds arguments of its own
        yield Entry(shard, None, UnreadableError(f"the rest of the shard cannot be read: {reason}"))


def _index_shard(shard: str, kinds: Kinds) -> list[Entry]:
    """Where the samples of a shard are, so that each can be asked for by its index."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    entries = []
    try:
        with tarfile.open(shard) as tar:
            for file in tar:
                if file.isfile():
                    stem, _, suffix = os.path.basename(file.name).partition(".")
                    key = os.path.join(os.path.dirname(file.name), stem)
                    samples.setdefault(key, {})[suffix.lower()] = file
            for key, members in samples.items():
                if extension := _find_observation(members, kinds):
                    name = f"{shard}/{key}.{extension}"
                    files = {field: tar.extractfile(members[field]) for field in ("cls", "json") if field in members}
                    label = _read_label(name, {field: file.read() for field, file in files.items() if file})
                    member = members[extension]
                    entries.append(Entry(name, label, _Member(shard, member.offset_data, member.size)))
    except (OSError, tarfile.TarError) as error:
        raise RuntimeError(f"{shard} cannot be read: {error}. Repair or remove it.") from error
    return entries


def _find_observation(extensions: Iterable[str], kinds: Kinds) -> str | None:
    """The extension of a sample's file of the first kind that it has."""
    for kind in kinds:
        for extension in extensions:
            if f".{extension}".endswith(kind):
                return extension
    return None


def _read_label(name: str, fields: Mapping[str, bytes]) -> int | None:
    try:
        if "cls" in fields:
            return int(fields["cls"])
        return int(json.loads(fields["json"])["label"]) if "json" in fields else None
    except (ValueError, KeyError, TypeError) as error:
        raise RuntimeError(
            f"the label of {name} is not a whole number, in a .cls file or under 'label' in a .json file ({error!r})."
        ) from error

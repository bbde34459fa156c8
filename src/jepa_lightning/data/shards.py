"""Samples in webdataset shards: tar files whose members `key.jpg`, `key.cls` and so on are one sample."""

import json
import os
import random
import re
import shlex
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from jepa_lightning.data.decoding import UnreadableError
from jepa_lightning.data.entries import PATIENCE, Entry, Listed, Member, Source
from jepa_lightning.data.order import Draw, rank_and_ranks

_INDEX = re.compile(r"[^/\s]+\.json(?= |$)")  # in a path, URL or command
_SHUFFLE_BUFFER = 100  # encoded samples of a shard, which stay in memory

Kinds = Sequence[tuple[str, ...]]  # of files that may be the sample's observation, by their extensions, the best first


class _Part(NamedTuple):
    """The samples from `first` to before `stop` of a shard, or to its end."""

    shard: str
    first: int
    stop: int | None


class Streamed:
    """The samples of shards, as they come.

    Every reader (a worker of a rank) has its share of them in each epoch, drawn by the seed and the epoch, and starts
    again with it when it has seen all. It takes its next sample for whatever index it is asked. In an epoch that is
    resumed it reads up to the first batch that it is asked for, without decoding.

    Args:
        shards: their paths or URLs.
        counts: how many samples each holds. The share of a reader is then as many as its batches take, and may begin
            and end within a shard; without, it is whole shards.
        kinds: of files to read.
        samples_per_epoch: the length of an epoch, over all ranks.
        batch_size: samples of a batch on this rank.
        num_workers: that read, on this rank; 0, like 1, for one reader.
        seed: of the order.

    Raises:
        ValueError: fewer shards than readers, without counts.
    """

    def __init__(
        self,
        shards: list[str],
        counts: list[int] | None,
        kinds: Kinds,
        samples_per_epoch: int,
        batch_size: int,
        num_workers: int,
        seed: int,
    ) -> None:
        self.shards, self.counts, self.kinds, self.samples_per_epoch = shards, counts, kinds, samples_per_epoch
        self.batch_size, self.workers, self.seed = batch_size, max(1, num_workers), seed
        self.rank, self.ranks = rank_and_ranks()
        self._at = (-1, -1)
        if counts is None and len(shards) < self.ranks * self.workers:
            raise ValueError(
                f"num_workers={num_workers} on {self.ranks} ranks are too many for {len(shards)} shards, since each "
                "worker reads shards of its own: give fewer workers, smaller shards, or an index that counts samples."
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

        share = self._share(epoch, reader)
        generator = random.Random(f"{self.seed} {epoch} {share[0].shard}")
        while True:
            is_empty = True
            read = chain.from_iterable(_read_shard(part, self.kinds) for part in share)
            for entry in shuffle(_SHUFFLE_BUFFER, rng=generator)(read):
                is_empty = False
                yield entry
            if is_empty:
                raise _without_samples([part.shard for part in share], self.kinds)

    def _share(self, epoch: int, reader: int) -> list[_Part]:
        """What a reader of this rank reads in an epoch."""
        order = list(range(len(self.shards)))
        random.Random(f"{self.seed} {epoch}").shuffle(order)  # the same for all readers
        if self.counts is None:
            mine = order[self.rank * self.workers + reader :: self.ranks * self.workers]
            return [_Part(self.shards[shard], 0, None) for shard in mine]
        batches = self.samples_per_epoch // self.ranks // self.batch_size
        of_readers = [len(range(number, batches, self.workers)) for number in range(self.workers)]
        first = (self.rank * batches + sum(of_readers[:reader])) * self.batch_size
        stop = first + of_readers[reader] * self.batch_size
        share = []
        for shard in order:
            count = self.counts[shard]
            if first < count and stop > 0:
                share.append(_Part(self.shards[shard], max(first, 0), min(stop, count)))
            first, stop = first - count, stop - count
        return share


def open_shards(
    root: str,
    role: str,
    kinds: Kinds,
    samples_per_epoch: int | None,
    batch_size: int,
    num_workers: int,
    seed: int,
) -> Source | None:
    """The samples of the shards in a folder, or that a pattern or an index names.

    Args:
        root: a folder with `train/*.tar` or `*.tar`, and `val/*.tar` where there are held-out samples; or a path or
            URL of training shards, with braces as in `{000..099}.tar` for several; or that of their index (.json).
        role: "train"; "val" and "test" are the held-out samples.
        kinds: of files to read.
        samples_per_epoch: of the stream that training shards are with it, or with an index; without, they are listed.
        batch_size: of a stream.
        num_workers: of a stream.
        seed: of a stream.

    Returns:
        A stream of the training samples or a list of samples; none without held-out samples.

    Raises:
        ImportError: without webdataset.
        FileNotFoundError: without shards, or samples in them.
        ValueError: shards that cannot be listed, or too few for the workers; an index that is none.
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
    elif not training:
        return None
    elif _INDEX.search(root):
        if samples_per_epoch is not None:
            raise ValueError(
                f"samples_per_epoch={samples_per_epoch}, but the index {root} says how many samples there are, and an "
                "epoch has all of them: leave it out."
            )
        shards, counts = _read_index(root)
        return Streamed(_existing(shards), counts, kinds, sum(counts), batch_size, num_workers, seed)
    else:
        shards = _existing(expand_urls(root))
    if not shards:
        return None
    if training and samples_per_epoch is not None:
        return Streamed(shards, None, kinds, samples_per_epoch, batch_size, num_workers, seed)
    if remote := [shard for shard in shards if not Path(shard).is_file()]:
        raise ValueError(
            f"samples_per_epoch={samples_per_epoch}, but {remote[0]} is no file here, so that nobody knows how many "
            "samples it holds: give samples_per_epoch, how many make an epoch, or as root an index that counts them."
        )
    entries = [entry for shard in shards for entry in _index_shard(shard, kinds)]
    if training and not entries:
        raise _without_samples(shards, kinds)
    return Listed(entries) if entries else None


def _existing(shards: list[str]) -> list[str]:
    """The same, once those that are files are known to exist."""
    if missing := [shard for shard in shards if ":" not in shard and not Path(shard).is_file()]:
        raise FileNotFoundError(f"{missing[0]} does not exist: give as root a folder of shards (*.tar), or shards.")
    return shards


def _read_index(root: str) -> tuple[list[str], list[int]]:
    """The shards that a webdataset index names, and how many samples each holds.

    Names without a scheme are in the folder of the index or, if a command fetches that, in its place in the command.
    """
    from webdataset.gopen import gopen

    try:
        with gopen(root) as file:
            shards = [(str(shard["url"]), int(shard["nsamples"])) for shard in json.load(file)["shardlist"]]
        for url, count in shards:
            if url.strip().lower().startswith("pipe:"):
                raise ValueError(f"{url} is a command, which only root may be; its index has names")
            if count < 1:
                raise ValueError(f"{url} has {count} samples")
        if not shards:
            raise ValueError("it has no shards")
    except OSError as error:
        raise FileNotFoundError(f"the index {root} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{root} is not an index of shards, {{"shardlist": [{{"url": "0.tar", "nsamples": 100}}, …]}}: {error!r}'
        ) from error

    def locate(url: str) -> str:
        if "://" in url:
            return url
        if root.startswith("pipe:"):
            return _INDEX.sub(lambda _: shlex.quote(url), root)
        return os.path.join(os.path.dirname(root), url)

    return [locate(url) for url, _ in shards], [count for _, count in shards]


def _without_samples(shards: Sequence[str], kinds: Kinds) -> FileNotFoundError:
    return FileNotFoundError(f"{', '.join(shards)}: no member of these shards is one of {', '.join(chain(*kinds))}.")


def _read_shard(part: _Part, kinds: Kinds) -> Iterator[Entry]:
    from webdataset.tariterators import tarfile_samples

    shard, number = part.shard, 0
    try:
        for sample in tarfile_samples(iter([{"url": shard}])):
            if extension := _find_observation(sample, kinds):
                if number >= part.first:
                    name = f"{shard}/{sample['__key__']}.{extension}"
                    yield Entry(name, _read_label(name, sample), sample[extension])
                number += 1
                if number == part.stop:
                    return
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or error.args[0]  # webdataset adds arguments of its own
        yield Entry(shard, None, UnreadableError(f"the rest of the shard cannot be read: {reason}"))
    else:
        if part.stop is not None and number < part.stop:
            yield Entry(shard, None, UnreadableError(f"it has {number} samples, fewer than its index says"))


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
                    entries.append(Entry(name, label, Member(shard, member.offset_data, member.size)))
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

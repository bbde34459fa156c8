"""Where videos are: in folders, in lists as the official V-JEPA code reads them, in webdataset shards."""

import json
import os
import random
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sized
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch.utils.data import get_worker_info
from torchvision.datasets.folder import IMG_EXTENSIONS

from jepa_lightning.data.decoding import UnreadableError

VIDEO_EXTENSIONS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp")
PATIENCE = 10  # unreadable videos in a row that end a run
_EXTENSIONS = (*VIDEO_EXTENSIONS, *IMG_EXTENSIONS)
_SHUFFLE_BUFFER = 100  # encoded videos of a shard, which stay in memory


class Draw(NamedTuple):
    """What a training loader asks its data set for.

    Attributes:
        video: its index.
        num_frames: of its clips.
        epoch: from 0, so that each draws other clips of the same video.
    """

    video: int
    num_frames: int
    epoch: int


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
    """The videos of a split."""

    def candidates(self, draw: Draw) -> Iterator[Entry]:
        """The video drawn, and others to take if it cannot be read."""


class Listed:
    """Videos that are known beforehand."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    def candidates(self, draw: Draw) -> Iterator[Entry]:
        """The video of that index, then others at random."""
        index, seen = draw.video, set[int]()
        while len(seen) < min(PATIENCE, len(self)):
            seen.add(index)
            yield self.entries[index]
            index = int(torch.randint(len(self), ()))


class Streamed:
    """The videos of webdataset shards, as they come.

    Every reader (a worker of a rank) has shards of its own in each epoch, drawn by the seed and the epoch, and starts
    again with them when it has seen all. It takes its next video for whatever index it is asked.

    Args:
        shards: their paths or URLs.
        samples_per_epoch: the length of an epoch, over all ranks.
        seed: of the order.
    """

    def __init__(self, shards: list[str], samples_per_epoch: int, seed: int) -> None:
        self.shards, self.samples_per_epoch, self.seed = shards, samples_per_epoch, seed
        self.rank, self.ranks = rank_and_ranks()
        self._epoch = -1

    def __len__(self) -> int:
        return self.samples_per_epoch

    def candidates(self, draw: Draw) -> Iterator[Entry]:
        """The next videos."""
        if draw.epoch != self._epoch:
            self._epoch, self._videos = draw.epoch, self._read(draw.epoch)
        return islice(self._videos, PATIENCE)

    def _read(self, epoch: int) -> Iterator[Entry]:
        from webdataset.filters import shuffle

        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        shards = list(self.shards)
        random.Random(f"{self.seed} {epoch}").shuffle(shards)  # the same for all readers
        shards = shards[self.rank * workers + number :: self.ranks * workers]
        generator = random.Random(f"{self.seed} {epoch} {shards[0]}")
        while True:
            is_empty = True
            for entry in shuffle(_SHUFFLE_BUFFER, rng=generator)(chain.from_iterable(map(_read_shard, shards))):
                is_empty = False
                yield entry
            if is_empty:
                raise FileNotFoundError(f"{', '.join(shards)}: no member of these shards is a video.")


def _read_shard(shard: str) -> Iterator[Entry]:
    from webdataset.tariterators import tarfile_samples

    try:
        for sample in tarfile_samples(iter([{"url": shard}])):
            if extension := _find_video(sample):
                name = f"{shard}/{sample['__key__']}.{extension}"
                yield Entry(name, _read_label(name, sample), sample[extension])
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or error.args[0]  # webdataset adds arguments of its own
        yield Entry(shard, None, UnreadableError(f"the rest of the shard cannot be read: {reason}"))


def _index_shard(shard: Path) -> list[Entry]:
    """Where the videos of a shard are: validation asks for each of them once and in order."""
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
                if extension := _find_video(members):
                    name = f"{shard}/{key}.{extension}"
                    files = {field: tar.extractfile(members[field]) for field in ("cls", "json") if field in members}
                    label = _read_label(name, {field: file.read() for field, file in files.items() if file})
                    member = members[extension]
                    entries.append(Entry(name, label, _Member(str(shard), member.offset_data, member.size)))
    except (OSError, tarfile.TarError) as error:
        raise RuntimeError(f"{shard} cannot be read: {error}. Repair or remove it.") from error
    return entries


def _find_video(extensions: Iterable[str]) -> str | None:
    """The extension of a sample's video, or of its image where it has no video."""
    for kind in (VIDEO_EXTENSIONS, IMG_EXTENSIONS):
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


def open_folder(root: Path, role: str) -> list[Entry] | None:
    """The videos of `root/train/<class>` or `root/val/<class>`, or the unlabelled ones below a folder; none without."""
    train = root / "train"
    if not train.is_dir():
        if root.is_dir():
            return _list_videos(root, None) if role == "train" else None
        raise FileNotFoundError(
            f"{train.absolute()} does not exist: give as root the folder that has train/<class>/*.mp4 and "
            "val/<class>/*.mp4, or videos."
        )
    folder = train if role == "train" else root / "val"
    if not folder.is_dir():
        return None
    classes = _class_names(folder)
    # Labels number the classes of the training videos, and a folder's own only where those have none.
    return _list_videos(folder, classes and (_class_names(train) or classes))


def _class_names(folder: Path) -> list[str] | None:
    """The folders in a folder, unless it has videos of its own."""
    with os.scandir(folder) as scan:
        entries = list(scan)
    if any(entry.name.lower().endswith(_EXTENSIONS) for entry in entries):
        return None
    return sorted(entry.name for entry in entries if entry.is_dir()) or None


def _list_videos(folder: Path, classes: list[str] | None) -> list[Entry]:
    """The videos below a folder, at any depth, labelled by the folders right in it if `classes` are given."""
    paths = sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(_EXTENSIONS)
    )
    if not paths:
        raise FileNotFoundError(f"{folder} holds no videos ({', '.join(VIDEO_EXTENSIONS)}) or images, at any depth.")
    if classes is None:
        return [Entry(path, None, path) for path in paths]
    number = {name: label for label, name in enumerate(classes)}
    names = [os.path.relpath(path, folder).split(os.sep)[0] for path in paths]
    if unknown := sorted(set(names) - set(number)):
        raise ValueError(
            f"{folder} has classes that the training videos do not have: {', '.join(unknown)}. "
            "Name its folders as those of the training videos."
        )
    return [Entry(path, number[name], path) for path, name in zip(paths, names, strict=True)]


def open_list(root: Path, role: str) -> list[Entry] | None:
    """The videos that `root/train.csv` or `root/val.csv` lists; none without such a file of validation videos."""
    path = root if root.suffix == ".csv" else root / ("train.csv" if role == "train" else "val.csv")
    if role != "train" and (root.suffix == ".csv" or not path.is_file()):
        return None
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.absolute()} does not exist: give as root the folder that has train.csv and val.csv, or a CSV file "
            "of training videos."
        )
    entries = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if line.strip():
            if (match := re.fullmatch(r'\s*"?(.+?)"?\s*[\s,]\s*(-?\d+)\s*', line)) is None:
                raise ValueError(
                    f"{path}, line {number}: {line!r} is not a path and a whole number for a label, with a space or a "
                    "comma between them."
                )
            video = os.path.join(path.parent, match[1])
            entries.append(Entry(video, int(match[2]), video))
    if not entries:
        raise ValueError(f"{path} is empty: it must have a line with a path and a label for each video.")
    return entries


def open_shards(root: str, role: str, samples_per_epoch: int, seed: int) -> Source | None:
    """The videos of shards: of training shards a stream, of validation shards, if there are any, a list."""
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise ImportError("dataset='shards' needs webdataset: pip install webdataset") from error
    folder = Path(root)
    if not folder.is_dir():
        shards = expand_urls(root)
        if missing := [shard for shard in shards if ":" not in shard and not Path(shard).is_file()]:
            raise FileNotFoundError(f"{missing[0]} does not exist: give as root a folder of shards (*.tar), or shards.")
        return Streamed(shards, samples_per_epoch, seed) if role == "train" else None
    train = folder / "train"
    if role != "train":
        held_out = [video for shard in sorted((folder / "val").glob("*.tar")) for video in _index_shard(shard)]
        return Listed(held_out) if held_out else None
    shards = [str(shard) for shard in sorted((train if train.is_dir() else folder).glob("*.tar"))]
    if not shards:
        raise FileNotFoundError(f"neither {train.absolute()} nor {folder.absolute()} holds shards (*.tar).")
    return Streamed(shards, samples_per_epoch, seed)


def rank_and_ranks() -> tuple[int, int]:
    """Of this process, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)

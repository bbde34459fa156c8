"""The members of a shard: which of them are a sample, where it is, and its label."""

import json
import os
import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from jepa_lightning.data.faults import UnreadableError
from jepa_lightning.data.samples import Member, Sample

Kinds = Sequence[tuple[str, ...]]  # of files that may be the sample's observation, by their extensions, the best first


class Part(NamedTuple):
    """The samples from `first` to before `stop` of a shard, or to its end."""

    shard: str
    first: int
    stop: int | None


def without_samples(shards: Sequence[str], kinds: Kinds) -> FileNotFoundError:
    """The error for shards that hold nothing to read."""
    return FileNotFoundError(f"{', '.join(shards)}: no member of these shards is one of {', '.join(chain(*kinds))}.")


def read_shard(part: Part, kinds: Kinds) -> Iterator[Sample]:
    """The samples of a part of a shard, one after another; last, that the rest cannot be read, if so."""
    from webdataset.tariterators import tarfile_samples

    shard, number = part.shard, 0
    try:
        for sample in tarfile_samples(iter([{"url": shard}])):
            if extension := _find_observation(f"{shard}/{sample['__key__']}", sample, kinds):
                if number >= part.first:
                    name = f"{shard}/{sample['__key__']}.{extension}"
                    label = _read_label(name, {field: sample[field] for field in _label_fields(extension, sample)})
                    yield Sample(name, label, sample[extension])
                number += 1
                if number == part.stop:
                    return
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or error.args[0]  # webdataset adds arguments of its own
        yield Sample(shard, None, UnreadableError(f"the rest of the shard cannot be read: {reason}"))
    else:
        if part.stop is not None and number < part.stop:
            yield Sample(shard, None, UnreadableError(f"it has {number} samples, fewer than its index says"))


def list_shard(shard: str, kinds: Kinds) -> list[Sample]:
    """Where the samples of a shard are, so that each can be asked for by its index."""
    files: dict[str, dict[str, tarfile.TarInfo]] = {}
    samples = []
    try:
        with tarfile.open(shard) as tar:
            for file in tar:
                if file.isfile() and not os.path.basename(file.name).startswith("."):
                    stem, _, suffix = os.path.basename(file.name).partition(".")
                    key = os.path.join(os.path.dirname(file.name), stem)
                    if suffix.lower() in files.setdefault(key, {}):
                        raise RuntimeError(f"{shard} has {file.name} twice: give each sample a name of its own.")
                    files[key][suffix.lower()] = file
            for key, members in files.items():
                if extension := _find_observation(f"{shard}/{key}", members, kinds):
                    name = f"{shard}/{key}.{extension}"
                    told = {field: tar.extractfile(members[field]) for field in _label_fields(extension, members)}
                    label = _read_label(name, {field: file.read() for field, file in told.items() if file})
                    member = members[extension]
                    samples.append(Sample(name, label, Member(shard, member.offset_data, member.size)))
    except (OSError, tarfile.TarError) as error:
        raise RuntimeError(f"{shard} cannot be read: {error}. Repair or remove it.") from error
    return samples


def _find_observation(key: str, extensions: Iterable[str], kinds: Kinds) -> str | None:
    """The extension of a sample's file of the first kind that it has: `jpg` before `left.jpg`.

    Raises:
        RuntimeError: if it has several, as names with dots make of many samples one.
    """
    for kind in kinds:
        found = [extension for extension in extensions if f".{extension}".endswith(kind)]
        plain = [extension for extension in found if f".{extension}" in kind]
        if plain or len(found) == 1:
            return (plain or found)[0]
        if found:
            raise RuntimeError(
                f"the sample {key} has {len(found)} files of one kind, {', '.join(found[:3])}, …: a sample is all "
                "files with the same name up to the first dot, so leave dots out of the names of samples."
            )
    return None


def _label_fields(extension: str, fields: Collection[str]) -> list[str]:
    """Which fields may hold the label of an observation with this extension, the first of them as a rule."""
    inner = extension.rpartition(".")[0]
    names = [f"{inner}.cls", f"{inner}.json"] if inner else []
    return [name for name in ("cls", "json", *names) if name in fields]


def _read_label(name: str, fields: Mapping[str, bytes]) -> int | None:
    for field, content in fields.items():
        try:
            return int(content) if field.endswith("cls") else int(json.loads(content)["label"])
        except (ValueError, KeyError, TypeError) as error:
            raise RuntimeError(
                f"the label of {name} is not a whole number, in a .cls file or under 'label' in a .json file "
                f"({error!r})."
            ) from error
    return None

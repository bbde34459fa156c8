"""The shards in a folder, or that a pattern or an index names, as a list of samples or a stream."""

import json
import os
import re
import shlex
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from jepa_lightning.data.samples import Listed, Samples
from jepa_lightning.data.shards.members import Kinds, list_shard, without_samples
from jepa_lightning.data.shards.streams import Streamed

_INDEX = re.compile(r"[^/\s]+\.json(?= |$)")  # in a path, URL or command


def open_shards(
    root: str,
    role: str,
    kinds: Kinds,
    samples_per_epoch: int | None,
    batch_size: int,
    num_workers: int,
    seed: int,
) -> Samples | None:
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
    samples = [sample for shard in shards for sample in list_shard(shard, kinds)]
    if training and not samples:
        raise without_samples(shards, kinds)
    labelled = sum(sample.label is not None for sample in samples)
    if 0 < labelled < len(samples):
        missing = next(sample.name for sample in samples if sample.label is None)
        raise RuntimeError(
            f"{labelled} of {len(samples)} samples of the {role} shards have labels, and {missing} and others none: "
            "label all of them, or none."
        )
    rank_zero_info(f"{root}: {len(samples)} {role} samples {'with' if labelled else 'without'} labels")
    return Listed(samples) if samples else None


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

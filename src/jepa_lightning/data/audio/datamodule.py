"""The DataModule of sounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from jepa_lightning.data.audio.dataset import Waves
from jepa_lightning.data.audio.decoding import check_libraries, read_seconds
from jepa_lightning.data.audio.lists import read_manifest, read_table
from jepa_lightning.data.datamodule import FilesDataModule, roles_of
from jepa_lightning.data.faults import Faults, UnreadableError
from jepa_lightning.data.folders import find_list, open_folder
from jepa_lightning.data.labels import Vocabulary
from jepa_lightning.data.lengths import LengthOrder
from jepa_lightning.data.resume import Order, run_seed
from jepa_lightning.data.samples import Listed, Sample, Samples
from jepa_lightning.data.shards import open_shards
from jepa_lightning.errors import check_choice

AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au")


class WaveformDataModule(FilesDataModule):
    """Waves of the sounds in a folder, in a list, or in webdataset shards.

    Batches are dicts: `wave` `[B, L, 1]` float32, `valid` BoolTensor `[B, L]`, which samples there are, and the labels
    by name, `label` where they have none. They are as long as their longest sound. Of sounds longer than `max_seconds`
    training takes a part at random, and the middle otherwise. Several channels become one, their mean.

    Data sets:

    - `folder`: `root/train/<class>/*.wav` and, where it exists, `root/val/<class>/*.wav` (also used as the test split).
      Sounds that are not in `root/train` or lie directly in it are unlabelled, and found at any depth. Decoded are
      wav, flac, ogg, mp3 and others.
    - `csv`: `root/train.csv` and, where they exist, `root/val.csv` and `root/test.csv`, or `root` is a file of training
      sounds. Their header names a column `file` (or `path`), whose relative paths start from the folder of the list;
      all other columns are labels: classes by their names, or numbers where some are not whole; an empty field is
      none. With columns `start` and `end` in seconds a row labels a stretch of its file, and the label of a batch is
      `[B, T]`, a class for each hundredth of a second, -1 where there is none.
    - `tsv`: manifests as fairseq's, `root/train.tsv` and `root/valid.tsv` (or val), with labels in files beside,
      `root/train.ltr`, a line a sound: a word, which is a class, or several, such as letters or phonemes, whose numbers
      are the label `[B, T]`, filled up with -1.
    - `shards`: tar files of `key.wav` with `key.cls` or `key.json` (its `label`), or neither, as of `VideoDataModule`:
      listed, or streamed by an index or with `samples_per_epoch`.

    Order and crops are a function of the seed and the epoch, also where a training is resumed in an epoch; of streams,
    also of the number of workers and ranks. A file that cannot be read is replaced by another, drawn likewise. At the
    end of an epoch a warning counts and names them (`faulty` has all); too many are an error.

    Args:
        root: folder, list or shards of the data.
        dataset: `folder`, `csv`, `tsv` or `shards`.
        sample_rate: samples a second.
        resample: whether sounds of another rate are resampled, by soxr; they are an error otherwise.
        max_seconds: of a sound; None takes all of it.
        min_seconds: of a sound, or it counts as unreadable.
        normalize: whether each wave gets mean zero and variance one, as data2vec and wav2vec 2.0 have it.
        batch_size: sounds per batch. Training drops an incomplete last batch.
        batch_seconds: instead, how long the sounds of a training batch are together, with what fills them up: sounds of
            about the same length come together. Their lengths are read from the manifest or, which takes a while, from
            all headers. Held-out batches then have as many as would all fit at `max_seconds`.
        num_workers: worker processes per loader; 0 decodes in the training process.
        labels: of lists, the columns, or the endings of files beside, that are labels; all by default.
        max_faulty: share of the sounds read, or of the first 1000, that may be unreadable. Whatever it is, ten
            unreadable ones in a row are an error.
        samples_per_epoch: read training shards without an index as streams, that many sounds an epoch, over all ranks.

    Attributes:
        classes: of lists, the names of each label's classes in the order of their numbers; none where the label is a
            number.

    Raises:
        ValueError: for an unknown data set or an argument out of range; from the loaders, for a sound of another rate
            that is not to be resampled.
        ImportError: from `setup`, if a library is missing.
        FileNotFoundError: from `setup`, if the data are missing.
        RuntimeError: from `setup` or the loaders, if too many files are unreadable.

    Example:
        >>> datamodule = WaveformDataModule("LibriSpeech", "tsv", max_seconds=20, batch_seconds=237.5)
        >>> datamodule.batch_size  # of held-out data
        11
    """

    def __init__(
        self,
        root: str = "data",
        dataset: str = "folder",
        sample_rate: int = 16_000,
        resample: bool = True,
        max_seconds: float | None = 20.0,
        min_seconds: float = 0.1,
        normalize: bool = True,
        batch_size: int = 16,
        batch_seconds: float | None = None,
        num_workers: int = 2,
        labels: Sequence[str] | None = None,
        max_faulty: float = 0.1,
        samples_per_epoch: int | None = None,
    ) -> None:
        check_choice("dataset", dataset, ("folder", "csv", "tsv", "shards"))
        if sample_rate < 1:
            raise ValueError(f"sample_rate={sample_rate} must be at least 1 a second.")
        if not 0 <= min_seconds <= (math.inf if max_seconds is None else max_seconds):
            raise ValueError(f"min_seconds={min_seconds} must lie between 0 and max_seconds={max_seconds}.")
        if batch_seconds is not None:
            if max_seconds is None or not max_seconds <= batch_seconds < math.inf:
                raise ValueError(
                    f"batch_seconds={batch_seconds} must be at least max_seconds={max_seconds}, a number, since a "
                    "batch has at least one sound."
                )
            batch_size = int(batch_seconds / max_seconds)
        if samples_per_epoch is not None and (dataset != "shards" or samples_per_epoch < 1):
            raise ValueError(
                f"samples_per_epoch={samples_per_epoch} with dataset={dataset!r}: it is how many sounds of shards make "
                "an epoch, at least 1; of others an epoch has all."
            )
        if labels is not None and dataset not in ("csv", "tsv"):
            raise ValueError(f"labels={list(labels)} are those of lists, not of dataset={dataset!r}.")
        super().__init__(batch_size, num_workers, max_faulty)
        self.save_hyperparameters(logger=False)
        self.root, self.dataset, self.sample_rate, self.resample = root, dataset, sample_rate, resample
        self.max_seconds, self.min_seconds, self.normalize = max_seconds, min_seconds, normalize
        self.batch_seconds, self.labels, self.samples_per_epoch = batch_seconds, labels, samples_per_epoch
        self.classes: dict[str, list[str]] = {}
        self.seconds: list[float] = []  # of the training sounds that are read, for batches by their lengths

    def setup(self, stage: str | None = None) -> None:
        """Find the sounds of a stage ("fit", "validate", "test", "predict"; None for all).

        Raises:
            ImportError: without soundfile or soxr, or webdataset for shards; the message says how to get it.
            FileNotFoundError: if the data are missing; the message says what is looked for.
            ValueError: if there are fewer training sounds than a batch holds, or fewer shards than workers.
            RuntimeError: if too many headers cannot be read.
        """
        check_libraries()
        for role in roles_of(stage):
            source = self._open(role)
            if source is None:
                continue
            faults = Faults("sounds", self.max_faulty, len(source) if isinstance(source, Listed) else math.inf)
            if role == "train":
                if self.batch_seconds is not None:
                    source = self._timed(source, faults)
                elif len(source) < self.batch_size:
                    raise ValueError(
                        f"{self.root} has {len(source)} training sounds, fewer than batch_size={self.batch_size}, and "
                        "incomplete batches are dropped: give a smaller batch_size."
                    )
            self.sets[role] = Waves(
                source,
                self.sample_rate,
                self.resample,
                math.ceil(self.min_seconds * self.sample_rate),
                None if self.max_seconds is None else math.ceil(self.max_seconds * self.sample_rate),
                role == "train",
                self.normalize,
                run_seed(),
                faults,
            )
        self.check_found(stage)

    def _open(self, role: str) -> Samples | None:
        if self.dataset == "shards":
            kinds, workers = (AUDIO_EXTENSIONS,), self.num_workers
            return open_shards(self.root, role, kinds, self.samples_per_epoch, self.batch_size, workers, run_seed())
        root = Path(self.root)
        if self.dataset == "folder":
            files = open_folder(root, role, AUDIO_EXTENSIONS, "sounds")
            return None if files is None else Listed(files)
        suffix, read = (".csv", read_table) if self.dataset == "csv" else (".tsv", read_manifest)
        path = find_list(root, role, suffix)
        if path is None:
            return None
        rows, training = read(path, self.labels), find_list(root, "train", suffix)
        assert training is not None
        words = Vocabulary(row.labels for row in (rows if path == training else read(training, self.labels)))
        self.classes = words.classes
        rank_zero_info(f"{path}: {len(rows)} {role} sounds, labels: {', '.join(self.classes) or 'none'}")
        if role == "train":
            self.seconds = [row.samples / self.sample_rate for row in rows if row.samples is not None]
        return Listed([Sample(row.path, words.numbered(row.labels, row.path) or None, row.path) for row in rows])

    def _timed(self, source: Samples, faults: Faults) -> Listed:
        """The sounds whose lengths are known, which are then in `seconds`."""
        if not isinstance(source, Listed):
            raise ValueError(
                f"batch_seconds={self.batch_seconds} goes by the lengths of sounds, which streams do not tell "
                "beforehand: give batch_size, or shards that are listed."
            )
        told = self.seconds if len(self.seconds) == len(source) else [None] * len(source)
        kept, self.seconds = [], []
        faulty: dict[str, str] = {}
        for sample, given in zip(source.samples, told, strict=True):
            try:
                seconds = read_seconds(sample.read()) if given is None else given
                if seconds < max(self.min_seconds, 1e-9):
                    raise UnreadableError(f"its {seconds:g} s are fewer than min_seconds={self.min_seconds:g}")
            except UnreadableError as error:
                faulty[sample.name] = str(error)
                continue
            kept.append(sample)
            self.seconds.append(min(seconds, self.max_seconds or seconds))
        faults.add(faulty, len(told))
        if not kept:
            raise ValueError(f"{self.root} has no training sound that can be read")
        return Listed(kept)

    def order(self, samples: Any) -> Order:
        """The order of the training sounds: in batches by their lengths with `batch_seconds`."""
        if self.batch_seconds is None:
            return super().order(samples)
        return LengthOrder(self.seconds, self.batch_seconds, self.trainer)

"""The DataModule of time series."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray

from jepa_lightning.data.datamodule import SplitDataModule
from jepa_lightning.data.series.archives import download_archive, find_archive, read_archive
from jepa_lightning.data.series.dataset import SeriesWindows
from jepa_lightning.data.series.grid import Counts, interpolated
from jepa_lightning.data.series.labels import as_numbers, class_names, numbered
from jepa_lightning.data.series.scaling import Kind, Scaling
from jepa_lightning.data.series.tables import is_table, read_tables, series_of
from jepa_lightning.errors import check_choice

Gaps = Literal["mask", "interpolate"]
Split = Literal["time", "series"]
Part = tuple[list[NDArray[Any]], Sequence[Any] | NDArray[Any] | None]  # series, and their labels


class SeriesDataModule(SplitDataModule):
    """Time series, whole or in windows: batches are `batches.Series`, all of one length, padded where it is too short.

    The source is one of

    - an archive of UCR or UEA (`.ts`, `.arff`, `.tsv`): a name, a folder with `*_TRAIN.ts`, or such a file. Training
      and test parts are the archive's; the test part validates, too. Archives in aeon's wheel need no download.
    - tables: a `.csv`, `.csv.gz` or `.parquet` file, a folder or pattern of these, a pandas `DataFrame`, or a list of
      these. Each series is cut by time: its first part trains, its last part is the test (`split="time"`); or some
      series train, and others are the test (`split="series"`). Times are put on an even grid.

    What is missing is counted and said: steps without a number are not seen (`gaps="mask"`), or filled along lines.

    Args:
        source: see above.
        root: where archives are looked up by their names, and downloaded to.
        download: whether an archive that is nowhere else is downloaded.
        batch_size: series per batch. Training drops an incomplete last batch.
        num_workers: worker processes per loader; 0 loads in the training process.
        window: steps that a sample has; whole series without.
        stride: steps from a training window to the next; a quarter of the window by default. Held-out windows do not
            overlap.
        scaling: `train`: channels are standardised by the training part; `series`: each sample by itself; `none`.
        gaps: `mask` or `interpolate`.
        time: of tables, the column of time stamps, or of numbers, or the index of a frame by its name; without, an
            index of time stamps, or else rows are steps.
        series_id: of tables, the column that tells several series apart; each file is one without.
        channels: of tables, the columns that are channels; all columns of numbers or truth values without.
        label: of tables, the column of labels, which may change from step to step: words or whole numbers are classes,
            other numbers are not. A window has the most frequent class of its steps, or the mean of the numbers.
        frequency: of tables, the time between steps, such as `15min` or, where times are numbers, a number; the median
            distance of rows without.
        split: of tables, `time` or `series`; which series train is drawn, the same ones every time.
        val_share: of tables, the share of each series that validates, before the test's; or of all series.
        test_share: of tables, the share of each series at its end that tests; or of all series.

    Attributes:
        scaling: the `Scaling`, which checkpoints of a training store.
        num_steps: steps of a sample.
        in_channels: channels.
        classes: names of the classes, in the order of their numbers; none where labels are numbers, or missing.
        parts: by role the series `[L, C]`, and what they are labelled with (see `SeriesWindows`).
        counts: of tables, what was missing or moved.

    Raises:
        ValueError: for an argument out of range, data that cannot be read, or too few of them.
        FileNotFoundError: from `prepare_data` or `setup`, if the data are missing.

    Example:
        >>> data = SeriesDataModule("ItalyPowerDemand", batch_size=16)
        >>> data.setup("fit")
        >>> next(iter(data.val_dataloader())).series.shape
        torch.Size([16, 24, 1])
    """

    def __init__(
        self,
        source: Any = "GunPoint",
        root: str = "data",
        download: bool = True,
        batch_size: int = 32,
        num_workers: int = 0,
        window: int | None = None,
        stride: int | None = None,
        scaling: Kind = "train",
        gaps: Gaps = "mask",
        time: str | None = None,
        series_id: str | None = None,
        channels: Sequence[str] | None = None,
        label: str | None = None,
        frequency: str | float | None = None,
        split: Split = "time",
        val_share: float = 0.1,
        test_share: float = 0.2,
    ) -> None:
        super().__init__(batch_size, num_workers)
        check_choice("gaps", gaps, get_args(Gaps))
        check_choice("split", split, get_args(Split))
        for name, value in {"window": window, "stride": stride}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1 step")
        if stride is not None and window is None:
            raise ValueError(f"stride={stride} is of windows: give window, too")
        if min(val_share, test_share) < 0 or val_share + test_share >= 1:
            raise ValueError(f"val_share={val_share} and test_share={test_share} must leave a share to train on")
        given: dict[str, Any] = {
            "time": time, "series_id": series_id, "channels": channels, "label": label, "frequency": frequency
        }  # fmt: skip
        if not is_table(source) and (unused := [name for name, value in given.items() if value is not None]):
            raise ValueError(f"{', '.join(unused)}: of tables, which {source!r} is not")
        if frequency is not None and time is None:
            raise ValueError(f"frequency={frequency!r} is that of times: give the column time, too")
        self.save_hyperparameters(logger=False, ignore=[] if isinstance(source, str) else ["source"])
        self.source, self.root, self.download = source, Path(root), download
        self.window, self.stride, self.gaps = window, stride or max(1, (window or 4) // 4), gaps
        self.columns = given
        self.split, self.val_share, self.test_share = split, val_share, test_share
        self.scaling = Scaling(scaling)
        self.classes: list[str] = []
        self.counts: Counts | None = None
        self.parts: dict[str, Part] = {}

    def prepare_data(self) -> None:
        """Download what is missing (Lightning calls this in one process only)."""
        if self.download and not is_table(self.source):
            download_archive(str(self.source), self.root)

    def setup(self, stage: str | None = None) -> None:
        """Read the series, scale and cut them; for all stages, as the training part is what scales.

        Raises:
            FileNotFoundError: if the data are missing; the message says how to get them.
            ValueError: data that cannot be read, or fewer training samples than a batch holds.
        """
        if self.parts:
            return
        parts = self._tables() if is_table(self.source) else self._archive()
        if self.gaps == "interpolate":
            parts = {role: ([interpolated(each) for each in series], label) for role, (series, label) in parts.items()}
        self.in_channels = parts["train"][0][0].shape[1]
        self.num_steps = self.window or max(len(each) for series, _ in parts.values() for each in series)
        self.scaling.fit(parts["train"][0])
        dropped, sets = 0, {}
        for role, (series, labels) in parts.items():
            stride = self.stride if role == "train" else self.window or 1
            sets[role] = SeriesWindows(series, labels, self.num_steps, self.window, stride, self.scaling)
            dropped += sets[role].dropped
        if dropped:
            rank_zero_warn(f"{dropped} windows have no number in them, and are left out")
        if len(sets["train"]) < self.batch_size:
            raise ValueError(
                f"there are {len(sets['train'])} training samples, fewer than batch_size={self.batch_size}, and "
                "incomplete batches are dropped: give a smaller batch_size, or cut long series into windows (window)"
            )
        self.parts, self.sets = parts, {role: each for role, each in sets.items() if len(each)}

    def state_dict(self) -> dict[str, Any]:
        """The scaling, which whoever uses the encoder needs."""
        return {"scaling": self.scaling.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Scale as the training of a checkpoint did, whatever data these are."""
        stored = Scaling(**state_dict["scaling"])
        if stored.kind != self.scaling.kind:
            rank_zero_warn(f"the checkpoint was trained with scaling={stored.kind!r}, not {self.scaling.kind!r}")
            return
        self.scaling.mean, self.scaling.std = stored.mean, stored.std

    def _archive(self) -> dict[str, Part]:
        files = find_archive(str(self.source), self.root)
        parts: dict[str, Part] = {}
        for role, path in files.items():
            series, labels = read_archive(path)
            if labels is not None and np.issubdtype(labels.dtype, np.number):
                labels = labels.astype(np.float32)
            elif labels is not None:
                self.classes = self.classes or class_names(labels)
                labels = numbered(labels, self.classes, path)
            parts[role] = (series, labels)
            lengths = [len(each) for each in series]
            missing = sum(int(np.isnan(each).sum()) for each in series)
            length = f"{min(lengths)} to {max(lengths)}" if min(lengths) < max(lengths) else str(lengths[0])
            rank_zero_info(
                f"{path}: {len(series)} series of {length} steps and {series[0].shape[1]} channels"
                + (f", {len(self.classes)} classes" if self.classes else "")
                + (f", {missing} numbers missing" if missing else "")
            )
        widths = {each.shape[1] for series, _ in parts.values() for each in series}
        if len(widths) > 1:
            raise ValueError(f"the series of {self.source} have {', '.join(map(str, sorted(widths)))} channels")
        return parts | ({"val": parts["test"]} if "test" in parts else {})

    def _tables(self) -> dict[str, Part]:
        found: dict[str, NDArray[Any]] = {}
        told: dict[str, NDArray[Any]] = {}
        counts, channels = Counts(), None
        for name, frame in read_tables(self.source).items():
            table = series_of(frame, name, **self.columns)
            if channels is not None and table.channels != channels:
                raise ValueError(
                    f"{name} has the channels {', '.join(table.channels)}, the others {', '.join(channels)}"
                )
            channels, counts = table.channels, counts.plus(table.counts)
            keys = {key: key if key not in found else f"{name}/{key}" for key in table.series}
            found |= {keys[key]: each for key, each in table.series.items()}
            told |= {keys[key]: each for key, each in (table.labels or {}).items()}
        self.counts = counts
        filled = " (filled along lines)" if self.gaps == "interpolate" else " (not seen)"
        rank_zero_info(
            f"{len(found)} series of {', '.join(channels or ())}: {counts}{filled if counts.missing else ''}"
        )
        labels, self.classes = as_numbers(list(told.values()))
        shares = {"train": 1 - self.val_share - self.test_share, "val": self.val_share, "test": self.test_share}
        parts: dict[str, Part] = {}
        for role, chosen in split_parts([len(each) for each in found.values()], self.split, shares).items():
            series = list(found.values())
            some = [(number, steps) for number, steps in chosen if steps.stop > steps.start]
            if some:
                parts[role] = (
                    [series[number][steps] for number, steps in some],
                    [labels[number][steps] for number, steps in some] if labels else None,
                )
        if "train" not in parts:
            raise ValueError(f"nothing is left to train on of {len(found)} series, split by {self.split}")
        return parts


def split_parts(lengths: Sequence[int], by: Split, shares: dict[str, float]) -> dict[str, list[tuple[int, slice]]]:
    """What of each series belongs to which part: its number, and its steps; parts in the order of their shares.

    >>> split_parts([10, 5], "time", {"train": 0.6, "val": 0.2, "test": 0.2})["val"]
    [(0, slice(6, 8, None)), (1, slice(3, 4, None))]
    >>> split_parts([10, 5], "series", {"train": 0.5, "val": 0.0, "test": 0.5})
    {'train': [(0, slice(0, 10, None))], 'val': [], 'test': [(1, slice(0, 5, None))]}
    """
    ends = np.cumsum([0.0, *shares.values()])
    parts: dict[str, list[tuple[int, slice]]] = {role: [] for role in shares}
    if by == "series":
        drawn = np.random.default_rng(0).permutation(len(lengths)).tolist()
        for role, low, high in zip(shares, ends[:-1], ends[1:], strict=True):
            some = drawn[round(low * len(drawn)) : round(high * len(drawn))]
            parts[role] = [(number, slice(0, lengths[number])) for number in sorted(some)]
        return parts
    for number, length in enumerate(lengths):
        for role, low, high in zip(shares, ends[:-1], ends[1:], strict=True):
            parts[role].append((number, slice(round(length * low), round(length * high))))
    return parts

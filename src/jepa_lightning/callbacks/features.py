"""The features of a data set in a file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch.distributed as dist
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor

from jepa_lightning import batches


class FeatureWriter(BasePredictionWriter):
    """Writes what the predictions of a module hold, features with labels, to one file in the order of the data.

    `.npz` is numpy's format, with an array a name: `numpy.load(path)["features"]` is `[N, D]`. `.csv` has a column for
    each number, `features_0`, `features_1` and so on, as `pandas.read_csv` and `numpy.genfromtxt(path, delimiter=",",
    names=True)` read it.

    Args:
        path: of the file, which ends in `.npz` or `.csv`.

    Raises:
        ValueError: another ending.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__("epoch")
        self.path = Path(path)
        if self.path.suffix not in (".npz", ".csv"):
            raise ValueError(f"features are written to a file that ends in .npz or .csv, got {str(path)!r}")

    def write_on_epoch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Collect the predictions of all processes, and write them.

        Raises:
            TypeError: predictions that are no dicts of tensors `[B, ...]` or lists of B values.
        """
        if not predictions or not isinstance(predictions[0], dict):
            raise TypeError(f"{type(pl_module).__name__}.predict_step gives no dict of features and labels")
        parts = {name: _as_numpy(_joined([batch[name] for batch in predictions])) for name in predictions[0]}
        order = np.array([index for batch in batch_indices[0] for index in batch], dtype=np.int64)
        if not len(order):  # a stream, whose samples have no places: one process's come after another's
            order = trainer.global_rank * 2**40 + np.arange(len(parts["features"]))
        everywhere: list[Any] = [(order, parts)]
        if trainer.world_size > 1:
            everywhere = [None] * trainer.world_size
            dist.all_gather_object(everywhere, (order, parts))
        if trainer.is_global_zero:
            places = np.concatenate([order for order, _ in everywhere]).argsort(kind="stable")
            self._write({name: np.concatenate([part[name] for _, part in everywhere])[places] for name in parts})

    def _write(self, arrays: dict[str, NDArray[Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.suffix == ".npz":
            np.savez(self.path, **arrays)  # type: ignore[arg-type]
        else:
            columns = {
                name if array.ndim == 1 else f"{name}_{number}": column
                for name, array in arrays.items()
                for number, column in enumerate(array.reshape(len(array), -1).T)
            }
            with self.path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([columns, *zip(*columns.values(), strict=True)])
        rank_zero_info(f"{', '.join(arrays)} of {len(arrays['features'])} samples are in {self.path}")


def _joined(values: list[Any]) -> Any:
    """A field of several batches."""
    if isinstance(values[0], Tensor):
        return batches.joined(values)
    return np.concatenate([np.asarray(value) for value in values])


def _as_numpy(values: Any) -> NDArray[Any]:
    """A tensor, or a list such as one of names, as an array."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.cpu()
    found: NDArray[Any] = (values.float() if values.is_floating_point() else values).numpy()  # numpy has no bfloat16
    return found

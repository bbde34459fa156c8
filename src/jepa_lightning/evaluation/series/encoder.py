"""A frozen encoder of time series as a transformer of scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from jepa_lightning.checkpoints import load_encoder
from jepa_lightning.checkpoints.reading import read_file
from jepa_lightning.data.series.scaling import Scaling
from jepa_lightning.evaluation.features import FeatureTransformer
from jepa_lightning.step import Tokens

Array = NDArray[Any]
Pooling = Literal["mean", "max", "mean and last"]


class SeriesEncoder(FeatureTransformer):
    """Series to the features of a checkpoint's encoder, scaled as in its training.

    Series are arrays `[n, L]` of one channel or `[n, L, C]`, or a list of arrays `[L]` or `[L, C]` of any lengths; NaN
    is where nothing was measured. Nothing is fitted: `transform` may be called right away.

    Args:
        path: a checkpoint of `TSJEPA`, ours or official; an encoder of another kind says its `patch_size` and
            `in_channels`, as `SeriesConvolutions` does. Ours holds the scale of a `SeriesDataModule` that it was
            trained on; an official one is fed as it is.
        pooling: of the tokens that there are: their `mean`; their `max`, as TS2Vec's protocol has it; or `mean and
            last`, side by side, for forecasts.
        network: `target_encoder`, which the paper evaluates, or `context_encoder`.
        batch_size: series that are encoded at once.

    Raises:
        FileNotFoundError: nothing is at the path.
        ValueError: a checkpoint of another kind, or, of `transform`, series of another shape.
    """

    def __init__(
        self,
        path: str | Path,
        pooling: Pooling = "mean",
        network: str = "target_encoder",
        batch_size: int = 256,
    ) -> None:
        self.path = path
        self.pooling = pooling
        self.network = network
        self.batch_size = batch_size

    def read(self) -> None:
        """Read the checkpoint."""
        if self.pooling not in get_args(Pooling):
            raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}, got {self.pooling!r}")
        encoder = load_encoder(self.path, self.network)
        if not (hasattr(encoder, "in_channels") and isinstance(getattr(encoder, "patch_size", None), int)):
            raise ValueError(f"{self.path} holds a {type(encoder).__name__}, not an encoder of series")
        told = read_file(Path(self.path)).get("SeriesDataModule", {}).get("scaling", {"kind": "none"})
        self.encoder_, self.scaling_ = encoder, Scaling(**told)

    def transform(self, X: Any) -> Array:  # noqa: N803
        """The features `[n, D]` of series, float32."""
        tokens = self.tokens(X)
        found = [tokens.pooled()] if self.pooling != "max" else []
        valid = tokens.valid
        if self.pooling == "max":
            floor = torch.finfo(torch.float32).min
            values = tokens.values if valid is None else tokens.values.masked_fill(~valid.unsqueeze(-1), floor)
            found.append(values.amax(1))
        elif self.pooling == "mean and last":
            last = torch.full((len(tokens.values),), tokens.values.shape[1] - 1)
            if valid is not None:
                last = (valid * torch.arange(valid.shape[1])).amax(1)
            found.append(tokens.values[torch.arange(len(last)), last])
        return torch.cat(found, 1).numpy()

    @torch.no_grad()
    def tokens(self, X: Any) -> Tokens:  # noqa: N803
        """The tokens `[n, N, D]` of series, in float32 on the CPU."""
        self.fit()
        series = as_series(X, self.encoder_.in_channels)
        patch = self.encoder_.patch_size
        length = -(-max(len(each) for each in series) // patch) * patch
        values: list[Any] = []
        valids: list[Any] = []
        for first in range(0, len(series), self.batch_size):
            scaled, valid = padded([self.scaling_.apply(each)[0] for each in series[first : first + self.batch_size]])
            fill = length - scaled.shape[1]
            there = F.pad(valid, (0, fill)).unflatten(1, (-1, patch)).any(-1)
            values.append(self.encoder_(F.pad(scaled, (0, 0, 0, fill)), None, there))
            valids.append(there)
        return Tokens(torch.cat(values), torch.cat(valids))


def as_series(X: Any, channels: int | None = None) -> list[Array]:  # noqa: N803
    """Series of any kind as a list of arrays `[L, C]`, float64.

    Args:
        X: `[n, L]` or `[n, L, C]`, or a list of arrays `[L]` or `[L, C]`.
        channels: how many there have to be.

    Raises:
        ValueError: another shape.
    """
    if not isinstance(X, list | tuple):
        X = np.asarray(X, np.float64)  # noqa: N806
        if X.ndim not in (2, 3):
            raise ValueError(f"series are [n, L] or [n, L, C], got {list(X.shape)}: one alone is [series]")
    series = [np.asarray(each, np.float64) for each in X]
    series = [each[:, None] if each.ndim == 1 else each for each in series]
    if not series:
        raise ValueError("there is no series")
    for each in series:
        if each.ndim != 2 or not each.size or channels not in (None, each.shape[1]):
            raise ValueError(
                f"expected series [L, {channels or 'C'}], got {list(each.shape)}"
                + (" (aeon's arrays are [n, C, L]: transpose them)" if channels in each.shape else "")
            )
    return series


def padded(series: Sequence[Array]) -> tuple[torch.Tensor, torch.Tensor]:
    """Series `[L, C]` as one tensor `[n, L, C]` float32, zero where there is nothing, and at which steps there is."""
    values = np.full((len(series), max(len(each) for each in series), series[0].shape[1]), np.nan, np.float32)
    for row, each in zip(values, series, strict=True):
        row[: len(each)] = each
    valid = torch.from_numpy(np.isfinite(values).any(2))
    return torch.from_numpy(np.nan_to_num(values, nan=0.0)), valid

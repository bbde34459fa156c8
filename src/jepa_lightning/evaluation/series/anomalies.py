"""Anomalies of a series by how it is predicted, of whole series and of a stream; and by the nearest known window."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors
from typing_extensions import Self

from jepa_lightning.batches import Series
from jepa_lightning.data.series.scaling import Scaling
from jepa_lightning.evaluation.series.encoder import as_series, padded
from jepa_lightning.masking import Masks

Array = NDArray[Any]


class AnomalyDetector:
    """Scores each step of a series by how unusually its last patch differs from what is predicted of it.

    A step is judged by the window that ends with it, whose last patch is hidden: by the residual, the predicted
    embedding minus the teacher's. `fit` learns from normal series how residuals are spread. The score is the squared
    Mahalanobis distance of a residual from these, over the number of features: about 1 on normal series, and high where
    a feature is off that otherwise is not. It knows nothing of the future, so a stream has the scores of the whole.

    The energy, the mean distance, mostly tells how well a stretch can be predicted at all: of a heartbeat it is high at
    each rise. `standardised=False` scores by it, for comparison.

    Args:
        module: a trained `TSJEPA`.
        scaling: of the windows: that of the training, `SeriesDataModule.scaling`, which its checkpoint holds, too
            (`SeriesEncoder(path).fit().scaling_`); `Scaling("none")` for one without.
        window: steps of a window; those that the module was built for by default.
        quantile: share of the steps of normal series that are below the threshold.
        batch_size: windows that are scored at once.
        standardised: by the spread on normal series; the energy without, for which only `predict` needs `fit`.

    Attributes:
        residuals_: mean and covariance (Ledoit and Wolf's) of residuals on normal series, after `fit`.
        threshold_: of `predict`, after `fit`.

    Raises:
        ValueError: a window of a single patch, or one that is no whole number of patches.

    Source: the energy of a JEPA: LeCun (2022), "A path towards autonomous machine intelligence", section 4; the
    Mahalanobis distance of features: PaDiM (arXiv 2011.08785), section III.
    """

    def __init__(
        self,
        module: Any,
        scaling: Scaling,
        window: int | None = None,
        quantile: float = 0.99,
        batch_size: int = 256,
        standardised: bool = True,
    ) -> None:
        self.module = module.eval()
        self.patch = int(module.hparams.patch_size)
        self.window = window or self.patch * module.grid[0]
        if self.window % self.patch or self.window < 2 * self.patch:
            raise ValueError(f"window={self.window} must be two or more whole patches of {self.patch} steps")
        if not 0 < quantile < 1:
            raise ValueError(f"quantile must lie in (0, 1), got {quantile}")
        self.scaling, self.quantile, self.batch_size = scaling, quantile, batch_size
        self.standardised = standardised
        self._recent: list[Array] = []

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803
        """Learn how residuals are spread on normal series (see `SeriesEncoder`), and the threshold.

        Raises:
            ValueError: fewer than two windows whose last patch misses no number.
        """
        series = as_series(X)
        found = np.concatenate([self._read(each) for each in series])
        found = found[np.isfinite(found).all(1)]
        if len(found) < 2:
            longest = max(len(each) for each in series)
            raise ValueError(
                f"normal series of up to {longest} steps have fewer than two windows of {self.window} steps whose last "
                f"{self.patch} miss no number"
            )
        if self.standardised:
            self.residuals_ = LedoitWolf().fit(found)
        self.threshold_ = float(np.quantile(self._scores(found), self.quantile))
        return self

    def score(self, series: Array) -> Array:
        """The score of each step of a series `[L]` or `[L, C]`, `[L]`: NaN before the first window is full.

        Also NaN where the last patch misses a number, which would look unusual by itself (`interpolated` fills gaps).

        Raises:
            RuntimeError: `fit` has not learned how residuals are spread.
        """
        (series,) = as_series([series])
        return self._scores(self._read(series))

    def predict(self, series: Array) -> Array:
        """Which steps of a series are anomalous, `[L]` bool.

        Raises:
            RuntimeError: no threshold has been learned.
        """
        if not hasattr(self, "threshold_"):
            raise RuntimeError("there is no threshold: fit the detector on normal series")
        return self.score(series) > self.threshold_

    def update(self, step: Any) -> float:
        """The score of the next step of a stream, `[C]` or a number; NaN until a window is full.

        Raises:
            RuntimeError: as of `score`.
        """
        self._recent = [*self._recent, np.atleast_1d(np.asarray(step, np.float64))][-self.window :]
        if len(self._recent) < self.window:
            return float("nan")
        return float(self._scores(self._windows([np.stack(self._recent)]))[0])

    def reset(self) -> None:
        """Forget the stream."""
        self._recent = []

    def _read(self, series: Array) -> Array:
        """Of each step of a series its residual, or its energy: `[L, D]` or `[L, 1]`, NaN where there is none."""
        ends = np.arange(self.window, len(series) + 1)
        parts = [
            self._windows([series[end - self.window : end] for end in ends[first : first + self.batch_size]])
            for first in range(0, len(ends), self.batch_size)
        ]
        if not parts:
            width = self.module.context_encoder.embed_dim if self.standardised else 1
            return np.full((len(series), width), np.nan)
        return np.concatenate([np.full((self.window - 1, parts[0].shape[1]), np.nan), *parts])

    @torch.no_grad()
    def _windows(self, windows: list[Array]) -> Array:
        """The residual `[n, D]` of the last patch of each window `[W, C]`, or its energy `[n, 1]`."""
        values, valid = padded([self.scaling.apply(each)[0] for each in windows])
        tokens, device = self.window // self.patch, self.module.device
        place = torch.arange(tokens, device=device).expand(len(windows), -1)
        batch = Series(values.to(device), valid.to(device), torch.full((len(windows),), -1, device=device))
        latents = self.module.latents(batch, Masks(place[:, :-1], place[:, None, -1:]))
        if self.standardised:
            found = (latents.prediction - latents.target).flatten(1)
        else:
            found = self.module.energy(latents).unsqueeze(1)
        rows = found.cpu().numpy().astype(np.float64)
        rows[[not np.isfinite(each[-self.patch :]).all() for each in windows]] = np.nan
        return rows

    def _scores(self, found: Array) -> Array:
        """The scores `[n]` of residuals or energies, NaN of what is NaN."""
        if not self.standardised:
            return found[:, 0]
        if not hasattr(self, "residuals_"):
            raise RuntimeError("how residuals are spread is not known: fit the detector on normal series")
        scores, there = np.full(len(found), np.nan), np.isfinite(found).all(1)
        if there.any():
            scores[there] = self.residuals_.mahalanobis(found[there]) / found.shape[1]
        return scores


def nearest_window(known: Any, series: Array, window: int) -> Array:
    """How far the window that ends with each step of a series is from the nearest window of known series, `[L]`.

    The baseline of anomaly detection: the Euclidean distance of the numbers themselves, each channel standardised by
    the known series; the square root of its mean square. NaN where the window is not full, or misses a number.

    Args:
        known: normal series (see `SeriesEncoder`).
        series: `[L]` or `[L, C]`.
        window: steps of a window.

    Raises:
        ValueError: no window of the known series is full.

    Source: of one series with itself that is the matrix profile, Yeh et al. (ICDM 2016), whose windows are also
    standardised each by itself.

    >>> nearest_window([np.array([0.0, 2.0, 0.0, 2.0])], np.array([2.0, 0.0, 2.0, 2.0]), 2).round(4).tolist()
    [nan, 0.0, 0.0, 1.4142]
    """
    normal, (other,) = as_series(known), as_series([series])
    scaling = Scaling("train")
    scaling.fit(normal)
    rows = [_full_windows(scaling.apply(each)[0], window) for each in (*normal, other)]
    there = [np.isfinite(each).all(1) for each in rows]
    full = np.concatenate([row[fine] for row, fine in zip(rows[:-1], there[:-1], strict=True)])
    if not len(full):
        raise ValueError(f"the known series have no window of {window} steps without a gap")
    distances = np.full(len(other), np.nan)
    if there[-1].any():
        found, _ = NearestNeighbors(n_neighbors=1).fit(full).kneighbors(rows[-1][there[-1]])
        distances[np.flatnonzero(there[-1]) + window - 1] = found[:, 0] / rows[-1].shape[1] ** 0.5
    return distances


def _full_windows(series: Array, window: int) -> Array:
    """All windows of a series `[L, C]`, flat: `[L - W + 1, W C]`."""
    if len(series) < window:
        return np.empty((0, window * series.shape[1]))
    return np.lib.stride_tricks.sliding_window_view(series, window, axis=0).reshape(len(series) - window + 1, -1)

"""Anomalies of a series by the energy of a prediction, of whole series and of a stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import Self

from jepa_lightning.batches import Series
from jepa_lightning.data.series.scaling import Scaling
from jepa_lightning.evaluation.series.encoder import as_series, padded
from jepa_lightning.masking import Masks

Array = NDArray[Any]


class AnomalyDetector:
    """Scores each step of a series by how badly its last patch is predicted from what came before.

    The score of a step is the energy of a window that ends with it, whose last patch is hidden: the distance of the
    predicted embedding from the teacher's. It knows nothing of the future, so a stream has the scores of the whole.

    Args:
        module: a trained `TSJEPA`.
        scaling: of the windows: that of the training, `SeriesDataModule.scaling`.
        window: steps of a window; those that the module was built for by default.
        quantile: share of the steps of normal series that are below the threshold.
        batch_size: windows that are scored at once.

    Attributes:
        threshold_: of `predict`, after `fit`.

    Raises:
        ValueError: a window of a single patch, or one that is no whole number of patches.
    """

    def __init__(
        self,
        module: Any,
        scaling: Scaling | None = None,
        window: int | None = None,
        quantile: float = 0.99,
        batch_size: int = 256,
    ) -> None:
        self.module = module.eval()
        self.patch = int(module.hparams.patch_size)
        self.window = window or self.patch * module.grid[0]
        if self.window % self.patch or self.window < 2 * self.patch:
            raise ValueError(f"window={self.window} must be two or more whole patches of {self.patch} steps")
        if not 0 < quantile < 1:
            raise ValueError(f"quantile must lie in (0, 1), got {quantile}")
        self.scaling, self.quantile, self.batch_size = scaling or Scaling("none"), quantile, batch_size
        self._recent: list[Array] = []

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803
        """Learn the threshold from normal series (see `SeriesEncoder`)."""
        scores = np.concatenate([self.score(each) for each in as_series(X)])
        self.threshold_ = float(np.nanquantile(scores, self.quantile))
        return self

    def score(self, series: Array) -> Array:
        """The score of each step of a series `[L]` or `[L, C]`, `[L]`: NaN before the first window is full.

        Also NaN where the last patch has no number.
        """
        (series,) = as_series([series])
        scores = np.full(len(series), np.nan)
        ends = np.arange(self.window, len(series) + 1)
        for some in np.array_split(ends, -(-len(ends) // self.batch_size)) if len(ends) else ():
            scores[some - 1] = self._energies([series[end - self.window : end] for end in some])
        return scores

    def predict(self, series: Array) -> Array:
        """Which steps of a series are anomalous, `[L]` bool.

        Raises:
            RuntimeError: no threshold has been learned.
        """
        if not hasattr(self, "threshold_"):
            raise RuntimeError("there is no threshold: fit the detector on normal series")
        return self.score(series) > self.threshold_

    def update(self, step: Any) -> float:
        """The score of the next step of a stream, `[C]` or a number; NaN until a window is full."""
        self._recent = [*self._recent, np.atleast_1d(np.asarray(step, np.float64))][-self.window :]
        if len(self._recent) < self.window:
            return float("nan")
        return float(self._energies([np.stack(self._recent)])[0])

    def reset(self) -> None:
        """Forget the stream."""
        self._recent = []

    @torch.no_grad()
    def _energies(self, windows: list[Array]) -> Array:
        """The energy of the last patch of each window `[W, C]`."""
        values, valid = padded([self.scaling.apply(each)[0] for each in windows])
        tokens, device = self.window // self.patch, self.module.device
        place = torch.arange(tokens, device=device).expand(len(windows), -1)
        batch = Series(values.to(device), valid.to(device), torch.full((len(windows),), -1, device=device))
        latents = self.module.latents(batch, Masks(place[:, :-1], place[:, None, -1:]))
        energy = self.module.energy(latents).cpu().numpy().astype(np.float64)
        energy[~valid[:, -self.patch :].any(1).numpy()] = np.nan
        return energy

"""Forecasts from frozen features, in the units of the data, beside a linear model and a seasonal naive one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from typing_extensions import Self

from jepa_lightning.data.series.scaling import Scaling
from jepa_lightning.evaluation.series.encoder import SeriesEncoder, as_series

Array = NDArray[Any]


class RidgeForecaster:
    """A linear map from features of a window to the steps that follow it, in the scale of the window.

    Args:
        features: from windows `[n, W, C]` in the units of the data, NaN where there is nothing, to `[n, F]`.
        window: W, the steps that are seen.
        horizon: H, the steps that are predicted at once.
        scaling: of the windows; what is predicted is brought back by the same.

    Raises:
        ValueError: no step at all.
    """

    def __init__(
        self, features: Callable[[Array], Array], window: int, horizon: int, scaling: Scaling | None = None
    ) -> None:
        if window < 1 or horizon < 1:
            raise ValueError(f"window and horizon must be at least 1 step, got {window} and {horizon}")
        self.features, self.window, self.horizon = features, window, horizon
        self.scaling = scaling or Scaling("series")

    def fit(self, series: Sequence[Array], stride: int = 1) -> Self:
        """Fit on the windows of training series `[L, C]`, whose steps to predict are all there.

        Raises:
            ValueError: no such window.
        """
        windows, targets = cut(series, self.window, self.horizon, stride)
        if not len(windows):
            raise ValueError(f"no training series has {self.window} + {self.horizon} steps without a gap in the latter")
        scaled = np.stack(
            [self.scaling.apply(window)[1].scale(target) for window, target in zip(windows, targets, strict=True)]
        )
        model = make_pipeline(StandardScaler(), RidgeCV(10.0 ** np.arange(-3, 6)))
        self.model = model.fit(self.features(windows), scaled.reshape(len(scaled), -1))
        return self

    def predict(self, windows: Array) -> Array:
        """The steps that follow windows `[n, W, C]`, `[n, H, C]`, both in the units of the data."""
        scaled = self.model.predict(self.features(windows)).reshape(len(windows), self.horizon, -1)
        return np.stack([self.scaling.apply(window)[1](each) for window, each in zip(windows, scaled, strict=True)])

    def roll_out(self, windows: Array, steps: int) -> Array:
        """The next `steps` of windows `[n, W, C]`, `[n, steps, C]`, each forecast being seen by the next."""
        seen = windows
        while seen.shape[1] < windows.shape[1] + steps:
            seen = np.concatenate([seen, self.predict(seen[:, -self.window :])], 1)
        return seen[:, windows.shape[1] : windows.shape[1] + steps]


def seasonal_naive(windows: Array, steps: int, season: int = 1) -> Array:
    """The last season of windows `[n, W, C]` again and again, `[n, steps, C]`; with a season of 1, the last step.

    Of a step that is not there, the one a season before.

    >>> seasonal_naive(np.array([[[1.0], [2.0], [np.nan], [4.0]]]), 3, season=2).ravel().tolist()
    [1.0, 4.0, 1.0]
    """
    if not 1 <= season <= windows.shape[1]:
        raise ValueError(f"season={season} must lie within the window of {windows.shape[1]} steps")
    last = windows[:, -season:].copy()
    for end in range(windows.shape[1] - season, 0, -season):
        earlier = windows[:, max(0, end - season) : end]
        part = last[:, season - earlier.shape[1] :]
        part[...] = np.where(np.isfinite(part), part, earlier)
    return np.take(last, np.arange(steps) % season, axis=1)


class Forecast(NamedTuple):
    """How far the forecasts of a model are off, in the units of the data.

    Attributes:
        model: which.
        steps: how many are predicted: `one step`, `horizon` at once, or by `roll-out`.
        mae: mean absolute error.
        mse: mean squared error.
        mase: the MAE over that of the naive forecast with the season, on the training part.
    """

    model: str
    steps: str
    mae: float
    mse: float
    mase: float


def forecast(
    encoder: SeriesEncoder,
    train: Any,
    test: Any,
    window: int,
    horizon: int,
    season: int = 1,
    block: int | None = None,
    stride: int = 1,
) -> list[Forecast]:
    """Forecasts by features of an encoder, trained and not, by the steps themselves, and by the last season.

    Args:
        encoder: of the series; its features are pooled as it says (`mean and last` suits forecasts).
        train: series (see `SeriesEncoder`) on which models are fitted.
        test: series, all of whose windows are forecast.
        window: steps that are seen.
        horizon: steps that are forecast.
        season: steps of a season, for the naive forecast.
        block: steps that a roll-out predicts at a time; those of a patch by default.
        stride: steps from one window to the next.

    Returns:
        A line for each model and way.

    Raises:
        ValueError: series that are too short.
    """
    series, held_out = as_series(train), as_series(test)
    windows, targets = cut(held_out, window, horizon, stride)
    if not len(windows):
        raise ValueError(f"no test series has {window} + {horizon} steps without a gap in the latter")
    scale = _naive_error(series, season)
    block = min(horizon, block or encoder.fit().encoder_.patch_size)
    scaling, flat = encoder.scaling_, Scaling("series")
    models: dict[str, tuple[Callable[[Array], Array], Scaling]] = {
        "encoder": (encoder.transform, scaling),
        "untrained encoder": (encoder.untrained().transform, scaling),
        "linear": (lambda given: np.nan_to_num([flat.apply(each)[0] for each in given]).reshape(len(given), -1), flat),
    }
    found: dict[tuple[str, str], Array] = {}
    for name, (features, scaled_by) in models.items():
        for length in sorted({1, horizon, block}):
            model = RidgeForecaster(features, window, length, scaled_by).fit(series, stride)
            if length == 1:
                found[name, "one step"] = model.predict(windows)
            if length == horizon:
                found[name, "horizon"] = model.predict(windows)
            if length == block:
                found[name, "roll-out"] = model.roll_out(windows, horizon)
    for steps in ("one step", "horizon"):
        found["seasonal naive", steps] = seasonal_naive(windows, 1 if steps == "one step" else horizon, season)
    rows = []
    for (name, steps), predicted in found.items():
        errors = predicted - targets[:, : predicted.shape[1]]
        mae = float(np.nanmean(np.abs(errors)))
        rows.append(Forecast(name, steps, mae, float(np.nanmean(errors**2)), mae / scale))
    return rows


def cut(series: Sequence[Array], window: int, horizon: int, stride: int = 1) -> tuple[Array, Array]:
    """The windows `[n, W, C]` of series and the steps that follow, `[n, H, C]`, where all of these are there."""
    found = []
    for each in series:
        for start in range(0, len(each) - window - horizon + 1, stride):
            end = start + window
            if np.isfinite(each[start:end]).any() and np.isfinite(each[end : end + horizon]).all():
                found.append((each[start:end], each[end : end + horizon]))
    if not found:
        return np.empty((0, window, 1)), np.empty((0, horizon, 1))
    windows, targets = zip(*found, strict=True)
    return np.stack(windows), np.stack(targets)


def _naive_error(series: Sequence[Array], season: int) -> float:
    errors = [np.abs(each[season:] - each[:-season]).ravel() for each in series if len(each) > season]
    if not errors:
        raise ValueError(f"no training series is longer than a season of {season} steps")
    return float(np.nanmean(np.concatenate(errors)))

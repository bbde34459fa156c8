"""What is read off the features of time series: against brute force, scikit-learn's own, and the module itself."""

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import TINY_SERIES, eager, quiet_trainer
from sklearn.base import clone
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from jepa_lightning import IJEPA, RECIPES, TSJEPA, SeriesDataModule
from jepa_lightning.batches import Series
from jepa_lightning.data.series import Scaling
from jepa_lightning.evaluation.series import (
    AnomalyDetector,
    RidgeForecaster,
    SeriesEncoder,
    classify,
    fit_linear,
    fit_svm,
    forecast,
    nearest_window,
    seasonal_naive,
)
from jepa_lightning.masking import Masks


def ragged(lengths: tuple[int, ...] = (40, 13, 27, 8), channels: int = 2) -> list[Any]:
    generator = np.random.default_rng(0)
    return [generator.normal(3, 2, (length, channels)) for length in lengths]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, SeriesDataModule]:
    """A checkpoint, its module, and the data that it was trained on."""
    folder = tmp_path_factory.mktemp("trained")
    frame = pd.DataFrame(np.random.default_rng(0).normal(3, 2, (300, 2)), columns=["x", "y"])
    data = SeriesDataModule(frame, window=40, batch_size=4)
    torch.manual_seed(0)
    module, trainer = eager(TSJEPA(**TINY_SERIES)), quiet_trainer(folder, max_epochs=1)
    trainer.fit(module, data)
    trainer.save_checkpoint(folder / "it.ckpt")
    return folder / "it.ckpt", module.eval(), data


# --- Features --------------------------------------------------------------------------------------------------------


def test_features_are_those_of_the_module(trained: Any) -> None:
    """Scaled as in the training, of any lengths, with gaps; each series alone and with others."""
    path, module, data = trained
    series = ragged()
    series[0][17:29] = np.nan
    found = SeriesEncoder(path, batch_size=3).transform(series)
    for row, each in zip(found, series, strict=True):
        scaled = torch.tensor((each - data.scaling.mean) / data.scaling.std, dtype=torch.float32).unsqueeze(0)
        batch = Series(scaled, scaled.isfinite().any(-1), torch.zeros(1))
        torch.testing.assert_close(torch.tensor(row), module.features(batch).pooled()[0], rtol=1e-4, atol=1e-4)
    tokens = SeriesEncoder(path).tokens(series)
    several = {pooling: SeriesEncoder(path, pooling=pooling).transform(series) for pooling in ("max", "mean and last")}
    for i in range(4):
        there = tokens.values[i][tokens.valid[i]].numpy()
        np.testing.assert_array_equal(several["max"][i], there.max(0))
        np.testing.assert_array_equal(several["mean and last"][i][16:], there[-1])
        np.testing.assert_allclose(several["mean and last"][i][:16], there.mean(0), rtol=1e-4, atol=1e-5)


def test_in_scikit_learns_terms(trained: Any) -> None:
    """A step of a pipeline, to be cloned, and searched over."""
    path, _, _ = trained
    series = np.stack(ragged((40,) * 12))
    labels = np.arange(12) % 2
    series[labels == 1] += 4
    encoder = SeriesEncoder(path, pooling="max")
    assert clone(encoder).get_params() == {
        "path": path, "pooling": "max", "network": "target_encoder", "batch_size": 256
    }  # fmt: skip
    assert encoder.fit_transform(series, labels).shape == (12, 16)
    pipeline = make_pipeline(SeriesEncoder(path), StandardScaler(), LogisticRegression())
    search = GridSearchCV(pipeline, {"seriesencoder__pooling": ["mean", "max"]}, cv=2).fit(series, labels)
    assert search.score(series, labels) == 1.0
    untrained = encoder.untrained()
    assert not np.allclose(untrained.transform(series), encoder.transform(series))
    np.testing.assert_array_equal(untrained.transform(series), encoder.untrained().transform(series))


def test_series_that_do_not_fit(trained: Any, tmp_path: Path) -> None:
    path, _, _ = trained
    encoder = SeriesEncoder(path)
    for wrong, named in (
        (np.zeros((3, 2, 40)), r"\[2, 40\].*transpose"),
        (np.zeros((3, 40)), r"\[40, 1\]"),
        (np.zeros(40), "one alone"),
        ([], "no series"),
        ([np.zeros((0, 2))], r"\[0, 2\]"),
    ):
        with pytest.raises(ValueError, match=named):
            encoder.transform(wrong)
    with pytest.raises(ValueError, match="maen"):
        SeriesEncoder(path, pooling="maen").transform(np.zeros((1, 40, 2)))  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        SeriesEncoder(tmp_path / "nowhere.ckpt").fit()
    trainer = quiet_trainer(tmp_path)
    trainer.strategy.connect(IJEPA(image_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2))
    trainer.save_checkpoint(tmp_path / "images.ckpt")
    with pytest.raises(ValueError, match="VisionTransformer"):
        SeriesEncoder(tmp_path / "images.ckpt").fit()


# --- Classes ---------------------------------------------------------------------------------------------------------


def test_the_protocol_of_ts2vec(monkeypatch: pytest.MonkeyPatch) -> None:
    """No search below 50 samples or five a class; from there on, the best of ten C by five folds; a limit, by class."""
    generator = np.random.default_rng(0)

    def samples(count: int, classes: int) -> tuple[Any, Any]:
        labels = np.arange(count) % classes
        return generator.normal(size=(count, 4)) + 2 * labels[:, None], labels

    for count, classes in ((49, 2), (60, 15)):
        features, labels = samples(count, classes)
        svm = fit_svm(features, labels)
        assert isinstance(svm, SVC)
        assert (svm.C, svm.gamma, svm.kernel) == (np.inf, "scale", "rbf")
        assert not hasattr(fit_linear(features, labels), "best_params_")
    features, labels = samples(60, 3)
    search = fit_svm(features, labels)
    assert search.cv == 5
    assert search.param_grid["C"] == pytest.approx([*(10.0**power for power in range(-4, 5)), np.inf])
    assert search.score(features, labels) > 0.8
    assert fit_linear(features, labels).score(features, labels) > 0.8
    scaled = features * np.array([1.0, 1e3, 1e-3, 1e6])
    np.testing.assert_array_equal(
        fit_svm(scaled, labels, standardised=True).predict(scaled),
        fit_svm(features, labels, standardised=True).predict(features),
    )
    monkeypatch.setattr("jepa_lightning.evaluation.series.classes.MOST", 50)
    few = fit_svm(features, labels).best_estimator_
    assert few.shape_fit_ == (50, 4)


# Four seconds: numba compiles what warps time.
def test_classify(trained: Any) -> None:
    """A line for each classifier; warping by hand."""
    path, _, _ = trained
    generator = np.random.default_rng(0)
    labels = np.arange(24) % 2
    series = [
        generator.normal(0, 0.3, (20 + i % 7, 2)) + labels[i] * np.sin(np.arange(20 + i % 7))[:, None]
        for i in range(24)
    ]
    train, test = (series[:12], labels[:12]), (series[12:], labels[12:])
    readings = {each.probe: each for each in classify(SeriesEncoder(path), train, test, baselines=["1NN-DTW"])}
    assert readings.keys() == {"linear", "SVM", "SVM, standardised", "1NN", "1NN-DTW"}
    encoder = SeriesEncoder(path)
    features = [encoder.transform(part[0]) for part in (train, test)]
    distances = np.linalg.norm(features[1][:, None] - features[0], axis=-1)
    assert readings["1NN"].value == pytest.approx((train[1][distances.argmin(1)] == test[1]).mean())
    warped = [[warping(a, b) for b in train[0]] for a in test[0]]
    assert readings["1NN-DTW"].value == pytest.approx((train[1][np.argmin(warped, 1)] == test[1]).mean())
    assert np.isnan(readings["1NN-DTW"].untrained)
    assert all(each.constant == 0.5 for each in readings.values())
    with pytest.raises(ValueError, match="2NN"):
        classify(encoder, train, test, baselines=["2NN"])


def warping(a: Any, b: Any) -> float:
    """The squared distance of two series under the best alignment, by the recursion of its definition."""
    costs = np.full((len(a) + 1, len(b) + 1), np.inf)
    costs[0, 0] = 0
    for i in range(len(a)):
        for j in range(len(b)):
            nearest = min(costs[i, j], costs[i, j + 1], costs[i + 1, j])
            costs[i + 1, j + 1] = ((a[i] - b[j]) ** 2).sum() + nearest
    return float(costs[-1, -1])


# --- Forecasts -------------------------------------------------------------------------------------------------------


def test_forecasts_in_the_units_of_the_data() -> None:
    """A line goes on as a line, whatever its height and slope: one step, several at once, and rolled out."""
    lines = [(height + slope * np.arange(60.0))[:, None] for height in (0, 500) for slope in (-3, 0.5, 2)]

    def flat(windows: Any) -> Any:
        scaling = Scaling("series")
        return np.stack([scaling.apply(each)[0] for each in windows]).reshape(len(windows), -1)

    for horizon in (1, 4):
        model = RidgeForecaster(flat, window=10, horizon=horizon).fit(lines[:4])
        window = lines[5][None, 20:30]
        np.testing.assert_allclose(model.predict(window)[0], lines[5][30 : 30 + horizon], rtol=1e-3)
        np.testing.assert_allclose(model.roll_out(window, 9)[0], lines[5][30:39], rtol=1e-2)
    with pytest.raises(ValueError, match=r"70 \+ 4"):
        RidgeForecaster(flat, 70, 4).fit(lines)
    with pytest.raises(ValueError, match="0"):
        RidgeForecaster(flat, 10, 0)


def test_seasonal_naive_by_hand() -> None:
    windows = np.random.default_rng(0).normal(size=(3, 11, 2))
    windows[1, 8:, 0] = np.nan
    found = seasonal_naive(windows, 7, season=4)
    for i in range(3):
        for step in range(7):
            for channel in range(2):
                place = 11 + step % 4 - 4
                while not np.isfinite(windows[i, place, channel]):
                    place -= 4
                assert found[i, step, channel] == windows[i, place, channel]
    with pytest.raises(ValueError, match="season=12"):
        seasonal_naive(windows, 7, season=12)


def test_forecast(trained: Any) -> None:
    """Every model one step, at once and rolled out, scored in the units of the data."""
    path, _, _ = trained
    season = np.sin(np.arange(400) * 2 * np.pi / 20)
    series = np.stack([100 + 30 * season, 5 * np.roll(season, 3)], 1)
    series[50:55] = np.nan
    rows = forecast(
        SeriesEncoder(path, pooling="mean and last"), [series[:300]], [series[300:]], 40, 8, season=20, stride=4
    )
    found = {(row.model, row.steps): row for row in rows}
    models = ("encoder", "untrained encoder", "linear")
    assert found.keys() == {(model, steps) for model in models for steps in ("one step", "horizon", "roll-out")} | {
        ("seasonal naive", "one step"), ("seasonal naive", "horizon")
    }  # fmt: skip
    assert found["seasonal naive", "horizon"].mae < 1e-9
    assert found["linear", "horizon"].mae < 0.5
    assert found["linear", "roll-out"].mae < 2
    assert found["encoder", "horizon"].mae < 20
    noisy = forecast(
        SeriesEncoder(path), [np.cumsum(series[100:300], 0)], [np.cumsum(series[300:], 0)], 40, 8, stride=4
    )
    naive = np.abs(np.diff(np.cumsum(series[100:300], 0), axis=0)).mean()
    assert all(row.mase == pytest.approx(row.mae / naive) for row in noisy)


# --- Anomalies -------------------------------------------------------------------------------------------------------


def by_hand(module: Any, data: Any, series: Any, end: int) -> Any:
    """What is predicted of the last of a window's six patches; None where a number is missing there."""
    masks = Masks(torch.arange(5).unsqueeze(0), torch.tensor([[[5]]]))
    window = (series[end - 24 : end] - data.scaling.mean) / data.scaling.std
    scaled = torch.tensor(window, dtype=torch.float32).unsqueeze(0)
    if np.isnan(series[end - 4 : end]).any():
        return None
    return module.latents({"series": scaled.nan_to_num(0.0), "valid": scaled.isfinite().any(-1)}, masks)


@torch.no_grad()
def test_energies_of_steps(trained: Any) -> None:
    """Of a step, that of the window that ends with it and whose last patch is hidden; a stream has the same."""
    _, module, data = trained
    series = ragged((48,))[0]
    series[36:42], series[26, 1] = np.nan, np.nan
    detector = AnomalyDetector(module, data.scaling, window=24, batch_size=7, standardised=False)
    scores = detector.score(series)
    assert np.isnan(scores[:23]).all()
    for end in (24, 25, 30, 31, 38, 39, 41, 46, 48):
        latents = by_hand(module, data, series, end)
        if latents is None:
            assert np.isnan(scores[end - 1])
        else:
            assert scores[end - 1] == pytest.approx(float(module.energy(latents)), rel=1e-4)
    streamed = [detector.update(step) for step in series]
    np.testing.assert_allclose(streamed, scores, rtol=1e-4)
    detector.reset()
    assert np.isnan(detector.update(series[0]))


@torch.no_grad()
def test_scores_by_the_spread_on_normal_series(trained: Any) -> None:
    """Squared Mahalanobis distances of residuals over their number of features; a stream has the same."""
    _, module, data = trained
    normal, series = ragged((70, 48))
    normal[30:41], series[36:42] = np.nan, np.nan
    detector = AnomalyDetector(module, data.scaling, window=24, batch_size=7)
    for early in (lambda: detector.score(series), lambda: [detector.update(step) for step in series]):
        with pytest.raises(RuntimeError, match="fit"):
            early()
    detector.reset()
    scores = detector.fit([normal]).score(series)
    rows = [by_hand(module, data, normal, end) for end in range(24, 71)]
    known = np.stack([(row.prediction - row.target).numpy().ravel() for row in rows if row is not None])
    assert len(known) < len(rows)
    covariance, _ = ledoit_wolf(known.astype(np.float64))
    for end in range(24, 49):
        latents = by_hand(module, data, series, end)
        if latents is None:
            assert np.isnan(scores[end - 1])
            continue
        off = (latents.prediction - latents.target).numpy().ravel() - known.mean(0)
        assert scores[end - 1] == pytest.approx(off @ np.linalg.solve(covariance, off) / 16, rel=1e-2)
    np.testing.assert_allclose([detector.update(step) for step in series], scores, rtol=1e-3)
    with pytest.raises(ValueError, match=r"24 steps.*fewer than two windows of 24"):
        AnomalyDetector(module, data.scaling, window=24).fit([normal[:24]])


def test_thresholds(trained: Any) -> None:
    _, module, data = trained
    normal = ragged((200,))[0]
    for standardised in (True, False):
        detector = AnomalyDetector(module, data.scaling, quantile=0.9, standardised=standardised)
        with pytest.raises(RuntimeError, match="fit"):
            detector.predict(normal)
        share = detector.fit([normal]).predict(normal)[39:].mean()
        assert share == pytest.approx(0.1, abs=0.01)
        assert not np.isfinite(detector.score(normal[:10])).any()
    for wrong, named in (({"window": 30}, "window=30"), ({"window": 4}, "window=4"), ({"quantile": 1.0}, "1.0")):
        with pytest.raises(ValueError, match=named):
            AnomalyDetector(module, data.scaling, **wrong)


def test_the_nearest_window_by_brute_force() -> None:
    known, (series,) = ragged((40, 13, 3)), ragged((25,))
    known[0][20], series[9] = np.nan, np.nan
    found = nearest_window(known, series, 5)
    parts = np.concatenate(known)
    scaled = [(each - np.nanmean(parts, 0)) / np.nanstd(parts, 0) for each in (*known, series)]
    for end in range(1, 26):
        window = scaled[-1][end - 5 : end]
        if end < 5 or np.isnan(window).any():
            assert np.isnan(found[end - 1])
            continue
        distances = [
            np.sqrt(((each[start : start + 5] - window) ** 2).mean())
            for each in scaled[:-1]
            for start in range(len(each) - 4)
        ]
        assert found[end - 1] == pytest.approx(np.nanmin(distances))
    with pytest.raises(ValueError, match="window of 41"):
        nearest_window(known, series, 41)


# --- The scripts -----------------------------------------------------------------------------------------------------


# Twenty seconds: several trainings, of a step or two, and their readings; most of it for a stream of 7,501 steps, whose
# windows four ways score.
@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("archives", ["--archives", "ItalyPowerDemand", "--steps", "2"], "ItalyPowerDemand, seed 0: .*SVM 0"),
        ("archives", ["--archives", "ItalyPowerDemand", "--steps", "2", "--validate"], "untrained 0"),
        ("archives", ["--archives", "BasicMotions", "--steps", "1", "--together"], "BasicMotions, seed 0: .*SVM"),
        ("streams", ["--steps", "2"], r"seed 0: by the nearest window of 16 steps: noise [1-9]\."),
    ],
)
def test_scripts(
    name: str, options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", [name, *options, "--folder", str(tmp_path)])
    runpy.run_path(str(RECIPES / "tsjepa" / f"{name}.py"), run_name="__main__")
    assert re.search(said, capsys.readouterr().out)

"""Classes of time series, read off frozen features: linear probe, TS2Vec's SVM, and neighbours, beside baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from jepa_lightning.evaluation.report import Reading
from jepa_lightning.evaluation.series.encoder import SeriesEncoder, as_series

Array = NDArray[Any]
MOST = 10_000  # samples that the SVM is fitted on


def fit_svm(features: Array, labels: Array, seed: int = 0, standardised: bool = False) -> Any:
    """The classifier of TS2Vec's protocol: an SVM with radial basis functions.

    C is the best of 1e-4 to 1e4 and infinity by 5-fold cross-validation; infinity where there are fewer than 50
    samples, or fewer than 5 a class on average. Of more than 10,000 samples as many are drawn, by class.

    Args:
        features: `[n, D]`.
        labels: `[n]`.
        seed: of that draw.
        standardised: bring features to one scale first, which TS2Vec's protocol does not; radial basis functions are
            blind to small features beside large ones.

    Returns:
        A fitted classifier of scikit-learn.

    Source: TS2Vec (arXiv 2106.10466), section 4.1 and the authors' code.
    """
    if len(labels) > MOST:
        kept, _ = next(StratifiedShuffleSplit(1, train_size=MOST, random_state=seed).split(features, labels))
        features, labels = features[kept], labels[kept]
    svm = SVC(C=np.inf, gamma="scale")
    name, model = ("svc__C", make_pipeline(StandardScaler(), svm)) if standardised else ("C", svm)
    if len(labels) < 50 or len(labels) // len(set(labels.tolist())) < 5:
        return model.fit(features, labels)
    return GridSearchCV(model, {name: [*10.0 ** np.arange(-4, 5), np.inf]}, cv=5).fit(features, labels)


def fit_linear(features: Array, labels: Array) -> Any:
    """A linear probe: logistic regression on standardised features.

    C is the best of 1e-3 to 1e3 by 5-fold cross-validation, and 1 where `fit_svm` has none.

    Args:
        features: `[n, D]`.
        labels: `[n]`.

    Returns:
        A fitted classifier of scikit-learn.
    """
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    if len(labels) < 50 or len(labels) // len(set(labels.tolist())) < 5:
        return probe.fit(features, labels)
    return GridSearchCV(probe, {"logisticregression__C": 10.0 ** np.arange(-3, 4)}, cv=5).fit(features, labels)


def classify(
    encoder: SeriesEncoder,
    train: tuple[Any, Array],
    test: tuple[Any, Array],
    baselines: Sequence[str] = ("1NN-DTW", "MiniRocket"),
    seed: int = 0,
) -> list[Reading]:
    """Accuracies of all classifiers on the test part, beside those on an untrained encoder's features and baselines.

    Args:
        encoder: of the series.
        train: series (see `SeriesEncoder`) and their classes `[n]`, on which classifiers are fitted.
        test: the same, on which they are scored.
        baselines: of the series themselves, without an encoder: `1NN-DTW`, the neighbour by dynamic time warping
            without a limit, and `MiniRocket` (which takes series of one length only), both by aeon.
        seed: of what is drawn.

    Returns:
        A line for each; what a baseline would be untrained is NaN.

    Raises:
        ValueError: an unknown baseline, or series that do not fit.
    """
    labels = np.asarray(train[1]), np.asarray(test[1])
    if unknown := sorted(set(baselines) - {"1NN-DTW", "MiniRocket"}):
        raise ValueError(f"there are the baselines 1NN-DTW and MiniRocket, not {', '.join(unknown)}")
    values, counts = np.unique(labels[0], return_counts=True)
    constant = float((labels[1] == values[counts.argmax()]).mean())
    classifiers: dict[str, Any] = {
        "linear": fit_linear,
        "SVM": lambda features, given: fit_svm(features, given, seed),
        "SVM, standardised": lambda features, given: fit_svm(features, given, seed, standardised=True),
        "1NN": lambda features, given: KNeighborsClassifier(1).fit(features, given),
    }
    encoders = (encoder, encoder.untrained(seed))
    features = [[each.transform(part[0]) for part in (train, test)] for each in encoders]
    readings = []
    for name, fit in classifiers.items():
        fitted = [fit(each[0], labels[0]) for each in features]
        value, untrained = (float(one.score(each[1], labels[1])) for one, each in zip(fitted, features, strict=True))
        best = getattr(fitted[0], "best_params_", {})
        chosen = ", ".join(f"{key.rpartition('__')[2]} {value:g}" for key, value in best.items())
        readings.append(Reading("class", name, "accuracy", value, untrained, constant, len(labels[0]), chosen))
    for name in baselines:
        score = _baseline(name, (train[0], labels[0]), (test[0], labels[1]), seed)
        readings.append(Reading("class", name, "accuracy", score, float("nan"), constant, len(labels[0]), "series"))
    return readings


def _baseline(name: str, train: tuple[Any, Array], test: tuple[Any, Array], seed: int) -> float:
    """The accuracy of a classifier of aeon, which has channels before time."""
    from aeon.classification.convolution_based import MiniRocketClassifier
    from aeon.classification.distance_based import KNeighborsTimeSeriesClassifier

    if name == "1NN-DTW":
        classifier: Any = KNeighborsTimeSeriesClassifier(n_neighbors=1, distance="dtw")
    else:
        classifier = MiniRocketClassifier(random_state=seed)
    series: list[Any] = [[np.ascontiguousarray(each.T) for each in as_series(part[0])] for part in (train, test)]
    if len({each.shape for part in series for each in part}) == 1:
        series = [np.stack(part) for part in series]
    classifier.fit(series[0], train[1])
    return float((classifier.predict(series[1]) == test[1]).mean())

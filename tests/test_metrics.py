"""Metrics of embeddings: against raw data, closed forms and brute force, and in two processes."""

import math
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import in_two_processes
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from jepa_lightning.metrics import (
    CovarianceSpectrum,
    DeadFeatures,
    FeatureStd,
    LiDAR,
    MeanCorrelation,
    MeanCosine,
    Moments,
    NonOrthonormality,
    RankMe,
    dead_features,
    eigenvalues,
    embedding,
    feature_std,
    lidar,
    mean_correlation,
    mean_cosine,
    moments,
    non_orthonormality,
    rankme,
    scatter,
    std_per_feature,
)

WIDTH = 24

# --- The same from the raw data --------------------------------------------------------------------------------------


def exp_entropy(p: np.ndarray) -> float:
    return float(np.exp(-sum(x * np.log(x) for x in p if x > 0)))


def numpy_rankme(z: np.ndarray, centred: bool = False) -> float:
    sigma = np.linalg.svd(z - z.mean(0) if centred else z, compute_uv=False)
    sigma = np.pad(sigma, (0, z.shape[1] - len(sigma)))  # D of them, also of fewer samples
    return exp_entropy(sigma / sigma.sum() + 1e-7)


def numpy_dead_features(z: np.ndarray) -> float:
    std = z.std(0)
    return float(np.mean([value <= std.mean() / 10 for value in std]))


def numpy_correlation(z: np.ndarray) -> float:
    matrix = np.abs(np.corrcoef(z.T))
    return float(np.mean([matrix[i, j] for i in range(len(matrix)) for j in range(len(matrix)) if i != j]))


def brute_cosine(z: np.ndarray) -> float:
    return float(np.mean([a @ b / np.sqrt((a @ a) * (b @ b)) for i, a in enumerate(z) for b in z[:i]]))


def numpy_non_orthonormality(z: np.ndarray) -> float:
    """The spread of the second moment's eigenvalues, over their mean."""
    values = np.linalg.svd(z, compute_uv=False) ** 2
    values = np.pad(values, (0, z.shape[1] - len(values)))
    return float(values.std() / values.mean())


# The function, the class and the reference.
METRICS: dict[str, tuple[Callable[[Moments], Tensor], Callable[..., Metric], Callable[[np.ndarray], float]]] = {
    "rankme": (rankme, RankMe, numpy_rankme),
    "rankme_centred": (
        partial(rankme, centred=True),
        partial(RankMe, centred=True),
        partial(numpy_rankme, centred=True),
    ),
    "std": (feature_std, FeatureStd, lambda z: float(z.std(0).mean())),
    "dead": (dead_features, DeadFeatures, numpy_dead_features),
    "correlation": (mean_correlation, MeanCorrelation, numpy_correlation),
    "cosine": (mean_cosine, MeanCosine, brute_cosine),
    "non_orthonormality": (non_orthonormality, NonOrthonormality, numpy_non_orthonormality),
}


def of(name: str, z: Tensor) -> Tensor:
    """The function of that name, of embeddings `[..., N, D]`."""
    return METRICS[name][0](moments(z))


def reference(name: str, z: Tensor) -> float:
    return METRICS[name][2](z.double().numpy())


def computed(metric: Metric) -> float:
    """The value; before any update as well, without torchmetrics' warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(metric.compute())


def near(value: float, rel: float = 1e-5) -> Any:
    return pytest.approx(value, rel=rel, abs=1e-9, nan_ok=True)


def gauss(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


EMBEDDINGS = {
    "gaussian": gauss(40, WIDTH),
    "offset": gauss(40, WIDTH, seed=1) + 3,
    "far off": gauss(40, WIDTH, seed=2) + 1e4,
    "few": gauss(5, WIDTH, seed=4),
    "low rank": gauss(40, 2, seed=5) @ gauss(2, WIDTH, seed=6),
    "tiny": 1e-6 * gauss(40, WIDTH, seed=7),
    "a spectrum": gauss(60, WIDTH, seed=8) * torch.arange(1, WIDTH + 1) ** -1.0,
    "dead features": gauss(40, WIDTH, seed=9) * torch.tensor([1.0] * 4 + [1e-4] * 20),
}


@pytest.mark.parametrize("name", METRICS)
def test_against_raw_data(name: str) -> None:
    for sample, z in EMBEDDINGS.items():
        assert float(of(name, z)) == near(reference(name, z)), sample


def test_the_covariance_s_spectrum() -> None:
    """By NumPy; in batches; and nothing left of a direction that is lost."""
    for sample, z in EMBEDDINGS.items():
        metric = CovarianceSpectrum(WIDTH)
        for part in z.split(7):
            metric.update(part)
        found = {name: float(value) for name, value in metric.compute().items()}
        values = np.linalg.eigvalsh(np.cov(z.numpy().T, bias=True))
        assert found["rankme_centred"] == near(reference("rankme_centred", z)), sample
        assert found["largest_eigenvalue"] == near(values[-1]), sample
        assert found["smallest_eigenvalue"] == pytest.approx(values[0], rel=1e-5, abs=1e-9 * values[-1]), sample
    lost = CovarianceSpectrum(WIDTH)
    lost.update(EMBEDDINGS["few"])
    assert float(lost.compute()["smallest_eigenvalue"]) == 0.0


@pytest.mark.parametrize("name", METRICS)
def test_several_sets_and_several_batches(name: str) -> None:
    """The function of sets with leading dimensions, and the class fed in pieces of uneven size."""
    z = EMBEDDINGS["offset"]
    expected = [near(reference(name, each)) for each in (z, z.flip(0) * 2)]
    stacked = of(name, torch.stack([z, z.flip(0) * 2])[:, None])
    assert stacked.shape == (2, 1)
    assert stacked.flatten().tolist() == expected
    metric = METRICS[name][1](WIDTH)
    for pieces in ([1, 3, 0, 36], [3, 37]):
        for part in z.split(pieces):
            metric.update(part)
        assert computed(metric) == expected[0]
        metric.reset()


def test_std_per_feature() -> None:
    z = torch.stack([EMBEDDINGS["offset"], EMBEDDINGS["dead features"]])
    np.testing.assert_allclose(std_per_feature(moments(z)), z.numpy().std(1), rtol=1e-8)


def test_eigenvalues() -> None:
    z = torch.stack([EMBEDDINGS["offset"], EMBEDDINGS["a spectrum"][:40]])
    second, centred = eigenvalues(moments(z), centred=False), eigenvalues(moments(z), centred=True)
    for i, raw in enumerate(z.numpy()):
        np.testing.assert_allclose(second[i], np.linalg.eigvalsh(raw.T @ raw / 40), rtol=1e-8)
        np.testing.assert_allclose(centred[i], np.linalg.eigvalsh(np.cov(raw.T, bias=True)), rtol=1e-8)
    flat = eigenvalues(moments(EMBEDDINGS["low rank"]), centred=False)
    assert (flat[:-2] == 0).all()
    assert (flat[-2:] > 0).all()


# --- Closed forms ----------------------------------------------------------------------------------------------------


def axes(variances: list[float]) -> Tensor:
    """Embeddings whose covariance is the diagonal matrix of exactly these, up to a factor, off the origin."""
    points = torch.diag(torch.tensor(variances).double().sqrt())
    return torch.cat([points, -points]) + 7


def test_rankme_of_known_spectra() -> None:
    expected = exp_entropy(np.array([0.5, 0.25, 0.25]))
    assert float(rankme(moments(axes([4.0, 1.0, 1.0, 0.0, 0.0])), centred=True)) == near(expected, rel=1e-4)
    # An offset is a direction of its own where the mean stays.
    far_off = moments(axes([1.0] * 5) + 1000)
    assert float(rankme(far_off)) == pytest.approx(1, abs=0.01)
    assert float(rankme(far_off, centred=True)) == near(5, rel=1e-4)


def test_rankme_of_gaussians() -> None:
    z = torch.randn(2048, 384, generator=torch.Generator().manual_seed(0))
    assert float(rankme(moments(z))) == pytest.approx(374.6, abs=0.3)
    assert float(rankme(moments(z + 3))) == pytest.approx(248.6, abs=1.5)
    assert float(rankme(moments(z + 3), centred=True)) == pytest.approx(374.6, abs=0.3)
    assert float(rankme(moments(z[:, :1] @ z[:1]))) == pytest.approx(1.0007, abs=2e-4)
    assert 19.5 < float(rankme(moments(z[:20]))) < 20.1


def test_correlation_of_independent_features() -> None:
    assert float(mean_correlation(moments(gauss(500, 100)))) == pytest.approx(math.sqrt(2 / (math.pi * 500)), rel=0.02)
    # Features that do not vary have no correlation, and do not count.
    z = torch.cat([gauss(500, 3), torch.ones(500, 2)], dim=1)
    assert float(mean_correlation(moments(z))) == near(numpy_correlation(z[:, :3].numpy()))


def test_dead_features_are_counted() -> None:
    z = gauss(100, 50) * torch.tensor([1.0] * 20 + [1e-3] * 30)
    assert float(dead_features(moments(z))) == near(0.6)
    z[:, 0] *= 30  # one feature that outweighs the others does not make them dead
    assert float(dead_features(moments(z))) == near(0.6)


# --- Views -----------------------------------------------------------------------------------------------------------


def numpy_lidar(*parts: Tensor) -> float:
    """By the eigenvalues of `Σ_w⁻¹ Σ_b`, from the raw views; those of a part are of one number."""
    means = np.concatenate([views.mean(1).numpy() for views in parts])
    classes = [np.cov(one.T) for views in parts for one in views.double().numpy()]
    within = np.mean(classes, axis=0) + 1e-4 * np.eye(means.shape[1])
    values = np.linalg.eigvals(np.linalg.solve(within, np.cov(means.T, bias=True))).real.clip(min=0)
    return exp_entropy(values / values.sum())


VIEWS = {
    "signal and noise": gauss(50, 1, 8) + 0.3 * gauss(50, 5, 8, seed=1),
    "few": gauss(4, 1, 8) + 0.3 * gauss(4, 3, 8, seed=1),
    "two views": gauss(50, 1, 8) + gauss(50, 2, 8, seed=1) + 5,
    "small": 1e-3 * (gauss(50, 1, 8) + 0.3 * gauss(50, 5, 8, seed=1)),
}


def test_lidar_against_raw_data() -> None:
    for sample, views in VIEWS.items():
        assert float(lidar(scatter(views))) == near(numpy_lidar(views)), sample


def test_lidar_of_several_sets_and_several_batches() -> None:
    views = VIEWS["signal and noise"]
    stacked = lidar(scatter(torch.stack([views, views.flip(0) * 2])[:, None]))
    assert stacked.shape == (2, 1)
    assert stacked.flatten().tolist() == [near(numpy_lidar(views)), near(numpy_lidar(views * 2))]
    metric = LiDAR(8)
    for pieces in ([1, 2, 0, 47], [50]):
        for part in views.split(pieces):
            metric.update(part)
        assert computed(metric) == near(numpy_lidar(views))
        metric.reset()
    # The class means and the classes' covariances count alike, whatever number of views they are from.
    parts = views[:20, :2], views[20:]
    for part in parts:
        metric.update(part)
    assert computed(metric) == near(numpy_lidar(*parts))


def test_lidar_of_known_scatter() -> None:
    means = axes([4.0, 1.0, 1.0, 0.0])  # variances over 8 classes: these over 4
    step = torch.tensor([1.0, 0.1, 0.0, 1.0])
    views = torch.stack([means + step, means - step], dim=1)  # within: the outer product of the step, twice
    within = 2 * torch.outer(step, step).double() + 1e-4 * torch.eye(4)
    between = torch.diag(torch.tensor([1.0, 0.25, 0.25, 0.0])).double()
    values = np.linalg.eigvals(np.linalg.solve(within.numpy(), between.numpy())).real.clip(min=0)
    assert float(lidar(scatter(views))) == near(exp_entropy(values / values.sum()))
    # Views that are all alike leave the ridge alone: the rank of the means, at most one below their number.
    assert float(lidar(scatter(axes([1.0] * 6).unsqueeze(1).expand(-1, 3, -1)))) == near(6)
    assert float(lidar(scatter(torch.eye(6).unsqueeze(1).expand(-1, 3, -1)))) == near(5)
    # Noise tells no sample apart, yet reads as full rank; a signal in two directions above it does not.
    noise, signal = gauss(2000, 4, 16), torch.zeros(2000, 1, 16)
    signal[..., :2] = 100 * gauss(2000, 1, 2, seed=1)
    assert 15 < float(lidar(scatter(noise))) < 16
    assert 1.9 < float(lidar(scatter(noise + signal))) < 2.1


def test_degenerate_views() -> None:
    assert float(lidar(scatter(torch.zeros(6, 3, 4)))) == 0
    assert float(lidar(scatter(gauss(1, 1, 4).expand(6, 3, 4)))) == 0  # all samples alike
    assert float(lidar(scatter(gauss(1, 3, 4)))) == 0  # one sample
    assert float(lidar(scatter(gauss(6, 1, 1).expand(6, 3, 4)))) == near(1)  # on a line
    assert math.isnan(lidar(scatter(torch.zeros(0, 3, 4))))
    assert math.isnan(lidar(scatter(torch.full((6, 3, 4), torch.nan))))
    assert math.isnan(computed(LiDAR(4)))


# --- Degenerate input ------------------------------------------------------------------------------------------------

NAN, FARTHEST = math.nan, (WIDTH - 1) ** 0.5
LINE = gauss(30, 1) @ gauss(1, WIDTH, seed=1)
DEGENERATE: dict[str, tuple[Tensor, list[float]]] = {  # in the order of METRICS
    "zeros": (torch.zeros(30, WIDTH), [0, 0, 0, 1, NAN, 1, NAN]),
    "all alike": ((gauss(1, WIDTH) + 3).expand(30, WIDTH), [1, 0, 0, 1, NAN, 1, FARTHEST]),
    "one sample": (gauss(1, WIDTH), [1, 0, 0, 1, NAN, NAN, FARTHEST]),
    "on a line": (
        LINE,
        [1, 1, *(reference(name, LINE) for name in ("std", "dead")), 1, reference("cosine", LINE), FARTHEST],
    ),
    "no sample": (torch.zeros(0, WIDTH), [NAN] * 7),
    "not a number": (gauss(30, WIDTH).index_fill(0, torch.tensor([3]), NAN), [NAN] * 7),
    "infinite": (gauss(30, WIDTH).index_fill(0, torch.tensor([3]), math.inf), [NAN] * 7),
}


@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_input(kind: str) -> None:
    z, values = DEGENERATE[kind]
    healthy = gauss(len(z), WIDTH, seed=20).to(z.dtype)
    for name, value in zip(METRICS, values, strict=True):
        # The 1e-7 of RankMe for every direction makes rank one a little more.
        expected = pytest.approx(value, rel=1e-3, abs=1e-9, nan_ok=True)
        assert float(of(name, z)) == expected, name
        metric = METRICS[name][1](WIDTH)
        for part in z.split(1):
            metric.update(part)
        assert computed(metric) == expected, name
        # Beside a healthy set of the same size it does not spread.
        pair = of(name, torch.stack([healthy, z])).tolist()
        assert pair == [near(float(of(name, healthy))), expected], name


def test_rounding_of_long_sums_is_no_spread() -> None:
    """Thousands of embeddings that are all alike, added one by one: the differences of sums must not look like rank."""
    metric = RankMe(WIDTH, centred=True)
    for _ in range(2000):
        metric.update(EMBEDDINGS["offset"][:1])
    sums = metric.sums()
    mean = sums.total / sums.num
    assert (sums.outer / sums.num - torch.outer(mean, mean)).abs().max() > 0  # there is something to take for rank
    assert computed(metric) == float(feature_std(sums)) == 0
    assert float(dead_features(sums)) == 1
    assert math.isnan(mean_correlation(sums))
    # A spread of a hundred-thousandth is still seen.
    z = 1 + 1e-5 * gauss(200, WIDTH)
    assert float(of("rankme_centred", z)) == near(reference("rankme_centred", z), rel=1e-3)
    assert float(of("std", z)) == near(reference("std", z), rel=1e-3)


def test_zeros_are_alike_and_unlike_the_rest() -> None:
    z = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    assert float(mean_cosine(moments(z))) == near(1 / 3)
    # However small, an embedding that is not zero has a direction.
    assert float(mean_cosine(moments(torch.tensor([[1e-30, 0.0], [1.0, 0.0]])))) == near(1)


# --- States ----------------------------------------------------------------------------------------------------------


def test_all_moments_are_one_compute_group(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(embedding, "moments", lambda z: calls.append(len(z)) or moments(z))
    collection = MetricCollection({name: make(WIDTH) for name, (_, make, _) in METRICS.items()}, prefix="collapse/")
    z = EMBEDDINGS["a spectrum"]
    for part in z.split(20):
        collection.update(part)
    assert len(collection.compute_groups) == 1
    assert calls == [20] * (len(METRICS) + 2)  # the first of each, the others of all
    expected = {f"collapse/{name}": near(reference(name, z)) for name in METRICS}
    assert {name: float(value) for name, value in collection.compute().items()} == expected


def test_low_precision_input() -> None:
    """The sums are those of float64, whatever the embeddings come in, under autocast and after a cast of the module."""
    metrics = {name: make(WIDTH) for name, (_, make, _) in METRICS.items()} | {"lidar": LiDAR(WIDTH)}
    nn.ModuleDict(metrics).half()
    z = (gauss(200, WIDTH) + 2).bfloat16()
    expected = {name: near(reference(name, z)) for name in METRICS} | {"lidar": near(numpy_lidar(views_of(z.double())))}
    with torch.autocast("cpu", torch.bfloat16):
        for name, metric in metrics.items():
            metric.update(views_of(z) if name == "lidar" else z)
            assert computed(metric) == expected[name], name
            assert all(state.dtype == torch.float64 for state in metric.metric_state.values())


def views_of(z: Tensor) -> Tensor:
    return z.unflatten(0, (-1, 4))


@pytest.mark.parametrize(
    ("make", "data"),
    [(partial(RankMe, WIDTH, centred=True), EMBEDDINGS["offset"]), (partial(LiDAR, 8), VIEWS["signal and noise"])],
)
def test_halfway_through_a_pickle_and_a_checkpoint(make: Callable[[], Metric], data: Tensor) -> None:
    """Both have what a first batch has added; `forward` gives the values of a batch, and adds it."""
    first, second = data[:25], data[25:]
    expected = []
    for part in (first, second, data):
        alone = make()
        alone.update(part)
        expected.append(computed(alone))
    whole = make()
    assert float(whole(first)) == near(expected[0])
    pickled = pickle.loads(pickle.dumps(whole))
    whole.persistent(True)
    loaded = make()
    loaded.persistent(True)
    loaded.load_state_dict(whole.state_dict())
    for metric in (whole, pickled, loaded):
        assert float(metric(second)) == near(expected[1])
        assert computed(metric) == near(expected[2])


# --- Errors ----------------------------------------------------------------------------------------------------------


def test_errors_say_what_was_expected() -> None:
    with pytest.raises(ValueError, match=r"N, D\].*got \[4\]"):
        moments(torch.zeros(4))
    for shape in ((2, 3, 4), (3, 5), (4,)):
        with pytest.raises(ValueError, match=rf"\[N, 4\].*got \[{', '.join(map(str, shape))}\]"):
            RankMe(4).update(torch.zeros(shape))
    for shape in ((6, 1, 4), (6, 4)):
        with pytest.raises(ValueError, match=rf"two views.*got \[{', '.join(map(str, shape))}\]"):
            scatter(torch.zeros(shape))
    for shape in ((6, 2, 5), (6, 4)):
        with pytest.raises(ValueError, match=rf"views, 4\].*got \[{', '.join(map(str, shape))}\]"):
            LiDAR(4).update(torch.zeros(shape))


# --- Two processes ---------------------------------------------------------------------------------------------------

SPLIT = {"offset": 30, "a spectrum": 35}


def two_processes(rank: int, folder: Path) -> dict[str, Any]:
    """One of two ranks with its part of the samples, in batches of its own."""
    result: dict[str, Any] = {}
    collection = MetricCollection({name: make(WIDTH) for name, (_, make, _) in METRICS.items()})
    for sample, at in SPLIT.items():
        z = EMBEDDINGS[sample]
        for part in z[:at].split(7) if rank == 0 else z[at:].split(3):
            collection.update(part)
        # The second sample goes on after the first has been reduced and taken apart again.
        result[sample] = {name: float(value) for name, value in collection.compute().items()}
    views, idle = LiDAR(8), RankMe(WIDTH)
    views.update(VIEWS["signal and noise"][:37] if rank == 0 else VIEWS["signal and noise"][37:])
    if rank == 0:
        idle.update(EMBEDDINGS["offset"])
    return result | {"lidar": computed(views), "idle": computed(idle)}


# Seven seconds if it is the first to start two processes: what they are forked from imports everything.
def test_two_processes_are_one(tmp_path: Path) -> None:
    """Of the samples of both, as one process with all of them; also where one has seen nothing."""
    first = EMBEDDINGS["offset"]
    both = torch.cat([first, EMBEDDINGS["a spectrum"]])
    expected = {
        "offset": {name: near(reference(name, first)) for name in METRICS},
        "a spectrum": {name: near(reference(name, both)) for name in METRICS},
        "lidar": near(numpy_lidar(VIEWS["signal and noise"])),
        "idle": near(reference("rankme", first)),
    }
    assert in_two_processes(two_processes, tmp_path) == [expected, expected]

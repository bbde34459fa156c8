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

from jepa_lightning.losses import SIGReg
from jepa_lightning.metrics import (
    Alignment,
    AlphaReQ,
    DeadFeatures,
    EffectiveRank,
    FeatureStd,
    IsoScore,
    LiDAR,
    MeanCorrelation,
    MeanCosine,
    Moments,
    ParticipationRatio,
    RankMe,
    SIGRegStatistic,
    StableRank,
    Uniformity,
    alignment,
    alpha_req,
    dead_features,
    effective_rank,
    eigenvalues,
    embedding,
    feature_std,
    iso_score,
    lidar,
    mean_correlation,
    mean_cosine,
    moments,
    participation_ratio,
    rankme,
    scatter,
    sigreg_statistic,
    stable_rank,
    std_per_feature,
    uniformity,
)

WIDTH = 24

# --- The same from the raw data --------------------------------------------------------------------------------------


def singular_values(z: np.ndarray, centred: bool = False) -> np.ndarray:
    values = np.linalg.svd(z - z.mean(0) if centred else z, compute_uv=False)
    return np.pad(values, (0, z.shape[1] - len(values)))  # D of them, also of fewer samples


def exp_entropy(p: np.ndarray) -> float:
    return float(np.exp(-sum(x * np.log(x) for x in p if x > 0)))


def numpy_rankme(z: np.ndarray, centred: bool = False) -> float:
    sigma = singular_values(z, centred)
    return exp_entropy(sigma / sigma.sum() + 1e-7)


def numpy_effective_rank(z: np.ndarray, centred: bool = False) -> float:
    sigma = singular_values(z, centred)
    return exp_entropy(sigma / sigma.sum())


def numpy_stable_rank(z: np.ndarray, centred: bool = False) -> float:
    return float(np.linalg.norm(z - z.mean(0) * centred) ** 2 / singular_values(z, centred)[0] ** 2)


def numpy_participation_ratio(z: np.ndarray) -> float:
    values = singular_values(z, centred=True) ** 2
    return float(values.sum() ** 2 / (values**2).sum())


def numpy_iso_score(z: np.ndarray) -> float:
    """The steps of the paper, one by one."""
    dim = z.shape[1]
    centred = z - z.mean(0)
    principal = centred @ np.linalg.svd(centred)[2].T
    variances = np.diag(np.cov(principal.T))
    variances = np.sqrt(dim) * variances / np.linalg.norm(variances)
    defect = np.linalg.norm(variances - 1) / np.sqrt(2 * (dim - np.sqrt(dim)))
    used = (dim - defect**2 * (dim - np.sqrt(dim))) ** 2 / dim**2
    return float((dim * used - 1) / (dim - 1))


def numpy_power_law(z: np.ndarray) -> tuple[float, float]:
    """The weighted line through the spectrum, by numpy's own fit."""
    rank = np.linalg.matrix_rank(z - z.mean(0))
    if rank < 20:
        return math.nan, math.nan
    i = np.arange(6, min(100, math.floor(0.9 * rank)) + 1)
    values = np.log((singular_values(z, centred=True) ** 2)[i - 1])
    slope, offset = np.polyfit(np.log(i), values, 1, w=1 / np.sqrt(i))  # numpy squares its weights
    residual = np.average((values - slope * np.log(i) - offset) ** 2, weights=1 / i)
    return -slope, 1 - residual / np.average((values - np.average(values, weights=1 / i)) ** 2, weights=1 / i)


def numpy_dead_features(z: np.ndarray) -> float:
    std = z.std(0)
    return float(np.mean([value <= std.mean() / 10 for value in std]))


def numpy_correlation(z: np.ndarray) -> float:
    matrix = np.abs(np.corrcoef(z.T))
    return float(np.mean([matrix[i, j] for i in range(len(matrix)) for j in range(len(matrix)) if i != j]))


def brute_cosine(z: np.ndarray) -> float:
    return float(np.mean([a @ b / np.sqrt((a @ a) * (b @ b)) for i, a in enumerate(z) for b in z[:i]]))


def brute_uniformity(z: np.ndarray) -> float:
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    pairs = [np.exp(-2 * ((a - b) ** 2).sum()) for i, a in enumerate(unit) for b in unit[:i]]
    return float(np.log(np.mean(pairs)))


def loss_of_standardised(z: np.ndarray) -> float:
    """By the loss, which has no part in the metric."""
    standardised = (z - z.mean(0)) / np.sqrt(z.var(0).mean())
    return float(SIGReg(256).eval()(torch.tensor(standardised)))


# What is a function of sums: the function, the class and the reference.
MOMENTS: dict[str, tuple[Callable[[Moments], Tensor], Callable[..., Metric], Callable[[np.ndarray], float]]] = {
    "rankme": (rankme, RankMe, numpy_rankme),
    "rankme_centred": (
        partial(rankme, centred=True),
        partial(RankMe, centred=True),
        partial(numpy_rankme, centred=True),
    ),
    "effective_rank": (effective_rank, EffectiveRank, numpy_effective_rank),
    "effective_rank_centred": (
        partial(effective_rank, centred=True),
        partial(EffectiveRank, centred=True),
        partial(numpy_effective_rank, centred=True),
    ),
    "stable_rank": (stable_rank, StableRank, numpy_stable_rank),
    "nesum": (
        partial(stable_rank, centred=True),
        partial(StableRank, centred=True),
        partial(numpy_stable_rank, centred=True),
    ),
    "participation_ratio": (participation_ratio, ParticipationRatio, numpy_participation_ratio),
    "iso_score": (iso_score, IsoScore, numpy_iso_score),
    "alpha_req": (lambda sums: alpha_req(sums).alpha, AlphaReQ, lambda z: numpy_power_law(z)[0]),
    "alpha_req_r2": (lambda sums: alpha_req(sums).r2, AlphaReQ, lambda z: numpy_power_law(z)[1]),
    "std": (feature_std, FeatureStd, lambda z: float(z.std(0).mean())),
    "dead": (dead_features, DeadFeatures, numpy_dead_features),
    "correlation": (mean_correlation, MeanCorrelation, numpy_correlation),
    "cosine": (mean_cosine, MeanCosine, brute_cosine),
}
# What needs the embeddings themselves.
SAMPLES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[..., Metric], Callable[[np.ndarray], float]]] = {
    "uniformity": (uniformity, Uniformity, brute_uniformity),
    "sigreg": (sigreg_statistic, SIGRegStatistic, loss_of_standardised),
}
CLASSES = {name: parts[1] for name, parts in (MOMENTS | SAMPLES).items() if name != "alpha_req_r2"}


def of(name: str, z: Tensor) -> Tensor:
    """The function of that name, of embeddings `[..., N, D]`."""
    return MOMENTS[name][0](moments(z)) if name in MOMENTS else SAMPLES[name][0](z)


def reference(name: str, z: np.ndarray) -> float:
    return (MOMENTS | SAMPLES)[name][2](z)


def computed(metric: Metric, name: str) -> float:
    """The value of that name; before any update as well, without torchmetrics' warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = metric.compute()
    return float(value[name] if isinstance(value, dict) else value)


def near(value: float, rel: float = 1e-5) -> Any:
    return pytest.approx(value, rel=rel, abs=1e-9, nan_ok=True)


def gauss(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


EMBEDDINGS = {
    "gaussian": gauss(40, WIDTH),
    "offset": gauss(40, WIDTH, seed=1) + 3,
    "far off": gauss(40, WIDTH, seed=2) + 1e4,
    "fewer than features": gauss(23, WIDTH, seed=3),
    "few": gauss(5, WIDTH, seed=4),
    "low rank": gauss(40, 2, seed=5) @ gauss(2, WIDTH, seed=6),
    "tiny": 1e-6 * gauss(40, WIDTH, seed=7),
    "a spectrum": gauss(60, WIDTH, seed=8) * torch.arange(1, WIDTH + 1) ** -1.0,
    "dead features": gauss(40, WIDTH, seed=9) * torch.tensor([1.0] * 4 + [1e-4] * 20),
}


@pytest.mark.parametrize("sample", EMBEDDINGS)
@pytest.mark.parametrize("name", MOMENTS | SAMPLES)
def test_against_raw_data(name: str, sample: str) -> None:
    """The function, the function of several sets at once, and the class fed in pieces of uneven size."""
    z = EMBEDDINGS[sample]
    expected = near(reference(name, z.numpy()), rel=1e-4 if name == "sigreg" else 1e-5)
    assert float(of(name, z)) == expected
    other = z.flip(0) * 2
    stacked = of(name, torch.stack([z, other])[:, None])
    assert stacked.shape == (2, 1)
    assert float(stacked[0]) == expected
    assert float(stacked[1]) == near(float(of(name, other)))
    metric = (MOMENTS | SAMPLES)[name][1](WIDTH)
    for part in z.split([1, 3, 0, len(z) - 4]):
        metric.update(part)
    assert computed(metric, name) == expected
    metric.reset()
    metric.update(z[:3])
    metric.update(z[3:])
    assert computed(metric, name) == expected


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


def axes(variances: Tensor) -> Tensor:
    """Embeddings whose covariance is the diagonal matrix of exactly these, up to a factor."""
    points = torch.diag(variances.double().sqrt())
    return torch.cat([points, -points]) + 7


def test_of_known_spectra() -> None:
    variances = torch.tensor([4.0, 1.0, 1.0, 0.0, 0.0])
    sums = moments(axes(variances))
    p = np.array([0.5, 0.25, 0.25])
    assert float(effective_rank(sums, centred=True)) == near(exp_entropy(p))
    assert float(rankme(sums, centred=True)) == near(exp_entropy(p), rel=1e-4)
    assert float(stable_rank(sums, centred=True)) == near(6 / 4)
    assert float(participation_ratio(sums)) == near(36 / 18)
    assert float(iso_score(sums)) == near((2 - 1) / 4)
    # k of D directions with one variance are (k - 1) / (D - 1).
    assert float(iso_score(moments(axes(torch.tensor([1.0] * 3 + [0.0] * 8))))) == near(2 / 10)
    # An offset is a direction of its own where the mean stays.
    assert float(stable_rank(moments(axes(torch.ones(5)) + 1000))) == near(1, rel=1e-5)
    assert float(stable_rank(moments(axes(torch.ones(5)) + 1000), centred=True)) == near(5)


def test_rankme_of_gaussians() -> None:
    z = torch.randn(2048, 384, generator=torch.Generator().manual_seed(0))
    assert float(rankme(moments(z))) == pytest.approx(374.6, abs=0.3)
    assert float(rankme(moments(z + 3))) == pytest.approx(248.6, abs=1.5)
    assert float(rankme(moments(z + 3), centred=True)) == pytest.approx(374.6, abs=0.3)
    assert float(rankme(moments(z[:, :1] @ z[:1]))) == pytest.approx(1.0007, abs=2e-4)
    assert float(effective_rank(moments(z[:, :1] @ z[:1]))) == pytest.approx(1, abs=1e-6)
    assert 19.5 < float(rankme(moments(z[:20]))) < 20.1


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("width", [20, 96, 384])
def test_power_laws(width: int, alpha: float) -> None:
    fit = alpha_req(moments(axes(torch.arange(1, width + 1) ** -alpha)))
    assert float(fit.alpha) == pytest.approx(alpha, abs=1e-6)
    assert float(fit.r2) == pytest.approx(1, abs=1e-6)


def test_alpha_of_what_networks_give() -> None:
    """Rotated, normalised over the features (which makes one direction vanish), in half precision, beyond i = 100."""
    rotation = torch.linalg.qr(gauss(192, 192, seed=1))[0]
    z = (gauss(4096, 192) * torch.arange(1, 193) ** -0.5) @ rotation
    normalised = nn.functional.layer_norm(z.float(), (192,)).bfloat16()
    fit = alpha_req(moments(normalised))
    assert float(fit.alpha) == pytest.approx(1, abs=0.05)
    assert float(fit.r2) > 0.99
    # A spectrum that is no power law says so.
    broken = alpha_req(moments(axes(torch.tensor([1.0] * 40 + [1e-4] * 40))))
    assert 0 < float(broken.r2) < 0.8
    # What lies outside the window does not count.
    outside = torch.arange(1, 193) ** -1.0
    outside[:5], outside[100:] = 100.0, 1e-6
    assert float(alpha_req(moments(axes(outside))).alpha) == pytest.approx(1, abs=1e-6)
    # Nineteen directions are too few.
    few = alpha_req(moments(axes(torch.tensor([1.0] * 19 + [0.0] * 30))))
    assert torch.isnan(few.alpha)
    assert torch.isnan(few.r2)


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


def test_uniformity_of_a_sphere() -> None:
    """`E exp(κ uᵀv)` of random directions is `Σ (κ/2)^2k / (k! (D/2)_k)`, and -2 |u − v|² = 4 uᵀv − 4."""
    for width in (2, 16):
        terms, term = [], 1.0
        for k in range(30):
            terms.append(term)
            term *= 4 / ((k + 1) * (width / 2 + k))
        assert float(uniformity(gauss(3000, width))) == pytest.approx(-4 + math.log(sum(terms)), abs=0.01)
    assert float(uniformity(torch.tensor([[1.0, 0.0], [-3.0, 0.0]]))) == near(-8)


@pytest.mark.parametrize("width", [1, 4, 96])
def test_sigreg_of_gaussians(width: int) -> None:
    """Fitting the mean takes t² off the covariance of the process, fitting the scale t⁴ / 2 off a D-th part of it."""
    t = np.linspace(-3, 3, 10001)
    covariance = 1 - (1 + t**2 + t**4 / 2 / width) * np.exp(-(t**2))
    expected = float(torch.trapezoid(torch.tensor(covariance * np.exp(-(t**2) / 2)), torch.tensor(t)))
    values = [float(sigreg_statistic(4 * gauss(200, width, seed=seed) - 9)) for seed in range(100)]
    assert np.mean(values) == pytest.approx(expected, rel=0.01, abs=3 * np.std(values) / 10)
    assert expected == pytest.approx(0.570 - 0.241 / width, abs=1e-3)


def test_sigreg_is_no_matter_of_mean_scale_and_rotation() -> None:
    z = gauss(2000, WIDTH)
    value = float(sigreg_statistic(z))
    assert float(sigreg_statistic(100 * z - 5)) == near(value)
    bent = z * torch.arange(1, 25) ** -1.0
    rotated = bent @ torch.linalg.qr(gauss(WIDTH, WIDTH, seed=1))[0]
    assert float(sigreg_statistic(rotated)) == pytest.approx(float(sigreg_statistic(bent)), rel=0.2)
    # One feature that carries all, a falling spectrum, two clusters: none of them is Gaussian.
    assert float(sigreg_statistic(z * torch.tensor([100.0] + [1.0] * 23))) == pytest.approx(0.16 * 2000, rel=0.1)
    assert float(sigreg_statistic(bent)) > 10
    assert float(sigreg_statistic(z + 8 * (z[:, :1] > 0))) > 50


# --- Views -----------------------------------------------------------------------------------------------------------


def numpy_lidar(views: np.ndarray) -> float:
    """By the eigenvalues of `Σ_w⁻¹ Σ_b`, from the raw views."""
    between = np.cov(views.mean(1).T)
    within = np.mean([np.cov(one.T) for one in views], axis=0) + 1e-4 * np.eye(views.shape[2])
    values = np.linalg.eigvals(np.linalg.solve(within, between)).real.clip(min=0)
    return exp_entropy(values / values.sum())


VIEWS = {
    "signal and noise": gauss(50, 1, 8) + 0.3 * gauss(50, 5, 8, seed=1),
    "few": gauss(4, 1, 8) + 0.3 * gauss(4, 3, 8, seed=1),
    "two views": gauss(50, 1, 8) + gauss(50, 2, 8, seed=1) + 5,
    "small": 1e-3 * (gauss(50, 1, 8) + 0.3 * gauss(50, 5, 8, seed=1)),
}


@pytest.mark.parametrize("sample", VIEWS)
def test_lidar_against_raw_data(sample: str) -> None:
    views = VIEWS[sample]
    expected = near(numpy_lidar(views.numpy()))
    assert float(lidar(scatter(views))) == expected
    other = views.flip(0) * 2
    stacked = lidar(scatter(torch.stack([views, other])[:, None]))
    assert stacked.shape == (2, 1)
    assert [float(value) for value in stacked] == [expected, near(numpy_lidar(other.numpy()))]
    metric = LiDAR(8)
    for part in views.split([1, 2, 0, len(views) - 3]):
        metric.update(part)
    assert float(metric.compute()) == expected
    metric.reset()
    metric.update(views)
    assert float(metric.compute()) == expected


def test_lidar_of_known_scatter() -> None:
    means = axes(torch.tensor([4.0, 1.0, 1.0, 0.0]))  # variances over 8 classes: these over 4
    step = torch.tensor([1.0, 0.1, 0.0, 1.0])
    views = torch.stack([means + step, means - step], dim=1)  # within: the outer product of the step, twice
    within = 2 * torch.outer(step, step).double() + 1e-4 * torch.eye(4)
    between = torch.diag(torch.tensor([1.0, 0.25, 0.25, 0.0])).double()
    values = np.linalg.eigvals(np.linalg.solve(within.numpy(), between.numpy())).real.clip(min=0)
    assert float(lidar(scatter(views))) == near(exp_entropy(values / values.sum()))
    # Views that are all alike leave the ridge alone: the rank of the means, at most one below their number.
    assert float(lidar(scatter(axes(torch.ones(6)).unsqueeze(1).expand(-1, 3, -1)))) == near(6)
    assert float(lidar(scatter(torch.eye(6).unsqueeze(1).expand(-1, 3, -1)))) == near(5)
    # Noise tells no sample apart, yet reads as full rank; a signal in two directions above it does not.
    noise = gauss(2000, 4, 16)
    assert 15 < float(lidar(scatter(noise))) < 16
    assert (
        1.9
        < float(lidar(scatter(noise + torch.cat([100 * gauss(2000, 1, 2, seed=1), noise[:, :1, :14] * 0], -1))))
        < 2.1
    )


def test_lidar_over_updates_of_other_q() -> None:
    """The class means and the classes' covariances count alike, whatever q they are from."""
    first, second = VIEWS["signal and noise"][:20, :2], VIEWS["signal and noise"][20:]
    metric = LiDAR(8)
    metric.update(first)
    metric.update(second)
    means = torch.cat([first.mean(1), second.mean(1)])
    within = np.mean([np.cov(one.T) for part in (first, second) for one in part.numpy()], axis=0) + 1e-4 * np.eye(8)
    values = np.linalg.eigvals(np.linalg.solve(within, np.cov(means.T.numpy()))).real
    assert float(metric.compute()) == near(exp_entropy(values / values.sum()))


def test_degenerate_views() -> None:
    assert float(lidar(scatter(torch.zeros(6, 3, 4)))) == 0
    assert float(lidar(scatter(gauss(1, 1, 4).expand(6, 3, 4)))) == 0  # all samples alike
    assert float(lidar(scatter(gauss(1, 3, 4)))) == 0  # one sample
    assert float(lidar(scatter(gauss(6, 1, 1).expand(6, 3, 4)))) == near(1)  # on a line
    assert torch.isnan(lidar(scatter(torch.zeros(0, 3, 4))))
    assert torch.isnan(lidar(scatter(torch.full((6, 3, 4), torch.nan))))
    assert torch.isnan(torch.tensor(computed(LiDAR(4), "lidar")))
    assert torch.isnan(torch.tensor(computed(Alignment(4), "alignment")))
    assert torch.isnan(alignment(torch.zeros(0, 4), torch.zeros(0, 4)))


def test_alignment_against_brute_force() -> None:
    a, b = gauss(30, 8), gauss(30, 8, seed=1) + 1
    distances = [
        ((x / np.linalg.norm(x) - y / np.linalg.norm(y)) ** 2).sum() for x, y in zip(a.numpy(), b.numpy(), strict=True)
    ]
    assert float(alignment(a, b)) == near(float(np.mean(distances)))
    stacked = alignment(torch.stack([a, b]), torch.stack([b, b * 5]))
    assert [float(value) for value in stacked] == [near(float(np.mean(distances))), near(0)]
    assert float(alignment(a, -3 * a)) == near(4)
    metric = Alignment(8)
    for pair in zip(a.split([1, 0, 29]), b.split([1, 0, 29]), strict=True):
        metric.update(*pair)
    assert float(metric.compute()) == near(float(np.mean(distances)))
    metric.reset()
    metric.update(a, a)
    assert float(metric.compute()) == near(0)


# --- Degenerate input ------------------------------------------------------------------------------------------------

ZERO, NAN = 0.0, math.nan
RANKS = {"rankme", "effective_rank", "stable_rank"}
CENTRED = {"rankme_centred", "effective_rank_centred", "nesum", "participation_ratio"}
ALPHA = {"alpha_req", "alpha_req_r2"}
DEGENERATE: dict[str, tuple[Tensor, dict[str, float]]] = {
    "zeros": (
        torch.zeros(30, WIDTH),
        dict.fromkeys(RANKS | CENTRED, ZERO)
        | dict.fromkeys(ALPHA, NAN)
        | {
            "iso_score": 0,
            "std": 0,
            "dead": 1,
            "correlation": NAN,
            "cosine": 1,
            "uniformity": 0,
            "sigreg": 0.40205 * 30,
        },
    ),
    "all alike": (
        (gauss(1, WIDTH) + 3).expand(30, WIDTH),
        dict.fromkeys(RANKS, 1)
        | dict.fromkeys(CENTRED, ZERO)
        | dict.fromkeys(ALPHA, NAN)
        | {
            "iso_score": 0,
            "std": 0,
            "dead": 1,
            "correlation": NAN,
            "cosine": 1,
            "uniformity": 0,
            "sigreg": 0.40205 * 30,
        },
    ),
    "one sample": (
        gauss(1, WIDTH),
        dict.fromkeys(RANKS, 1)
        | dict.fromkeys(CENTRED, ZERO)
        | dict.fromkeys(ALPHA, NAN)
        | {"iso_score": 0, "std": 0, "dead": 1, "correlation": NAN, "cosine": NAN, "uniformity": NAN, "sigreg": NAN},
    ),
    "on a line": (
        gauss(30, 1) @ gauss(1, WIDTH, seed=1),
        dict.fromkeys(RANKS | CENTRED, 1)
        | dict.fromkeys(ALPHA, NAN)
        | {"iso_score": 0, "correlation": 1}
        | {
            name: reference(name, (gauss(30, 1) @ gauss(1, WIDTH, seed=1)).numpy())
            for name in ("std", "dead", "cosine", "uniformity", "sigreg")
        },
    ),
    "no sample": (torch.zeros(0, WIDTH), dict.fromkeys(MOMENTS | SAMPLES, NAN)),
    "not a number": (gauss(30, WIDTH).index_fill(0, torch.tensor([3]), NAN), dict.fromkeys(MOMENTS | SAMPLES, NAN)),
    "infinite": (gauss(30, WIDTH).index_fill(0, torch.tensor([3]), math.inf), dict.fromkeys(MOMENTS | SAMPLES, NAN)),
}


@pytest.mark.parametrize("name", MOMENTS | SAMPLES)
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_input(kind: str, name: str) -> None:
    z, values = DEGENERATE[kind]
    # The 1e-7 of RankMe for every direction makes rank one a little more.
    expected = pytest.approx(values[name], rel=1e-3 if "rankme" in name else 1e-4, abs=1e-9, nan_ok=True)
    assert float(of(name, z)) == expected
    metric = (MOMENTS | SAMPLES)[name][1](WIDTH)
    for part in z.split(1):
        metric.update(part)
    assert computed(metric, name) == expected
    # Beside a healthy set of the same size it does not spread.
    healthy = gauss(len(z), WIDTH, seed=20).to(z.dtype)
    pair = of(name, torch.stack([healthy, z]))
    assert float(pair[1]) == expected
    assert float(pair[0]) == near(float(of(name, healthy)))


def test_rounding_of_long_sums_is_no_spread() -> None:
    """Thousands of embeddings that are all alike, added one by one: the differences of sums must not look like rank."""
    metric = RankMe(WIDTH, centred=True)
    for _ in range(4000):
        metric.update(EMBEDDINGS["offset"][:1])
    sums = metric.sums()
    mean = sums.total / sums.num
    assert (sums.outer / sums.num - torch.outer(mean, mean)).abs().max() > 0  # there is something to take for rank
    for name in ("rankme_centred", "effective_rank_centred", "nesum", "participation_ratio", "iso_score", "std"):
        assert float(MOMENTS[name][0](sums)) == 0, name
    assert float(dead_features(sums)) == 1
    assert torch.isnan(mean_correlation(sums))
    # A spread of a hundred-thousandth is still seen.
    z = 1 + 1e-5 * gauss(200, WIDTH)
    assert float(rankme(moments(z), centred=True)) == pytest.approx(numpy_rankme(z.numpy(), centred=True), rel=1e-3)
    assert float(feature_std(moments(z))) == pytest.approx(float(z.std(0, correction=0).mean()), rel=1e-3)


def test_zeros_are_alike_and_unlike_the_rest() -> None:
    z = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    assert float(mean_cosine(moments(z))) == near(1 / 3)
    assert float(uniformity(z)) == near(math.log((1 + 2 * math.exp(-4)) / 3))
    assert float(alignment(z, z.flip(0))) == near((2 + 0 + 2) / 3)
    # However small, an embedding that is not zero has a direction.
    assert float(mean_cosine(moments(torch.tensor([[1e-30, 0.0], [1.0, 0.0]])))) == near(1)


# --- States ----------------------------------------------------------------------------------------------------------


def test_all_moments_are_one_compute_group(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(embedding, "moments", lambda z: calls.append(len(z)) or moments(z))
    collection = MetricCollection({name: make(WIDTH) for name, make in CLASSES.items()}, prefix="collapse/")
    z = EMBEDDINGS["a spectrum"]
    collection.update(z[:20])
    first = len(calls)
    assert sorted(len(group) for group in collection.compute_groups.values()) == [2, len(MOMENTS) - 1]
    collection.update(z[20:])
    assert (first, len(calls) - first) == (len(MOMENTS) - 1, 1)
    values = collection.compute()
    assert values.keys() == {f"collapse/{name}" for name in MOMENTS | SAMPLES}
    for name in MOMENTS | SAMPLES:
        assert float(values[f"collapse/{name}"]) == near(reference(name, z.numpy()), rel=1e-4), name
    collection.reset()
    collection.update(EMBEDDINGS["offset"])
    for name in MOMENTS | SAMPLES:
        expected = near(reference(name, EMBEDDINGS["offset"].numpy()), rel=1e-4)
        assert float(collection.compute()[f"collapse/{name}"]) == expected, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_input(dtype: torch.dtype) -> None:
    """The sums are those of float64, whatever the embeddings come in, under autocast and after a cast of the module."""
    z = (gauss(200, WIDTH) + 2).to(dtype)
    metrics = nn.ModuleDict({name: make(WIDTH) for name, make in CLASSES.items()}).to(dtype).half()
    views, pairs = LiDAR(WIDTH).to(dtype), Alignment(WIDTH).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        for metric in metrics.values():
            assert isinstance(metric, Metric)
            metric.update(z)
        views.update(z.view(50, 4, WIDTH))
        pairs.update(z, z.flip(0))
        for name, metric in metrics.items():
            assert isinstance(metric, Metric)
            assert computed(metric, name) == near(reference(name, z.double().numpy()), rel=1e-4), name
        assert float(views.compute()) == near(numpy_lidar(z.double().view(50, 4, WIDTH).numpy()))
    assert float(pairs.compute()) == near(float(alignment(z.double(), z.double().flip(0))), rel=1e-12)
    for metric in (*metrics.values(), views, pairs):
        assert isinstance(metric, Metric)
        assert all(state.dtype == torch.float64 for state in metric.metric_state.values())


@pytest.mark.parametrize("name", [*CLASSES, "lidar", "alignment"])
def test_halfway_through_a_pickle_and_a_checkpoint(name: str) -> None:
    make = (CLASSES | {"lidar": LiDAR, "alignment": Alignment})[name]
    z = EMBEDDINGS["offset"]
    halves: list[tuple[Tensor, ...]] = [(z[:25],), (z[25:],)]
    if name == "lidar":
        halves = [(half.unflatten(0, (-1, 5)),) for (half,) in halves]
    elif name == "alignment":
        halves = [(half, half.roll(1, 0)) for (half,) in halves]
    whole = make(WIDTH)
    whole.update(*halves[0])
    pickled = pickle.loads(pickle.dumps(whole))
    whole.persistent(True)
    loaded = make(WIDTH)
    loaded.persistent(True)
    loaded.load_state_dict(whole.state_dict())
    for metric in (whole, pickled, loaded):
        metric.update(*halves[1])
    expected = computed(whole, name)
    assert math.isfinite(expected)
    assert computed(pickled, name) == expected
    assert computed(loaded, name) == expected


@pytest.mark.parametrize("name", CLASSES)
def test_forward_gives_the_batch_and_adds_it(name: str) -> None:
    z, metric = EMBEDDINGS["offset"], CLASSES[name](WIDTH)
    for part in (z[:25], z[25:]):
        value = metric(part)
        value = value[name] if isinstance(value, dict) else value
        assert float(value) == near(reference(name, part.numpy()), rel=1e-4)
    assert computed(metric, name) == near(reference(name, z.numpy()), rel=1e-4)


# --- The even sample -------------------------------------------------------------------------------------------------


def kept(metric: Uniformity) -> list[int]:
    """Which of embeddings that say their own number are in the sample."""
    return sorted(int(row[0]) for row in metric.sample())


def numbered(num: int) -> Tensor:
    return torch.stack([torch.arange(num), torch.ones(num)], dim=1)


def lowest(num: int, keep: int) -> list[int]:
    golden = (math.sqrt(5) - 1) / 2
    return sorted(sorted(range(num), key=lambda i: (i * golden) % 1)[:keep])


@pytest.mark.parametrize("num", [5, 64, 65, 1000])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_sample_does_not_depend_on_the_batches(num: int, size: int) -> None:
    metric = Uniformity(2, num_samples=64)
    for add in (metric.update, metric):
        for part in numbered(num).split(size):
            add(part)
        assert kept(metric) == lowest(num, 64)
        metric.reset()


@pytest.mark.parametrize("period", [2, 3, 10, 16, 64, 196])
def test_the_sample_is_even(period: int) -> None:
    """Every stretch and every phase of a period has about its share; ten of a hundred are expected in each tenth."""
    metric = Uniformity(2, num_samples=100 * period)
    for part in numbered(1000 * period).split(512):
        metric.update(part)
    indices = np.array(kept(metric))
    assert len(indices) == 100 * period
    stretches = np.histogram(indices, bins=10, range=(0, 1000 * period))[0]
    assert abs(stretches - 10 * period).max() <= 3
    phases = np.bincount(indices % period, minlength=period)
    assert abs(phases - 100).max() <= 10


def test_a_sample_stands_for_all() -> None:
    z = gauss(20000, WIDTH) * torch.arange(1, WIDTH + 1) ** -0.5 + 0.3
    metric = Uniformity(WIDTH, num_samples=1000)
    metric.update(z)
    assert float(metric.compute()) == pytest.approx(float(uniformity(z[:6000])), abs=0.03)


# --- Errors ----------------------------------------------------------------------------------------------------------


def test_errors_say_what_was_expected() -> None:
    with pytest.raises(ValueError, match=r"\[\.\.\., N, D\], got \[4\]"):
        moments(torch.zeros(4))
    with pytest.raises(ValueError, match=r"\[\.\.\., N, D\], got \[4\]"):
        uniformity(torch.zeros(4))
    with pytest.raises(ValueError, match=r"\[\.\.\., N, D\], got \[4\]"):
        sigreg_statistic(torch.zeros(4))
    for make in CLASSES.values():
        for shape in ((2, 3, 4), (3, 5), (4,)):
            with pytest.raises(
                ValueError, match=rf"expected embeddings \[N, 4\], got \[{', '.join(map(str, shape))}\]"
            ):
                make(4).update(torch.zeros(shape))
    with pytest.raises(ValueError, match="num_samples must be at least 2, got 1"):
        Uniformity(4, num_samples=1)
    with pytest.raises(
        ValueError, match=r"views must be \[\.\.\., classes, views, D\] with two views or more, got \[6, 1, 4\]"
    ):
        LiDAR(4).update(torch.zeros(6, 1, 4))
    with pytest.raises(ValueError, match=r"two views or more, got \[6, 4\]"):
        scatter(torch.zeros(6, 4))
    with pytest.raises(ValueError, match=r"expected views \[classes, views, 4\], got \[6, 2, 5\]"):
        LiDAR(4).update(torch.zeros(6, 2, 5))
    with pytest.raises(ValueError, match=r"expected views \[classes, views, 4\], got \[6, 4\]"):
        LiDAR(4).update(torch.zeros(6, 4))
    for num in (0, 3):
        with pytest.raises(ValueError, match=rf"one shape \[\.\.\., N, D\], got \[{num}, 4\] and \[2, 4\]"):
            Alignment(4).update(torch.zeros(num, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"expected embeddings \[N, 4\], got \[3, 5\]"):
        Alignment(4).update(torch.zeros(3, 5), torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"got \[4\] and \[4\]"):
        alignment(torch.zeros(4), torch.zeros(4))


# --- Two processes ---------------------------------------------------------------------------------------------------

SPLIT = {"offset": 30, "a spectrum": 35}


def two_processes(rank: int, folder: Path) -> dict[str, Any]:
    """One of two ranks with its part of the samples, in batches of its own."""
    result: dict[str, Any] = {}
    collection = MetricCollection({name: make(WIDTH) for name, make in CLASSES.items()})
    for sample, at in SPLIT.items():
        z = EMBEDDINGS[sample]
        for part in z[:at].split(7) if rank == 0 else z[at:].split(3):
            collection.update(part)
        # The second sample goes on after the first has been reduced and taken apart again.
        result[sample] = {name: float(value) for name, value in collection.compute().items()}
    views, pairs = LiDAR(8), Alignment(8)
    mine = VIEWS["signal and noise"][:37] if rank == 0 else VIEWS["signal and noise"][37:]
    views.update(mine)
    pairs.update(mine[:, 0], mine[:, 1])
    result["lidar"], result["alignment"] = float(views.compute()), float(pairs.compute())
    thinned, idle = Uniformity(2, num_samples=64), {name: CLASSES[name](WIDTH) for name in ("rankme", "uniformity")}
    thinned.update(numbered(900)[:600] if rank == 0 else numbered(900)[600:])
    thinned.sync()
    result["kept"] = kept(thinned)
    thinned.unsync()
    result["own"] = kept(thinned)
    for name, metric in idle.items():
        if rank == 0:
            metric.update(EMBEDDINGS["offset"])
        result[f"idle {name}"] = computed(metric, name)
    return result


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_two_processes(two_processes, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", MOMENTS | SAMPLES)
def test_two_processes_are_one(name: str, ranks: list[dict[str, Any]]) -> None:
    first = EMBEDDINGS["offset"].numpy()
    for sample, z in {"offset": first, "a spectrum": np.concatenate([first, EMBEDDINGS["a spectrum"].numpy()])}.items():
        expected = near(reference(name, z), rel=1e-4 if name == "sigreg" else 1e-5)
        assert [rank[sample][name] for rank in ranks] == [expected] * 2


def test_views_over_two_processes(ranks: list[dict[str, Any]]) -> None:
    views = VIEWS["signal and noise"]
    expected = {"lidar": numpy_lidar(views.numpy()), "alignment": float(alignment(views[:, 0], views[:, 1]))}
    for name, value in expected.items():
        assert [rank[name] for rank in ranks] == [near(value)] * 2


def test_a_rank_that_has_seen_nothing(ranks: list[dict[str, Any]]) -> None:
    for name in ("rankme", "uniformity"):
        expected = near(reference(name, EMBEDDINGS["offset"].numpy()))
        assert [rank[f"idle {name}"] for rank in ranks] == [expected] * 2


def test_ranks_share_the_sample_in_proportion(ranks: list[dict[str, Any]]) -> None:
    """600 and 300 embeddings for 64 places: two thirds and one third, of those that each rank has kept."""
    assert [rank["own"] for rank in ranks] == [lowest(600, 64), [600 + i for i in lowest(300, 64)]]
    assert ranks[0]["kept"] == ranks[1]["kept"]
    together = ranks[0]["kept"]
    assert len(together) == 64
    assert set(together) <= {*ranks[0]["own"], *ranks[1]["own"]}
    assert abs(sum(i < 600 for i in together) - 64 * 2 / 3) <= 2

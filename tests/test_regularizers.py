"""Decorrelation, VICReg and SIGReg against lightly, numpy and closed forms, in one process and two; and C-JEPA.

That methods train with them, resume, and train in two processes as in one is in test_contracts.py and test_scale.py.
"""

import itertools
from pathlib import Path
from typing import Any, get_args

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import TINY, in_two_processes, loader, quiet_trainer, random_images
from lightly.loss import BarlowTwinsLoss, VICRegLoss, lejepa_loss
from torch import Generator, Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jepa_lightning import CJEPA, IJEPA
from jepa_lightning.losses import Decorrelation, SIGReg, VICReg, decorrelation
from jepa_lightning.modules.regularizer import Regularizer, Source
from jepa_lightning.step import Latents, Prediction, Tokens

SOURCES = get_args(Source)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(seed))


def tiny(module: Any = IJEPA, **options: Any) -> Any:
    torch.manual_seed(0)
    return module(**TINY | options)


# --- VICReg ----------------------------------------------------------------------------------------------------------


def brute_vicreg(views: Any) -> dict[str, float]:
    """The terms in float64, one ordered pair of views and one feature at a time."""
    views = [np.asarray(view.detach(), dtype=np.float64) for view in views]

    def std(z: np.ndarray) -> float:
        return float(np.mean([max(0.0, 1.0 - np.sqrt(np.var(feature, ddof=1) + 1e-4)) for feature in z.T]))

    def cov(z: np.ndarray) -> float:
        matrix = np.atleast_2d(np.cov(z.T))
        return sum(matrix[i, j] ** 2 for i, j in itertools.permutations(range(z.shape[1]), 2)) / z.shape[1]

    terms = [
        {"sim": np.mean((a - b) ** 2), "std": 0.5 * (std(a) + std(b)), "cov": cov(a) + cov(b)}
        for a, b in itertools.permutations(views, 2)
    ]
    return {name: float(np.mean([pair[name] for pair in terms])) for name in ("sim", "std", "cov")}


def spread(*shape: int, seed: int = 0) -> Tensor:
    """Samples whose features have deviations on both sides of one, and correlations."""
    *_, width = shape
    scales = torch.linspace(0.3, 1.8, width)
    return gaussian(*shape, seed=seed) * scales + gaussian(*shape[:-1], 1, seed=seed + 1) * 0.4 + 2.0


@pytest.mark.parametrize("coefficients", [(25.0, 25.0, 1.0), (0.3, 0.7, 11.0)])
def test_vicreg_of_two_views_is_lightlys(coefficients: tuple[float, float, float]) -> None:
    """Value and gradient."""
    ours, theirs = (spread(2, 12, 7).requires_grad_() for _ in range(2))
    value, expected = VICReg(*coefficients)(*ours), VICRegLoss(*coefficients)(*theirs)
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("shape", [(3, 9, 5), (2, 6, 11), (3, 2, 4), (4, 5, 1)])
def test_vicreg_of_many_views_by_brute_force(shape: tuple[int, int, int]) -> None:
    views, vicreg = spread(*shape), VICReg(3.0, 5.0, 7.0)
    expected = brute_vicreg(views)
    assert {name: float(value) for name, value in vicreg.terms(*views).items()} == pytest.approx(expected, rel=1e-5)
    total = 3 * expected["sim"] + 5 * expected["std"] + 7 * expected["cov"]
    assert float(vicreg(*views)) == pytest.approx(total, rel=1e-5)


def test_vicreg_of_a_single_view() -> None:
    """Of a view and itself, which are as near as can be."""
    z = spread(10, 6)
    terms = VICReg().terms(z)
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(brute_vicreg([z, z]), rel=1e-5)
    assert terms["sim"] == 0.0
    torch.testing.assert_close(VICReg()(z), VICRegLoss()(z, z))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(4, 2), (4, 3)], r"\[\[4, 2\], \[4, 3\]\]"),
        ([(4, 2), (4, 2), (5, 2)], r"\[\[4, 2\], \[4, 2\], \[5, 2\]\]"),
        ([(4, 3, 2)], r"\[\[4, 3, 2\]\]"),
        ([], r"\[\]"),
    ],
)
def test_vicreg_refuses_views(shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VICReg()(*(torch.zeros(shape) for shape in shapes))


def test_a_batch_of_one_has_no_spread() -> None:
    """As the last batch of a validation may be."""
    terms = VICReg().terms(torch.zeros(1, 2), torch.ones(1, 2))
    assert [float(terms[name]) for name in ("sim", "std", "cov")] == [1.0, 0.0, 0.0]
    module = tiny(CJEPA, projector=(8,)).eval()
    assert module.loss(module.latents(random_images(1)))["loss"].isfinite()


@pytest.mark.parametrize("option", ["sim", "std", "cov"])
def test_vicreg_refuses_negative_coefficients(option: str) -> None:
    with pytest.raises(ValueError, match=f"negative.*{option}=-2.0"):
        VICReg(**{option: -2.0})


@pytest.mark.parametrize("loss", [lambda z: VICReg()(*z), SIGReg(16).eval(), decorrelation])
def test_float32_whatever_comes_in(loss: Any) -> None:
    """Under autocast and for half-precision embeddings: the bits that float32 gives."""
    z = spread(2, 64, 8)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = loss(z)
    assert under_autocast.dtype == torch.float32
    assert torch.equal(under_autocast, loss(z))
    assert torch.equal(loss(z.bfloat16()), loss(z.bfloat16().float()))
    assert loss(z.bfloat16()).dtype == torch.float32
    assert not torch.equal(loss(z.bfloat16()), loss(z))  # rounding is seen


# --- Decorrelation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 6), (3, 12, 7), (5, 1)])
def test_decorrelation_by_numpy(shape: tuple[int, ...]) -> None:
    """The correlations of every pair of features; neither scale nor place of a feature counts."""
    z = spread(*shape)
    matrices = [np.atleast_2d(np.corrcoef(view.double().numpy().T)) for view in z.view(-1, *shape[-2:])]
    pairs = itertools.permutations(range(shape[-1]), 2)
    expected = sum(np.mean([matrix[i, j] ** 2 for matrix in matrices]) for i, j in pairs) / shape[-1]
    assert float(decorrelation(z)) == pytest.approx(expected, rel=1e-4, abs=1e-7)
    scales = torch.linspace(0.5, -3.0, shape[-1])
    torch.testing.assert_close(decorrelation(z * scales + 5), decorrelation(z), rtol=1e-4, atol=1e-6)


def test_decorrelation_is_the_redundancy_of_barlow_twins() -> None:
    """lightly's loss of a view and itself, whose diagonal is one; value and gradient."""
    mine, theirs = (spread(64, 8).requires_grad_() for _ in range(2))
    value, expected = decorrelation(mine), BarlowTwinsLoss(lambda_param=1.0)(theirs, theirs) / 8
    torch.testing.assert_close(value, expected, rtol=5e-4, atol=0)  # their epsilon is larger
    value.backward()
    expected.backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-2, atol=1e-5)


def test_decorrelation_of_what_does_not_vary() -> None:
    """Dead features and a single sample are correlated with nothing, and have finite gradients."""
    for z in (torch.ones(6, 4), torch.ones(1, 4), torch.cat([spread(6, 3), torch.zeros(6, 1)], dim=1)):
        z = z.requires_grad_()
        value = decorrelation(z)
        value.backward()
        assert z.grad is not None
        assert z.grad.isfinite().all()
    assert value > 0
    assert decorrelation(torch.ones(6, 4)) == 0
    with pytest.raises(ValueError, match=r"N, D\].*\[5\]"):
        decorrelation(torch.zeros(5))


# --- SIGReg ----------------------------------------------------------------------------------------------------------


def trapezoid(integrand: Any, knots: int = 17, t_max: float = 3.0) -> float:
    """Over [-t_max, t_max], for an even integrand."""
    t = np.linspace(0, t_max, knots)
    values = integrand(t)
    return float(2 * np.sum((values[1:] + values[:-1]) / 2 * np.diff(t)))


def brute_sigreg(z: np.ndarray, directions: np.ndarray, knots: int = 17, t_max: float = 3.0) -> float:
    """One direction, one frequency and one sample at a time, in complex numbers."""

    def distance(direction: np.ndarray, t: float) -> float:
        phi = np.mean([np.exp(1j * t * (sample @ direction)) for sample in z])
        return np.abs(phi - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2)

    of_directions = [
        trapezoid(lambda ts, a=direction: np.array([distance(a, t) for t in ts]), knots, t_max)
        for direction in directions.T
    ]
    return len(z) * float(np.mean(of_directions))


def test_sigreg_of_zeros() -> None:
    per_sample = trapezoid(lambda t: (1 - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2))
    assert per_sample == pytest.approx(0.4020, abs=5e-5)
    assert float(SIGReg()(torch.zeros(10, 4))) == pytest.approx(per_sample * 10, rel=1e-5)


@pytest.mark.parametrize(("knots", "t_max"), [(17, 3.0), (2, 1.0)])
def test_sigreg_of_one_repeated_number(knots: int, t_max: float) -> None:
    """In one dimension all directions are plus or minus one, and |e^{ict} - g|^2 = 1 - 2 g cos(ct) + g^2."""

    def integrand(t: np.ndarray) -> np.ndarray:
        g = np.exp(-(t**2) / 2)
        return (1 - 2 * g * np.cos(0.7 * t) + g**2) * g

    value = SIGReg(5, knots, t_max)(torch.full((20, 1), 0.7))
    assert float(value) == pytest.approx(20 * trapezoid(integrand, knots, t_max), rel=1e-5)


@pytest.mark.parametrize(("num_samples", "width"), [(2, 1), (32, 3)])
def test_sigreg_of_gaussian_samples(num_samples: int, width: int) -> None:
    """The expectation is the integral of (1 - |φ|²) exp(-t²/2), whatever N and D."""
    expected = trapezoid(lambda t: (1 - np.exp(-(t**2))) * np.exp(-(t**2) / 2), knots=3001)
    assert expected == pytest.approx(1.0525, abs=5e-4)
    sigreg = SIGReg(32)
    values = np.array([float(sigreg(gaussian(num_samples, width, seed=seed))) for seed in range(400)])
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert error < 0.05
    assert abs(values.mean() - expected) < 3 * error + 1e-3  # the error of the quadrature


def test_sigreg_sees_what_is_not_gaussian() -> None:
    """Wider, narrower, shifted, two-valued: by far more than by chance."""
    z = gaussian(500, 4)
    healthy = SIGReg(64)(z)
    for other in (1.5 * z, 0.6 * z, z + 0.5, z.sign(), z[:, :1].expand(-1, 4)):
        assert SIGReg(64)(other) > 5 * healthy


def test_sigreg_by_brute_force() -> None:
    z, sigreg = spread(7, 3), SIGReg(5, 6, 2.0).eval()
    expected = brute_sigreg(z.double().numpy(), sigreg.directions(z).double().numpy(), 6, 2.0)
    assert float(sigreg(z)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(50, 8), (2, 3, 10, 4)])
def test_sigreg_is_lightlys_along_the_same_directions(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradient."""
    sigreg, theirs = SIGReg(40, 9, 2.5).eval(), lejepa_loss.SIGReg(num_vectors=40, knots=9, t_max=2.5)
    mine, other = (spread(*shape).requires_grad_() for _ in range(2))
    monkeypatch.setattr(theirs, "_generate_unit_vectors", lambda *args, **options: sigreg.directions(mine))
    value, expected = sigreg(mine), theirs(other)
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    torch.testing.assert_close(mine.grad, other.grad)


def test_sigreg_of_views_is_their_mean() -> None:
    views, sigreg = spread(2, 3, 12, 5), SIGReg(16).eval()
    apart = torch.stack([sigreg(view) for view in views.flatten(0, 1)])
    assert apart.std() > 0.01
    torch.testing.assert_close(sigreg(views), apart.mean())


def test_directions_are_a_function_of_the_step() -> None:
    z, sigreg = gaussian(6, 4), SIGReg(2048)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = sigreg.directions(z)
    assert first.shape == (4, 2048)
    torch.testing.assert_close(first.norm(dim=0), torch.ones(2048))
    # As many one way as another: the mean of a aᵀ is I / D.
    torch.testing.assert_close(first @ first.T / 2048, torch.eye(4) / 4, rtol=0, atol=0.03)
    sigreg.eval()(z)
    assert torch.equal(sigreg.directions(z), first)
    sigreg.train()(z)
    second = sigreg.directions(z)
    assert not torch.equal(second, first)
    assert torch.equal(torch.get_rng_state(), state)  # the training's own random numbers are left alone
    torch.manual_seed(2)
    other = SIGReg(2048)
    assert torch.equal(other.directions(z), first)
    other(gaussian(9, 4, seed=3))  # neither the global seed nor the samples play a part
    assert torch.equal(other.directions(z), second)


def test_directions_survive_a_checkpoint(tmp_path: Path) -> None:
    z, sigreg = gaussian(6, 4), SIGReg(16)
    for _ in range(3):
        sigreg(z)
    loaded, from_file = SIGReg(16), SIGReg(16)
    assert not torch.equal(loaded.directions(z), sigreg.directions(z))
    loaded.load_state_dict(sigreg.state_dict())
    torch.save(sigreg.state_dict(), tmp_path / "sigreg.pt")
    from_file.load_state_dict(torch.load(tmp_path / "sigreg.pt", weights_only=True))
    for restored in (loaded, from_file):
        assert torch.equal(restored.directions(z), sigreg.directions(z))
        assert restored.step == 3


@pytest.mark.parametrize("options", [(0, 17, 3.0), (8, 1, 3.0), (8, 17, 0.0)])
def test_sigreg_refuses_options(options: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match=", ".join(map(str, options))):
        SIGReg(*options)


@pytest.mark.parametrize("shape", [(5,), ()])
def test_sigreg_refuses_embeddings(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"N, D\].*\[{', '.join(map(str, shape))}\]"):
        SIGReg()(torch.zeros(shape))


# --- Regularizer -----------------------------------------------------------------------------------------------------


def some_latents() -> Latents:
    """Of four images, with three context tokens, two target blocks of five tokens, and seven tokens in all."""
    shapes = [(4, 3, 6), (4, 2, 5, 6), (4, 2, 5, 6), (4, 7, 6)]
    context, prediction, target, features = (spread(*shape, seed=10 * seed) for seed, shape in enumerate(shapes))
    embeddings = {"context": Tokens(context), "target": Tokens(features)}
    return Latents({"": Prediction(prediction, target)}, embeddings, Tokens(features))


def tokens_of(latents: Latents) -> tuple[Tensor, Tensor]:
    """Those of the context, and the teacher's."""
    return latents.embeddings["context"].values, latents.embeddings["target"].values


def test_views_by_hand() -> None:
    latents = some_latents()
    tokens, teachers = tokens_of(latents)

    def mean(tokens: Any) -> Tensor:
        return sum(tokens) / len(tokens)

    context = torch.stack([mean(image) for image in tokens])
    expected = {
        "context": [context],
        "context_tokens": [torch.stack([token for image in tokens for token in image])],
        "context_and_target": [context, torch.stack([mean(image) for image in teachers])],
        "prediction_blocks": [
            torch.stack([mean(latents.prediction[image, block]) for image in range(4)]) for block in range(2)
        ],
    }
    assert set(expected) == set(SOURCES)
    for source, views in expected.items():
        torch.testing.assert_close(Regularizer("sigreg", 6, 1.0, source).views(latents), torch.stack(views))


@pytest.mark.parametrize("source", ["context", "prediction_blocks"])
def test_projector_by_hand(source: Any) -> None:
    """Linear layers with norms over features between them, none after the last; the terms are of what comes out."""
    torch.manual_seed(0)
    vicreg = Regularizer("vicreg", 6, 0.5, source, [9, 8, 5], sim=2.0, std=3.0, cov=4.0)
    assert [m.weight.shape for m in vicreg.modules() if isinstance(m, nn.Linear)] == [(9, 6), (8, 9), (5, 8)]
    first, second, last = (m for m in vicreg.modules() if isinstance(m, nn.Linear))
    latents = some_latents()
    z = F.layer_norm(vicreg.views(latents) @ first.weight.T, (9,)).relu()
    z = F.layer_norm(z @ second.weight.T, (8,)).relu() @ last.weight.T + last.bias
    expected = brute_vicreg(z if len(z) > 1 else [z[0], z[0]])
    penalty, parts = vicreg(latents)
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(expected, rel=1e-4)
    total = 2 * expected["sim"] + 3 * expected["std"] + 4 * expected["cov"]
    assert penalty.item() == pytest.approx(0.5 * total, rel=1e-4)
    sigreg = Regularizer("sigreg", 6, 0.5, source, [9, 8, 5], num_slices=3).eval()
    sigreg.projector.load_state_dict(vicreg.projector.state_dict())
    directions = sigreg.regularizer.directions(z).double().numpy()
    statistic = np.mean([brute_sigreg(view.detach().double().numpy(), directions) for view in z])
    penalty, parts = sigreg(latents)
    assert [*parts] == [""]
    assert [penalty.item(), parts[""].item()] == pytest.approx([0.5 * statistic, statistic], rel=1e-4)


def test_no_projector_by_default() -> None:
    z = some_latents()
    assert not list(Regularizer("vicreg", 6, 1.0).parameters())
    torch.testing.assert_close(Regularizer("vicreg", 6, 1.0)(z)[0], VICReg()(tokens_of(z)[0].flatten(0, 1)))


def test_terms_add_up() -> None:
    """The loss is the energy plus every weighted term, and each is there by name."""
    chosen = {"vicreg": {"weight": 0.03, "source": "context_and_target"}, "sigreg": {"weight": 0.2, "num_slices": 16}}
    module = tiny(regularizers=chosen)
    latents = module.latents(random_images(6))
    terms = module.loss(latents)
    assert set(terms) == {"loss", "energy", "vicreg_sim", "vicreg_std", "vicreg_cov", "sigreg"}
    torch.testing.assert_close(terms["energy"], F.smooth_l1_loss(latents.prediction, latents.target))
    context, teachers = tokens_of(latents)
    vicreg = brute_vicreg([context.mean(1), teachers.mean(1)])
    assert {name: terms[f"vicreg_{name}"].item() for name in vicreg} == pytest.approx(vicreg, rel=1e-4)
    torch.testing.assert_close(terms["sigreg"], SIGReg(16)(context.flatten(0, 1)))
    sim, std, cov = vicreg.values()
    total = terms["energy"].item() + 0.03 * (25 * sim + 25 * std + cov) + 0.2 * terms["sigreg"].item()
    assert terms["loss"].item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("regularizers", [None, {}])
def test_without_regularizers(regularizers: Any) -> None:
    module = tiny(regularizers=regularizers)
    latents = module.latents(random_images(6))
    terms = module.loss(latents)
    assert set(terms) == {"loss"}
    torch.testing.assert_close(terms["loss"], F.smooth_l1_loss(latents.prediction, latents.target))


@pytest.mark.parametrize(
    ("chosen", "error", "message"),
    [
        ({"vicregg": {"weight": 1.0}}, ValueError, "vicregg.*decorrelation, sigreg, vicreg"),
        ({"sigreg": {"weight": 1.0, "source": "target"}}, ValueError, "source of sigreg.*target"),
        ({"sigreg": {"weight": 1.0, "slices": 4}}, TypeError, "slices.*num_slices"),
        ({"vicreg": {"weight": 1.0, "knots": 4}}, TypeError, "knots.*cov, projector"),
        ({"vicreg": {"weight": -0.5}}, ValueError, r"weight of vicreg.* -0.5"),
        ({"sigreg": {"weight": float("nan")}}, ValueError, "weight of sigreg.* nan"),
        ({"vicreg": {"weight": 0.5, "std": -2.0}}, ValueError, r"std=-2.0"),
        ({"sigreg": {"source": "context"}}, TypeError, "sigreg needs a weight"),
        ({"sigreg": {"wieght": 1.0}}, TypeError, "wieght.*weight"),
        ({"vicreg": {"weight": 1.0, "projector": [8, 0]}}, ValueError, r"vicreg_projector_1.* 0"),
    ],
)
def test_refused_regularizers(chosen: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tiny(regularizers=chosen)


@pytest.mark.parametrize(
    ("name", "source"), [*(("vicreg", source) for source in SOURCES), ("sigreg", "context_tokens")]
)
def test_where_gradients_go(name: str, source: str) -> None:
    """To the projector, the student and, from predictions, the predictor; never to the teacher."""
    module = tiny(regularizers={name: {"weight": 1.0, "source": source, "projector": [12, 8]}})
    penalty, _ = module.regularizers[name](module.latents(random_images(6)))
    penalty.backward()
    reached = {n.split(".")[0] for n, p in module.named_parameters() if p.grad is not None and bool(p.grad.any())}
    predicted = {"predictor"} if source == "prediction_blocks" else set()
    assert reached == {"regularizers", "context_encoder"} | predicted
    assert module.context_encoder.patch_embed.proj.weight.grad.any()


# --- C-JEPA ----------------------------------------------------------------------------------------------------------


def test_cjepa_defaults() -> None:
    """Those of the paper."""
    with torch.device("meta"):
        module = CJEPA()
    vicreg = module.regularizers["vicreg"]
    assert (vicreg.weight, vicreg.source) == (0.001, "prediction_blocks")
    assert vicreg.regularizer.coefficients == {"sim": 25.0, "std": 25.0, "cov": 1.0}
    widths = [tuple(m.weight.shape) for m in vicreg.modules() if isinstance(m, nn.Linear)]
    assert widths == [(2048, 768), (2048, 2048), (2048, 2048)]


def test_cjepa_compares_the_predictions_of_blocks() -> None:
    """By lightly's loss of each pair of different blocks."""
    module = tiny(CJEPA, beta=0.4, sim=3.0, std=5.0, cov=7.0, projector=(32, 24), num_targets=3)
    latents = module.latents(random_images(8))
    pooled = [latents.prediction[:, block].mean(1) for block in range(3)]
    z = [module.regularizers["vicreg"].projector(block) for block in pooled]
    assert z[0].shape == (8, 24)
    pairs = [VICRegLoss(3.0, 5.0, 7.0)(a, b) for a, b in itertools.permutations(z, 2)]
    terms = module.loss(latents)
    energy = F.smooth_l1_loss(latents.prediction, latents.target)
    torch.testing.assert_close(terms["loss"] - energy, 0.4 * torch.stack(pairs).mean(), rtol=1e-4, atol=1e-6)
    assert set(terms) == {"loss", "energy", "vicreg_sim", "vicreg_std", "vicreg_cov"}


class Record(pl.Callback):
    """What every step returned."""

    def __init__(self) -> None:
        self.outputs: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.outputs.append(outputs)


def test_cjepa_trains(tmp_path: Path) -> None:
    """The term alone moves the projector, and goes down; all terms are logged."""
    module = tiny(CJEPA, beta=1.0, projector=(32, 24), lr=1e-2, start_lr=1e-2, final_lr=1e-2)
    record, before = Record(), [p.clone() for p in module.regularizers.parameters()]
    trainer = quiet_trainer(tmp_path, max_epochs=20, callbacks=[record])
    trainer.fit(module, loader(random_images(16), 16), loader(random_images(8)))
    assert all(not torch.equal(p, q) for p, q in zip(module.regularizers.parameters(), before, strict=True))
    penalties = [(outputs["loss"] - outputs["energy"]).item() for outputs in record.outputs]
    assert np.mean(penalties[-5:]) < 0.95 * penalties[0]
    names = {"loss", "energy", "vicreg_sim", "vicreg_std", "vicreg_cov"}
    assert {f"{stage}/{name}" for stage in ("train", "val") for name in names} <= set(trainer.callback_metrics)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -0.1}, r"negative.* -0.1"),
        ({"cov": -1.0}, r"cov=-1.0"),
        ({"vicreg_source": "target"}, "source of vicreg.*target"),
        ({"regularizers": {"vicreg": {"weight": 1.0}}}, "has VICReg already"),
    ],
)
def test_cjepa_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(CJEPA, projector=(8,), **options)


# --- Two processes ---------------------------------------------------------------------------------------------------


SAMPLES = {
    "vicreg": spread(2, 12, 6),
    "sigreg": spread(2, 12, 6, seed=5),
    "vicreg, uneven": spread(1, 12, 6, seed=7),
    "sigreg, uneven": spread(2, 12, 6, seed=9),
    "decorrelation": spread(2, 12, 6, seed=11),
    "decorrelation, uneven": spread(1, 12, 6, seed=13),
}
SIZES = {name: [8, 4] if "uneven" in name else [6, 6] for name in SAMPLES}  # of the parts of the two ranks


def embedded(name: str, samples: Tensor, parallel: bool) -> tuple[nn.Module, Tensor, Tensor]:
    """A small network, its embeddings of samples, and what the regulariser says of these; gradients are taken."""
    torch.manual_seed(0)
    network = nn.Linear(6, 5)
    wrapped = DistributedDataParallel(network) if parallel else network
    z = wrapped(samples)
    losses = {"vicreg": lambda z: VICReg()(*z), "sigreg": SIGReg(32), "decorrelation": Decorrelation()}
    loss = losses[name.split(",")[0]](z)
    loss.backward()
    return network, z.detach(), loss.detach()


def two_processes(rank: int, folder: Path) -> dict[str, Any]:
    """One of two ranks: the regularisers of a network's embeddings, and a second step's directions."""
    result: dict[str, Any] = {}
    for name, samples in SAMPLES.items():
        network, z, loss = embedded(name, samples.split(SIZES[name], 1)[rank], parallel=True)
        gradients = {n: p.grad for n, p in network.named_parameters()}
        result[name] = {"z": z, "loss": loss, "gradients": gradients}
    sigreg = SIGReg(8)
    sigreg(gaussian(4, 3, seed=rank))
    result["directions"] = sigreg.directions(gaussian(4, 3, seed=rank))
    return result


# Seven seconds if it is the first to start two processes: what they are forked from imports everything.
@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_two_processes(two_processes, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", SAMPLES)
def test_two_ranks_are_one_batch(name: str, ranks: list[dict[str, Any]]) -> None:
    """The mean of the ranks' losses, and the gradient that DDP leaves, are those of one process with all samples."""
    network, z, loss = embedded(name, SAMPLES[name], parallel=False)
    torch.testing.assert_close(torch.cat([rank[name]["z"] for rank in ranks], dim=1), z)
    together = torch.stack([rank[name]["loss"] for rank in ranks]).mean()
    torch.testing.assert_close(together, loss, rtol=1e-5, atol=0)
    # To be sure that it matters: the parts, each on its own, say something else.
    parts = [embedded(name, part, parallel=False) for part in SAMPLES[name].split(SIZES[name], 1)]
    assert abs(torch.stack([part_loss for _, _, part_loss in parts]).mean() / loss - 1) > 0.01
    for parameter, expected in network.named_parameters():
        assert expected.grad is not None
        for rank in ranks:
            torch.testing.assert_close(rank[name]["gradients"][parameter], expected.grad, rtol=1e-4, atol=1e-5)
        alone = [dict(part.named_parameters())[parameter].grad for part, _, _ in parts]
        if expected.grad.abs().max() > 1e-4:  # all but SIGReg are blind to the bias
            assert (torch.stack(alone).mean(0) - expected.grad).abs().max() > 1e-3
        else:
            assert not name.startswith("sigreg")
            assert parameter == "bias"


def test_directions_of_two_ranks(ranks: list[dict[str, Any]]) -> None:
    a, b = ranks
    assert torch.equal(a["directions"], b["directions"])

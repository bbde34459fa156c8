"""What a frozen encoder of tracks is good for: distances against other libraries, search and regression by hand."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_data import write_tracks
from helpers import quiet_trainer
from numpy.typing import NDArray
from scipy.spatial.distance import cdist, directed_hausdorff
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jepa_lightning import RECIPES, TJEPA, TrajectoriesDataModule
from jepa_lightning.callbacks.pictures import draw_found
from jepa_lightning.data.trajectories.cleaning import great_circle
from jepa_lightning.evaluation.trajectories import (
    DistanceHead,
    TrajectoryEncoder,
    by_features,
    distorted,
    hits,
    mean_rank,
    pairwise,
    thinned,
    twin_search,
)

RNG = np.random.default_rng(0)


def walks(number: int, low: int = 4, high: int = 12) -> list[NDArray[Any]]:
    return [np.cumsum(RNG.normal(size=(RNG.integers(low, high), 2)), 0) for _ in range(number)]


# --- Distances -------------------------------------------------------------------------------------------------------


def by_hand(measure: str, a: NDArray[Any], b: NDArray[Any], epsilon: float) -> float:
    """Cell by cell of the table of the two tracks."""
    if measure == "hausdorff":
        return max(directed_hausdorff(a, b)[0], directed_hausdorff(b, a)[0])
    far, (n, m) = cdist(a, b), (len(a), len(b))
    edge = {"edr": None, "lcss": 0.0}.get(measure, np.inf)
    table = np.full((n + 1, m + 1), np.inf if edge is None else edge)
    table[0, 0] = 0.0 if measure != "frechet" else -np.inf
    if measure == "edr":
        table[:, 0], table[0] = np.arange(n + 1), np.arange(m + 1)
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            step, d = (table[i - 1, j], table[i, j - 1], table[i - 1, j - 1]), far[i - 1, j - 1]
            if measure == "dtw":
                table[i, j] = d**2 + min(step)
            elif measure == "frechet":
                table[i, j] = max(d, min(step))
            elif measure == "edr":
                table[i, j] = min(step[0] + 1, step[1] + 1, step[2] + (d > epsilon))
            else:
                table[i, j] = step[2] + 1 if d <= epsilon else max(step[:2])
    last = float(table[n, m])
    return {"dtw": last**0.5, "edr": last / max(n, m), "lcss": 1 - last / min(n, m)}.get(measure, last)


@pytest.mark.parametrize("measure", ["hausdorff", "frechet", "edr", "lcss", "dtw"])
def test_distances_by_brute_force(measure: Any) -> None:
    """Some seconds where aeon's are compiled for the first time."""
    a, b = walks(5), walks(4)
    found = pairwise(measure, a, b, epsilon=1.5)
    expected = [[by_hand(measure, one, other, 1.5) for other in b] for one in a]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(pairwise(measure, a, epsilon=1.5), pairwise(measure, a, a[:], epsilon=1.5), atol=1e-12)


def test_a_measure_that_there_is_not() -> None:
    with pytest.raises(ValueError, match=r"euclid.*hausdorff"):
        pairwise("euclid", walks(2))  # type: ignore[arg-type]


# --- Search ----------------------------------------------------------------------------------------------------------


def test_ranks() -> None:
    """By sorting; a constant is in the middle."""
    distances = RNG.random((20, 30))
    expected = [1 + sorted(row).index(row[i]) for i, row in enumerate(distances)]
    assert mean_rank(distances) == pytest.approx(np.mean(expected))
    assert mean_rank(np.zeros((20, 31))) == 16.0


def test_what_is_thinned_and_distorted() -> None:
    tracks = [np.array([47.0, 8.0]) + 0.001 * np.arange(2000.0)[:, None] * [1, 1]]
    kept = thinned(tracks, 0.3, np.random.default_rng(0))[0]
    assert len(kept) == pytest.approx(1400, abs=60)
    assert {tuple(each) for each in kept} <= {tuple(each) for each in tracks[0]}
    assert np.array_equal(kept[[0, -1]], tracks[0][[0, -1]])
    moved = great_circle(distorted(tracks, 0.4, 50.0, np.random.default_rng(0))[0], tracks[0])
    assert (moved > 1e-6).mean() == pytest.approx(0.4, abs=0.04)
    assert np.sqrt((moved[moved > 1e-6] ** 2).mean() / 2) == pytest.approx(50.0, rel=0.05)


def test_a_search_sees_the_twins_first() -> None:
    seen = []

    def distances(queries: Any, database: Any) -> NDArray[Any]:
        seen.append((len(queries), len(database), len(queries[0]), len(database[0])))
        return np.tile(np.arange(len(database), 0, -1.0), (len(queries), 1))  # the first is the last

    found = twin_search(distances, walks(4, 10, 11), walks(16), sizes=(0.1, 0.5, 1.0), rates=(0.2,))
    assert seen[0] == (4, 20, 5, 5)
    assert [(each.setting, each.value, each.database) for each in found] == [
        ("size", 0.1, 4), ("size", 0.5, 10), ("size", 1.0, 20), ("down-sampling", 0.2, 20), ("distortion", 0.2, 20)
    ]  # fmt: skip
    assert [each.rank for each in found] == [2.5, 8.5, 18.5, 18.5, 18.5]


# --- Regression ------------------------------------------------------------------------------------------------------


def test_hits_by_hand() -> None:
    true, predicted = RNG.random((2, 30, 30))
    five = [
        len({j for j in np.argsort(p) if j != i} and {*[j for j in np.argsort(p) if j != i][:5]}
            & {*[j for j in np.argsort(t) if j != i][:5]})
        for i, (p, t) in enumerate(zip(predicted, true, strict=True))
    ]  # fmt: skip
    wide = [
        len({*[j for j in np.argsort(p) if j != i][:20]} & {*[j for j in np.argsort(t) if j != i][:5]})
        for i, (p, t) in enumerate(zip(predicted, true, strict=True))
    ]
    found = hits(predicted, true)
    assert found["HR@5"] == pytest.approx(np.mean(five) / 5)
    assert found["R5@20"] == pytest.approx(np.mean(wide) / 5)
    assert hits(true, true) == {"HR@5": 1.0, "HR@20": 1.0, "R5@20": 1.0}
    with pytest.raises(ValueError, match="21"):
        hits(true[:20, :20], true[:20, :20])


def test_a_head_learns_a_distance() -> None:
    """Seconds of fitting: of places among much noise, which the distances of all features drown in."""
    places = RNG.normal(size=(300, 2))
    features = np.concatenate([places, RNG.normal(size=(300, 14))], 1).astype(np.float32)
    true = cdist(places, places, "cityblock")
    head = DistanceHead(width=32, steps=300).fit(
        (features[:200], true[:200, :200]), (features[200:250], true[200:250, 200:250])
    )
    test = slice(250, 300)
    found = hits(head.predict(features[test]), true[test, test])
    raw = hits(cdist(features[test], features[test], "cityblock"), true[test, test])
    assert found["HR@5"] > raw["HR@5"] + 0.3
    again = DistanceHead(width=32, steps=300).fit(
        (features[:200], true[:200, :200]), (features[200:250], true[200:250, 200:250])
    )
    assert np.array_equal(again.predict(features[test]), head.predict(features[test]))
    with pytest.raises(ValueError, match=r"\[200, 200\].*\[200, 199\]"):
        head.fit((features[:200], true[:200, :199]), (features[200:], true[200:, 200:]))


# --- The encoder -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TJEPA, TrajectoriesDataModule]:
    folder = tmp_path_factory.mktemp("tracks")
    write_tracks(folder / "it.csv")
    data = TrajectoriesDataModule(str(folder / "it.csv"), 8, cell_size=2000.0, cell_dim=16)
    torch.manual_seed(0)
    module = TJEPA(num_points=30, embed_dim=16, depth=1, num_heads=2, predictor_depth=1, predictor_head_dim=8)
    trainer = quiet_trainer(folder, max_epochs=2)
    trainer.fit(module, data)
    trainer.save_checkpoint(folder / "it.ckpt")
    return folder / "it.ckpt", module.eval(), data


def test_the_index_of_the_readme(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of recipes/tjepa/README.md that search by faiss, against all distances."""
    pytest.importorskip("faiss")
    path, _, data = trained
    monkeypatch.chdir(tmp_path)
    checkpoint = Path("lightning_logs/version_0/checkpoints/last.ckpt")
    checkpoint.parent.mkdir(parents=True)
    shutil.copy(path, checkpoint)
    shutil.copy(path.with_suffix(".csv"), "taxis.csv")
    (lines,) = re.findall(r"```python\n(.*?)```", (RECIPES / "tjepa" / "README.md").read_text(), re.DOTALL)
    # Cells of 100 m are too many for an area as large as the one of these tracks.
    lines = lines.replace(
        'TrajectoriesDataModule("taxis.csv")', 'TrajectoriesDataModule("taxis.csv", 8, cell_size=2000.0)'
    )
    names: dict[str, Any] = {}
    exec(lines, names)
    encoder = TrajectoryEncoder(path)
    features = [encoder.transform(data.parts[role]) for role in ("test", "train")]
    expected = cdist(*features, "cityblock")
    np.testing.assert_allclose(names["distances"], np.sort(expected, 1)[:, :10], rtol=1e-4, atol=1e-4)
    found = np.take_along_axis(expected, names["neighbours"], 1)
    np.testing.assert_allclose(found, names["distances"], rtol=1e-4, atol=1e-4)


def test_features_are_the_modules(trained: Any) -> None:
    """Of tracks of unequal lengths in one call, in an index of scikit-learn, as part of a pipeline."""
    path, module, data = trained
    tracks = [each[: 5 + 3 * (i % 7)] for i, each in enumerate(data.parts["train"])]
    for network in ("context_encoder", "target_encoder"):
        encoder = TrajectoryEncoder(path, network, batch_size=4)
        found = encoder.transform(tracks)
        assert (found.dtype, found.shape) == (np.float32, (len(tracks), 16))
        for track, one in list(zip(tracks, found, strict=True))[:5]:
            cells = data.cells.embedded(data.cells.metres(track)).unsqueeze(0)
            expected = getattr(module, network)(cells)[0].mean(0).detach().numpy()
            np.testing.assert_allclose(one, expected, atol=1e-5)
    index = NearestNeighbors(n_neighbors=1).fit(found)
    assert index.kneighbors(found)[1].ravel().tolist() == list(range(len(tracks)))
    assert make_pipeline(TrajectoryEncoder(path), StandardScaler()).fit_transform(tracks).shape == (len(tracks), 16)
    ranks = twin_search(by_features(encoder), data.parts["test"], data.parts["train"], (1.0,), (0.2,))
    assert all(1 <= each.rank <= each.database for each in ranks)
    untrained = TrajectoryEncoder(path).untrained(3)
    assert not np.allclose(untrained.transform(tracks), TrajectoryEncoder(path).transform(tracks))
    assert np.array_equal(untrained.transform(tracks), TrajectoryEncoder(path).untrained(3).transform(tracks))


def test_tracks_of_all_kinds(trained: Any, tmp_path: Path) -> None:
    """Too long ones are thinned evenly; what is beyond the border is counted; another area has cells of its own."""
    path, _, data = trained
    encoder = TrajectoryEncoder(path)
    long = np.linspace(data.parts["train"][0][0], data.parts["train"][0][-1], 88)
    np.testing.assert_allclose(encoder.transform([long]), encoder.transform([long[::3]]), atol=1e-5)
    away = data.parts["train"][0] + [5.0, 0.0]
    assert encoder.outside([data.parts["train"][0], away]).tolist() == [0, 25]
    cells = type(data.cells)(**data.cells.state() | {"centre": [data.cells.centre[0] + 5, data.cells.centre[1]]})
    there = TrajectoryEncoder(path, cells=cells)
    assert there.outside([away]).tolist() == [0]
    for wrong, named in (([], "no track"), ([np.zeros((3, 3))], r"\[3, 3\]"), ([np.full((2, 2), 99.0)], "99"),
                         ([np.full((2, 2), np.nan)], "track 0")):  # fmt: skip
        with pytest.raises(ValueError, match=named):
            encoder.transform(wrong)
    saved = torch.load(path, weights_only=True)
    del saved["TrajectoriesDataModule"]
    torch.save(saved, tmp_path / "without.ckpt")
    with pytest.raises(ValueError, match="cells"):
        TrajectoryEncoder(tmp_path / "without.ckpt").transform([long])


def test_a_picture_of_what_was_found() -> None:
    tracks = [torch.from_numpy(each) for each in walks(6)]
    picture = draw_found(tracks[:2], [tracks[2:5], tracks[3:]])
    assert picture.shape == (3, 2 * 162 + 2, 3 * 162 + 2)
    assert 0 <= float(picture.min()) < 0.3 < float(picture.max()) <= 1

"""Trajectories: files of every kind, what is amiss in them, the map, the cells, and batches."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fake_data import write_tracks
from helpers import quiet_trainer

from jepa_lightning import TJEPA, TrajectoriesDataModule
from jepa_lightning.data.trajectories import Cells
from jepa_lightning.data.trajectories.cells import AROUND, centre_of, neighbours, to_metres
from jepa_lightning.data.trajectories.cleaning import great_circle, trips_of
from jepa_lightning.data.trajectories.formats import KNOWN, Columns, Points, names_of
from jepa_lightning.data.trajectories.node2vec import node2vec, random_walks
from jepa_lightning.data.trajectories.sources import read_points

LIMITS: dict[str, Any] = {"max_gap": 300.0, "max_speed": 100.0, "min_points": 3, "max_points": 100}


def read(source: Any, **columns: str) -> Points:
    return read_points(source, Columns(**columns))


# --- Files -----------------------------------------------------------------------------------------------------------

START = 1_214_784_000.0  # 2008-06-30
LATITUDES, LONGITUDES = [39.9, 39.901, 39.902], [116.3, 116.301, 116.302]


def plt(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        f"{a},{b},0,492,{(START + 5 * i) / 86400 + 25569:.10f},2008-06-30,00:00:{5 * i:02}"
        for i, (a, b) in enumerate(zip(LATITUDES, LONGITUDES, strict=True))
    ]
    path.write_text(
        "\r\n".join(["Geolife trajectory", "WGS 84", "Altitude is in Feet", "Reserved 3", "0,2", "0", *rows])
    )
    return path


def written(kind: str, folder: Path) -> tuple[Path, str]:
    """A file with the three points five seconds apart (Porto: fifteen), and what its track is called."""
    places = list(zip(LATITUDES, LONGITUDES, strict=True))
    stamps = [f"2008-06-30 00:00:{5 * i:02}" for i in range(3)]
    lines = [[b, a] for a, b in places]
    path = folder / f"it.{kind}"
    table = pd.DataFrame({"trip_id": "x", "timestamp": stamps, "lat": LATITUDES, "lng": LONGITUDES})
    if kind == "csv":
        table.to_csv(path)
    elif kind == "parquet":
        table.to_parquet(path)
    elif kind == "plt":
        return plt(folder / "007" / "Trajectory" / "it.plt"), "007"
    elif kind == "txt":
        rows = [f"x,{t},{b},{a}" for t, (a, b) in zip(stamps, places, strict=True)]
        path.write_text("\n".join(rows))
    elif kind == "geojson":
        line = {"type": "LineString", "coordinates": lines}
        told = {"id": "x", "coordTimes": [stamp.replace(" ", "T") + "Z" for stamp in stamps]}
        feature = {"type": "Feature", "geometry": line, "properties": told}
        path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    else:
        points = [
            {"icao24": "a", "callsign": "b", "timestamp": int(1000 * (START + 5 * i)), "latitude": a, "longitude": b}
            for i, (a, b) in enumerate(places)
        ]
        with gzip.open(path, "wt") as file:
            json.dump(points, file)
        return path, "a b"
    return path, "x"


@pytest.mark.parametrize("kind", ["csv", "parquet", "plt", "txt", "geojson", "json.gz"])
def test_files(kind: str, tmp_path: Path) -> None:
    path, name = written(kind, tmp_path)
    points = read(str(path))
    assert points.name.tolist() == [name] * 3
    np.testing.assert_allclose(points.place[:, 0], START + 5 * np.arange(3), atol=1e-3)
    np.testing.assert_allclose(points.place[:, 1:], np.stack([LATITUDES, LONGITUDES], 1))
    if kind == "plt":  # GeoLife says beside its tracks how people went
        (path.parents[1] / "labels.txt").write_text("Start Time\tEnd Time\tTransportation Mode\n")
    assert len(read(str(tmp_path)).name) == 3  # a folder
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if kind in ("parquet", "geojson", "json.gz") else b"nonsense\n")
    with pytest.raises(ValueError, match=path.name):
        read(str(path))


def test_porto(tmp_path: Path) -> None:
    """A trip a row, a point every fifteen seconds; trips with missing data are left out, and counted."""
    table = {
        "TRIP_ID": ["a", "b", "c"],
        "TIMESTAMP": [int(START)] * 3,
        "MISSING_DATA": ["False", "True", "False"],
        "POLYLINE": ["[[-8.6,41.1],[-8.61,41.11]]", "[[-8.6,41.1]]", "[]"],
    }
    pd.DataFrame(table).to_csv(tmp_path / "train.csv", index=False)
    points = read(str(tmp_path / "train.csv"))
    assert (points.name.tolist(), points.incomplete) == (["a", "a"], 1)
    assert points.place.tolist() == [[START, 41.1, -8.6], [START + 15, 41.11, -8.61]]
    pd.DataFrame(table | {"POLYLINE": ["[]", "[]", "[[-8.6,41.1],"]}).to_csv(tmp_path / "train.csv", index=False)
    with pytest.raises(ValueError, match=r"train\.csv.*row 3"):
        read(str(tmp_path / "train.csv"))


def test_tables_that_would_be_misread(tmp_path: Path) -> None:
    """Columns between semicolons, and dates whose month and day could be either way round."""
    table = pd.DataFrame({"id": "x", "time": ["03/04/2026 00:00:05"], "lat": 41.0, "lon": 2.0})
    table.to_csv(tmp_path / "it.csv", sep=";", index=False)
    with pytest.raises(ValueError, match=r"it\.csv.*sep=';'"):
        read(str(tmp_path / "it.csv"))
    with pytest.raises(ValueError, match=r"1 points of the frame have no 'id'"):
        read(table.assign(id=np.nan))
    with pytest.raises(ValueError, match=r"03/04/2026.*day first"):
        read(table)
    days = [read(table.assign(time=text)).place[0, 0] for text in ("23/04/2026 00:00:05", "2026-04-23 00:00:05")]
    assert days[0] == days[1]


def test_geojson_of_other_shapes(tmp_path: Path) -> None:
    """Several lines of one feature are tracks of their own; points have an id and a time; others are refused."""
    lines = {"type": "MultiLineString", "coordinates": [[[1, 2], [3, 4]], [[5, 6]]]}
    point = {"type": "Point", "coordinates": [7, 8, 9]}
    features = [
        {"type": "Feature", "id": 3, "geometry": lines, "properties": None},
        {"type": "Feature", "geometry": point, "properties": {"Track_ID": "p", "time": "1970-01-01T00:00:10Z"}},
    ]
    path = tmp_path / "it.json"
    path.write_text(json.dumps({"features": features}))
    points = read(str(path))
    assert points.name.tolist() == ["3 0", "3 0", "3 1", "p"]
    assert points.place[3].tolist() == [10.0, 8.0, 7.0]
    assert np.isnan(points.place[:3, 0]).all()
    features[0]["geometry"] = {"type": "Polygon", "coordinates": []}
    path.write_text(json.dumps({"features": features}))
    with pytest.raises(ValueError, match="Polygon"):
        read(str(path))


def test_columns_and_sources(tmp_path: Path) -> None:
    table = pd.DataFrame({"who": [1, 2], "when": [3, 4], "north": [5.0, "no"], "lon": [6.0, 7.0]})
    named = {"track_id": "who", "time": "when", "latitude": "north"}
    points = read([table, table], **named)
    assert points.name.tolist() == ["1", "2", "1", "2"]
    np.testing.assert_equal(points.place[:2], [[3.0, 5.0, 6.0], [4.0, math.nan, 7.0]])
    with pytest.raises(ValueError, match="latitude, only who"):
        read(table)
    with pytest.raises(ValueError, match=r"'what' \(track_id\)"):
        read(table, **named | {"track_id": "what"})
    with pytest.raises(FileNotFoundError, match=r"nowhere.*pip install --no-deps traffic"):
        read("nowhere")
    with pytest.raises(FileNotFoundError, match="holds no tracks"):
        read(str(tmp_path))


# --- What is amiss ---------------------------------------------------------------------------------------------------


def points_of(*rows: tuple[str, float, float, float]) -> Points:
    return Points(names_of([row[0] for row in rows]), np.array([row[1:] for row in rows], float))


def straight(name: str, start: int, count: int, latitude: float = 50.0, longitude: float = 8.0) -> list[Any]:
    """A point every 10 seconds to the north, about 11 metres a second."""
    return [(name, start + 10.0 * i, latitude + 0.001 * i, longitude) for i in range(count)]


def test_all_that_is_amiss_is_counted() -> None:
    rows = straight("a", 0, 10)
    rows[3], rows[4] = rows[4], rows[3]  # out of order
    rows.append(rows[0])  # doubled
    rows.append(("a", 55.0, 51.0, 8.0))  # a jump there and back
    rows += straight("a", 1000, 5, latitude=50.2)  # behind a gap
    rows += straight("a", 1050, 4, latitude=52.0)  # goes on elsewhere
    rows += [("a", 1.0, 0.0, 0.0), ("a", 2.0, 95.0, 8.0), ("a", 3.0, math.nan, 8.0), ("a", 4.0, 5.0, 400.0)]
    rows += straight("b", 0, 2)  # too short
    rows += straight("c", 0, 250)  # too long
    rows += [("d", math.nan, 50.0 + i, 8.0) for i in range(4)]  # no times
    found = trips_of(points_of(*rows), **LIMITS)
    counts = found.counts
    assert counts._asdict() == {
        "points": len(rows), "nowhere": 4, "outside": 0, "unsorted": 2, "doubled": 1, "jumps": 1, "untimed": 4,
        "gaps": 2, "incomplete": 0, "short": 1, "cut": 1, "trips": 7,
    }  # fmt: skip
    assert [len(each) for each in found.places] == [10, 5, 4, 84, 83, 83, 4]
    assert found.owner.tolist() == [0, 0, 0, 2, 2, 2, 3]
    np.testing.assert_allclose(found.places[0][:, 0], 50 + 0.001 * np.arange(10))
    for told in ("4 points without a place", "1 points that jump", "2 gaps", "7 trips", "1 trips of too few"):
        assert told in str(counts)


def test_jumps_at_the_ends_and_extents() -> None:
    rows = straight("a", 0, 6)
    rows[0], rows[-1] = ("a", 0.0, 10.0, 8.0), ("a", 50.0, 10.0, 8.0)
    found = trips_of(points_of(*rows), **LIMITS)
    assert (found.counts.jumps, len(found.places[0])) == (2, 4)
    pacific = [
        ("p", 10.0 * i, -17.0, longitude) for i, longitude in enumerate((179.99, 179.995, -180.0, 180.005, -179.99))
    ]
    found = trips_of(points_of(*pacific), **LIMITS)
    assert (found.counts.jumps, found.counts.gaps, len(found.places[0])) == (0, 0, 5)  # the date line
    found = trips_of(points_of(*pacific), **LIMITS, extent=(179.993, -20.0, -179.994, 0.0))
    assert (found.counts.outside, len(found.places[0])) == (2, 3)


# --- The map ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centre", [(0.0, 0.0), (47.0, 8.0), (-17.0, 179.9), (88.0, 30.0)])
def test_metres_by_great_circles(centre: tuple[float, float]) -> None:
    """Distances from the centre are exact, and others of a hundred kilometres to 1e-4; north is up."""
    rng = np.random.default_rng(0)
    places = np.array(centre) + rng.uniform(-0.5, 0.5, (50, 2)) / [1, math.cos(math.radians(centre[0]))]
    metres = to_metres(places, centre)
    np.testing.assert_allclose(np.hypot(*metres.T), great_circle(places, np.array(centre)), rtol=1e-6)
    between = np.hypot(*(metres[1:] - metres[:-1]).T)
    np.testing.assert_allclose(between, great_circle(places[1:], places[:-1]), rtol=1e-4)
    assert to_metres(np.array([[centre[0] + 0.1, centre[1]]]), centre)[0] == pytest.approx([0.0, 11119.5], abs=0.1)


def test_centre_across_the_date_line() -> None:
    latitude, longitude = centre_of(np.array([[-17.0, 179.0], [-17.0, -179.0]]))
    assert abs(longitude) == pytest.approx(180.0)
    assert latitude == pytest.approx(-17.0, abs=0.01)


def grid(rows: int, columns: int) -> Any:
    return torch.arange(rows * columns * 2.0).view(-1, 2) + 1


def test_cells_and_their_neighbours() -> None:
    """By brute force: the embeddings of the nine cells in the order of the official code, but the right ones."""
    places = np.array([[47.0, 8.0], [47.02, 8.03], [47.01, 8.05]])
    cells = Cells.around(places, 500.0, grid)
    metres = cells.metres(places)
    embedded = cells.embedded(metres).view(3, 9, 2)
    for point, found in zip(metres, embedded, strict=True):
        for (up, right), one in zip(AROUND, found, strict=True):
            column, row = (math.floor((point[i] - cells.corner[i]) / 500.0) for i in range(2))
            assert torch.equal(one, cells.table[(row + up) * cells.columns + column + right])
    low, high = metres.min(0) - cells.corner, metres.max(0) - cells.corner
    assert (low >= 5 * 500).all()
    assert (high <= (np.array([cells.columns, cells.rows]) - 5) * 500).all()
    assert int(cells.visited.sum()) == 3
    far = cells.metres(np.array([[60.0, 8.0]]))
    assert cells.outside(far).all()
    assert cells.index(far)[0] // cells.columns == cells.rows - 1  # the nearest
    assert not cells.embedded(far).view(9, 2)[6:].any()  # nothing beyond the border
    again = Cells(**cells.state())
    assert torch.equal(again.embedded(metres), cells.embedded(metres))


def test_areas_that_are_too_large() -> None:
    with pytest.raises(ValueError, match=r"extent"):
        Cells.around(np.array([[0.0, 0.0], [0.0, 60.0]]), 100.0, grid)
    with pytest.raises(ValueError, match=r"cells of 100 m.*cell_size"):
        Cells.around(np.array([[47.0, 8.0], [48.0, 9.0]]), 100.0, grid)


def test_walks_and_embeddings() -> None:
    """Walks go to true neighbours, all alike; cells that are near have embeddings that are."""
    walks = random_walks(5, 4, np.random.default_rng(0))
    around = neighbours(5, 4)
    assert walks.shape == (200, 50)
    assert all((around[walks[:, i], 1:] == walks[:, i + 1, None]).any(1).all() for i in range(49))
    assert np.bincount(walks[:, 0], minlength=20).tolist() == [10] * 20
    steps = np.stack([walks[:, :-1].ravel(), walks[:, 1:].ravel()], 1)
    ends = np.unique(steps[steps[:, 0] == 5, 1], return_counts=True)[1]  # of a cell with eight neighbours
    assert len(ends) == 8
    assert ends.min() / ends.max() > 0.7
    table = node2vec(8, 8, 16)
    assert table.std() == pytest.approx(1.0, abs=1e-4)
    place = np.stack(np.divmod(np.arange(64), 8), 1)
    apart = np.abs(place[:, None] - place).max(-1)
    likeness = np.corrcoef(table)
    assert likeness[apart == 1].mean() > likeness[apart == 3].mean() + 0.2
    node2vec.cache_clear()
    assert np.array_equal(node2vec(8, 8, 16), table)
    single = random_walks(1, 1, np.random.default_rng(0))
    assert not single.any()


# --- The DataModule --------------------------------------------------------------------------------------------------


def module(path: Path, **options: Any) -> TrajectoriesDataModule:
    given: dict[str, Any] = {"batch_size": 4, "cell_size": 8000.0, "cell_dim": 16, "max_points": 20, "min_points": 5}
    return TrajectoriesDataModule(str(path), **given | options)


def test_batches_and_parts(tmp_path: Path) -> None:
    """Every trip once, those of an id in one part; a batch holds the embeddings of the cells that its points are in."""
    write_tracks(tmp_path / "it.csv", points=30)
    data = module(tmp_path / "it.csv")
    data.prepare_data()
    data.setup()
    assert (data.counts.cut, data.counts.trips) == (30, 60)
    assert {role: len(places) for role, places in data.parts.items()} == {"train": 42, "val": 6, "test": 12}
    turns = {role: {round(math.atan2(*(each[-1] - each[0])), 3) for each in part} for role, part in data.parts.items()}
    assert not turns["train"] & turns["test"]
    batch = next(iter(data.val_dataloader()))
    assert (batch.cells.shape, batch.track.shape) == ((4, 15, 9 * 16), (4, 15, 2))
    own = data.cells.metres(data.parts["val"][0])
    assert torch.equal(batch.cells[0, : len(own)], data.cells.embedded(own))
    assert batch.valid.all()
    ragged = data.sets["val"]
    ragged.metres[1] = ragged.metres[1][:7]
    batch = ragged.__getitems__([0, 1])
    assert batch.valid.sum(1).tolist() == [15, 7]
    assert not batch.cells[1, 7:].any()


def test_held_out_points_elsewhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tracks(tmp_path / "it.csv")
    data = module(tmp_path / "it.csv", test_share=0.0)
    data.setup()
    data.parts["val"] = [each + np.array([3.0, 0.0]) for each in data.parts["val"]]
    data.sets = {}
    with pytest.warns(UserWarning, match=r"75 of 75 held-out points are beyond the border"):
        data.setup()


def test_a_checkpoint_keeps_the_cells(tmp_path: Path) -> None:
    """A training that is resumed on other data has those of its start."""
    write_tracks(tmp_path / "it.csv")
    data = module(tmp_path / "it.csv")
    options = {"num_points": 20, "embed_dim": 16, "depth": 1, "num_heads": 2, "predictor_depth": 1}
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(TJEPA(**options), data)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    stored = torch.load(tmp_path / "it.ckpt", weights_only=True)["TrajectoriesDataModule"]
    table = pd.read_csv(tmp_path / "it.csv")
    other = TrajectoriesDataModule(table.assign(latitude=table.latitude + 0.01), 4, cell_size=8000.0, cell_dim=16)
    other.load_state_dict(stored)
    other.setup()
    assert other.cells.centre == data.cells.centre
    assert torch.equal(other.cells.table, data.cells.table)


def test_what_is_refused(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"cell_size": 0.0}, "cell_size"),
        ({"min_points": 1}, "min_points=1"),
        ({"max_points": 4}, "max_points=4"),
        ({"val_share": 0.9, "test_share": 0.1}, "val_share"),
        ({"extent": [0.0, 1.0]}, "extent"),
    ]
    for options, named in wrong:
        with pytest.raises(ValueError, match=named):
            module(tmp_path, **options)
    write_tracks(tmp_path / "it.csv", number=2)
    with pytest.raises(ValueError, match=r"training trips, fewer than batch_size=4.*4 trips"):
        module(tmp_path / "it.csv").setup()
    fast = module(tmp_path / "it.csv", max_speed=1e-3)
    with pytest.raises(ValueError, match=r"Is max_speed=0\.001 m/s too low"):
        fast.setup()


def test_points_of_nobody(tmp_path: Path) -> None:
    """Without an id nothing can be held out, which is said."""
    write_tracks(tmp_path / "it.csv")
    table = pd.read_csv(tmp_path / "it.csv")
    columns = [each for each in table.columns if each not in KNOWN["track_id"]]
    data = TrajectoriesDataModule(table[columns], 1, cell_size=2000.0, cell_dim=16, min_points=2, max_speed=1e9)
    with pytest.warns(UserWarning, match="track_id"):
        data.setup()
    assert set(data.sets) == {"train"}

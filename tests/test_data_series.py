"""Time series from archives, tables and data frames: what is read, counted, scaled and cut."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import TINY_SERIES, quiet_trainer
from torch import Tensor

from jepa_lightning import TSJEPA, SeriesDataModule
from jepa_lightning.data.series import Scaling
from jepa_lightning.data.series.grid import Counts

WHEEL = Path(importlib.util.find_spec("aeon").origin).parent / "datasets" / "data"  # type: ignore[union-attr, arg-type]


def made(source: Any, stage: str | None = None, **options: Any) -> SeriesDataModule:
    data = SeriesDataModule(source, **{"batch_size": 4, "download": False} | options)
    data.prepare_data()
    data.setup(stage)
    return data


def everything(data: SeriesDataModule, role: str) -> Any:
    samples = data.sets[role]
    return samples.__getitems__(list(range(len(samples))))


def by_hand(path: Path) -> tuple[list[list[list[float]]], list[str]]:
    """A `.ts` file line by line: of each series its channels, and its class."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    rows = [line.split(":") for line in lines[lines.index("@data") + 1 :] if line]
    numbers = [[[float(number.replace("?", "nan")) for number in part.split(",")] for part in row[:-1]] for row in rows]
    return numbers, [row[-1].lower() for row in rows]


# --- Archives --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["GunPoint", "BasicMotions", "JapaneseVowels"])
def test_archives(name: str) -> None:
    """One channel and several, of one length and of many: every number at its place, and the rest not valid."""
    data = made(name, scaling="none")
    train, classes = by_hand(WHEEL / name / f"{name}_TRAIN.ts")
    batch = everything(data, "train")
    assert data.classes == sorted(set(classes))
    assert data.in_channels == len(train[0])
    assert [data.classes[label] for label in batch.label] == classes
    for i, channels in enumerate(train):
        length = len(channels[0])
        assert batch.valid[i].tolist() == [True] * length + [False] * (data.num_steps - length)
        torch.testing.assert_close(batch.series[i, :length], torch.tensor(channels).T)
        assert not batch.series[i, length:].any()
    test, _ = by_hand(WHEEL / name / f"{name}_TEST.ts")
    assert data.num_steps == max(len(channels[0]) for channels in train + test)
    assert len(data.sets["test"]) == len(data.sets["val"]) == len(test)


def test_formats_hold_the_same() -> None:
    """`.arff` and `.tsv` of the same series, by their files; the test part is found beside them."""
    expected = everything(made(str(WHEEL / "GunPoint")), "train")
    for ending in ("arff", "tsv"):
        data = made(str(WHEEL / "GunPoint" / f"GunPoint_TRAIN.{ending}"))
        found = everything(data, "train")
        torch.testing.assert_close(found.series, expected.series, rtol=1e-4, atol=1e-5)
        assert torch.equal(found.label, expected.label)
        assert len(data.sets["test"]) == 150
    several = everything(made(str(WHEEL / "BasicMotions" / "BasicMotions_TRAIN.arff")), "train")
    torch.testing.assert_close(several.series, everything(made("BasicMotions"), "train").series)


TS = """@problemName Small
@timeStamps false
@missing true
@univariate false
@dimensions 2
@equalLength false
@classLabel true b a
@data
1,2,?,4:5,?,?,8:b
1,2:3,4:a
?,2,3:?,5,6:b
"""


def test_missing_numbers_and_folders(tmp_path: Path) -> None:
    (tmp_path / "Small").mkdir()
    for part in ("TRAIN", "TEST"):
        (tmp_path / "Small" / f"Small_{part}.ts").write_text(TS)
    data = made("Small", root=str(tmp_path), batch_size=3, scaling="none")
    batch = everything(data, "train")
    assert batch.valid.tolist() == [[True, True, False, True], [True, True, False, False], [False, True, True, False]]
    assert batch.series[0].tolist() == [[1, 5], [2, 0], [0, 0], [4, 8]]
    assert (data.classes, batch.label.tolist()) == (["a", "b"], [1, 0, 1])
    filled = everything(made(str(tmp_path / "Small"), batch_size=3, scaling="none", gaps="interpolate"), "train")
    assert filled.series[0].tolist() == [[1, 5], [2, 6], [3, 7], [4, 8]]
    assert filled.valid[0].all()
    assert filled.valid[2].tolist() == [False, True, True, False]  # nothing to fill from


def test_regression_archives() -> None:
    data = made("Covid3Month", scaling="series")
    label = everything(data, "train").label
    assert (label.dtype, data.classes) == (torch.float32, [])
    _, expected = by_hand(WHEEL / "Covid3Month" / "Covid3Month_TRAIN.ts")
    torch.testing.assert_close(label, torch.tensor([float(each) for each in expected]))


STAMPED = """@problemName Stamped
@timeStamps true
@missing true
@univariate false
@classLabel true a b
@data
(2026-01-01 00:00,-1.5),(2026-01-01 00:01,2),(2026-01-01 00:03,4):(2026-01-01 00:01,-7),(2026-01-01 00:02,?):b
(2026-01-02 09:01:00,5.5),(2026-01-02 09:00:00,1e1):(2026-01-02 09:00:00,3.0):A
"""


def test_numbers_with_times(tmp_path: Path) -> None:
    """Dates make a grid, gaps and all; signs, whole numbers and exponents stay, which aeon's own reader loses."""
    (tmp_path / "Stamped_TRAIN.ts").write_text(STAMPED)
    data = made(str(tmp_path / "Stamped_TRAIN.ts"), batch_size=2, scaling="none")
    batch = everything(data, "train")
    assert batch.series[0].tolist() == [[-1.5, 0], [2, -7], [0, 0], [4, 0]]
    assert batch.valid.tolist() == [[True, True, False, True], [True, True, False, False]]
    assert batch.series[1, :2].tolist() == [[10, 3], [5.5, 0]]
    assert (data.classes, batch.label.tolist()) == (["a", "b"], [1, 0])
    (tmp_path / "Numbers_TRAIN.ts").write_text(
        "@timeStamps true\n@targetLabel true\n@data\n(0,1),(2,3):1.5\n(1,1),(3,2),(7,9):-2\n"
    )
    numbers = everything(made(str(tmp_path / "Numbers_TRAIN.ts"), batch_size=2, scaling="none"), "train")
    assert numbers.label.tolist() == [1.5, -2]
    assert numbers.series[1, :, 0].tolist() == [1, 2, 0, 9]
    own = everything(made(str(WHEEL / "UnitTest" / "UnitTestTimeStamps_TRAIN.ts"), scaling="none"), "train")
    torch.testing.assert_close(own.series[0, :, 0], torch.tensor([241.97, 241.75, 241.64, 241.71]))
    for wrong, named in (("(2026-01-01,1),2:a", r"line 4.*pairs"), ("(x,1),(y,2):a", "line 4.*time")):
        (tmp_path / "Wrong_TRAIN.ts").write_text(f"@timeStamps true\n@classLabel true a\n@data\n{wrong}\n")
        with pytest.raises(ValueError, match=named):
            made(str(tmp_path / "Wrong_TRAIN.ts"))


def test_archives_without_labels(tmp_path: Path) -> None:
    (tmp_path / "Bare_TRAIN.ts").write_text("@classLabel false\n@equalLength true\n@data\n1,2,3\n4,5,6\n")
    data = made(str(tmp_path / "Bare_TRAIN.ts"), batch_size=2, scaling="none")
    batch = everything(data, "train")
    assert (data.classes, batch.label.tolist(), batch.series[1, :, 0].tolist()) == ([], [-1, -1], [4, 5, 6])
    (tmp_path / "Empty_TRAIN.ts").write_text("@classLabel false\n@data\n")
    with pytest.raises(ValueError, match=r"Empty_TRAIN\.ts.*0 series"):
        made(str(tmp_path / "Empty_TRAIN.ts"))


def test_archives_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"GunPiont.*GunPoint"):
        made("GunPiont", root=str(tmp_path))
    (tmp_path / "Broken_TRAIN.ts").write_text(TS.replace("1,2:3,4:a", "1,x:3,4:a"))
    with pytest.raises(ValueError, match=r"Broken_TRAIN\.ts"):
        made(str(tmp_path / "Broken_TRAIN.ts"))
    (tmp_path / "Other_TRAIN.ts").write_text(TS)
    (tmp_path / "Other_TEST.ts").write_text(TS.replace("b a", "b a c").replace("3,4:a", "3,4:c"))
    with pytest.raises(ValueError, match=r"Other_TEST.*: c"):
        made(str(tmp_path / "Other_TRAIN.ts"), batch_size=1)
    (tmp_path / "Alone_TRAIN.ts").write_text(TS)
    with pytest.raises(ValueError, match=r"3 training samples.*batch_size=4"):
        made(str(tmp_path / "Alone_TRAIN.ts"))


# --- Tables ----------------------------------------------------------------------------------------------------------


def readings(rows: int = 60) -> pd.DataFrame:
    """Two sensors, every ten minutes, with gaps in both, rows out of order, one of them twice."""
    generator = np.random.default_rng(0)
    times = pd.date_range("2026-01-01", periods=rows, freq="10min")
    parts = []
    for name in ("a", "b"):
        values = generator.normal(size=(rows, 2))
        part = pd.DataFrame({"when": times, "sensor": name, "x": values[:, 0], "y": values[:, 1], "note": "ok"})
        parts.append(part.drop(index=[20, 21, 22] if name == "a" else [30]))
    frame = pd.concat(parts, ignore_index=True)
    frame.loc[5, "x"] = np.nan
    frame = pd.concat([frame, frame.iloc[[10]].assign(x=frame.x[10] + 2)], ignore_index=True)
    return frame.sample(frac=1, random_state=0).reset_index(drop=True)


COLUMNS = {"time": "when", "series_id": "sensor"}


def on_pandas_grid(frame: pd.DataFrame, name: str, freq: str = "10min") -> Tensor:
    """Each sensor resampled by pandas."""
    part = frame[frame.sensor == name].set_index("when")[["x", "y"]]
    return torch.tensor(part.resample(freq).mean().to_numpy(), dtype=torch.float32)


def test_tables(tmp_path: Path) -> None:
    """CSV, Parquet, a folder of them and data frames; gaps are counted, not seen, and not skipped."""
    frame = readings()
    frame.to_csv(tmp_path / "readings.csv", index=False)
    frame.to_parquet(tmp_path / "readings.parquet")
    options = {"batch_size": 1, "scaling": "none", **COLUMNS}
    for source in (str(tmp_path / "readings.csv"), str(tmp_path / "readings.parquet"), frame):
        data = made(source, **options)
        assert data.counts == Counts(rows=117, steps=120, missing=4, holes=1, doubled=1, unsorted=data.counts.unsorted)
        assert data.counts.unsorted > 20
        for number, name in enumerate("ab"):
            expected = on_pandas_grid(frame, name)
            found = [everything(data, role) for role in ("train", "val", "test")]
            steps = torch.cat([part.series[number][part.valid[number]] for part in found])
            assert torch.equal(steps, expected[expected.isfinite().any(1)].nan_to_num(0.0))
    (tmp_path / "folder").mkdir()
    for name in "ab":
        part = frame[frame.sensor == name].drop(columns="sensor")
        part.to_csv(tmp_path / "folder" / f"{name}.csv", index=False)
    folder = made(str(tmp_path / "folder"), batch_size=1, scaling="none", time="when")
    frames = made([part for _, part in frame.groupby("sensor")], batch_size=1, scaling="none", time="when")
    for data in (folder, frames):
        assert torch.equal(everything(data, "train").series, everything(made(frame, **options), "train").series)


def test_parts_follow_each_other() -> None:
    """By time, and no step is in two of them."""
    frame = pd.DataFrame({"x": np.arange(100.0)})
    data = made(frame, scaling="none", batch_size=1, val_share=0.1, test_share=0.2)
    parts = {role: everything(data, role) for role in ("train", "val", "test")}
    assert {role: part.series[0][part.valid[0]].view(-1).tolist() for role, part in parts.items()} == {
        "train": list(range(70)), "val": list(range(70, 80)), "test": list(range(80, 100))
    }  # fmt: skip


def test_labels_of_steps() -> None:
    """A column of labels: of a window the most frequent class, or the mean; of steps without a row, none."""
    states = ["off"] * 10 + ["on"] * 14 + [None] * 8 + ["off"] * 8
    frame = pd.DataFrame({"t": range(40), "x": np.arange(40.0), "state": states, "load": np.arange(40) / 8})
    options = {"batch_size": 1, "time": "t", "window": 8, "stride": 8, "val_share": 0, "test_share": 0}
    data = made(frame.drop(index=range(3, 6)), channels=["x"], label="state", **options)
    assert data.classes == ["off", "on"]
    assert everything(data, "train").label.tolist() == [0, 1, 1, -1, 0]
    load = everything(made(frame, channels=["x"], label="load", **options), "train").label
    torch.testing.assert_close(load, torch.arange(40.0).view(5, 8).mean(1) / 8)
    whole = made(frame.assign(state=[1.0] * 20 + [np.nan] * 10 + [2.0] * 10), label="state", **options)
    assert whole.classes == ["1", "2"]  # classes with a gap, which pandas reads as numbers with a point
    assert whole.in_channels == 2  # the label and the time are no channels


def test_series_that_train_and_others_that_test() -> None:
    """Each is in one part alone, whole, with its label; the same ones every time."""
    frame = pd.DataFrame({"id": np.repeat(np.arange(20), 6), "x": np.arange(120.0)})
    frame["kind"] = np.where(frame.id % 3 == 0, "fizz", "other")
    options = {"series_id": "id", "label": "kind", "split": "series", "scaling": "none", "batch_size": 1}
    data = made(frame, **options)
    seen = []
    for role, count in (("train", 14), ("val", 2), ("test", 4)):
        batch = everything(data, role)
        numbers = batch.series[:, 0, 0] / 6
        assert len(numbers) == count
        assert torch.equal(batch.series[..., 0], 6 * numbers[:, None] + torch.arange(6.0))
        assert batch.label.tolist() == [int(number % 3 != 0) for number in numbers]
        seen += numbers.tolist()
    assert sorted(seen) == list(range(20))
    assert torch.equal(everything(made(frame, **options), "test").series, everything(data, "test").series)


def test_irregular_times() -> None:
    """Rows between steps are averaged into the nearest, as by pandas, and counted."""
    generator = np.random.default_rng(1)
    seconds = np.sort(generator.uniform(0, 3600, 300))
    seconds[0] = 0.0
    frame = pd.DataFrame({"t": seconds, "x": generator.normal(size=300)})
    data = made(frame, batch_size=1, scaling="none", time="t", frequency=60, val_share=0, test_share=0)
    batch = everything(data, "train")
    cells = frame.groupby((frame.t / 60).round().astype(int)).x.mean()
    expected = torch.full((1 + int(cells.index.max()),), torch.nan)
    expected[torch.tensor(cells.index.to_numpy())] = torch.tensor(cells.to_numpy(), dtype=torch.float32)
    assert torch.equal(batch.valid[0], expected.isfinite())
    torch.testing.assert_close(batch.series[0, :, 0], expected.nan_to_num(0.0))
    assert data.counts.moved > 280
    assert data.counts.steps == len(expected)
    stamps = frame.assign(t=pd.Timestamp("2026-01-01") + pd.to_timedelta(frame.t, unit="s"))
    other = made(stamps, batch_size=1, scaling="none", time="t", frequency="1min", val_share=0, test_share=0)
    assert torch.equal(everything(other, "train").series, batch.series)


def test_tables_as_people_have_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Times in an index, packed files and endings in capitals; truth values are numbers; what is left out is said."""
    frame = readings()
    options = {"batch_size": 1, "scaling": "none", **COLUMNS}
    whole = everything(made(frame, **options), "train").series
    frame.to_csv(tmp_path / "readings.csv.gz", index=False)
    frame.to_csv(tmp_path / "readings.CSV", index=False)
    indexed, rows = frame.set_index("when"), frame.set_index(["sensor", "when"])
    for source in (str(tmp_path / "readings.csv.gz"), str(tmp_path / "readings.CSV"), indexed, rows):
        assert torch.equal(everything(made(source, **options), "train").series, whole)
    one = frame[frame.sensor == "a"]
    unnamed = made(one.set_index("when").rename_axis(None), batch_size=1)
    assert unnamed.counts == made(one, time="when", batch_size=1).counts
    assert unnamed.counts.missing == 3
    caplog.clear()
    with caplog.at_level("INFO"):
        assert made(frame.assign(on=frame.x > 0), **options).in_channels == 3
    assert "note of frame: no numbers, left out" in caplog.text


def test_tables_that_would_be_misread(tmp_path: Path) -> None:
    """A number that is none, columns between semicolons, and dates whose month and day could be either way round."""
    frame = readings()
    options = {"batch_size": 1, **COLUMNS}
    broken = frame.assign(y=frame.y.astype(str))
    broken.loc[[3, 7], "y"] = "offline"
    for channels in (None, ["x", "y"]):
        with pytest.raises(ValueError, match=r"'y'.*'offline' in row 4 and others in 1 more"):
            made(broken, channels=channels, **options)
    assert made(broken, channels=["x"], **options).in_channels == 1
    frame.to_csv(tmp_path / "semi.csv", index=False, sep=";")
    with pytest.raises(ValueError, match=r"semi\.csv.*';'.*sep=';'"):
        made(str(tmp_path / "semi.csv"), **options)
    months = frame.assign(when=frame.when.dt.strftime("%d/%m/%Y %H:%M:%S"))
    with pytest.raises(ValueError, match=r"'when'.*'01/02/2026.*day first"):
        made(months.assign(when=months.when.str.replace("01/01", "01/02")), **options)
    late = frame.assign(when=frame.when + pd.Timedelta(days=20))  # 21 is no month
    written = late.assign(when=late.when.dt.strftime("%d/%m/%Y %H:%M:%S"))
    assert made(written, **options).counts == made(late, **options).counts


def test_tables_that_do_not_fit(tmp_path: Path) -> None:
    frame = readings()
    for options, named in (
        ({"time": "wehn"}, r"'wehn'.*when"),
        ({"channels": ["note"]}, "note"),
        ({"time": "note"}, "note"),
        ({"time": "when", "frequency": "1s", "series_id": "sensor"}, "frequency"),
        ({"frequency": "10min"}, "time"),
        ({"time": "when", "frequency": "ten"}, "ten"),
        ({"val_share": 0.6, "test_share": 0.5}, "val_share=0.6"),
        ({"window": 0}, "window=0"),
        ({"stride": 3}, "stride=3"),
        ({"gaps": "maks"}, "mask"),
        ({"split": "serise"}, "series"),
        ({"label": "sort"}, r"'sort' \(label\).*when"),
    ):
        with pytest.raises(ValueError, match=named):
            made(frame, batch_size=1, **options)
    with pytest.raises(ValueError, match="time"):
        SeriesDataModule("GunPoint", time="t")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"broken\.parquet"):
        made(str(tmp_path / "broken.parquet"))
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        made(str(tmp_path / "none.csv"))
    with pytest.raises(ValueError, match=r"frame 1.*z.*x"):
        made([pd.DataFrame({"x": [1.0, 2.0]}), pd.DataFrame({"z": [1.0]})])
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"empty\.csv.*read"):
        made(str(tmp_path / "empty.csv"))
    (tmp_path / "head.csv").write_text("when,x\n")
    with pytest.raises(ValueError, match="head has no rows"):
        made(str(tmp_path / "head.csv"), channels=["x"])
    for column, options in (("when", {"time": "when"}), ("sensor", {"series_id": "sensor"})):
        lacking = frame.assign(**{column: frame[column].where(frame.index != 4)})
        with pytest.raises(ValueError, match=f"1 rows.*'{column}'"):
            made(lacking, batch_size=1, **options)
    with pytest.raises(ValueError, match=r"classes.*numbers"):
        made([pd.DataFrame({"x": [1.0], "y": ["a"]}), pd.DataFrame({"x": [1.0], "y": [0.5]})], label="y", batch_size=1)
    with pytest.raises(ValueError, match="train on"):
        made(frame, batch_size=1, split="series", val_share=0.9, test_share=0.05)
    with pytest.raises(ValueError, match="channel 0"):
        made(pd.DataFrame({"x": [np.nan] * 9 + [1.0]}), batch_size=1)


# --- Windows and scales ----------------------------------------------------------------------------------------------


def test_windows_by_brute_force() -> None:
    """Those of the training part overlap, the last one ends with it, and those without a number are left out."""
    values = np.arange(60.0)
    values[20:32] = np.nan
    frame = pd.DataFrame({"x": values})
    with pytest.warns(UserWarning, match="2 windows"):
        data = made(frame, scaling="none", batch_size=1, window=8, stride=4, val_share=0, test_share=1 / 3)
    starts = [start for start in (*range(0, 33, 4),) if np.isfinite(values[start : start + 8]).any()]
    batch = everything(data, "train")
    assert len(starts) == 7
    for row, start in enumerate(starts):
        expected = torch.tensor(values[start : start + 8], dtype=torch.float32)
        assert torch.equal(batch.valid[row], expected.isfinite())
        assert torch.equal(batch.series[row, :, 0], expected.nan_to_num(0.0))
    assert [int(each) for each in everything(data, "test").series[:, 0, 0]] == [40, 48, 52]
    archive = made("GunPoint", window=40, stride=30, scaling="none")
    assert archive.sets["train"].starts[:5].tolist() == [[0, 0], [0, 30], [0, 60], [0, 90], [0, 110]]
    whole, cut = everything(made("GunPoint", scaling="none"), "train"), everything(archive, "train")
    assert torch.equal(cut.series[6], whole.series[1, 30:70])
    assert torch.equal(cut.label[5:10], whole.label[[1] * 5])


def test_scaling_knows_the_training_part_only() -> None:
    frame = pd.DataFrame({"x": [1.0, 3.0, np.nan, 5.0] * 5 + [1e6] * 10, "y": [4.0] * 30})
    data = made(frame, batch_size=1, val_share=0, test_share=1 / 3)
    seen = np.array([1.0, 3.0, 5.0])
    np.testing.assert_allclose(data.scaling.mean, [3.0, 4.0])
    np.testing.assert_allclose(data.scaling.std, [seen.std(), 1.0])  # a constant channel is zero, and stays finite
    train = everything(data, "train")
    torch.testing.assert_close(train.series[0, :2, 0], torch.tensor([-2.0, 0.0]) / float(seen.std()))
    assert not train.series[..., 1].any()
    assert train.series[0, 2, 0] == 0  # what is missing beside others is the mean
    test = everything(data, "test")
    assert test.series[..., 0][test.valid].min() > 1e5


def test_scaling_by_each_series_and_back() -> None:
    generator = np.random.default_rng(0)
    window = generator.normal(5, 3, (50, 2))
    window[7, 0] = np.nan
    scaled, undo = Scaling("series").apply(window)
    np.testing.assert_allclose(np.nanmean(scaled, 0), 0, atol=1e-12)
    np.testing.assert_allclose(np.nanstd(scaled, 0), 1)
    np.testing.assert_allclose(undo(scaled), window)
    train = Scaling("train")
    train.fit([window, window + 1])
    np.testing.assert_allclose(train.mean, np.nanmean([window, window + 1], axis=(0, 1)))
    np.testing.assert_allclose(train.std, np.nanstd([window, window + 1], axis=(0, 1)))
    again = Scaling(**train.state())
    scaled, undo = again.apply(window)
    np.testing.assert_allclose(scaled, (window - train.mean) / train.std)
    np.testing.assert_allclose(undo(scaled), window)
    with pytest.raises(ValueError, match="3 channels"):
        again.apply(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="serise"):
        Scaling("serise")  # type: ignore[arg-type]


# Three seconds: numba and aeon are imported.
def test_a_training_and_its_scaling(tmp_path: Path) -> None:
    """Checkpoints hold the scale; who tests on other data with one has that of the training."""
    data = SeriesDataModule("JapaneseVowels", batch_size=16)
    options = TINY_SERIES | {"num_steps": 29, "in_channels": 12}
    module, trainer = TSJEPA(**options), quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, data)
    assert torch.isfinite(trainer.callback_metrics["val/loss"])
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    stored = torch.load(tmp_path / "it.ckpt", weights_only=True)["SeriesDataModule"]["scaling"]
    np.testing.assert_array_equal(stored["mean"], data.scaling.mean)
    other = SeriesDataModule(pd.DataFrame(np.random.default_rng(0).normal(9, 9, (400, 12))), window=29, batch_size=4)
    quiet_trainer(tmp_path).test(module, other, ckpt_path=str(tmp_path / "it.ckpt"), weights_only=True, verbose=False)
    np.testing.assert_array_equal(other.scaling.mean, data.scaling.mean)

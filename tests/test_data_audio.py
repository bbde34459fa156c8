"""Sounds: what is decoded, cropped, padded and labelled, batches by their seconds, and files that cannot be read."""

import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import soundfile
import torch
from fake_data import write_shard, write_sound
from helpers import in_two_processes, quiet_trainer
from scipy.signal import resample_poly
from torch import Tensor

from jepa_lightning import WaveformDataModule
from jepa_lightning.data import LengthOrder
from jepa_lightning.data.audio.decoding import read_seconds, read_wave
from jepa_lightning.data.faults import UnreadableError
from jepa_lightning.data.labels import Interval, Vocabulary, per_step

RATE = 16_000


def module(root: Path, **options: Any) -> WaveformDataModule:
    return WaveformDataModule(str(root), **{"num_workers": 0, "batch_size": 2} | options)


def train(data: WaveformDataModule) -> list[dict[str, Tensor]]:
    data.setup("fit")
    return list(data.train_dataloader())


def write_csv(path: Path, *rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def hertz_of(wave: Any, rate: int = RATE) -> float:
    """Of the loudest sine."""
    return float(np.abs(np.fft.rfft(wave)).argmax() * rate / len(wave))


# --- Decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3", "aiff"])
def test_formats(ending: str, tmp_path: Path) -> None:
    path = write_sound(tmp_path / f"sound.{ending}", 1000.0, 0.5)
    for content in (str(path), path.read_bytes()):
        wave = read_wave(content, RATE, True).values
        assert wave.dtype == np.float32
        assert hertz_of(wave) == pytest.approx(1000, abs=4)
        assert len(wave) == pytest.approx(8000, abs=1200 if ending == "mp3" else 0)  # mp3 has whole frames
        assert read_seconds(content) == pytest.approx(len(wave) / RATE)
    if ending in ("wav", "flac", "aiff"):
        exact = np.round(0.5 * np.sin(2 * np.pi * 1000 * np.arange(8000) / RATE) * 32768) / 32768
        np.testing.assert_allclose(wave, exact, atol=1 / 32000)


def test_channels_become_their_mean(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-8000, 8000, (500, 3)).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    np.testing.assert_allclose(
        read_wave(str(tmp_path / "a.wav"), RATE, True).values, samples.mean(1) / 32768, atol=1e-6
    )


@pytest.mark.parametrize("native", [8_000, 44_100])
def test_resampling_as_scipy_does(native: int, tmp_path: Path) -> None:
    time = np.arange(native) / native
    wave = sum(0.2 * np.sin(2 * np.pi * hertz * time + hertz) for hertz in (300, 1234, 2500))
    soundfile.write(tmp_path / "a.wav", wave, native, subtype="FLOAT")
    ours = read_wave(str(tmp_path / "a.wav"), RATE, True).values
    divisor = np.gcd(native, RATE)
    theirs = resample_poly(wave, RATE // divisor, native // divisor, window=("kaiser", 12.0))
    assert len(ours) == len(theirs) == RATE
    np.testing.assert_allclose(ours[500:-500], theirs[500:-500], atol=0.01)


def test_another_rate_is_refused(tmp_path: Path) -> None:
    for number in range(2):
        write_sound(tmp_path / f"{number}.wav", rate=22_050)
    with pytest.raises(ValueError, match=r"\.wav: it has 22050 samples a second, not sample_rate=16000"):
        train(module(tmp_path, resample=False))
    assert len(train(module(tmp_path, resample=False, sample_rate=22_050))) == 1


def test_a_part_of_a_sound(tmp_path: Path) -> None:
    """The start is a share of the possible ones, in the file's own rate."""
    ramp = np.linspace(-0.5, 0.5, 8000)
    soundfile.write(tmp_path / "a.wav", ramp, 8_000, subtype="FLOAT")
    for place, first in ((0.0, 0), (0.5, 3200), (0.9999, 6399)):
        wave = read_wave(str(tmp_path / "a.wav"), 8_000, False, 1600, place)
        np.testing.assert_allclose(wave.values, ramp[first : first + 1600], atol=1e-3)
        assert wave.start == pytest.approx(first / 8000, abs=2e-4)
    half = read_wave(str(tmp_path / "a.wav"), 4_000, True, 800, 0.5)
    assert len(half.values) == 800
    np.testing.assert_allclose(half.values[100:-100], ramp[3200:4800:2][100:-100], atol=1e-3)


def test_unreadable(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(-9000, 9000, 20_000).astype(np.int16)
    soundfile.write(tmp_path / "cut.flac", noise, RATE)
    content = (tmp_path / "cut.flac").read_bytes()
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    (tmp_path / "text.wav").write_text("no sound")
    named = {
        "nan.wav": "not finite",
        "empty.wav": "nothing in it",
        "text.wav": "ormat",
        "gone.wav": "No such file|System",
    }
    for name, reason in named.items():
        with pytest.raises(UnreadableError, match=reason):
            read_wave(str(tmp_path / name), RATE, True)
    with pytest.raises(UnreadableError):
        read_wave(content[: len(content) // 2], RATE, True)


# --- Folders, lists and shards ---------------------------------------------------------------------------------------


def test_class_folders(tmp_path: Path) -> None:
    """Waves have mean zero and variance one, and zeros behind their ends; classes are those of the folders."""
    for number, seconds in enumerate((0.5, 0.25, 0.3, 0.2)):
        write_sound(tmp_path / "train" / "ab"[number % 2] / f"{number}.wav", 400.0 * (number + 1), seconds)
    write_sound(tmp_path / "val" / "b" / "5.flac", 800.0, 0.4)
    data = module(tmp_path, batch_size=4)
    (batch,) = train(data)
    assert list(batch) == ["wave", "valid", "label"]
    assert (batch["wave"].dtype, batch["wave"].shape) == (torch.float32, (4, 8000, 1))
    for wave, valid, label in zip(batch["wave"], batch["valid"], batch["label"], strict=True):
        inside = wave[valid, 0]
        assert valid.diff().sum() <= 1  # what is there comes first
        assert not wave[~valid].any()
        assert float(inside.mean()) == pytest.approx(0, abs=1e-5)
        assert float(inside.var()) == pytest.approx(1, abs=1e-2)
        number = round(hertz_of(inside.numpy()) / 400) - 1
        assert len(inside) == (8000, 4000, 4800, 3200)[number]
        assert int(label) == number % 2
    (held_out,) = data.val_dataloader()
    assert (held_out["wave"].shape, held_out["label"].tolist()) == ((1, 6400, 1), [1])
    raw = train(module(tmp_path, batch_size=4, normalize=False))[0]["wave"]
    assert float(raw.abs().max()) == pytest.approx(0.5, abs=0.01)


def test_a_table_with_several_labels(tmp_path: Path) -> None:
    rows = [["a.wav", "reed", 3, 440.5], ["b.wav", "brass", 10, 220], ["c.wav", "reed", 3, ""], ["d.wav", "", 4, 1.5]]
    for row in rows:
        write_sound(tmp_path / "sounds" / row[0])
    header = ["file", "family", "octave", "hertz"]
    write_csv(tmp_path / "train.csv", header, *([f"sounds/{row[0]}", *row[1:]] for row in rows))
    write_csv(tmp_path / "val.csv", header, ["sounds/b.wav", "reed", 10, 7])
    data = module(tmp_path, dataset="csv", batch_size=4)
    (batch,) = train(data)
    assert data.classes == {"family": ["brass", "reed"], "octave": ["3", "4", "10"], "hertz": []}
    found = sorted(zip(batch["family"].tolist(), batch["octave"].tolist(), batch["hertz"].tolist(), strict=True))
    assert found[:2] == [(-1, 1, 1.5), (0, 2, 220.0)]
    assert sorted(map(str, found[2:])) == ["(1, 0, 440.5)", "(1, 0, nan)"]
    (held_out,) = data.val_dataloader()
    assert {name: held_out[name].tolist() for name in header[1:]} == {"family": [1], "octave": [2], "hertz": [7.0]}
    assert list(train(module(tmp_path, dataset="csv", labels=["octave"]))[0]) == ["wave", "valid", "octave"]
    with pytest.raises(ValueError, match=r"no column pitch, but family, octave, hertz"):
        train(module(tmp_path, dataset="csv", labels=["pitch"]))
    write_csv(tmp_path / "val.csv", header, ["sounds/b.wav", "strings", 10, 7])
    with pytest.raises(ValueError, match=r"b\.wav has a family, 'strings', that no training sample has"):
        module(tmp_path, dataset="csv").setup()


def test_labels_of_stretches(tmp_path: Path) -> None:
    """Each hundredth of a second of a part has the class of its middle; -1 where there is none, or no sound."""
    write_sound(tmp_path / "a.wav", seconds=1.0)
    write_sound(tmp_path / "b.wav", seconds=0.3)
    write_csv(
        tmp_path / "train.csv",
        ["path", "start", "end", "phone"],
        ["a.wav", 0.1, 0.45, "ah"],
        ["a.wav", 0.45, 0.8, "s"],
        ["b.wav", 0.0, 0.12, "s"],
    )
    (batch,) = train(module(tmp_path, dataset="csv"))
    (row,) = (batch["valid"].sum(1) == RATE).nonzero()
    expected = [-1] * 10 + [0] * 35 + [1] * 35 + [-1] * 20
    assert batch["phone"][row[0]].tolist() == expected
    assert batch["phone"][1 - row[0]].tolist() == [1] * 12 + [-1] * 88
    data = module(tmp_path, dataset="csv", max_seconds=0.5, batch_size=1)
    for part in train(data):
        if part["valid"].sum() == RATE // 2:
            phones = part["phone"][0].tolist()
            start = next(at for at in range(51) if expected[at : at + 50] == phones)  # as in some part of the whole
            assert 0 <= start <= 50
    intervals = [(0.2, 0.9, 4), (0.5, 0.6, 2)]
    by_hand = []
    for step in range(20):
        middle = 0.15 + (step + 0.5) / 20
        inside = [number for low, high, number in intervals if low <= middle < high]
        by_hand.append(inside[-1] if inside else -1)
    assert per_step(intervals, 20, 20.0, 0.15).tolist() == by_hand


def test_manifests_of_fairseq(tmp_path: Path) -> None:
    for name, seconds in (("a", 0.5), ("b", 0.25)):
        write_sound(tmp_path / "flac" / f"{name}.flac", seconds=seconds)
    lines = f"{tmp_path / 'flac'}\na.flac\t8000\nb.flac\t4000\n"
    for split in ("train", "valid"):
        (tmp_path / f"{split}.tsv").write_text(lines)
        (tmp_path / f"{split}.ltr").write_text("c a t |\na |\n")
        (tmp_path / f"{split}.lbl").write_text("cat\nan\n")
    data = module(tmp_path, dataset="tsv")
    (batch,) = train(data)
    assert data.classes == {"ltr": ["a", "c", "t", "|"], "lbl": ["an", "cat"]}
    (held_out,) = data.val_dataloader()
    assert held_out["ltr"].tolist() == [[1, 0, 2, 3], [0, 3, -1, -1]]
    assert held_out["lbl"].tolist() == [1, 0]
    assert sorted(batch["valid"].sum(1).tolist()) == [4000, 8000]
    with pytest.raises(FileNotFoundError, match=r"train\.phn.*label phn"):
        train(module(tmp_path, dataset="tsv", labels=["phn"]))
    (tmp_path / "train.lbl").write_text("cat\n")
    with pytest.raises(ValueError, match=r"train\.lbl has 1 lines for the 2 sounds"):
        train(module(tmp_path, dataset="tsv"))
    (tmp_path / "train.tsv").write_text(f"{tmp_path}\na.flac 8000\n")
    with pytest.raises(ValueError, match=r"line 2.*a tab and a number"):
        train(module(tmp_path, dataset="tsv"))


@pytest.mark.parametrize("samples_per_epoch", [None, 6])
def test_shards(samples_per_epoch: int | None, tmp_path: Path) -> None:
    for shard in range(2):
        members: dict[str, bytes] = {}
        for number in range(3 * shard, 3 * shard + 3):
            path = write_sound(tmp_path / "files" / f"{number}.ogg", 500.0 * (1 + number))
            members |= {f"{number}.ogg": path.read_bytes(), f"{number}.cls": b"%d" % number}
        write_shard(tmp_path / "shards" / f"{shard}.tar", members)
    data = module(tmp_path / "shards", dataset="shards", samples_per_epoch=samples_per_epoch)
    found = [pair for batch in train(data) for pair in zip(batch["wave"], batch["label"].tolist(), strict=True)]
    assert len(found) == 6
    for wave, label in found:
        assert hertz_of(wave[:, 0].numpy()) == pytest.approx(500 * (1 + label), abs=4)
    if samples_per_epoch is None:
        assert sorted(label for _, label in found) == list(range(6))
        assert len(train(module(tmp_path / "shards", dataset="shards", max_seconds=1, batch_seconds=3))) >= 1
    else:
        with pytest.raises(ValueError, match="streams do not tell"):
            train(module(tmp_path / "shards", dataset="shards", samples_per_epoch=6, max_seconds=1, batch_seconds=3))


@pytest.mark.parametrize("options", [{}, {"max_seconds": 1.0, "batch_seconds": 4.0}])
def test_unreadable_sounds_are_replaced_and_named(options: dict[str, Any], tmp_path: Path) -> None:
    for number in range(9):
        write_sound(tmp_path / f"{number}.wav", seconds=0.2 + 0.05 * number)
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    write_sound(tmp_path / "short.wav", seconds=0.05)
    data = module(tmp_path, max_faulty=0.5, batch_size=11, **options)
    data.setup("fit")
    with pytest.warns(UserWarning, match=r"2 of 11 sounds cannot be read.*others take their places"):
        batches = list(data.train_dataloader())
    assert sorted(Path(name).name for name in data.faulty) == ["bad.wav", "short.wav"]
    assert "min_seconds" in data.faulty[str(tmp_path / "short.wav")]
    if not options:
        assert [len(batch["wave"]) for batch in batches] == [11]
    assert all(batch["valid"].sum(1).min() >= 3200 for batch in batches)
    with pytest.raises(RuntimeError, match=r"2 of 11 sounds cannot be read.*max_faulty=0.1"):
        train(module(tmp_path, max_faulty=0.1, batch_size=11, **options))


# --- Parts and orders ------------------------------------------------------------------------------------------------


def write_ramps(root: Path, number: int = 4) -> None:
    """Sounds of a second whose samples tell which they are, and at what time."""
    for each in range(number):
        root.mkdir(parents=True, exist_ok=True)
        values = (each + np.linspace(0, 1, RATE, endpoint=False)) / (number + 1)
        soundfile.write(root / f"{each}.wav", values, RATE, subtype="FLOAT")


def test_parts_are_a_function_of_seed_epoch_and_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ramps(tmp_path / "train")
    write_ramps(tmp_path / "val")

    def starts(epoch: int, batch_size: int, role: str = "train") -> dict[int, float]:
        data = module(tmp_path, max_seconds=0.25, normalize=False, batch_size=batch_size)
        data.setup("fit")
        loader = data.train_dataloader() if role == "train" else data.val_dataloader()
        if role == "train":
            loader.sampler.set_epoch(epoch)
        found = {}
        for batch in loader:
            for wave in batch["wave"][..., 0] * 5:
                assert len(wave) == 4000
                assert torch.allclose(wave.diff(), torch.tensor(1 / RATE), atol=1e-5)
                found[int(wave[0])] = float(wave[0] % 1)
        return found

    first = starts(0, 2)
    assert starts(0, 4) == first
    assert len({round(start, 3) for start in first.values()}) == 4
    assert max(first.values()) <= 0.75
    assert starts(1, 2) != first
    middle = starts(0, 3, "val")
    assert all(start == pytest.approx(0.375, abs=1e-3) for start in middle.values())
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    assert starts(0, 2) != first


def random_lengths(number: int = 400) -> list[float]:
    return (1 + 9 * torch.rand(number, generator=torch.Generator().manual_seed(0)) ** 2).tolist()


def test_batches_by_their_lengths() -> None:
    """None is larger than the budget, few of their steps are padding, and nearly all samples come once an epoch."""
    lengths, budget = random_lengths(), 60.0
    order = LengthOrder(lengths, budget, seed=1)
    epochs = [list(order) for _ in range(3)]
    assert [len(batches) for batches in epochs] == [len(order)] * 3
    for epoch, batches in enumerate(epochs):
        indices = [visit.index for batch in batches for visit in batch]
        assert len({*indices}) == len(indices) > 0.95 * len(lengths)
        assert all(visit.epoch == epoch for batch in batches for visit in batch)
        assert [batch[0].batch for batch in batches] == list(range(len(order)))
        padded = [len(batch) * max(lengths[visit.index] for visit in batch) for batch in batches]
        assert max(padded) <= budget
        assert sum(lengths[index] for index in indices) / sum(padded) > 0.85
    assert {tuple(visit.index for visit in batch) for batch in epochs[0]}.isdisjoint(
        tuple(visit.index for visit in batch) for batch in epochs[1]
    )
    order.set_epoch(1)
    order.first_batch = 4
    assert list(order) == epochs[1][4:]
    assert [*LengthOrder(lengths, budget, seed=1)] == epochs[0] != [*LengthOrder(lengths, budget, seed=2)]
    with pytest.raises(ValueError, match=r"longest.*longer than a batch may be, 5"):
        LengthOrder(lengths, 5.0)


def test_ranks_share_out_the_batches_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = random_lengths()

    def with_ranks(ranks: int, rank: int) -> list[list[int]]:
        for module in ("lengths", "resume"):
            monkeypatch.setattr(f"jepa_lightning.data.{module}.rank_and_ranks", lambda: (rank, ranks))
        return [[visit.index for visit in batch] for batch in LengthOrder(lengths, 120.0 / ranks, seed=1)]

    parts = [with_ranks(2, rank) for rank in range(2)]
    assert list(map(len, parts[0])) == list(map(len, parts[1]))
    for a, b in zip(*parts, strict=True):
        assert not {*a} & {*b}
        assert len(a) * max(lengths[index] for index in a) <= 60
    # A batch of two processes is one of a single process, but for an odd sample.
    alone = [{*batch} for batch in with_ranks(1, 0)]
    assert len(alone) == pytest.approx(len(parts[0]), abs=3)


class Recorder(pl.LightningModule):
    """Notes which sounds it is given, by the sizes of their first samples, and stops before a batch."""

    def __init__(self, stop: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[float]]] = []
        self.stop = stop

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, batch["wave"][:, 0, 0].tolist()))
        if self.stop == len(self.seen):
            self.trainer.should_stop = True
            self.trainer.save_checkpoint(Path(self.trainer.default_root_dir) / "stopped.ckpt")
        return self.weight * batch["wave"].mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def write_various(root: Path, number: int = 30) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for each in range(number):
        values = np.random.default_rng(each).uniform(-0.5, 0.5, 2000 + 200 * each)
        soundfile.write(root / f"{each:02}.wav", values, RATE, subtype="FLOAT")


def by_seconds(root: Path, num_workers: int = 0) -> WaveformDataModule:
    return module(root, max_seconds=1.0, batch_seconds=2.0, min_seconds=0, normalize=False, num_workers=num_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_within_an_epoch(num_workers: int, tmp_path: Path) -> None:
    """With batches by their seconds, in workers too."""
    write_various(tmp_path / "sounds")
    whole, part, rest = Recorder(), Recorder(stop=7), Recorder()
    quiet_trainer(tmp_path, max_epochs=2).fit(whole, by_seconds(tmp_path / "sounds"))
    assert len(whole.seen) >= 10
    assert len({tuple(batch) for _, batch in whole.seen}) > len(whole.seen) / 2
    quiet_trainer(tmp_path, max_epochs=2).fit(part, by_seconds(tmp_path / "sounds"))
    again = by_seconds(tmp_path / "sounds", num_workers)
    quiet_trainer(tmp_path, max_epochs=2).fit(rest, again, ckpt_path=tmp_path / "stopped.ckpt")
    assert part.seen[:7] == whole.seen[:7]
    assert rest.seen == whole.seen[-len(rest.seen) :]
    assert len(rest.seen) in (len(whole.seen) - 7, len(whole.seen) - 6)  # the checkpoint is from within the 7th step


def two_processes(rank: int, folder: Path) -> dict[str, Any]:
    recorder = Recorder()
    quiet_trainer(folder, devices=2, strategy="ddp", max_epochs=2).fit(recorder, by_seconds(folder / "sounds"))
    return {"seen": recorder.seen}


def test_two_ranks_share_the_sounds(tmp_path: Path) -> None:
    write_various(tmp_path / "sounds")
    a, b = (rank["seen"] for rank in in_two_processes(two_processes, tmp_path))
    assert [len(batch) for _, batch in a] == [len(batch) for _, batch in b]
    for epoch in range(2):
        mine, theirs = ([sound for at, batch in seen if at == epoch for sound in batch] for seen in (a, b))
        assert len({*mine, *theirs}) == 2 * len(mine) > 20


# --- Arguments and missing data --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "folders"}, "did you mean 'folder'"),
        ({"sample_rate": 0}, "sample_rate=0"),
        ({"min_seconds": 30.0}, "min_seconds=30.0.*max_seconds=20.0"),
        ({"batch_seconds": 10.0}, "batch_seconds=10.0.*max_seconds=20.0"),
        ({"batch_seconds": 10.0, "max_seconds": None}, "max_seconds=None"),
        ({"samples_per_epoch": 5}, "samples_per_epoch=5.*'folder'"),
        ({"labels": ["a"]}, r"labels=\['a'\]"),
        ({"max_faulty": 1.0}, "max_faulty=1.0"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WaveformDataModule(**options)


def test_missing_data(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train\.csv"):
        module(tmp_path, dataset="csv").setup()
    with pytest.raises(FileNotFoundError, match="sounds"):
        module(tmp_path).setup()
    write_csv(tmp_path / "train.csv", ["name"], ["a.wav"])
    with pytest.raises(ValueError, match=r"no column file, path.*header is name"):
        module(tmp_path, dataset="csv").setup()
    write_csv(tmp_path / "train.csv", ["file"], ["a.wav"], ["a.wav"])
    with pytest.raises(ValueError, match=r"line 3: a\.wav is there twice"):
        module(tmp_path, dataset="csv").setup()
    write_sound(tmp_path / "train" / "a.wav")
    with pytest.raises(ValueError, match="fewer than batch_size=2"):
        module(tmp_path).setup()
    with pytest.raises(FileNotFoundError, match="held-out"):
        module(tmp_path, batch_size=1).setup("test")


def test_words_of_labels() -> None:
    words = Vocabulary([{"a": ["x", "y"], "b": True}, {"a": [Interval(0, 1, "z")], "b": 2}])
    assert words.classes == {"a": ["x", "y", "z"], "b": ["2", "True"]}
    assert words.numbered({"a": [Interval(0, 1, "z")], "b": None}, "here") == {"a": [(0, 1, 2)], "b": -1}
    with pytest.raises(ValueError, match=r"there: the hertz 'high' is no number"):
        Vocabulary([{"hertz": 0.5}]).numbered({"hertz": "high"}, "there")

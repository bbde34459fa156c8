"""One table of all that a data set has labels for."""

import csv
import math
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers import (
    GOLDEN,
    TINY,
    TINY_VIDEO,
    LabelledImages,
    eager,
    loader,
    quiet_trainer,
    random_clips,
    random_images,
)
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset
from toys import Rows

from jepa_lightning import IJEPA, VJEPA, ShapesDataModule, load_encoder
from jepa_lightning.evaluation import HeldOut, Reading, evaluate, print_table, write_table

CLASSIFIERS = ["linear", "linear, 1 %", "linear, 10 shots", "attentive", "kNN"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoders of four blocks of images, and of two blocks of clips."""
    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    modules = {"images": IJEPA(**TINY | {"depth": 4}), "clips": VJEPA(**TINY_VIDEO)}
    for name, module in modules.items():
        eager(module.target_encoder.requires_grad_(True))
        trainer = quiet_trainer(folder)
        trainer.strategy.connect(module)
        trainer.save_checkpoint(folder / f"{name}.ckpt")
    return folder


def shapes() -> ShapesDataModule:
    return ShapesDataModule(16, num_train=400, num_val=150, batch_size=50, num_workers=0)


# Three seconds: it takes many small trainings, as every table does.
@pytest.fixture(scope="module")
def readings(folder: Path) -> list[Reading]:
    torch.manual_seed(5)
    return evaluate(str(folder / "images.ckpt"), shapes(), steps=5, accelerator="cpu")


def joined(batches: Any, item: int) -> Tensor:
    return torch.cat([batch[item] for batch in batches])


def test_lines(readings: list[Reading]) -> None:
    """Of 360 samples, a tenth of the 400 being held out."""
    expected = [(label, probe, "accuracy") for label in ("kind", "count") for probe in CLASSIFIERS]
    expected += [("positions", "regression", "r2"), ("segmentation", "segmentation", "miou")]
    assert [one[:3] for one in readings] == expected
    assert [one.num_labels for one in readings] == [360, 4, 60, 360, 360, 360, 4, 30, 360, 360, 360, 360]
    for one in readings:
        lowest = -math.inf if one.metric == "r2" else 0
        assert all(lowest < value <= 1 for value in (one.value, one.untrained, one.constant + 1e-9)), one
        if one.probe.startswith("linear"):
            assert one.chosen.startswith(("last layer", "last 4 layers"))
        elif one.probe == "kNN":
            assert one.chosen in {f"k {k}" for k in (10, 20, 100, 200)}


def test_constant_answers(readings: list[Reading]) -> None:
    constants = {one.label: one.constant for one in readings}
    test = list(shapes().test_dataloader())
    for label, item in (("kind", 1), ("count", 2)):
        counts = np.bincount(joined(test, item).numpy())
        assert constants[label] == pytest.approx(counts.max() / counts.sum())
    assert constants["positions"] == 0
    pixels = joined(test, 4).numpy()
    counts = np.bincount(pixels.ravel())
    assert counts.argmax() == 0, "background"
    assert constants["segmentation"] == pytest.approx(counts[0] / pixels.size / 7)


def test_neighbours_are_of_all_training_samples_but_the_held_out(folder: Path, readings: list[Reading]) -> None:
    split, encoder = HeldOut(shapes()), load_encoder(folder / "images.ckpt")
    split.setup("fit")
    train, test = list(split.train_dataloader()), list(split.test_dataloader())
    bank, queries = (torch.cat([encoder(batch.image).mean(1) for batch in part]).double() for part in (train, test))
    mean, std = bank.mean(0), bank.std(0, correction=0) + 1e-6
    bank, queries = (torch.nn.functional.normalize((part - mean) / std, dim=1) for part in (bank, queries))
    for label, item in (("kind", 1), ("count", 2)):
        (line,) = (one for one in readings if one.label == label and one.probe == "kNN")
        labels, truth, hits = joined(train, item).tolist(), joined(test, item).tolist(), 0
        for query, right in zip(queries, truth, strict=True):
            similarity, nearest = (bank @ query).topk(int(line.chosen[2:]))
            votes = [0.0] * 7
            for weight, index in zip((similarity / 0.07).exp().tolist(), nearest.tolist(), strict=True):
                votes[labels[index]] += weight
            hits += int(np.argmax(votes)) == right
        assert line.value == pytest.approx(hits / len(truth), abs=1.5 / len(truth))  # but for ties in float32


class Table(pl.LightningDataModule):
    """Noise, and labels `[N, ...]` given by a function of the images' brightness `[N]`."""

    def __init__(self, label: Any) -> None:
        super().__init__()
        self.label = label

    def _batches(self, number: int) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(number)
        images = torch.randn(number, 3, 16, 16, generator=generator) + torch.randn(number, 1, 1, 1, generator=generator)
        return DataLoader(TensorDataset(images, self.label(images.mean((1, 2, 3)))), 40)

    def train_dataloader(self) -> Any:
        return self._batches(400)

    def test_dataloader(self) -> Any:
        return self._batches(200)


def test_numbers_in_any_unit(folder: Path) -> None:
    """Pixels from another origin are read as well as standard deviations."""
    lines = []
    for factor, offset in ((1, 0), (50, 1000)):
        torch.manual_seed(0)
        data = Table(lambda bright, a=factor, b=offset: a * bright + b)
        lines += evaluate(str(folder / "images.ckpt"), data, steps=50, accelerator="cpu")
    assert lines[1].value == pytest.approx(lines[0].value, abs=1e-3)
    assert lines[0].value > 0.5


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (lambda bright: torch.zeros(len(bright), 4, dtype=torch.long), r"label torch.int64 \[200, 4\]"),
        (lambda bright: torch.full((len(bright),), -1), r"label torch.int64 \[200\]"),
        (lambda bright: torch.full((len(bright), 2), torch.nan), r"label torch.float32 \[200, 2\]"),
    ],
)
def test_labels_that_no_probe_reads(folder: Path, label: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(str(folder / "images.ckpt"), Table(label), steps=2, accelerator="cpu")


def test_an_official_file_that_does_not_tell_its_heads() -> None:
    options: dict[str, Any] = {"encoder_options": {"num_heads": 3, "network": "context_encoder"}}
    data = ShapesDataModule(32, num_train=40, num_val=20, batch_size=20, num_workers=0)
    lines = evaluate(str(GOLDEN / "checkpoint.pth.tar"), data, steps=2, accelerator="cpu", **options)
    assert {line.label for line in lines} == {"kind", "count", "positions", "segmentation"}
    with pytest.raises(ValueError, match="give num_heads"):
        evaluate(str(GOLDEN / "checkpoint.pth.tar"), data, steps=2, accelerator="cpu")


# Two seconds: a table is a dozen of fits, and there are two.
def test_a_seed_gives_the_same_table(folder: Path) -> None:
    def read(seed: int) -> list[Reading]:
        torch.manual_seed(seed)
        data = Table(lambda bright: (bright > 0).long())
        return evaluate(str(folder / "images.ckpt"), data, num_train=80, steps=2, accelerator="cpu")

    assert read(5) == read(5)


class Quarters(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return self.batches(200)

    def test_dataloader(self) -> Any:
        return self.batches(250)

    def batches(self, number: int) -> Any:
        image, label, _ = next(iter(loader(LabelledImages(number), number)))
        return loader(TensorDataset(image, label), 50)


def test_what_the_encoder_is_worth_untrained(folder: Path) -> None:
    """Large random weights lose what an encoder's own, small ones keep; with one label an answer is constant."""
    torch.manual_seed(0)
    lines = evaluate(str(folder / "images.ckpt"), Quarters(), num_train=80, steps=20, accelerator="cpu")
    by_probe = {one.probe: one for one in lines}
    for probe in ("linear", "linear, 10 shots", "kNN"):
        assert by_probe[probe].value < 0.62 < 0.66 < by_probe[probe].untrained, by_probe[probe]
    assert [(one.label, one.num_labels) for one in lines] == [("label", number) for number in (80, 1, 40, 80, 80)]
    few = by_probe["linear, 1 %"]
    for value in (few.value, few.untrained):
        assert value in (pytest.approx(62 / 250), pytest.approx(63 / 250))
    assert few.constant == pytest.approx(63 / 250)


class Sample(NamedTuple):
    """Of any labels: some missing, or of a kind that no probe reads."""

    image: Tensor
    some: Tensor  # classes, for half of the samples
    rare: Tensor  # classes, one of which the training set lacks
    boxes: Tensor
    missing: Tensor
    partial: Tensor  # numbers, the second of which some samples lack


class Samples(Dataset[Sample]):
    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> Sample:
        number = self.start + index
        image = LabelledImages()[number].image
        return Sample(
            image,
            torch.tensor(number // 2 % 4 if number % 2 else -1),
            torch.tensor(number % 3 if number < 100 else 3),
            torch.tensor([number, 2]),
            torch.full((2,), torch.nan),
            torch.tensor([number % 4, number % 5 if number % 7 else torch.nan, 1.0]),
        )


class Odd(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(Samples(0, 100), 20, shuffle=True)

    def test_dataloader(self) -> Any:
        return DataLoader(Samples(60, 120), 20)


# Two seconds: each kind of label has fits of its own.
def test_labels_of_any_kind(folder: Path) -> None:
    """Missing ones do not count, classes may be in the test data alone, and what no probe reads has no line."""
    lines = evaluate(str(folder / "images.ckpt"), Odd(), steps=3, accelerator="cpu")
    assert [one[:2] for one in lines] == [
        *((label, probe) for label in ("some", "rare") for probe in CLASSIFIERS),
        ("partial", "regression"),
    ]
    known = {one.num_labels for one in lines if one.label == "some" and one.probe in ("linear", "attentive", "kNN")}
    assert len(known) == 1
    assert 40 <= known.pop() <= 50
    constants = {one.label: one.constant for one in lines}
    assert constants["rare"] == pytest.approx(20 / 60)
    truth = [number // 2 % 4 for number in range(60, 120) if number % 2]
    assert constants["some"] == pytest.approx(max(map(truth.count, range(4))) / 30)
    assert all(math.isfinite(one.value) for one in lines)


class MovingSamples(NamedTuple):
    """Clips, a class, and a place in each frame."""

    clip: Tensor
    kind: Tensor
    position: Tensor


class Moving(pl.LightningDataModule):
    def __init__(self, frames: int = 4) -> None:
        super().__init__()
        self.frames = frames

    def train_dataloader(self) -> Any:
        kind = torch.arange(60) % 3
        clips = random_clips(60, self.frames) + 0.5 * kind.view(-1, 1, 1, 1, 1)
        places = torch.rand(60, self.frames, 2, generator=torch.Generator().manual_seed(0))
        return DataLoader(Rows(MovingSamples(clips, kind, places)), 20)

    test_dataloader = train_dataloader


def test_clips(folder: Path) -> None:
    """Positions are of all frames; of five frames the encoder could read none."""
    torch.manual_seed(2)
    lines = evaluate(str(folder / "clips.ckpt"), Moving(), steps=5, accelerator="cpu")
    assert [one[:2] for one in lines] == [*(("kind", probe) for probe in CLASSIFIERS), ("position", "regression")]
    assert any("last 2 layers" in one.chosen for one in lines)
    with pytest.raises(ValueError, match=r"\(5, 16, 16\)"):
        evaluate(str(folder / "clips.ckpt"), Moving(5), accelerator="cpu")


class Bare(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return loader(random_images(40))

    def test_dataloader(self) -> Any:
        return self.train_dataloader()


class Alone(Bare):
    def train_dataloader(self) -> Any:
        return DataLoader(random_images(40), 8)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [Bare, Alone])
def test_data_without_labels(folder: Path, data: Any) -> None:
    with pytest.raises(ValueError, match=data.__name__):
        evaluate(str(folder / "images.ckpt"), data(), accelerator="cpu")


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CSV reads back with all digits; Markdown and the printed table have the same cells, rounded."""
    readings = [
        Reading("kind", "linear, 1 %", "accuracy", 2 / 3, 0.5, 1 / 6, 3, "last 4 layers, standardised, lr 0.01, wd 0"),
        Reading("positions", "regression", "r2", -1 / 7, -20.25, 0.0, 360, "last layer, lr 0.1, wd 0.0005"),
    ]
    write_table(readings, tmp_path / "new" / "table.csv")
    write_table(readings, str(tmp_path / "table.md"))
    with (tmp_path / "new" / "table.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == list(Reading._fields)
    kinds = [type(value) for value in readings[0]]
    assert [Reading(*(kind(cell) for kind, cell in zip(kinds, row, strict=True))) for row in rows] == readings

    lines = (tmp_path / "table.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")] for line in lines]
    assert cells[0] == ["label", "probe", "metric", "value", "untrained", "constant", "labels", "chosen"]
    assert set(cells[1]) == {"---"}
    rounded = [[*row[:3], *(f"{float(cell):.3f}" for cell in row[3:6]), *row[6:]] for row in rows]
    assert cells[2:] == rounded

    print_table(readings)
    printed = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [line for line in printed if line] == rounded

    with pytest.raises(ValueError, match=r"\.csv .*\.md.* .*table\.txt"):
        write_table(readings, tmp_path / "table.txt")

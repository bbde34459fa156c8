"""What all DataModules do alike: batches in an order that can be told, splits, workers, files that cannot be read."""

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from fake_data import write_images, write_video
from helpers import quiet_trainer
from torch import Tensor

from jepa_lightning import ImageDataModule, MovingShapesDataModule, ShapesDataModule, VideoDataModule
from jepa_lightning.data.faults import Faults

TRAIN, VAL = 20, 6
PATHS = [f"train/{number:02}/it" for number in range(TRAIN)] + [f"val/{number:02}/it" for number in range(VAL)]


class Case(NamedTuple):
    """A DataModule that draws all that it can at random, and how its files come to be: every file has its class."""

    kind: type[Any]
    options: dict[str, Any]
    shape: tuple[int, ...]
    ending: str | None = None

    def write(self, root: Path) -> list[Path]:
        paths = [root / f"{path}{self.ending}" for path in PATHS if self.ending]
        for path in paths:
            self.write_one(path)
        return paths

    def write_one(self, path: Path) -> None:
        if self.kind is ImageDataModule:
            write_images(path.parent, path.name)
        else:
            write_video(path, num_frames=6)

    def make(self, root: Path, num_workers: int = 0, **options: Any) -> Any:
        given = {"image_size": [16, 24], "batch_size": 4, "num_workers": num_workers} | self.options | options
        if self.ending is None:
            return self.kind(num_train=TRAIN, num_val=VAL, **given)
        return self.kind(dataset="folder", root=str(root), **given)


RENDERED = {
    "shapes": Case(ShapesDataModule, {"seed": 5}, (3, 16, 24)),
    "moving shapes": Case(MovingShapesDataModule, {"num_frames": 3, "seed": 5}, (3, 3, 16, 24)),
}
FILES = {
    "images": Case(ImageDataModule, {"horizontal_flip": True}, (3, 16, 24), ".png"),
    "videos": Case(VideoDataModule, {"num_frames": 2, "frame_stride": 1}, (3, 2, 16, 24), ".mp4"),
}
CASES = RENDERED | FILES
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_of_files = pytest.mark.parametrize("case", FILES.values(), ids=FILES)


def epochs(datamodule: Any, count: int = 1) -> list[list[Any]]:
    """The training batches of some epochs of one loader.

    It is made here: Lightning, which notes the arguments of a DataModule, keeps alive the locals of who makes one until
    the garbage is collected, and with them a loader's workers.
    """
    loader = datamodule.train_dataloader()
    return [list(loader) for _ in range(count)]


def loaded(datamodule: Any) -> dict[str, list[Any]]:
    """The batches of two epochs of training, and those held out."""
    datamodule.setup(None)
    first, second = epochs(datamodule, 2)
    roles = {role: list(getattr(datamodule, f"{role}_dataloader")()) for role in ("val", "test", "predict")}
    return {"first": first, "second": second, **roles}


def same(a: list[Any], b: list[Any]) -> bool:
    pairs = [pair for batches in zip(a, b, strict=True) for pair in zip(*batches, strict=True)]
    return all(torch.equal(x.nan_to_num(-1), y.nan_to_num(-1)) for x, y in pairs)


def labels(batches: list[Any]) -> list[int]:
    return [int(label) for batch in batches for label in batch[1]]


@each_case
def test_batches(case: Case, tmp_path: Path) -> None:
    """Whole ones of another order and other draws in each epoch, all held-out samples in theirs; any number of workers.

    Torch's generator neither matters nor moves.
    """
    case.write(tmp_path)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    here = loaded(case.make(tmp_path))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    workers = loaded(case.make(tmp_path, num_workers=2))
    for role, batches in here.items():
        assert same(batches, workers[role]), role
        assert len({type(batch) for batch in batches + workers[role]}) == 1
        sizes = [4] * 5 if role in ("first", "second") else [4, 2]
        assert [tuple(batch[0].shape) for batch in batches] == [(size, *case.shape) for size in sizes]
        assert all(batch[0].dtype == torch.float32 and batch[0].is_contiguous() for batch in batches)
        assert all(batch[1].dtype == torch.int64 for batch in batches)
    assert not same(here["first"], here["second"])
    assert labels(here["first"]) != labels(here["second"])
    assert same(here["test"], here["predict"])
    if case.ending:
        assert sorted(labels(here["first"])) == sorted(labels(here["second"])) == list(range(TRAIN))
        first, second = (torch.cat([batch[0] for batch in here[epoch]]) for epoch in ("first", "second"))
        places = [labels(here["second"]).index(label) for label in labels(here["first"])]
        assert not torch.equal(first, second[places])
        assert labels(here["val"]) == list(range(VAL))
        assert same(here["test"], here["val"])
    else:
        assert not torch.equal(here["test"][0][0], here["val"][0][0])


@each_case
def test_an_incomplete_training_batch_is_dropped(case: Case, tmp_path: Path) -> None:
    case.write(tmp_path)
    datamodule = case.make(tmp_path, batch_size=6)
    datamodule.setup("fit")
    assert [len(batch[0]) for batch in datamodule.train_dataloader()] == [6] * 3
    assert len(datamodule.train_dataloader()) == 3
    with pytest.raises(ValueError, match=rf"batch_size=21.*{TRAIN}|{TRAIN}.*batch_size=21"):
        case.make(tmp_path, batch_size=21).setup("fit")


@each_case
def test_data_can_be_sent_to_spawned_workers(case: Case, tmp_path: Path) -> None:
    case.write(tmp_path)
    datamodule = case.make(tmp_path)
    datamodule.setup("fit")
    loader = datamodule.train_dataloader()
    sent, collate = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn)))
    visits = list(loader.sampler)[:4]
    ours, theirs = (
        fn(data.__getitems__(visits)) for fn, data in ((loader.collate_fn, loader.dataset), (collate, sent))
    )
    if case.ending:
        ours, theirs = ours[0], theirs[0]  # beside it, what could not be read
    assert same([ours], [theirs])


class Witness(pl.LightningModule):
    """Learns a number, and notes the labels that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[Any]] = {"train": [], "val": []}

    def training_step(self, batch: Any) -> Tensor:
        self.seen["train"].append(batch)
        observation = batch if isinstance(batch, Tensor) else batch[0]
        return self.weight * observation.mean()

    def validation_step(self, batch: Any) -> None:
        self.seen["val"].append(batch)

    def predict_step(self, batch: Any) -> Any:
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


@each_case
def test_a_trainer(case: Case, tmp_path: Path) -> None:
    """Trains, validates and predicts; the options are kept for checkpoints."""
    case.write(tmp_path)
    module, datamodule, trainer = Witness(), case.make(tmp_path), quiet_trainer(max_epochs=2)
    trainer.fit(module, datamodule)
    expected = loaded(case.make(tmp_path))
    assert same(module.seen["train"], expected["first"] + expected["second"])
    assert same(module.seen["val"], expected["val"] * 2)
    assert same(trainer.predict(module, datamodule), expected["test"])
    options = {"image_size": [16, 24], "batch_size": 4, "num_workers": 0} | case.options
    assert options.items() <= dict(datamodule.hparams).items()


@each_of_files
@pytest.mark.parametrize("folder", ["", "train/"])
def test_unlabelled_files(case: Case, folder: str, tmp_path: Path) -> None:
    """Found at any depth; bare tensors, and nothing to validate on."""
    for source, path in zip(case.write(tmp_path / "written"), ("0", "x/y/1", "x/2"), strict=False):
        (tmp_path / "data" / folder / path).parent.mkdir(parents=True, exist_ok=True)
        source.rename(tmp_path / "data" / folder / f"{path}{case.ending}")
    module, datamodule = Witness(), case.make(tmp_path / "data", batch_size=3)
    quiet_trainer(max_epochs=2).fit(module, datamodule)
    assert [tuple(batch.shape) for batch in module.seen["train"]] == [(3, *case.shape)] * 2
    assert module.seen["val"] == []
    assert datamodule.val_dataloader() == []


# --- Files that cannot be read ---------------------------------------------------------------------------------------


def spoil(paths: list[Path]) -> list[Path]:
    """Cut one short, one without a beginning, and empty one; and one of those held out."""
    paths[3].write_bytes(paths[3].read_bytes()[:300])
    for number, content in ((4, b"neither image nor video"), (19, b""), (TRAIN + 3, b"text")):
        paths[number].write_bytes(content)
    return [paths[number] for number in (3, 4, 19, TRAIN + 3)]


@pytest.mark.parametrize(("kind", "num_workers"), [("images", 0), ("images", 2), ("videos", 2)])
def test_files_that_cannot_be_read(kind: str, num_workers: int, tmp_path: Path) -> None:
    """Others take their places, the same again, and each is named once."""
    case = FILES[kind]
    bad = spoil(case.write(tmp_path))
    datamodule, again = (case.make(tmp_path, number, max_faulty=0.3) for number in (num_workers, 0))
    for each in (datamodule, again):
        each.setup("fit")
    with pytest.warns(UserWarning, match=f"3 of {TRAIN} {kind}") as caught:
        first, second = epochs(datamodule, 2)
    (message,) = (str(each.message) for each in caught if "cannot be read" in str(each.message))
    assert all(str(path) in message for path in bad[:3])
    found = labels(first)
    assert len(found) == TRAIN
    assert {*found} == {*labels(second)} == {*range(TRAIN)} - {3, 4, 19}
    assert all(batch[0].isfinite().all() for batch in first)
    with pytest.warns(UserWarning, match=f"3 of {TRAIN} {kind}"):
        assert same(epochs(again)[0], first)
    with pytest.warns(UserWarning, match=rf"1 of {VAL} {kind} .*{bad[3].parent.name}"):
        held_out = labels(list(datamodule.val_dataloader()))
    assert held_out[:3] + held_out[4:] == [0, 1, 2, 4, 5]
    assert held_out[3] != 3
    assert datamodule.faulty.keys() == {str(path) for path in bad}


def test_a_loop_that_stops_early_is_told(tmp_path: Path) -> None:
    case = FILES["images"]
    spoil(case.write(tmp_path))
    datamodule = case.make(tmp_path, batch_size=20, max_faulty=0.3)
    datamodule.setup("fit")
    batches = iter(datamodule.train_dataloader())
    next(batches)
    with pytest.warns(UserWarning, match="3 of 20"):
        del batches


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_files_that_cannot_be_read(num_workers: int, tmp_path: Path) -> None:
    case = FILES["images"]
    spoil(case.write(tmp_path))

    def epoch(max_faulty: float) -> list[Any]:
        datamodule = case.make(tmp_path, num_workers, max_faulty=max_faulty)
        datamodule.setup("fit")
        return epochs(datamodule)[0]

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the error says it all
        with pytest.raises(RuntimeError, match=r"3 of \d+ images .*max_faulty=0.1"):
            epoch(0.1)
    with pytest.warns(UserWarning, match="3 of 20"):
        assert len(epoch(0.15)) == 5
    with pytest.raises(RuntimeError, match=r"\d of \d+ images"):
        epoch(0.0)


def test_the_share_of_what_was_read_counts() -> None:
    """Once a thousand files have been read, or all of them."""
    faults = Faults("videos", 0.1, 5000)
    for index in range(100):
        faults.add({f"{index}.mp4": "why"}, 5)
    with pytest.raises(RuntimeError, match=r"101 of 505 videos .* 91 more"):
        faults.add({"100.mp4": "why"}, 5)
    faults = Faults("videos", 0.1, 5000)
    for index in range(200):
        faults.add({f"{index}.mp4": "why"}, 10)
    assert len(faults.reasons) == 200


@each_of_files
@pytest.mark.parametrize(("files", "named"), [(20, 10), (4, 4)])
def test_nothing_can_be_read(case: Case, files: int, named: int, tmp_path: Path) -> None:
    """Whatever share is allowed, nobody waits for a data set of which nothing can be read."""
    for number in range(files):
        (tmp_path / f"{number}{case.ending}").write_bytes(b"")
    datamodule = case.make(tmp_path, max_faulty=0.9)
    datamodule.setup("fit")
    with pytest.raises(RuntimeError, match=rf"{named} \w+ in a row .*\{case.ending}"):
        next(iter(datamodule.train_dataloader()))


# --- Options and folders that do not fit -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cases", "options", "message"),
    [
        (CASES, {"batch_size": 0}, "batch_size=0"),
        (CASES, {"num_workers": -1}, "num_workers=-1"),
        (CASES, {"image_size": [64, 64, 3]}, r"image_size=\[64, 64, 3\]"),
        (CASES, {"image_size": 0}, "image_size=0"),
        (RENDERED, {"image_size": 15}, "image_size=15 .*16"),
        (RENDERED, {"num_val": 0}, "num_val=0"),
        (RENDERED, {"num_train": 10, "batch_size": 16}, "batch_size=16 .*num_train=10"),
        (RENDERED, {"seed": -1}, "seed=-1"),
        (FILES, {"max_faulty": 1.0}, "max_faulty=1"),
        (FILES, {"crop_scale": (0.5, 0.3)}, r"crop_scale=\(0.5, 0.3\)"),
        (FILES, {"crop_scale": (0.0, 1.0)}, r"crop_scale=\(0.0, 1.0\)"),
        (FILES, {"mean": [0.5]}, r"mean=\[0.5\].* 3 channels"),
        (FILES, {"std": [0.0, 1.0, 1.0]}, r"std=\[0.0, 1.0, 1.0\]"),
        (FILES, {"dataset": "folders"}, "dataset='folders' .*'folder'"),
        (FILES, {"dataset": "?"}, r"dataset='\?' .*folder, .*shards"),
        (FILES, {"samples_per_epoch": 10}, "samples_per_epoch=10 .*dataset='folder'"),
        (FILES, {"dataset": "shards", "samples_per_epoch": 0}, "samples_per_epoch=0"),
    ],
)
def test_options_that_do_not_fit(cases: dict[str, Case], options: dict[str, Any], message: str) -> None:
    for case in cases.values():
        kind: Callable[..., Any] = case.kind
        given = ({"dataset": "folder"} if case.ending else {}) | case.options | options
        with pytest.raises(ValueError, match=message):
            kind(**given)


@each_of_files
def test_folders_that_do_not_fit(case: Case, tmp_path: Path) -> None:
    def start(root: Path) -> None:
        case.make(root, batch_size=1).setup(None)

    with pytest.raises(FileNotFoundError, match=r"nowhere/train "):
        start(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path.name} .*\{case.ending}"):
        start(tmp_path)
    for name in ("train/a/0", "val/a/0"):
        case.write_one(tmp_path / f"{name}{case.ending}")
    start(tmp_path)
    case.write_one(tmp_path / f"val/other/0{case.ending}")
    with pytest.raises(ValueError, match="other"):
        start(tmp_path)

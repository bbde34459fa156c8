"""A training that is interrupted and resumed is the training that never was, bit for bit."""

import csv
import json
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from fake_data import write_images, write_mnist, write_shard, write_videos
from helpers import TINY, difference, exit_code, in_two_processes, quiet_trainer
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jepa_lightning import IJEPA, ImageDataModule, MovingShapesDataModule, ShapesDataModule, VideoDataModule
from jepa_lightning.callbacks import KNNProbe, LinearProbe
from jepa_lightning.cli import main
from jepa_lightning.data import Order, ResumableLoader, Visit, Visits, seeded


@pytest.fixture(autouse=True)
def _one_thread_and_its_seed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sums are those of a killed process; what `seed_everything` leaves in the environment goes."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- Order and draws -------------------------------------------------------------------------------------------------


def test_order_is_a_function_of_seed_and_epoch() -> None:
    order, again = Order(range(11), 3, seed=5), Order(range(11), 3, seed=5)
    first, second = list(order), list(order)
    visits = Visits(range(11), 3, seed=5)
    asked = [*visits, *visits]
    assert [visit.index for visit in asked] == first + second
    assert len(first) == len(order) == 9  # without the incomplete last batch
    assert len({*first}) == 9
    assert first != second
    assert [visit.epoch for visit in asked] == [0] * 9 + [1] * 9
    assert [visit.batch for visit in asked[:9]] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    again.set_epoch(1)
    again.first_batch = 2
    assert [*again] == second[6:]
    visits.set_epoch(1)
    visits.first_batch = 2
    assert [*visits] == asked[15:]
    assert len(again) == 9
    assert [*Order(range(11), 3, seed=6)] != first
    with pytest.raises(ValueError, match=r"3 training samples.*batch_size=4"):
        Order(range(3), 4)


def test_order_follows_seed_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    default, seven = [*Order(range(50), 10)], [*Order(range(50), 10, seed=7)]
    assert default == [*Order(range(50), 10, seed=0)]
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert [*Order(range(50), 10)] == seven != default


def test_ranks_share_out_the_batches_of_one_process() -> None:
    def with_ranks(ranks: int) -> list[list[int]]:
        orders = []
        for rank in range(ranks):
            order = Order(range(50), 12 // ranks, seed=1)
            order.num_replicas, order.rank, order.num_samples = ranks, rank, 50 // ranks
            order.total_size = order.num_samples * ranks
            orders.append([*order])
        mixed = [index for group in zip(*orders, strict=True) for index in group]
        return [mixed[start : start + 12] for start in range(0, len(mixed), 12)]

    assert len(with_ranks(1)) == 4
    assert with_ranks(1) == with_ranks(2) == with_ranks(4)


def test_draws_are_a_function_of_seed_epoch_and_index() -> None:
    def draw(seed: int, visit: Visit) -> float:
        with seeded(seed, visit):
            return float(torch.rand(()))

    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = draw(0, Visit(5, epoch=2, batch=1))
    others = [draw(1, Visit(5, 2, 1)), draw(0, Visit(6, 2, 1)), draw(0, Visit(5, 3, 1))]
    assert torch.equal(torch.get_rng_state(), state)
    assert len({first, *others}) == 4
    torch.rand(3)
    assert draw(0, Visit(5, epoch=2, batch=9)) == first


# --- Every place of an epoch -----------------------------------------------------------------------------------------


class WithDropout(IJEPA):
    """Draws from torch's generator, as a user's method may."""

    def latents(self, batch: Any, drawn: Any = None) -> Any:
        (observation,) = self.observations(batch)
        return super().latents(torch.nn.functional.dropout(observation, 0.1, self.training), drawn)


class Record(pl.callbacks.Checkpoint):
    """The loss of every batch, by epoch and batch; and checkpoints from all hooks that Lightning saves them in.

    Being a `Checkpoint`, it comes after all other callbacks.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.losses: dict[tuple[int, int], float] = {}
        self.folder = folder

    def save(self, trainer: pl.Trainer, hook: str) -> None:
        if self.folder is not None and not trainer.sanity_checking:
            batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
            trainer.save_checkpoint(self.folder / f"{batches} {hook}.ckpt")

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses[trainer.current_epoch, batch_idx] = float(outputs["loss"])
        self.save(trainer, "train batch end")

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.save(trainer, "validation end")

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.save(trainer, "train epoch end")


def write_folder(root: Path, number: int = 23) -> None:
    for split, count in (("train", number), ("val", 6)):
        write_images(root, *(f"{split}/{index % 3}/{index:02}.png" for index in range(count)))


def images(root: Path, num_workers: int = 0, batch_size: int = 4) -> ImageDataModule:
    return ImageDataModule("folder", str(root), 16, batch_size, num_workers, horizontal_flip=True)


def fit(
    datamodule: Any, record: Record, ckpt_path: Path | None = None, **options: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train for two epochs; what is then in the module and in the probes."""
    pl.seed_everything(0 if ckpt_path is None else 99, verbose=False)  # a resumed run's own seed must not matter
    os.environ["PL_GLOBAL_SEED"] = "0"  # but for the order, which is a function of it
    probes = [LinearProbe(3), KNNProbe(bank_size=10)]
    module = WithDropout(**TINY)
    trainer = quiet_trainer(max_epochs=2, callbacks=[*probes, record], enable_checkpointing=True, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not resumable.*")
        trainer.fit(module, datamodule, ckpt_path=ckpt_path, weights_only=True)
    assert trainer.global_step == trainer.estimated_stepping_batches
    assert trainer.current_epoch == 2
    return module.state_dict(), {probe.state_key: probe.state_dict() for probe in probes}


# Three seconds: ten trainings.
@pytest.mark.parametrize(
    "options", [{"val_check_interval": 2}, {"accumulate_grad_batches": 2, "limit_train_batches": 4}]
)
def test_resumed_from_anywhere(options: dict[str, Any], tmp_path: Path) -> None:
    """Losses, weights and probes, with random crops, flips, masks and dropout, and a validation in mid-epoch."""
    write_folder(tmp_path / "images")
    whole = Record(tmp_path)
    expected = fit(images(tmp_path / "images"), whole, **options)
    batches = 5 - ("limit_train_batches" in options)
    assert [*whole.losses] == [(epoch, batch) for epoch in range(2) for batch in range(batches)]
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) >= 2 * (batches + 2)
    for checkpoint in checkpoints:
        place = int(checkpoint.name.split()[0])
        if place > batches + 1:
            continue
        rest = Record()
        found = fit(images(tmp_path / "images"), rest, checkpoint, **options)
        assert rest.losses == dict([*whole.losses.items()][place:]), checkpoint.name
        assert not difference(expected, found, checkpoint.name)


# --- Every DataModule ------------------------------------------------------------------------------------------------


class Witness(pl.LightningModule):
    """Notes the batches that it is trained on, and stops hard in front of one."""

    def __init__(self, stop_before: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.stop_before = stop_before
        self.batches: dict[tuple[int, int], Tensor] = {}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if (self.current_epoch, batch_idx) == self.stop_before:
            raise InterruptedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        observation = batch if isinstance(batch, Tensor) else batch[0]
        self.batches[self.current_epoch, batch_idx] = observation.clone()
        return self.weight * observation.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def stop_and_save(witness: Witness, datamodule: Any, path: Path) -> None:
    trainer = quiet_trainer(max_epochs=9)
    with pytest.raises(InterruptedError):
        trainer.fit(witness, datamodule)
    trainer.save_checkpoint(path)


def write_image_shards(root: Path, sizes: tuple[int, ...] = (8, 8, 8, 8)) -> None:
    """Shards of labelled images, each of its own colour: its number."""
    (image,) = write_images(root, "noise.png")
    start = 0
    for number, size in enumerate(sizes):
        members = {}
        for index in range(start, start + size):
            members[f"{index:03}.png"] = image.read_bytes()
            members[f"{index:03}.cls"] = str(index).encode()
        write_shard(root / f"train/{number}.tar", members)
        start += size


def mnist(root: Path, num_workers: int) -> Any:
    write_mnist(root, "MNIST")
    return lambda: ImageDataModule("MNIST", str(root), None, 7, num_workers, download=False)


def shapes(root: Path, num_workers: int) -> Any:
    return lambda: ShapesDataModule(16, 35, 8, 7, num_workers)


def moving_shapes(root: Path, num_workers: int) -> Any:
    return lambda: MovingShapesDataModule(16, 2, 35, 8, 7, num_workers)


def videos(root: Path, num_workers: int) -> Any:
    write_videos(root)
    options: dict[str, Any] = {"num_frames": [2, 3], "frame_stride": 1, "image_size": 16, "batch_size": 1}
    return lambda: VideoDataModule(str(root), "csv", num_workers=num_workers, **options)


def listed_shards(root: Path, num_workers: int) -> Any:
    write_image_shards(root)
    return lambda: ImageDataModule("shards", str(root), 16, 6, num_workers)


def streamed_shards(root: Path, num_workers: int) -> Any:
    write_image_shards(root)
    return lambda: ImageDataModule("shards", str(root), 16, 4, num_workers, samples_per_epoch=32)


@pytest.mark.parametrize(
    ("prepare", "num_workers"),
    [(shapes, 0)] + [(each, 2) for each in (mnist, shapes, moving_shapes, videos, listed_shards, streamed_shards)],
)
def test_batches_of_all_data_modules(prepare: Callable[..., Any], num_workers: int, tmp_path: Path) -> None:
    """Interrupted in the second epoch by an error, with batches loaded ahead."""
    make, path = prepare(tmp_path, num_workers), tmp_path / "last.ckpt"
    whole = Witness()
    quiet_trainer(max_epochs=2).fit(whole, make())
    stopped, resumed = Witness(stop_before=(1, 3)), Witness()
    stop_and_save(stopped, make(), path)
    quiet_trainer(max_epochs=2).fit(resumed, make(), ckpt_path=path, weights_only=True)
    assert min(resumed.batches) == (1, 3)
    assert not difference(stopped.batches | resumed.batches, whole.batches)
    assert len(whole.batches) == 2 * max(batch + 1 for _, batch in whole.batches)


def test_a_callback_may_read_the_training_data_in_mid_epoch() -> None:
    """Only the Trainer's own loader goes on where the Trainer is."""
    datamodule, seen = ShapesDataModule(16, 35, 8, 7, 0), []

    class Reader(Witness):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen.append(len(list(datamodule.train_dataloader())))

    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(Reader(), datamodule)
    assert seen == [5] * 5
    assert len(list(trainer.train_dataloader)) == 5
    sample = Witness()
    quiet_trainer(max_epochs=2, overfit_batches=2).fit(sample, datamodule)
    assert torch.equal(sample.batches[1, 0], datamodule.sets["train"].__getitems__([*range(7)]).image)


class Squares(Dataset[Tensor]):
    """A data set of a user's own: a number with noise."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, visit: Visit) -> Tensor:
        with seeded(7, visit):
            return torch.tensor(float(visit.index) ** 2) + torch.rand(())


class OwnData(pl.LightningDataModule):
    def train_dataloader(self) -> DataLoader[Tensor]:
        data = Squares()
        return ResumableLoader(data, batch_size=3, sampler=Visits(data, 3, self.trainer), num_workers=2)


def test_a_datamodule_of_ones_own(tmp_path: Path) -> None:
    whole, half, rest = Witness(), Witness(stop_before=(1, 2)), Witness()
    quiet_trainer(max_epochs=2).fit(whole, OwnData())
    stop_and_save(half, OwnData(), tmp_path / "6.ckpt")
    quiet_trainer(max_epochs=2).fit(rest, OwnData(), ckpt_path=tmp_path / "6.ckpt", weights_only=True)
    assert [*rest.batches] == [(1, 2), (1, 3)]
    assert not difference(half.batches | rest.batches, whole.batches)


# --- Shards ----------------------------------------------------------------------------------------------------------


class Labels(Witness):
    """The labels of every epoch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.batches[self.current_epoch, batch_idx] = batch.label
        return self.weight * batch.image.mean()

    def of(self, epoch: int) -> list[int]:
        return [int(label) for (at, _), labels in self.batches.items() if at == epoch for label in labels]


def test_listed_shards_hold_each_image_once(tmp_path: Path) -> None:
    """Shards of any size; their images, labels and the held-out ones; a folder, and a pattern."""
    write_image_shards(tmp_path, (5, 1, 9))
    write_shard(tmp_path / "val/0.tar", {"a/7.png": (tmp_path / "noise.png").read_bytes(), "a/7.cls": b"7"})
    for root, expected in ((tmp_path, range(15)), (f"{tmp_path}/train/{{0..1}}.tar", range(6))):
        labels = Labels()
        quiet_trainer(max_epochs=2, limit_val_batches=0).fit(labels, ImageDataModule("shards", str(root), 16, 3, 2))
        assert sorted(labels.of(0)) == sorted(labels.of(1)) == [*expected]
        assert labels.of(0) != labels.of(1)
    datamodule = ImageDataModule("shards", str(tmp_path), [24, 20], 3, 0)
    datamodule.setup("validate")
    (batch,) = datamodule.val_dataloader()
    assert batch.label.tolist() == [7]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (datamodule.mean, datamodule.std))
    pixels = torch.from_numpy(np.array(Image.open(tmp_path / "noise.png"))).permute(2, 0, 1)
    assert torch.equal(((batch.image[0] * std + mean) * 255).round().byte(), pixels)


@pytest.mark.parametrize("num_workers", [0, 3])
def test_streamed_shards_resume_without_loss(num_workers: int, tmp_path: Path) -> None:
    """Six equal shards: each image once an epoch, also in one that is resumed, by readers that take turns."""
    write_image_shards(tmp_path, (4,) * 6)

    def data() -> ImageDataModule:
        pattern = f"pipe:cat {tmp_path}/train/{{0..5}}.tar"
        return ImageDataModule("shards", pattern, 16, 2, num_workers, samples_per_epoch=24)

    whole = Labels()
    quiet_trainer(max_epochs=2).fit(whole, data())
    assert sorted(whole.of(0)) == sorted(whole.of(1)) == [*range(24)]
    assert whole.of(0) != whole.of(1)
    for batch in (1, 5):
        stop_and_save(Witness(stop_before=(1, batch)), data(), tmp_path / "last.ckpt")
        rest = Labels()
        quiet_trainer(max_epochs=2).fit(rest, data(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
        assert rest.of(1) == whole.of(1)[2 * batch :]


def write_index(folder: Path, sizes: dict[str, int]) -> Path:
    shards = [{"url": name, "nsamples": size} for name, size in sizes.items()]
    index = folder / "index.json"
    index.write_text(json.dumps({"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": shards}))
    return index


SIZES = (5, 1, 9, 4, 7, 2, 2)  # of shards, 30 images in all


@pytest.mark.parametrize(("ranks", "num_workers", "batch_size"), [(1, 0, 2), (1, 3, 4), (3, 2, 3), (4, 0, 1)])
def test_shards_with_an_index(
    ranks: int, num_workers: int, batch_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams of shards of any size: each image once, on one of the ranks, but those of incomplete batches."""
    write_image_shards(tmp_path, SIZES)
    index = write_index(tmp_path / "train", {f"{number}.tar": size for number, size in enumerate(SIZES)})
    expected = 30 // ranks // batch_size * batch_size * ranks
    seen: list[list[int]] = [[], []]

    def read(data: ImageDataModule) -> None:
        data.setup("fit")
        loader = data.train_dataloader()
        for labels in seen:
            labels += [int(label) for batch in loader for label in batch.label]
        assert not data.faulty

    for rank in range(ranks):
        for name, value in (("is_initialized", True), ("get_rank", rank), ("get_world_size", ranks)):
            monkeypatch.setattr(f"torch.distributed.{name}", lambda value=value: value)
        read(ImageDataModule("shards", f"pipe:cat {index}", 16, batch_size, num_workers))
    for labels in seen:
        assert len(labels) == len({*labels}) == expected
        assert {*labels} <= {*range(30)}
    assert seen[0] != seen[1]


def test_indexed_shards_resume_without_loss(tmp_path: Path) -> None:
    write_image_shards(tmp_path, SIZES)
    index = write_index(tmp_path / "train", {f"{number}.tar": size for number, size in enumerate(SIZES)})
    whole, rest = Labels(), Labels()
    quiet_trainer(max_epochs=2).fit(whole, ImageDataModule("shards", str(index), 16, 3, 2))
    assert sorted(whole.of(0)) == sorted(whole.of(1)) == [*range(30)]
    stop_and_save(Witness(stop_before=(1, 4)), ImageDataModule("shards", str(index), 16, 3, 2), tmp_path / "last.ckpt")
    data = ImageDataModule("shards", str(index), 16, 3, 2)
    quiet_trainer(max_epochs=2).fit(rest, data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert rest.of(1) == whole.of(1)[12:]


def test_an_index_that_cannot_be_used(tmp_path: Path) -> None:
    def start(root: Path | str, samples_per_epoch: int | None = None) -> ImageDataModule:
        options: dict[str, Any] = {"samples_per_epoch": samples_per_epoch, "max_faulty": 0.5}
        datamodule = ImageDataModule("shards", str(root), 16, 1, 0, **options)
        datamodule.setup("fit")
        return datamodule

    write_image_shards(tmp_path, (2, 2))
    index = write_index(tmp_path / "train", {"0.tar": 2, "1.tar": 4})
    with pytest.raises(ValueError, match=r"samples_per_epoch=4.*index"):
        start(index, 4)
    with pytest.warns(UserWarning, match=r"1\.tar \(it has 2 samples"):
        assert len(list(start(index).train_dataloader())) == 6
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json.*No such file"):
        start(tmp_path / "nowhere.json")
    with pytest.raises(FileNotFoundError, match=r"pipe:cat /nowhere\.json.*exit 1"):
        start("pipe:cat /nowhere.json")
    with pytest.raises(FileNotFoundError, match=r"train/2\.tar"):
        start(write_index(tmp_path / "train", {"2.tar": 2}))
    with pytest.raises(ValueError, match=r"pipe:rm 0\.tar.*command"):
        start(write_index(tmp_path, {"pipe:rm 0.tar": 2}))
    with pytest.raises(ValueError, match="no shards"):
        start(write_index(tmp_path, {}))
    for text in ("{}", "[", '{"shardlist": [{"url": "0.tar"}]}', '{"shardlist": [{"url": "0.tar", "nsamples": -1}]}'):
        index.write_text(text)
        with pytest.raises(ValueError, match=r"index.*nsamples"):
            start(index)
    write_index(tmp_path / "train", {f"0.tar; touch {tmp_path}/harm;.tar": 2})
    with pytest.raises((RuntimeError, FileNotFoundError)):
        list(start(f"pipe:cat {index}").train_dataloader())
    assert not (tmp_path / "harm").exists()


def test_shards_of_images_that_cannot_be_used(tmp_path: Path) -> None:
    def start(root: Path | str, num_workers: int = 0, samples_per_epoch: int | None = None) -> Any:
        datamodule = ImageDataModule("shards", str(root), 16, 1, num_workers, samples_per_epoch=samples_per_epoch)
        datamodule.setup("fit")
        return list(datamodule.train_dataloader())

    write_image_shards(tmp_path, (2, 2))
    with pytest.raises(ValueError, match=r"https://example\.org/0\.tar.*samples_per_epoch"):
        start("https://example.org/{0..3}.tar")
    with pytest.raises(ValueError, match=r"num_workers=3.*2 shards"):
        start(tmp_path, 3, 4)
    with pytest.raises(ValueError, match="samples_per_epoch=4 with dataset='folder'"):
        ImageDataModule("folder", samples_per_epoch=4)
    with pytest.raises(ValueError, match="samples_per_epoch=0 with dataset='shards'"):
        ImageDataModule("shards", samples_per_epoch=0)
    write_shard(tmp_path / "bad/0.tar", {"0.png": b"no image"})
    for samples in (None, 1):
        with pytest.raises(RuntimeError, match=r"bad/0\.tar/0\.png.*Repair"):
            start(tmp_path / "bad", samples_per_epoch=samples)
    write_shard(tmp_path / "clips/0.tar", {"0.mp4": b"", "0.txt": b""})
    for samples in (None, 1):
        with pytest.raises(FileNotFoundError, match=r"clips/0\.tar.*\.jpg"):
            start(tmp_path / "clips", samples_per_epoch=samples)
    broken = tmp_path / "train/1.tar"
    broken.write_bytes(broken.read_bytes()[:700])
    with pytest.raises(RuntimeError, match=r"1\.tar.*Repair"):
        start(tmp_path)
    with pytest.warns(UserWarning, match=r"1 of \d images.*1\.tar"):
        assert len(start(tmp_path, samples_per_epoch=4)) == 4


# --- Other numbers of ranks ------------------------------------------------------------------------------------------


ACCUMULATING: dict[str, Any] = {"max_epochs": 2, "accumulate_grad_batches": 2, "enable_checkpointing": True}


def two_processes(rank: int, folder: Path) -> dict[str, Any]:
    record = Record(folder)
    module = IJEPA(**TINY)
    pl.seed_everything(0, verbose=False)
    trainer = quiet_trainer(devices=2, strategy="ddp", callbacks=[record], limit_val_batches=0, **ACCUMULATING)
    trainer.fit(module, images(folder / "images", batch_size=3))
    return {"losses": record.losses, "weights": module.state_dict()}


# Three seconds, and the start of two processes.
def test_two_processes_go_on_as_one(tmp_path: Path) -> None:
    """Of the same batches together, in mid-epoch and in mid-accumulation, up to rounding."""
    write_folder(tmp_path / "images", 31)
    a, b = in_two_processes(two_processes, tmp_path)
    expected = {at: (loss + b["losses"][at]) / 2 for at, loss in a["losses"].items()}
    assert [*expected] == [(epoch, batch) for epoch in range(2) for batch in range(5)]
    assert a["losses"] != b["losses"]
    record = Record()
    module = IJEPA(**TINY)
    trainer = quiet_trainer(callbacks=[record], limit_val_batches=0, **ACCUMULATING)
    pl.seed_everything(0, verbose=False)
    trainer.fit(module, images(tmp_path / "images", batch_size=6), ckpt_path=tmp_path / "3 train batch end.ckpt")
    assert [*record.losses] == [*expected][3:]
    assert record.losses == pytest.approx({at: expected[at] for at in record.losses}, rel=1e-5)
    for name, weight in module.state_dict().items():
        torch.testing.assert_close(weight, a["weights"][name], rtol=1e-3, atol=2e-5)


# --- The proof -------------------------------------------------------------------------------------------------------

READING = 4  # steps from one reading of the collapse monitor to the next


def read_log(folder: Path) -> dict[tuple[int, str], str]:
    """What has been logged at each step, as written."""
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    return {(int(row["step"]), name): value for row in rows for name, value in row.items() if value}


class Killed(pl.Callback):
    """Ends the process after a step as a machine that loses power does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # or else its workers outlive it
    main(arguments)


# Four seconds, and the start of a process: three runs, two of them with workers.
def test_kill_and_resume_by_the_command_line(tmp_path: Path) -> None:
    """SIGKILL in mid-epoch of a run with workers; its last checkpoint leads to the end of the unbroken run."""
    write_folder(tmp_path / "images")

    def arguments(name: str, num_workers: int) -> list[str]:
        root = f"{tmp_path}/{name}"
        return [
            "fit", "--model=IJEPA", *(f"--model.{key}={value}" for key, value in TINY.items()), "--seed_everything=0",
            "--data=ImageDataModule", "--data.dataset=folder", f"--data.root={tmp_path}/images", "--data.image_size=16",
            "--data.batch_size=3", "--data.horizontal_flip=true", f"--data.num_workers={num_workers}",
            "--trainer.max_epochs=4", "--trainer.accelerator=cpu", "--trainer.check_val_every_n_epoch=2",
            "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
            f"--trainer.default_root_dir={root}", "--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={root}",
            "--trainer.logger.name=", "--trainer.logger.flush_logs_every_n_steps=1", "--trainer.log_every_n_steps=1",
            "--trainer.callbacks+=LinearProbe", "--trainer.callbacks.num_classes=3", "--trainer.callbacks+=KNNProbe",
            "--trainer.callbacks+=CollapseMonitor", f"--trainer.callbacks.every_n_steps={READING}",
            "--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=5",
            "--trainer.callbacks.save_last=true", f"--trainer.callbacks.dirpath={root}",
        ]  # fmt: skip

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    kill = ["--trainer.callbacks+=test_resume.Killed", "--trainer.callbacks.step=13"]
    assert exit_code(run, [*arguments("killed", 2), *kill]) == -signal.SIGKILL
    step = torch.load(killed / "last.ckpt", weights_only=True)["global_step"]
    main([*arguments("killed", 1), "--ckpt_path", "last"])
    main(arguments("whole", 0))
    expected, before, after = (read_log(folder) for folder in (whole / "version_0", *sorted(killed.glob("version_*"))))
    names = {name for _, name in expected}
    assert names >= {"train/loss", "train/momentum", "val/loss", "probe/linear/accuracy", "probe/knn/accuracy"}
    assert (step, max(at for at, _ in expected)) == (10, 27)
    assert before.items() <= expected.items()
    # Lightning writes a reading of the monitor again at every step up to the next; the first is of both runs' steps.
    for log in (expected, after):
        for at, name in [*log]:
            if at < step or (name.startswith(("collapse/", "train/constant")) and at < step + 2 * READING):
                del log[at, name]
    assert any(name == "collapse/target/rankme" for _, name in after)
    assert after == expected
    ends = [torch.load(folder / "last.ckpt", weights_only=True) for folder in (whole, killed)]
    for end in ends:
        (callback,) = (key for key in end["callbacks"] if key.startswith("ModelCheckpoint"))
        del end["callbacks"][callback], end["datamodule_hyper_parameters"]  # which name the folder and the workers
        del end["loops"]  # Lightning does not count an epoch as begun that follows a checkpoint at the last batch
    assert {"LinearProbe[linear]", "KNNProbe[knn]"} <= ends[0]["callbacks"].keys()
    assert not difference(*ends)

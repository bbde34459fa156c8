"""The rendered shapes: the same bytes everywhere, labels that agree with the pixels, and no shortcut through them."""

import hashlib
import math
import pickle

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from jepa_lightning.data import ShapesBatch, ShapesDataModule, ShapesDataset
from jepa_lightning.data.rendering import KINDS, Draws, lay_out


def pixels(image: torch.Tensor) -> np.ndarray:
    """Undo the normalisation."""
    return (image * 39 + 127).round().to(torch.uint8).numpy()


def same(a: ShapesBatch, b: ShapesBatch) -> bool:
    return all(torch.equal(torch.nan_to_num(x, -1), torch.nan_to_num(y, -1)) for x, y in zip(a, b, strict=True))


def test_splitmix64_reference() -> None:
    """The generator's published first outputs for the seed 1234567."""
    draws = Draws(0, 0, np.zeros(1, np.int64))
    draws.keys = np.array([1234567], np.uint64)
    assert draws.hashes(2).tolist() == [[6457827717110365317, 3203168211198807973]]
    assert draws.hashes(1).tolist() == [[9817491932198370423]]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (64, "fd4bfad9ae261ca8"),
        ([40, 56], "80f0f5673b42d59d"),
    ],
)
def test_images_are_the_same_everywhere(size: int | list[int], expected: str) -> None:
    batch = ShapesDataset(100, size, seed=3).__getitems__([0, 1, 50, 99])
    digest = hashlib.sha256()
    for array in (pixels(batch.image), batch.kind.numpy(), batch.count.numpy(), batch.segmentation.numpy()):
        digest.update(np.ascontiguousarray(array).astype(f"<u{array.itemsize}").tobytes())
    assert digest.hexdigest()[:16] == expected


def test_sample_types() -> None:
    sample = ShapesDataset(10, [32, 48])[4]
    assert [(tuple(item.shape), item.dtype) for item in sample] == [
        ((3, 32, 48), torch.float32),
        ((), torch.int64),
        ((), torch.int64),
        ((4, 2), torch.float32),
        ((32, 48), torch.int64),
    ]


def test_a_sample_depends_on_nothing_but_its_index() -> None:
    dataset = ShapesDataset(5000)
    batch = dataset.__getitems__(list(range(40)))  # more than one chunk
    alone = dataset[37]
    assert same(alone, ShapesBatch(*(item[37] for item in batch)))
    assert same(alone, ShapesDataset(38)[37])
    assert same(alone, ShapesDataset(38)[-1])
    assert same(alone, pickle.loads(pickle.dumps(dataset))[37])
    loader = DataLoader(Subset(dataset, [37]), batch_size=1, collate_fn=ShapesDataset.collate)
    assert same(alone, ShapesBatch(*(item[0] for item in next(iter(loader)))))


def test_splits_and_seeds_are_disjoint() -> None:
    sets = [ShapesDataset(64, 16, seed, split) for seed in (0, 1) for split in ("train", "val", "test")]
    images = [pixels(image).tobytes() for dataset in sets for image in dataset.__getitems__(list(range(64))).image]
    assert len(set(images)) == 6 * 64


def test_normalisation_and_balance() -> None:
    batch = ShapesDataset(2000, 32).__getitems__(list(range(2000)))
    assert abs(batch.image.mean()) < 0.05
    assert abs(batch.image.std() - 1) < 0.05
    for labels, classes in ((batch.kind, 8), (batch.count - 1, 4)):
        share = labels.bincount(minlength=classes) / 2000
        assert len(share) == classes
        assert (share - 1 / classes).abs().max() < 0.03  # over four standard deviations
    present = ~batch.positions.isnan().any(2)
    assert torch.equal(present.sum(1), batch.count)
    assert present[:, 0].all()
    assert torch.equal(present, torch.arange(4) < batch.count[:, None])
    assert ((batch.positions[present] > 0) & (batch.positions[present] < 1)).all()


def turned(points: list[tuple[float, float]], degrees: float) -> list[tuple[float, float]]:
    turn = complex(math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))
    return [((complex(*point) * turn).real, (complex(*point) * turn).imag) for point in points]


def corners(kind: str) -> list[tuple[float, float]]:
    """The outlines of the straight-edged kinds, in units of the radius, going round."""
    if kind == "triangle":
        return [turned([(0, 1)], 120 * i)[0] for i in range(3)]
    if kind == "cross":
        return [point for i in range(4) for point in turned([(0.95, -0.22), (0.95, 0.22), (0.22, 0.22)], 90 * i)]
    inner = math.cos(math.radians(72)) / math.cos(math.radians(36))  # of a pentagram
    return [point for i in range(5) for point in turned([(0, 1), turned([(0, inner)], 36)[0]], 72 * i)]


def inside(kind: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether points lie in a shape of the unit radius: by its discs, or by counting the edges a ray crosses."""
    if kind == "disc":
        return np.hypot(u, v) < 0.66
    if kind == "target":
        return (np.hypot(u, v) < 0.3) | ((np.hypot(u, v) < 0.84) & (np.hypot(u, v) > 0.56))
    if kind == "bars":
        return (abs(u) < 0.75) & np.any([abs(v - middle) < 0.17 for middle in (-0.55, 0, 0.55)], axis=0)
    if kind == "dots":
        places = [-0.58, 0, 0.58]
        return np.any([np.hypot(u - x, v - y) < 0.21 for x in places for y in places], axis=0)
    if kind == "checkers":
        squares = np.floor((u + 0.8) / 0.4) + np.floor((v + 0.8) / 0.4)
        return (abs(u) < 0.8) & (abs(v) < 0.8) & (squares % 2 == 1)
    crossings = np.zeros(u.shape, int)
    outline = corners(kind)
    for (x0, y0), (x1, y1) in zip(outline, outline[1:] + outline[:1], strict=True):
        straddles = (y0 > v) != (y1 > v)
        if y0 != y1:
            crossings += straddles & (u < x0 + (v - y0) * (x1 - x0) / (y1 - y0))
    return crossings % 2 == 1


def test_segmentation_against_point_in_polygon() -> None:
    """The segmentation is each shape's outline at pixel centres, painted in reverse order: the subject is whole."""
    height, width, number = 48, 64, 96
    batch = ShapesDataset(number, [height, width]).__getitems__(list(range(number)))
    scene = lay_out(Draws(0, 0, np.arange(number)), height, width)
    y, x = np.mgrid[:height, :width] + 0.5
    covered = np.zeros((number, 4), int)
    for image in range(number):
        expected = np.zeros((height, width), int)
        for slot in reversed(range(batch.count[image])):
            centre = batch.positions[image, slot].double().numpy() * [width, height]
            cos, sin = scene.direction[image, slot].astype(float)
            away = ((x - centre[0]) + 1j * (y - centre[1])) * complex(cos, -sin) / scene.radius[image, slot]
            shape = inside(KINDS[scene.kind[image, slot]], away.real, away.imag)
            covered[image, slot] = shape.sum()
            expected[shape] = scene.kind[image, slot] + 1
        assert (expected != batch.segmentation[image].numpy()).mean() < 1e-3  # float32 on an outline
        assert scene.kind[image, 0] == batch.kind[image]
    assert set(scene.kind[:, 0]) == set(range(len(KINDS)))
    assert (covered[:, 0] > 1.5 * covered[:, 1:].max(1)).all()


def test_subject_has_its_own_colour() -> None:
    """Pixels well inside the subject vary by the noise alone, and differ from the background's mean."""
    batch = ShapesDataset(64, 96).__getitems__(list(range(64)))
    contrast = []
    for image, kind, segmentation in zip(pixels(batch.image), batch.kind, batch.segmentation, strict=True):
        mask = (segmentation == kind + 1).float()[None, None]
        core = -torch.nn.functional.max_pool2d(-mask, 3, 1, 1)[0, 0] == 1
        largest = image[:, core.numpy()]
        median = np.median(largest, 1, keepdims=True)
        assert (abs(largest - median) < 30).mean() > 0.8  # the rest may be smaller shapes of its kind
        contrast.append(abs(median[:, 0] - image[:, segmentation == 0].mean(1)).sum())
    assert np.median(contrast) > 150


def test_neighbours_in_pixel_space_are_near_chance() -> None:
    train, val = (
        ShapesDataset(3000, 32, split=split).__getitems__(list(range(n)))
        for split, n in (("train", 3000), ("val", 1000))
    )
    bank, queries = (torch.nn.functional.normalize(part.image.flatten(1), dim=1) for part in (train, val))
    votes = train.kind[(queries @ bank.T).topk(20).indices]
    guess = torch.nn.functional.one_hot(votes, len(KINDS)).sum(1).argmax(1)
    assert (guess == val.kind).float().mean() < 1.6 / len(KINDS)


def test_datamodule_gives_the_same_batches_with_workers() -> None:
    def batches(num_workers: int) -> list[ShapesBatch]:
        datamodule = ShapesDataModule([16, 24], 70, 20, batch_size=16, num_workers=num_workers, seed=5)
        torch.manual_seed(0)
        loaders = (datamodule.train_dataloader(), datamodule.val_dataloader(), datamodule.test_dataloader())
        return [batch for loader in loaders for batch in loader]

    here, workers = batches(0), batches(2)
    assert [len(batch.image) for batch in here] == [16] * 4 + [16, 4] * 2
    assert all(type(batch) is ShapesBatch for batch in workers)
    assert all(same(a, b) for a, b in zip(here, workers, strict=True))
    assert not torch.equal(here[0].image, ShapesDataset(70, [16, 24], 5).__getitems__(list(range(16))).image)


def test_datamodule_works_under_spawn() -> None:
    loader = ShapesDataModule(16, 8, 8, batch_size=8, num_workers=1).val_dataloader()
    loader.multiprocessing_context = "spawn"
    assert same(next(iter(loader)), ShapesDataset(8, 16, split="val").__getitems__(list(range(8))))


class Probe(pl.LightningModule):
    """A linear classifier, which records what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.LazyLinear(8)
        self.seen: list[str] = []

    def step(self, batch: ShapesBatch, stage: str) -> torch.Tensor:
        self.seen.append(stage)
        return torch.nn.functional.cross_entropy(self.layer(batch.image.flatten(1)), batch[1])

    def training_step(self, batch: ShapesBatch) -> torch.Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: ShapesBatch) -> None:
        self.step(batch, "val")

    def predict_step(self, batch: ShapesBatch) -> torch.Tensor:
        return batch.kind

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def test_trainer_runs_on_the_datamodule() -> None:
    datamodule = ShapesDataModule(16, 40, 20, batch_size=16, num_workers=0)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        num_sanity_val_steps=0, enable_model_summary=False,
    )  # fmt: skip
    model = Probe()
    trainer.fit(model, datamodule)
    assert model.seen == ["train"] * 2 + ["val"] * 2
    kinds = torch.cat(trainer.predict(model, datamodule))
    assert torch.equal(kinds, datamodule.test_set.__getitems__(list(range(20))).kind)
    assert dict(datamodule.hparams) == {
        "image_size": 16, "num_train": 40, "num_val": 20, "batch_size": 16, "num_workers": 0, "seed": 0
    }  # fmt: skip
    assert len(datamodule.kinds) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 15}, "image_size=15 .*at least 16"),
        ({"image_size": [64, 64, 3]}, "rows, columns"),
        ({"num_train": 10, "batch_size": 16}, "batch_size=16 must be from 1 to num_train=10"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_val": 0}, "num_val=0"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_datamodule_rejects(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShapesDataModule(**arguments)


def test_dataset_rejects() -> None:
    with pytest.raises(ValueError, match="split='valid' does not exist; choose one of train, val, test"):
        ShapesDataset(10, split="valid")
    with pytest.raises(ValueError, match="num_images=0"):
        ShapesDataset(0)
    with pytest.raises(IndexError, match="10 images"):
        ShapesDataset(10)[10]

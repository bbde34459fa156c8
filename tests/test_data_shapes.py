"""The rendered shapes: the same bytes everywhere, labels that agree with the pixels, and no shortcut through them."""

import hashlib
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Subset

from jepa_lightning.data import ShapesBatch, ShapesDataset
from jepa_lightning.data.synthetic.painting import KINDS
from jepa_lightning.data.synthetic.still_scenes import ABSENT, lay_out, paint
from jepa_lightning.data.synthetic.streams import Streams


def pixels(image: torch.Tensor) -> np.ndarray:
    """Undo the normalisation."""
    return (image * 39.5 + 127.5).round().to(torch.uint8).numpy()


def same(a: ShapesBatch, b: ShapesBatch) -> bool:
    return all(torch.equal(torch.nan_to_num(x, -1), torch.nan_to_num(y, -1)) for x, y in zip(a, b, strict=True))


def test_splitmix64_reference() -> None:
    """The generator's published first outputs for the seed 1234567."""
    draws = Streams(0, 0, np.zeros(1, np.int64))
    draws.keys = np.array([1234567], np.uint64)
    assert draws.hashes(2).tolist() == [[6457827717110365317, 3203168211198807973]]
    assert draws.hashes(1).tolist() == [[9817491932198370423]]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (64, "b3799b15ab62c4e7"),
        ([40, 56], "3e1dc90643326059"),
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
        ((3, 2), torch.float32),
        ((32, 48), torch.int64),
    ]


def test_a_sample_depends_on_nothing_but_its_index() -> None:
    dataset = ShapesDataset(5000)
    batch = dataset.__getitems__(list(range(40)))  # more than one chunk
    alone = dataset[37]
    assert same(alone, ShapesBatch(*(item[37] for item in batch)))
    assert same(alone, ShapesDataset(38)[37])
    assert same(alone, ShapesDataset(38)[-1])
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
    for labels, classes in ((batch.kind, 6), (batch.count - 1, 3)):
        share = labels.bincount(minlength=classes) / 2000
        assert len(share) == classes
        assert (share - 1 / classes).abs().max() < 0.045  # over four standard deviations
    present = ~batch.positions.isnan().any(2)
    assert torch.equal(present.sum(1), batch.count)
    assert present[:, 0].all()
    assert torch.equal(present, torch.arange(3) < batch.count[:, None])
    assert ((batch.positions[present] > 0) & (batch.positions[present] < 1)).all()


def test_segmentation_against_the_outlines() -> None:
    """The segmentation is each shape's disc or square at pixel centres, painted in reverse: the subject is whole."""
    height, width, number = 48, 64, 96
    batch = ShapesDataset(number, [height, width]).__getitems__(list(range(number)))
    scene = lay_out(Streams(0, 0, np.arange(number)), height, width)
    y, x = np.mgrid[:height, :width] + 0.5
    covered = np.zeros((number, 3), int)
    for image in range(number):
        expected = np.zeros((height, width), int)
        for slot in reversed(range(batch.count[image])):
            centre = batch.positions[image, slot].double().numpy() * [width, height]
            cos, sin = scene.direction[image, slot].astype(float)
            away = ((x - centre[0]) + 1j * (y - centre[1])) * complex(cos, -sin) / scene.radius[image, slot]
            if scene.square[image, slot]:
                shape = (abs(away.real) < np.sqrt(np.pi) / 2) & (abs(away.imag) < np.sqrt(np.pi) / 2)
            else:
                shape = abs(away) < 1
            covered[image, slot] = shape.sum()
            expected[shape] = scene.kind[image, slot] + 1
        assert (expected != batch.segmentation[image].numpy()).mean() < 1e-3  # float32 on an outline
        assert scene.kind[image, 0] == batch.kind[image]
    assert set(scene.kind[:, 0]) == set(range(len(KINDS)))
    assert set(scene.square[:, 0]) == {0, 1}
    assert (covered[:, 0] > 3 * covered[:, 1:].max(1)).all()


def second_colour(kind: str, u: float, v: float) -> bool:
    """Whether a point of the unbent pattern has its second colour; the stripes' period is 1."""
    if kind == "stripes":
        return 0.25 < u % 1 < 0.75
    if kind == "bars":
        return 0.5 < u % 2 < 1.5
    if kind == "checkers":
        return (int(u // 1.25) + int(v // 1.25)) % 2 == 1
    if kind == "dots":
        return math.hypot(u % 1 - 0.5, v % 1 - 0.5) > 0.4
    middle = (u % 2 - 1) / 2, (v % 2 - 1) / 2  # of the pattern's cell, two periods wide
    if kind == "rings":
        return abs(math.hypot(*middle) - 0.3) > 0.13
    return max(abs(middle[0]), abs(middle[1])) < 0.354


@pytest.mark.parametrize("kind", KINDS)
def test_patterns_against_their_description(kind: str) -> None:
    """One shape that fills the image, unturned and unbent: pixels are of the colour that their place calls for."""
    side, period = 96, 16.0
    draws = Streams(0, 0, np.arange(1))
    scene = lay_out(draws, side, side)
    black, white = np.zeros(3, np.float32), np.ones(3, np.float32)
    scene.kind[:] = ABSENT
    scene.kind[0, 0], scene.radius[0, 0], scene.period[0, 0] = KINDS.index(kind), 10 * side, period
    scene.centre[0, 0], scene.direction[0, 0], scene.phase[0, 0] = (side / 2, side / 2), (1, 0), (0.3, 0.6)
    scene.colour[0, 0], scene.curve[:], scene.bend[:] = (black, white), 0, 0
    image, _ = paint(scene, draws, side, side)
    right = 0
    for row, column in np.ndindex(side, side):
        u, v = (column + 0.5 - side / 2) / period + 0.3, (row + 0.5 - side / 2) / period + 0.6
        right += (image[0, 0, row, column] > 127) == second_colour(kind, u, v)
    assert right > 0.97 * side * side  # a pixel on an edge is of either colour
    assert 0.4 < (image > 127).mean() < 0.6


def test_colours_tell_nothing_of_the_kind() -> None:
    """The mean colour of the images of a kind is that of all images; a subject's two colours are far apart."""
    batch = ShapesDataset(2000, 32).__getitems__(list(range(2000)))
    mean = batch.image.mean((2, 3))
    for kind in range(len(KINDS)):
        of_kind = mean[batch.kind == kind]
        error = of_kind.std(0) / len(of_kind) ** 0.5
        assert ((of_kind.mean(0) - mean.mean(0)).abs() < 5 * error).all()
    subject = batch.segmentation == batch.kind[:, None, None] + 1
    background = batch.segmentation == 0
    grey = batch.image.mean(1)
    assert (grey[subject].std(), grey[background].std()) == (pytest.approx(1.3, abs=0.2), pytest.approx(0.2, abs=0.1))


@pytest.mark.parametrize("number", [2000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_neighbours_in_pixel_space_tell_little(number: int) -> None:
    """The vote is the one of the probe that the recipes log beside the encoder's."""
    sizes = (("train", number), ("val", 500))
    train, val = (ShapesDataset(n, 32, split=split).__getitems__(list(range(n))) for split, n in sizes)
    bank, queries = ((part.image.flatten(1) - train.image.flatten(1).mean(0)) for part in (train, val))
    queries, bank = (F.normalize(part / bank.std(0), dim=1) for part in (queries, bank))
    similarity, neighbours = (queries @ bank.T).topk(20)
    votes = F.one_hot(train.kind[neighbours], len(KINDS)) * (similarity / 0.07).exp()[..., None]
    assert (votes.sum(1).argmax(1) == val.kind).float().mean() < 2 / len(KINDS)


def test_data_sets_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match=r"split='valid' .*train, val, test"):
        ShapesDataset(10, split="valid")
    with pytest.raises(ValueError, match="0 samples"):
        ShapesDataset(0)
    with pytest.raises(IndexError, match="10 samples"):
        ShapesDataset(10)[10]

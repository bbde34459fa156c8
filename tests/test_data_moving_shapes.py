"""The moving shapes: the same bytes everywhere, labels that agree with the pixels, and motion that no frame shows."""

import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_data_shapes import second_colour
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from jepa_lightning.data import MovingShapesBatch, MovingShapesDataset
from jepa_lightning.data.synthetic.moving_scenes import DIRECTIONS, SPEEDS, lay_out
from jepa_lightning.data.synthetic.painting import KINDS
from jepa_lightning.data.synthetic.streams import Streams


def pixels(clip: Tensor) -> np.ndarray:
    """Undo the normalisation."""
    return (clip * 33.5 + 127.5).round().to(torch.uint8).numpy()


def same(a: MovingShapesBatch, b: MovingShapesBatch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def render(dataset: MovingShapesDataset) -> MovingShapesBatch:
    return dataset.__getitems__(list(range(len(dataset))))


@pytest.mark.parametrize(
    ("size", "frames", "expected"),
    [
        (32, 8, "90f1d3cfb4d02fe8"),
        ([24, 40], 5, "b9c52f3297c9bff9"),
    ],
)
def test_clips_are_the_same_everywhere(size: int | list[int], frames: int, expected: str) -> None:
    batch = MovingShapesDataset(100, frames, size, seed=3).__getitems__([0, 1, 50, 99])
    digest = hashlib.sha256()
    for array in (pixels(batch.clip), batch.kind.numpy(), batch.direction.numpy(), batch.speed.numpy()):
        digest.update(np.ascontiguousarray(array).astype(f"<u{array.itemsize}").tobytes())
    assert digest.hexdigest()[:16] == expected


def test_sample_types() -> None:
    sample = MovingShapesDataset(10, 6, [32, 48])[4]
    assert [(tuple(item.shape), item.dtype) for item in sample] == [
        ((3, 6, 32, 48), torch.float32),
        ((), torch.int64),
        ((), torch.int64),
        ((), torch.int64),
        ((6, 2), torch.float32),
    ]
    assert sample.clip.is_contiguous()


def test_a_sample_depends_on_nothing_but_its_index() -> None:
    dataset = MovingShapesDataset(80)
    batch = render(dataset)  # more than one chunk
    alone = dataset[77]
    assert same(alone, MovingShapesBatch(*(item[77] for item in batch)))
    assert same(alone, MovingShapesDataset(78)[77])
    assert same(alone, MovingShapesDataset(78)[-1])
    loader = DataLoader(Subset(dataset, [77]), batch_size=1, collate_fn=MovingShapesDataset.collate)
    assert same(alone, MovingShapesBatch(*(item[0] for item in next(iter(loader)))))


def test_more_frames_go_on_where_fewer_stop() -> None:
    long, short, image = (render(MovingShapesDataset(20, frames)) for frames in (11, 4, 1))
    assert torch.equal(long.clip[:, :, :4], short.clip)
    assert torch.equal(long.position[:, :4], short.position)
    assert torch.equal(long.clip[:, :, 0], image.clip)


def test_splits_and_seeds_are_disjoint() -> None:
    sets = [MovingShapesDataset(32, 2, 16, seed, split) for seed in (0, 1) for split in ("train", "val", "test")]
    clips = [pixels(clip).tobytes() for dataset in sets for clip in render(dataset).clip]
    assert len(set(clips)) == 6 * 32


def test_normalisation_and_balance() -> None:
    batch = render(MovingShapesDataset(400))
    assert abs(batch.clip.double().mean()) < 0.03
    assert abs(batch.clip.double().std() - 1) < 0.03
    scene = lay_out(Streams(0, 0, np.arange(10_000)), 1, 32, 32)
    for labels, names in ((scene.kind[:, 0], KINDS), (scene.direction, DIRECTIONS), (scene.speed, SPEEDS)):
        share = np.bincount(labels) / 10_000
        assert len(share) == len(names)
        assert abs(share - 1 / len(names)).max() < 0.02  # over four standard deviations


def test_labels_against_the_path_of_the_subject() -> None:
    """On the torus, a subject goes the same way each frame, as fast and in the direction that its labels say."""
    height, width = 16, 24
    batch = render(MovingShapesDataset(2000, 5, [height, width]))
    assert (batch.position >= 0).all()
    assert (batch.position <= 1).all()
    step = batch.position.double().diff(dim=1)
    step = (step - step.round()) * torch.tensor([width, height])
    torch.testing.assert_close(step, step[:, :1].expand_as(step), rtol=0, atol=1e-4)
    x, y = step.mean(1).T
    pace = torch.hypot(x, y) / (2.0**batch.speed * height / 64)
    assert (pace.min(), pace.max()) == (pytest.approx(1, abs=0.01), pytest.approx(1.6, abs=0.01))
    angle = torch.rad2deg(torch.atan2(y, x)) - 45 * batch.direction  # clockwise, as y points down
    off = (angle + 180) % 360 - 180
    assert (off.min(), off.max()) == (pytest.approx(-16.9, abs=0.1), pytest.approx(16.9, abs=0.1))
    assert [DIRECTIONS[index] for index in (0, 2, 4, 6)] == ["right", "down", "left", "up"]


def test_smaller_shapes_bounce() -> None:
    """They stay wholly in the picture, and their pace along either axis changes where they turn back alone."""
    height, width = 32, 48
    scene = lay_out(Streams(0, 0, np.arange(500)), 64, height, width)
    reach = scene.radius[:, 1:, None, None] * np.where(scene.square[:, 1:], 1.25, 1)[..., None, None]
    centre = scene.centre[:, 1:].astype(float)
    assert (centre - reach > -1e-4).all()
    assert (centre + reach < np.array([width, height]) + 1e-4).all()
    step = np.diff(centre, axis=2)
    turned = np.sign(step[:, :, 1:]) != np.sign(step[:, :, :-1])
    change = np.abs(step) - np.median(np.abs(step), axis=2, keepdims=True)
    straight = ~(turned[:, :, 1:] | turned[:, :, :-1])
    assert np.abs(change[:, :, 1:-1][straight]).max() < 1e-4
    assert (change < 1e-4).all()
    assert turned.any(2).mean() > 0.8


def test_pixels_against_the_description() -> None:
    """Every frame again, a pixel at a time: what lies at its centre, in a world that repeats, and without blur."""
    height, width, number, frames = 48, 64, 16, 3
    clips = render(MovingShapesDataset(number, frames, [height, width]))
    grey = pixels(clips.clip).mean(1)
    scene = lay_out(Streams(0, 0, np.arange(number)), frames, height, width)
    y, x = np.mgrid[:height, :width] + 0.5
    right: dict[str, list[bool]] = {"background": [], "at rest": [], "subject": [], "small": []}
    before = np.empty((height, width))
    for clip, frame in np.ndindex(number, frames):
        shown = np.full((height, width), -1)
        wanted = np.zeros((height, width), bool)
        behind = [slot for slot in (1, 2, 3) if not scene.in_front[clip, slot - 1]]
        for slot in (*behind, 0, *(slot for slot in (1, 2, 3) if slot not in behind)):
            column, row = scene.centre[clip, slot, frame].astype(float)
            again = (-1, 0, 1) if slot == 0 else (0,)
            for place in (complex(column + i * width, row + j * height) for i in again for j in again):
                turned = (x + 1j * y - place) * complex(*scene.orientation[clip, slot, frame]).conjugate()
                near = abs(turned)
                if scene.square[clip, slot]:
                    near = np.maximum(abs(turned.real), abs(turned.imag)) * 2 / np.sqrt(np.pi)
                u, v = (
                    own / scene.period[clip, slot]
                    + shift
                    + np.sin(2 * np.pi * (turned.real * along[0] + turned.imag * along[1] + start)) / 2
                    for own, shift, along, start in zip(
                        (turned.real, turned.imag),
                        scene.phase[clip, slot],
                        scene.wave[clip, slot],
                        scene.start[clip, slot],
                        strict=True,
                    )
                )
                kind = KINDS[scene.kind[clip, slot]]
                for pixel in map(tuple, np.argwhere(near < scene.radius[clip, slot])):
                    shown[pixel], wanted[pixel] = slot, second_colour(kind, u[pixel], v[pixel])
        first, second = scene.colour[clip].mean(2).T * 255
        level = (first + second) / 2
        right["background"] += list(abs(grey[clip, frame][shown < 0] - scene.texture[clip].mean() * 255) < 30)
        if frame:
            change = grey[clip, frame] - grey[clip, frame - 1]
            right["at rest"] += list(abs(change[(shown < 0) & (before < 0)]) < 13)  # the noise is of 12 levels
        before = shown
        for name, here in (("subject", shown == 0), ("small", shown > 0)):
            slot = shown[here]
            lighter = np.where(wanted[here], second[slot], first[slot]) > level[slot]
            right[name] += list((grey[clip, frame][here] > level[slot]) == lighter)
    assert {name: np.mean(found) > 0.95 for name, found in right.items()} == dict.fromkeys(right, True)
    position = clips.position.numpy() * [width, height]
    np.testing.assert_allclose(position, scene.centre[:, 0], atol=1e-4)


def surprise(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's chi-square of two labels' independence, in standard deviations from what independence gives."""
    observed = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(observed, (a, b), 1)
    expected = observed.sum(1, keepdims=True) * observed.sum(0) / len(a)
    freedom = (observed.shape[0] - 1) * (observed.shape[1] - 1)
    return (((observed - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


def cells(place: np.ndarray, number: int = 6) -> np.ndarray:
    """Which cell of a grid places in [0, 1] lie in."""
    column, row = np.minimum((place * number).astype(int), number - 1).T
    return row * number + column


def test_no_frame_depends_on_the_motion() -> None:
    """Where a subject goes and how fast is independent of what a frame shows of it, and of how it turns.

    Between walls, its place is not.
    """
    side = 32
    scene = lay_out(Streams(0, 0, np.arange(40_000)), 8, side, side)
    looks = {
        "kind": scene.kind[:, 0],
        "square": scene.square[:, 0],
        "brightness": (scene.colour[:, 0, 0].mean(1) > scene.colour[:, 0, 1].mean(1)).astype(int),
        "occluders": scene.in_front.sum(1),
    }
    for name, values in (("radius", scene.radius[:, 0]), ("period", scene.period[:, 0])):
        looks[name] = np.digitize(values, np.quantile(values, [0.2, 0.4, 0.6, 0.8]))
    angle = np.arctan2(scene.orientation[:, 0, :, 1], scene.orientation[:, 0, :, 0]) / (2 * np.pi)
    spin = (np.diff(angle) + 0.5) % 1 - 0.5
    np.testing.assert_allclose(spin, spin[:, :1].repeat(7, 1), atol=1e-5)
    assert (spin.min(), spin.max()) == (pytest.approx(-32 / 1024, abs=1e-5), pytest.approx(32 / 1024, abs=1e-5))
    looks["spin"] = np.digitize(spin[:, 0], [-0.02, -0.01, 0.01, 0.02])
    for frame in range(8):
        looks[f"place in frame {frame}"] = cells(scene.centre[:, 0, frame] / side)
        looks[f"angle in frame {frame}"] = ((angle[:, frame] + 0.5) * 7.99).astype(int)
    for labels in (scene.direction, scene.speed, scene.direction * len(SPEEDS) + scene.speed):
        for name, look in looks.items():
            assert surprise(look, labels) < 4.5, name

    # The same from the same places, between walls that the subject bounces off.
    start, end = scene.centre[:, 0, 0].astype(float), scene.centre[:, 0, 7].astype(float)
    way = end - start
    way -= side * np.round(way / side)
    assert surprise(cells((side - abs(side - abs(start + way))) / side), scene.direction) > 100


def energies(first: Tensor, second: Tensor) -> Tensor:
    """How strongly random filters over two frames `[B, 3, H, W]` respond: a texture's, or a motion's, energy."""
    filters = torch.randn(32, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    filters -= filters.mean((2, 3), keepdim=True)
    pairs = torch.stack([first.mean(1), second.mean(1)], 1)
    return torch.cat([F.conv2d(part, filters).square().mean((2, 3)).log() for part in pairs.split(250)])


def accuracy(features: Tensor, labels: Tensor) -> float:
    """Of a linear classifier, ridge regression on the classes, fitted to the first half and tried on the second."""
    half = len(features) // 2
    features = F.pad((features - features.mean(0)) / features.std(0), (0, 1), value=1.0).double()
    targets, train = F.one_hot(labels).double(), features[:half]
    weights = torch.linalg.solve(train.T @ train + torch.eye(train.shape[1]), train.T @ targets[:half])
    return ((features[half:] @ weights).argmax(1) == labels[half:]).double().mean().item()


@pytest.mark.parametrize("number", [1500, pytest.param(6000, marks=pytest.mark.slow)])
def test_one_frame_shows_kinds_and_two_show_motion(number: int) -> None:
    """To the same probe, of the same features; from one frame, motion is at chance, within four standard deviations."""
    batch = render(MovingShapesDataset(number, 2))
    first, second = batch.clip.unbind(2)
    still = [energies(second, second), *([second.flatten(1)] if number > 2000 else [])]
    assert accuracy(still[0], batch.kind) > 0.5
    for labels, chance, seen in ((batch.direction, 1 / 8, 0.4), (batch.speed, 1 / 3, 0.55)):
        limit = 4 * (chance * (1 - chance) / (number / 2)) ** 0.5
        for features in still:
            assert abs(accuracy(features, labels) - chance) < limit
        assert accuracy(energies(first, second), labels) > seen


def test_clips_without_a_frame() -> None:
    with pytest.raises(ValueError, match="num_frames=0"):
        MovingShapesDataset(10, num_frames=0)

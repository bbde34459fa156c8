"""Moving shapes: what is drawn is what the labels say, and no single frame says how it moves."""

import pickle

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from jepa_lightning import MovingShapesDataModule
from jepa_lightning.data import MovingShapesDataset

NUMBER = 4000
INDICES = list(range(NUMBER))


@pytest.fixture(scope="module")
def many() -> tuple[Tensor, ...]:
    """Positions and labels of many clips (of frames too small to look at, so that they are cheap)."""
    batch = MovingShapesDataset(NUMBER, image_size=16).__getitems__(INDICES)
    return batch.position, batch.kind, batch.direction, batch.speed


def test_labels_are_what_moves(many: tuple[Tensor, ...]) -> None:
    """Velocities, by differences of the places on the torus, against the classes."""
    position, kind, direction, speed = many
    steps = position.diff(dim=1)
    steps = steps - steps.round()
    assert torch.allclose(steps, steps[:, :1].expand_as(steps), atol=1e-5)
    pace = steps[:, 0].norm(dim=1)
    for index, (low, high) in enumerate([(0.015, 0.026), (0.031, 0.052), (0.062, 0.104)]):
        assert (pace[speed == index] > low).all()
        assert (pace[speed == index] < high).all()
    heading = torch.atan2(steps[:, 0, 1], steps[:, 0, 0]) / (torch.pi / 4)
    assert torch.equal(heading.round().long() % 8, direction)
    assert ((heading - heading.round()).abs() < 0.4).all()  # a gap between the classes
    for labels, classes in ((kind, 6), (direction, 8), (speed, 3)):
        counts = torch.bincount(labels, minlength=classes)
        assert len(counts) == classes
        chi_square = ((counts - NUMBER / classes) ** 2 / (NUMBER / classes)).sum()
        assert chi_square < 30


def test_a_place_tells_no_motion(many: tuple[Tensor, ...]) -> None:
    """In every frame, the subject's place on a grid of 4x4 is independent of direction, speed and kind."""
    position, kind, direction, speed = many
    assert (position >= 0).all()
    assert (position <= 1).all()
    for frame in (0, 3, 7):
        cell = (position[:, frame] * 4).long().clamp(max=3)
        cell = cell[:, 0] * 4 + cell[:, 1]
        for labels, classes in ((kind, 6), (direction, 8), (speed, 3)):
            table = torch.zeros(16, classes).index_put_((cell, labels), torch.ones(NUMBER), accumulate=True)
            expected = table.sum(1, keepdim=True) * table.sum(0) / NUMBER
            freedom = 15 * (classes - 1)
            chi_square = float(((table - expected) ** 2 / expected).sum())
            assert abs(chi_square - freedom) < 4.5 * (2 * freedom) ** 0.5


def ridge_accuracy(features: Tensor, labels: Tensor, classes: int) -> float:
    """Of a ridge regression to one-hot labels, fitted on the first three quarters."""
    split = len(features) * 3 // 4
    x = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    y = torch.nn.functional.one_hot(labels, classes).double()
    gram = x[:split].mT @ x[:split] + 100.0 * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, x[:split].mT @ y[:split])
    return float(((x[split:] @ weights).argmax(1) == labels[split:]).double().mean())


def test_pixels_of_one_frame_tell_no_motion_and_of_two_do() -> None:
    """Products of neighbouring pixels see motion only across frames."""
    batch = MovingShapesDataset(3000, num_frames=2, image_size=16).__getitems__(list(range(3000)))
    grey = batch.clip.mean(1)  # [B, 2, H, W]

    def correlations(first: Tensor, second: Tensor) -> Tensor:
        moved = [second.roll((dy, dx), (1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        return torch.stack([(first * other).mean((1, 2)) for other in moved], 1) * 3

    still = correlations(grey[:, 0], grey[:, 0])
    moving = correlations(grey[:, 0], grey[:, 1])
    assert ridge_accuracy(still, batch.direction, 8) < 0.125 + 4 * (0.125 * 0.875 / 750) ** 0.5
    assert ridge_accuracy(still, batch.speed, 3) < 1 / 3 + 4 * (2 / 9 / 750) ** 0.5
    assert ridge_accuracy(moving, batch.direction, 8) > 0.25
    # Raw pixels of a frame, linearly, neither.
    assert ridge_accuracy(grey[:, 0].flatten(1), batch.direction, 8) < 0.125 + 4 * (0.125 * 0.875 / 750) ** 0.5


def test_clips_are_a_function_of_seed_split_and_index() -> None:
    data = MovingShapesDataset(50)
    batch = data.__getitems__([3, 7, 3])
    assert torch.equal(batch.clip[0], batch.clip[2])
    assert torch.equal(batch.clip[1], data[7].clip)
    assert torch.equal(batch.clip[1], MovingShapesDataset(9)[7].clip)
    assert torch.equal(batch.clip[1], pickle.loads(pickle.dumps(data))[-43].clip)
    others = (MovingShapesDataset(50, seed=1), MovingShapesDataset(50, split="val"), MovingShapesDataset(50))
    assert [bool((other[7].clip == batch.clip[1]).all()) for other in others] == [False, False, True]
    assert torch.equal(MovingShapesDataset(50, num_frames=4)[7].clip, batch.clip[1][:, :4])
    assert torch.equal(MovingShapesDataset(50, num_frames=1)[7].clip, batch.clip[1][:, 0])


def test_normalised_and_at_rest() -> None:
    """About zero mean and unit variance; a pixel changes where something passes and is noise elsewhere."""
    batch = MovingShapesDataset(300).__getitems__(list(range(300)))
    assert abs(float(batch.clip.mean())) < 0.05
    assert float(batch.clip.std()) == pytest.approx(1.0, abs=0.05)
    assert batch.clip.dtype == torch.float32
    change = batch.clip.diff(dim=2).abs().amax((1, 2))
    assert 0.02 < float((change < 0.35).float().mean()) < 0.9
    rectangular = MovingShapesDataset(10, image_size=[16, 40])[0]
    assert rectangular.clip.shape == (3, 8, 16, 40)


@pytest.mark.parametrize("workers", [0, 2])
def test_data_module(workers: int) -> None:
    data = MovingShapesDataModule(num_train=70, num_val=20, batch_size=16, num_workers=workers)
    torch.manual_seed(0)
    train = list(data.train_dataloader())
    assert [batch.clip.shape for batch in train] == [torch.Size([16, 3, 8, 32, 32])] * 4
    assert [len(batch.kind) for batch in data.val_dataloader()] == [16, 4]
    held_out = torch.cat([batch.clip for batch in data.test_dataloader()])
    assert torch.equal(held_out, torch.cat([batch.clip for batch in data.predict_dataloader()]))
    assert isinstance(data.train_dataloader(), DataLoader)
    assert [len(names) for names in (data.kinds, data.directions, data.speeds)] == [6, 8, 3]
    seen = np.array([tuple(batch.position[:, 0].flatten().tolist()) for batch in train])
    assert len(np.unique(seen, axis=0)) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 8}, "image_size=8 is neither"),
        ({"num_frames": 0}, "num_frames=0 leaves no frame"),
        ({"seed": -1}, "seed=-1 is out of range"),
        ({"batch_size": 100, "num_train": 50}, "batch_size=100 must be from 1 to num_train=50"),
        ({"num_workers": -1}, "num_workers=-1 is negative"),
        ({"num_val": 0}, "num_val=0 leaves no validation clip"),
    ],
)
def test_options_out_of_range(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MovingShapesDataModule(**arguments)
    with pytest.raises(IndexError, match="go beyond the 5 clips"):
        MovingShapesDataset(5).__getitems__([5])

"""Probes of label maps: what a token's class is, and how accuracy and miou are counted."""

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import TINY, LabelledImages, loader, quiet_trainer, random_images
from torch import Generator, Tensor
from torch.utils.data import Dataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from jepa_lightning import IJEPA
from jepa_lightning.callbacks import KNNProbe, LinearProbe
from jepa_lightning.callbacks.probes.base import patches


def tiny(**options: Any) -> IJEPA:
    torch.manual_seed(0)
    return IJEPA(**TINY | options)


class Record(pl.Callback):
    """Keeps what the steps return, and the batches."""

    def __init__(self) -> None:
        self.train: list[tuple[Any, Any]] = []
        self.val: list[tuple[Any, Any]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.train.append((outputs, batch))

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self.val.append((outputs, batch))


def cut(picture: Tensor, grid: tuple[int, int]) -> list[Tensor]:
    """The patches of a picture `[..., H, W]`, row by row."""
    height, width = picture.shape[-2] // grid[0], picture.shape[-1] // grid[1]
    return [
        picture[..., row * height : (row + 1) * height, column * width : (column + 1) * width]
        for row in range(grid[0])
        for column in range(grid[1])
    ]


def classes_of(maps: Tensor, grid: tuple[int, int]) -> list[int]:
    """The most frequent class of every patch of some label maps, the lowest of equally frequent ones."""
    found = []
    for label_map in maps:
        for patch in cut(label_map, grid):
            counts = Counter(patch.flatten().tolist())
            found.append(min(counts, key=lambda label: (-counts[label], label)))
    return found


def tokens_of(steps: list[tuple[Any, Any]]) -> Tensor:
    return torch.cat([outputs["latents"].features.values.flatten(0, 1) for outputs, _ in steps])


def maps_of(steps: list[tuple[Any, Any]]) -> Tensor:
    return torch.cat([batch[1] for _, batch in steps])


def scores(predicted: list[int], truth: list[int]) -> tuple[float, float]:
    """Accuracy, and the mean of intersection over union of the classes that are there or were predicted."""
    pairs = [(p, t) for p, t in zip(predicted, truth, strict=True) if t != -1]
    overlaps = []
    for label in {label for pair in pairs for label in pair}:
        both = sum(p == label and t == label for p, t in pairs)
        either = sum(label in (p, t) for p, t in pairs)
        overlaps.append(both / either)
    return sum(p == t for p, t in pairs) / len(pairs), sum(overlaps) / len(overlaps)


class Mosaics(Dataset[tuple[Tensor, Tensor]]):
    """Images of patches, each brighter in the channel that is its class (the fourth class in none), and their maps.

    Args:
        num_images: how many.
        noise: on the pixels; at 4 the class of a patch can hardly be told.
        wrong: share of the pixels whose label is another one.
        first: the index of the first image.
        classes: those that there are, of 0 to 3.
    """

    def __init__(
        self,
        num_images: int,
        noise: float = 0.3,
        wrong: float = 0.3,
        first: int = 0,
        classes: tuple[int, ...] = (0, 1, 2, 3),
    ) -> None:
        samples = []
        for index in range(first, first + num_images):
            generator = Generator().manual_seed(index)
            label = torch.tensor(classes)[torch.randint(len(classes), (4, 4), generator=generator)]
            label = label.repeat_interleave(4, 0).repeat_interleave(4, 1)
            image = noise * torch.randn(3, 16, 16, generator=generator)
            image += 2.0 * torch.stack([label == channel for channel in range(3)])
            spoilt = torch.rand(16, 16, generator=generator) < wrong
            samples.append((image, torch.where(spoilt, torch.randint(0, 4, (16, 16), generator=generator), label)))
        self.samples: list[tuple[Tensor, Tensor]] = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.samples[index]

    def relabelled(self, function: Any) -> "Mosaics":
        """The same with other maps."""
        self.samples = [(image, function(label)) for image, label in self.samples]
        return self


# --- Patches and their classes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "grid"), [((3, 12, 20), (3, 4)), ((1, 4, 6), (4, 6)), ((2, 8, 8), (1, 1)), ((5, 6, 10), (6, 2))]
)
def test_patches_by_loop(shape: tuple[int, int, int], grid: tuple[int, int]) -> None:
    images = torch.randn(2, *shape)
    expected = torch.stack([torch.stack([patch.flatten() for patch in cut(image, grid)]) for image in images])
    assert torch.equal(patches(images, grid), expected)


@pytest.mark.parametrize(("size", "grid"), [((18, 16), (4, 4)), ((16, 18), (4, 4)), ((16, 16), (3, 4))])
def test_patches_of_no_whole_number(size: tuple[int, int], grid: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} .*{grid[0]}x{grid[1]}"):
        patches(torch.zeros(1, 3, *size), grid)


@pytest.mark.parametrize(
    ("source", "image_size", "map_size"),
    [
        ("features", (16, 24), (16, 24)),
        ("features", (16, 24), (8, 18)),
        ("features", (16, 16), (4, 4)),
        ("observation", (16, 24), (8, 18)),
    ],
)
def test_tokens_and_their_classes(
    source: Any, image_size: tuple[int, int], map_size: tuple[int, int], tmp_path: Path
) -> None:
    """A probe is fitted to all tokens (or patches) of the images in their order, with their patches' commonest classes.

    Maps may have another resolution than the images.
    """
    images, grid = random_images(6, image_size), (image_size[0] // 4, image_size[1] // 4)
    maps = torch.randint(0, 5, (6, *map_size), generator=Generator().manual_seed(0))
    fitted: list[tuple[Tensor, Tensor]] = []

    class Watched(KNNProbe):
        def fit(self, trainer: Any, pl_module: Any, inputs: Tensor, labels: Tensor) -> None:
            fitted.append((inputs, labels))

    record = Record()
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[record, Watched(source=source)])
    trainer.fit(tiny(image_size=list(image_size)), loader(TensorDataset(images, maps), 4))
    inputs, labels = map(torch.cat, zip(*fitted, strict=True))
    assert labels.tolist() == classes_of(maps, grid)
    if source == "features":
        expected = tokens_of(record.train)
    else:
        expected = torch.stack([patch.flatten() for image in images for patch in cut(image, grid)])
    assert torch.equal(inputs, expected)


@pytest.mark.parametrize("probe", [LinearProbe(4), KNNProbe("mine", source="observation")])
def test_maps_that_the_grid_does_not_divide(probe: Any, tmp_path: Path) -> None:
    data = TensorDataset(random_images(8), torch.zeros(8, 18, 16, dtype=torch.long))
    with pytest.raises(ValueError, match=r"18x16 .*4x4"):
        quiet_trainer(tmp_path, max_epochs=1, callbacks=[probe]).fit(tiny(), loader(data))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(8, 16, 16), r"integers.* torch.float32 \[8, 16, 16\]"),
        (torch.zeros(8, 1, 16, 16, dtype=torch.long), r"torch.int64 \[8, 1, 16, 16\]"),
        (torch.full((8, 16, 16), 4), "'linear'.* 4 to 4 .* 4 classes"),
    ],
)
def test_maps_that_do_not_fit(labels: Tensor, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        quiet_trainer(tmp_path, max_epochs=1, callbacks=[LinearProbe(4)]).fit(
            tiny(), loader(TensorDataset(random_images(8), labels))
        )


# --- Accuracy and miou -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["features", "observation"])
def test_dense_probes_read_what_is_there(source: Any, tmp_path: Path) -> None:
    """The class of a patch, from the patch; of maps that say nothing of it, what a guess for each class gives."""
    probes = [LinearProbe(4, source=source, lr=0.03), KNNProbe(source=source, k=5)]
    trainer = quiet_trainer(tmp_path, max_epochs=3, callbacks=probes)
    trainer.fit(tiny(), loader(Mosaics(64)), loader(Mosaics(16, first=1000), 16))
    for name in ("linear", "knn"):
        assert trainer.callback_metrics[f"probe/{name}/accuracy"] > 0.9
        assert trainer.callback_metrics[f"probe/{name}/miou"] > 0.8
    torch.manual_seed(0)
    shuffled = Mosaics(64).relabelled(lambda label: label.flatten()[torch.randperm(256)].view(16, 16))
    probes = [LinearProbe(4, source=source, lr=0.03), KNNProbe(source=source, k=5)]
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=probes)
    trainer.fit(tiny(), loader(shuffled), loader(Mosaics(16, first=1000), 16))
    for name in ("linear", "knn"):
        assert trainer.callback_metrics[f"probe/{name}/accuracy"] < 0.8
        assert trainer.callback_metrics[f"probe/{name}/miou"] < 0.7


@pytest.mark.parametrize(("source", "num_classes"), [("features", 4), ("features", 9), ("observation", 4)])
def test_accuracy_and_miou_by_hand(source: Any, num_classes: int, tmp_path: Path) -> None:
    """From the predictions, over all batches of a validation; classes without a token do not count."""
    probes, record = [LinearProbe(num_classes, source=source, lr=0.03), KNNProbe(source=source)], Record()
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[record, *probes])
    trainer.fit(tiny(), loader(Mosaics(40, noise=2.0)), loader(Mosaics(20, noise=2.0, first=1000, classes=(0, 1, 3))))
    truth = classes_of(maps_of(record.val), (4, 4))
    assert len(truth) == 20 * 16
    if source == "features":
        inputs = tokens_of(record.val)
    else:
        inputs = torch.stack([patch.flatten() for _, batch in record.val for x in batch[0] for patch in cut(x, (4, 4))])
    for probe in probes:
        predicted = probe.predict(inputs)
        accuracy, miou = scores(predicted.tolist(), truth)
        assert 0.1 < miou < accuracy < 1
        assert trainer.callback_metrics[f"probe/{probe.name}/accuracy"].item() == pytest.approx(accuracy)
        assert trainer.callback_metrics[f"probe/{probe.name}/miou"].item() == pytest.approx(miou)
        labels = torch.tensor(truth)
        assert MulticlassAccuracy(9, average="micro")(predicted, labels).item() == pytest.approx(accuracy)
        assert MulticlassJaccardIndex(9)(predicted, labels).item() == pytest.approx(miou)


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_classes_that_the_probe_does_not_know(kind: str, tmp_path: Path) -> None:
    """They are there, and never hit: together one class more, of overlap zero."""
    probe: Any = LinearProbe(4, lr=0.03) if kind == "linear" else KNNProbe()
    record = Record()
    trainer = quiet_trainer(tmp_path, max_epochs=2, callbacks=[record, probe])
    unknown = Mosaics(16, first=1000).relabelled(lambda label: label + 5 * (label == 2))
    trainer.fit(tiny(), loader(Mosaics(40)), loader(unknown))
    val = record.val[-2:]
    truth = classes_of(maps_of(val), (4, 4))
    assert set(truth) == {0, 1, 3, 7}
    predicted = probe.predict(tokens_of(val)).tolist()
    accuracy, miou = scores(predicted, truth)
    assert trainer.callback_metrics[f"probe/{kind}/accuracy"].item() == pytest.approx(accuracy)
    assert trainer.callback_metrics[f"probe/{kind}/miou"].item() == pytest.approx(miou)
    assert miou < scores([p for p, t in zip(predicted, truth, strict=True) if t < 4], [t for t in truth if t < 4])[1]


def test_a_validation_starts_anew(tmp_path: Path) -> None:
    """The miou of an epoch is of its own validation alone."""
    probe, record = LinearProbe(4, lr=0.03), Record()
    seen = []

    class Read(pl.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            predicted = probe.predict(tokens_of(record.val[-2:])).tolist()
            expected = scores(predicted, classes_of(maps_of(record.val[-2:]), (4, 4)))
            seen.append((trainer.callback_metrics["probe/linear/miou"].item(), expected[1]))

    trainer = quiet_trainer(tmp_path, max_epochs=3, callbacks=[record, probe, Read()])
    trainer.fit(tiny(), loader(Mosaics(16)), loader(Mosaics(16, first=1000)))
    assert len({found for found, _ in seen}) == 3
    for found, expected in seen:
        assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("source", "k", "bank_size"), [("features", 3, 1000), ("features", 200, 50), ("observation", 3, 1000)]
)
def test_dense_knn_by_brute_force(source: Any, k: int, bank_size: int, tmp_path: Path) -> None:
    """The vote, token by token, among the latest tokens of the bank."""
    record, probe = Record(), KNNProbe(source=source, k=k, bank_size=bank_size)
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[record, probe])
    trainer.fit(tiny(), loader(Mosaics(6, noise=2.0), 2), loader(Mosaics(4, noise=2.0, first=1000), 2))

    def read(steps: list[tuple[Any, Any]]) -> np.ndarray:
        if source == "features":
            return tokens_of(steps).double().numpy()
        cuts = [patch.flatten() for _, batch in steps for image in batch[0] for patch in cut(image, (4, 4))]
        return torch.stack(cuts).double().numpy()

    bank, labels = read(record.train)[-bank_size:], classes_of(maps_of(record.train), (4, 4))[-bank_size:]
    assert len(bank) == min(6 * 16, bank_size)
    mean, std = bank.mean(0), bank.std(0) + 1e-6
    predicted = []
    for query in (read(record.val) - mean) / std:
        cosines = [(x @ query) / np.sqrt((x @ x) * (query @ query)) for x in (bank - mean) / std]
        votes: Counter[int] = Counter()
        for neighbour in sorted(range(len(bank)), key=lambda i: -cosines[i])[:k]:
            votes[labels[neighbour]] += np.exp(cosines[neighbour] / 0.07)
        predicted.append(votes.most_common(1)[0][0])
    accuracy, miou = scores(predicted, classes_of(maps_of(record.val), (4, 4)))
    assert 0.2 < accuracy < 1
    assert trainer.callback_metrics["probe/knn/accuracy"].item() == pytest.approx(accuracy)
    assert trainer.callback_metrics["probe/knn/miou"].item() == pytest.approx(miou)


def test_classes_of_images_have_no_miou(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[LinearProbe(4), KNNProbe()])
    trainer.fit(tiny(), loader(LabelledImages(16)), loader(LabelledImages(16)))
    tags = {tag for tag in trainer.callback_metrics if tag.startswith("probe/")}
    assert tags == {"probe/linear/accuracy", "probe/knn/accuracy"}


# --- Pixels without label --------------------------------------------------------------------------------------------


def left_half_unlabelled(label: Tensor) -> Tensor:
    """The left two of four columns of patches have no class, but for a few pixels of each."""
    label = label.clone()
    label[:, :8] = -1
    label[::4, :8] = 0
    return label


def test_unlabelled_tokens_teach_nothing(tmp_path: Path) -> None:
    """The bank holds the others, in their order."""
    half = Mosaics(16).relabelled(left_half_unlabelled)
    record, probe = Record(), KNNProbe()
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[record, probe])
    trainer.fit(tiny(), loader(half), loader(Mosaics(8, first=1000)))
    truth = classes_of(maps_of(record.train), (4, 4))
    kept = [index for index, label in enumerate(truth) if label != -1]
    assert len(kept) == 16 * 8
    bank = probe.state_dict()
    assert bank["next"] == len(kept)
    assert bank["labels"][: len(kept)].tolist() == [truth[index] for index in kept]
    assert torch.equal(bank["inputs"][: len(kept)], tokens_of(record.train)[kept])
    assert set(bank["labels"][len(kept) :].tolist()) == {-1}


def test_a_linear_probe_averages_over_labelled_tokens(tmp_path: Path) -> None:
    """The gradient of a step, read from the moments of Adam, is that of the cross-entropy of labelled tokens."""
    record, probe, states = Record(), LinearProbe(4, lr=0.1), []

    class Snapshot(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            states.append(copy.deepcopy(probe.state_dict()))

    trainer = quiet_trainer(tmp_path, max_steps=2, callbacks=[record, probe, Snapshot()])
    trainer.fit(tiny(), loader(Mosaics(16).relabelled(left_half_unlabelled)))
    tokens, truth = tokens_of(record.train[1:]), torch.tensor(classes_of(maps_of(record.train[1:]), (4, 4)))
    assert len(states) == 2
    assert 0 < (truth == -1).sum() < len(truth)
    standard = (tokens - tokens.mean(0)) / (tokens.var(0, correction=0) + 1e-5).sqrt()
    before = states[0]["head"]
    logits = standard @ before["1.weight"].T + before["1.bias"]
    error = (logits.softmax(1) - F.one_hot(truth.clamp(min=0), 4))[truth != -1]
    expected = error.T @ standard[truth != -1] / len(error)
    first, second = (state["optimizer"]["state"][0]["exp_avg"] for state in states)
    torch.testing.assert_close(10 * (second - 0.9 * first), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_unlabelled_tokens_do_not_count(kind: str, tmp_path: Path) -> None:
    """Neither to accuracy nor to miou, where half of the tokens have no label."""
    probe: Any = LinearProbe(4, lr=0.03) if kind == "linear" else KNNProbe()
    record = Record()
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[record, probe])
    trainer.fit(tiny(), loader(Mosaics(40)), loader(Mosaics(16, first=1000).relabelled(left_half_unlabelled)))
    predicted, truth = probe.predict(tokens_of(record.val)).tolist(), classes_of(maps_of(record.val), (4, 4))
    assert truth.count(-1) == 16 * 8
    accuracy, miou = scores(predicted, truth)
    assert trainer.callback_metrics[f"probe/{kind}/accuracy"].item() == pytest.approx(accuracy)
    assert trainer.callback_metrics[f"probe/{kind}/miou"].item() == pytest.approx(miou)


def test_a_batch_without_any_label(tmp_path: Path) -> None:
    """Is survived, and there is nothing to vote with."""
    linear, knn = LinearProbe(4), KNNProbe()
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[linear, knn])
    nothing = Mosaics(8).relabelled(lambda label: torch.full_like(label, -1))
    trainer.fit(tiny(), loader(nothing), loader(Mosaics(8)))
    assert linear.state_dict()["head"]["1.weight"].isfinite().all()
    assert "probe/knn/miou" not in trainer.callback_metrics
    assert "probe/linear/miou" in trainer.callback_metrics


def test_a_batch_larger_than_the_bank() -> None:
    """Its last tokens stay, each with its own label."""
    probe = KNNProbe(bank_size=10)
    for first in (0, 25):
        numbers = torch.arange(first, first + 25)
        probe.fit(quiet_trainer(), IJEPA(**TINY), numbers[:, None].float(), numbers)
    bank = probe.state_dict()
    assert bank["labels"].sort().values.tolist() == list(range(40, 50))
    assert torch.equal(bank["inputs"][:, 0], bank["labels"].float())

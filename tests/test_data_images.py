"""Image data sets in the formats that they have on disk, with a few images each."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from fake_data import write_cifar, write_images, write_mnist, write_stl10
from PIL import Image
from torchvision.transforms import functional as pil_path

from jepa_lightning.data import ImageBatch, ImageDataModule
from jepa_lightning.data.images import torchvision_sets

DEBIAN_FASHION_MNIST = torchvision_sets.DEBIAN_FASHION_MNIST


@pytest.fixture(autouse=True)
def _no_system_copy_and_no_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Debian's FashionMNIST nor the network take part."""
    monkeypatch.setattr(torchvision_sets, "DEBIAN_FASHION_MNIST", Path("/nonexistent"))

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def unnormalise(image: torch.Tensor, datamodule: ImageDataModule) -> torch.Tensor:
    """The 8-bit values of images."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (datamodule.mean, datamodule.std))
    return ((image * std + mean) * 255).round().to(torch.uint8)


def first(loader: object) -> ImageBatch:
    batch = next(iter(loader))  # type: ignore[call-overload]
    assert isinstance(batch, ImageBatch)
    return batch


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_mnist_against_torchvision(name: str, tmp_path: Path) -> None:
    write_mnist(tmp_path, name)
    datamodule = ImageDataModule(name, str(tmp_path), batch_size=12, num_workers=0, crop_scale=None)
    datamodule.prepare_data()
    datamodule.setup()
    batch = first(datamodule.val_dataloader())
    reference = getattr(torchvision.datasets, name)(tmp_path, train=False)
    for index, (image, label) in enumerate(reference):
        expected = pil_path.normalize(pil_path.to_tensor(image), datamodule.mean, datamodule.std)
        torch.testing.assert_close(batch.image[index], expected)
        assert batch.label[index] == label
    assert batch.image.shape == (12, 1, 28, 28)
    assert batch.label.dtype == torch.int64
    train = list(datamodule.train_dataloader())
    assert [len(batch.image) for batch in train] == [12] * 3
    assert not torch.equal(train[0].label, reference.targets[:12])
    pixels = {image.numpy().tobytes() for batch in train for image in unnormalise(batch.image, datamodule)}
    originals = {image.numpy().tobytes() for image in getattr(torchvision.datasets, name)(tmp_path).data}
    assert len(pixels) == 36
    assert pixels < originals  # each once, none resampled


def test_cifar_against_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    datamodule = ImageDataModule("CIFAR10", str(tmp_path), batch_size=6, num_workers=0, crop_scale=(1.0, 1.0))
    datamodule.setup("fit")
    batch = first(datamodule.val_dataloader())
    for index, (image, label) in enumerate(torchvision.datasets.CIFAR10(tmp_path, train=False)):
        assert torch.equal(unnormalise(batch.image[index], datamodule), pil_path.pil_to_tensor(image))
        assert batch.label[index] == label
    assert sum(len(batch.image) for batch in datamodule.train_dataloader()) == 30


def test_stl10_trains_on_unlabelled_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stl10(tmp_path)
    monkeypatch.setattr("torchvision.datasets.stl10.check_integrity", lambda *_: True)

    def train_batches(train_split: str | None, crop_scale: tuple[float, float] | None) -> list[object]:
        datamodule = ImageDataModule(
            "STL10", str(tmp_path), batch_size=2, num_workers=0, crop_scale=crop_scale, train_split=train_split
        )
        datamodule.setup()
        image, label = torchvision.datasets.STL10(tmp_path, split="test")[1]
        batch = first(datamodule.val_dataloader())
        assert torch.equal(unnormalise(batch.image[1], datamodule), pil_path.pil_to_tensor(image))
        assert batch.label[1] == label
        return list(datamodule.train_dataloader())

    for crop_scale in (None, (0.3, 1.0)):
        batches = train_batches(None, crop_scale)
        assert len(batches) == 3
        assert all(isinstance(batch, torch.Tensor) and batch.shape == (2, 3, 96, 96) for batch in batches)
    assert all(isinstance(batch, ImageBatch) and (batch.label >= 0).all() for batch in train_batches("train", None))
    assert len(train_batches("train+unlabeled", None)) == 6
    with pytest.raises(ValueError, match="unlabelled"):
        train_batches("unlabelled", None)


@pytest.mark.parametrize("dataset", ["folder", "ImageNet"])
def test_class_folders(dataset: str, tmp_path: Path) -> None:
    """Classes are numbered in alphabetical order, by the training images, whichever of them val has."""
    write_images(tmp_path, "train/b/0.png", "train/a/0.png", "train/c/deep/1.PNG", "val/c/0.png", "val/b/3.png")
    (tmp_path / "train/a/notes.txt").write_text("no image")
    datamodule = ImageDataModule(dataset, str(tmp_path), [24, 20], batch_size=2, num_workers=0, crop_scale=None)
    datamodule.prepare_data()
    datamodule.setup()
    batch = first(datamodule.val_dataloader())
    assert batch.label.tolist() == [1, 2]
    for image, path in zip(batch.image, ("val/b/3.png", "val/c/0.png"), strict=True):
        expected = pil_path.pil_to_tensor(Image.open(tmp_path / path))
        assert torch.equal(unnormalise(image, datamodule), expected)  # of that size already: untouched
    assert torch.equal(first(datamodule.test_dataloader()).image, batch.image)
    assert torch.equal(first(datamodule.predict_dataloader()).image, batch.image)
    assert len(datamodule.train_dataloader()) == 1


def test_formats_and_colours(tmp_path: Path) -> None:
    write_images(tmp_path, "0.png", "x/y/1.jpg", "x/2.webp")
    Image.new("L", (9, 9), 77).save(tmp_path / "grey.png")
    datamodule = ImageDataModule("folder", str(tmp_path), 16, batch_size=4, num_workers=0)
    datamodule.setup()
    (batch,) = datamodule.train_dataloader()
    assert batch.shape == (4, 3, 16, 16)
    assert any((unnormalise(image, datamodule) == 77).all() for image in batch)


def test_resize_against_pillow(tmp_path: Path) -> None:
    """The whole height or width is kept, and the centre of the other side, as Pillow does it."""
    write_images(tmp_path, "train/a/0.png", size=(60, 40))
    for size, fitted, box in (([20, 20], (30, 20), (5, 0, 25, 20)), ([40, 20], (60, 40), (20, 0, 40, 40))):
        datamodule = ImageDataModule("folder", str(tmp_path), size, batch_size=1, num_workers=0, crop_scale=None)
        datamodule.setup("fit")
        image = unnormalise(first(datamodule.train_dataloader()).image[0], datamodule)
        pillow = Image.open(tmp_path / "train/a/0.png").resize(fitted, Image.Resampling.BILINEAR).crop(box)
        assert (image.int() - pil_path.pil_to_tensor(pillow).int()).abs().max() <= 1


def test_crops_are_random_for_each_image_and_keep_to_their_range(tmp_path: Path) -> None:
    """Images of a ramp: a crop's mean slope tells its width and height, and thus its area and aspect ratio."""
    rows, columns = np.mgrid[:64, :128]
    ramp = np.stack([columns, rows * 2, 0 * rows], 2).astype(np.uint8)
    (tmp_path / "train").mkdir()
    for index in range(64):
        Image.fromarray(ramp).save(tmp_path / f"train/{index}.png")
    datamodule = ImageDataModule("folder", str(tmp_path), [32, 64], batch_size=64, num_workers=0, crop_scale=(0.2, 0.5))
    datamodule.setup("fit")
    images = unnormalise(next(iter(datamodule.train_dataloader())), datamodule).double()
    width = (images[:, 0, :, -8:].mean((1, 2)) - images[:, 0, :, :8].mean((1, 2))) * 64 / 56
    height = (images[:, 1, -8:].mean((1, 2)) - images[:, 1, :8].mean((1, 2))) * 32 / 24 / 2
    area, aspect = width * height / ramp[..., 0].size, width / height
    assert len(set(area.tolist())) > 50
    assert 0.17 < area.min() < 0.25 < 0.42 < area.max() < 0.53
    assert 1.4 < aspect.min() < 1.7 < 2.3 < aspect.max() < 2.8


def test_horizontal_flip(tmp_path: Path) -> None:
    write_mnist(tmp_path, "MNIST")
    datamodule = ImageDataModule("MNIST", str(tmp_path), batch_size=40, num_workers=0, crop_scale=None)
    flipping = ImageDataModule(
        "MNIST", str(tmp_path), batch_size=40, num_workers=0, crop_scale=None, horizontal_flip=True
    )
    for each in (datamodule, flipping):
        each.setup()
    plain = {image.numpy().tobytes() for image in first(datamodule.train_dataloader()).image}
    flipped = first(flipping.train_dataloader()).image
    kept = [image.numpy().tobytes() in plain for image in flipped]
    assert 8 < sum(kept) < 32
    assert all(keep or image.flip(-1).numpy().tobytes() in plain for keep, image in zip(kept, flipped, strict=True))
    assert torch.equal(first(flipping.val_dataloader()).image, first(datamodule.val_dataloader()).image)


def test_missing_data(tmp_path: Path) -> None:
    datamodule = ImageDataModule("FashionMNIST", str(tmp_path), batch_size=4)
    for step in (datamodule.prepare_data, datamodule.setup):
        with pytest.raises(FileNotFoundError) as caught:
            step()
        for hint in (
            str(tmp_path),
            f"FashionMNIST({str(tmp_path)!r}, train=True, download=True)",
            "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte",
            "apt install dataset-fashion-mnist",
            "dataset='folder'",
        ):
            assert hint in str(caught.value)
    with pytest.raises(FileNotFoundError, match="split='train', size='320px', download=True"):
        ImageDataModule("Imagenette", str(tmp_path), download=False).setup("fit")
    with pytest.raises(FileNotFoundError, match=r"nowhere/train .*ImageNet"):
        ImageDataModule("ImageNet", str(tmp_path / "nowhere")).setup()
    write_images(tmp_path, "train/a/0.png", "val/0.png")
    with pytest.raises(ValueError, match=f"{tmp_path}/val .*ImageNet"):
        ImageDataModule("ImageNet", str(tmp_path), batch_size=1).setup()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "CIFAR-10"}, "'CIFAR-10' .*'CIFAR10'"),
        ({"dataset": "fashionmnist"}, "'fashionmnist' .*'FashionMNIST'"),
        ({"train_split": "unlabeled"}, "train_split='unlabeled' .*FashionMNIST"),
        ({"mean": [0.5, 0.5, 0.5]}, r"mean=\[0.5, 0.5, 0.5\] .* 1 channels"),
    ],
)
def test_rejects(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageDataModule(**arguments)


def test_debians_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no other, it is read in place, and as torchvision reads it."""
    write_mnist(tmp_path, "FashionMNIST")
    debian = tmp_path / "debian"
    debian.mkdir()
    for path in (tmp_path / "FashionMNIST" / "raw").iterdir():
        (debian / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    monkeypatch.setattr(torchvision_sets, "DEBIAN_FASHION_MNIST", debian)
    datamodule = ImageDataModule(root=str(tmp_path / "empty"), batch_size=12, num_workers=0, crop_scale=None)
    datamodule.prepare_data()
    datamodule.setup()
    assert not (tmp_path / "empty").exists()
    batch, reference = first(datamodule.val_dataloader()), torchvision.datasets.FashionMNIST(tmp_path, train=False)
    assert torch.equal(unnormalise(batch.image, datamodule)[:, 0], reference.data)
    assert torch.equal(batch.label, reference.targets)
    assert len(datamodule.train_dataloader()) == 3


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_statistics_of_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_sets, "DEBIAN_FASHION_MNIST", DEBIAN_FASHION_MNIST)
    datamodule = ImageDataModule(root=str(tmp_path / "empty"), num_workers=0, crop_scale=None)
    datamodule.setup("fit")
    train = torch.cat([batch.image for batch in datamodule.train_dataloader()])
    assert len(train) == 60000 // 256 * 256
    assert abs(train.mean()) < 0.01
    assert abs(train.std() - 1) < 0.01

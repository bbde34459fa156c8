"""Image data sets in the formats that they have on disk, with a few images each."""

import gzip
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchvision
from fake_data import write_cifar, write_images, write_mnist, write_stl10
from PIL import Image
from torchvision.transforms import functional as pil_path

from jepa_lightning.data import ImageBatch, ImageDataModule
from jepa_lightning.data.images import torchvision_sets


@pytest.fixture(autouse=True)
def _no_system_copy_and_no_internet(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Debian's FashionMNIST nor the network take part, except where a test asks for the former."""
    if "debian" not in request.node.name:
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
    with pytest.raises(ValueError, match="Unknown value 'unlabelled' for argument split"):
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


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_unlabelled_folder(prefix: str, tmp_path: Path) -> None:
    write_images(tmp_path, f"{prefix}0.png", f"{prefix}x/y/1.jpg", f"{prefix}x/2.webp")
    Image.new("L", (9, 9), 77).save(tmp_path / f"{prefix}grey.png")
    datamodule = ImageDataModule("folder", str(tmp_path), 16, batch_size=4, num_workers=0)
    datamodule.setup()
    (batch,) = datamodule.train_dataloader()
    assert isinstance(batch, torch.Tensor)
    assert batch.shape == (4, 3, 16, 16)
    assert any((unnormalise(image, datamodule) == 77).all() for image in batch)
    assert datamodule.val_dataloader() == []


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


def test_workers_give_the_same_images(tmp_path: Path) -> None:
    write_mnist(tmp_path, "MNIST")
    here, workers = (ImageDataModule("MNIST", str(tmp_path), 20, batch_size=5, num_workers=n) for n in (0, 2))
    for each in (here, workers):
        each.setup()
    batches = list(zip(here.test_dataloader(), workers.test_dataloader(), strict=True))
    assert len(batches) == 3
    for a, b in batches:
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.label, b.label)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_corrupt_images_are_skipped(num_workers: int, tmp_path: Path) -> None:
    """Cut short, no image at all, and empty: the next ones take their places, and one warning names all three."""
    paths = write_images(tmp_path, *(f"train/{kind}/{number:02}.png" for kind in "ab" for number in range(20)))
    spoilt = {3: paths[3].read_bytes()[:300], 4: b"not an image", 39: b""}
    for number, content in spoilt.items():
        paths[number].write_bytes(content)

    def again() -> list[ImageBatch]:
        datamodule = ImageDataModule("folder", str(tmp_path), 16, 8, num_workers, crop_scale=None)
        datamodule.setup("fit")
        return list(datamodule.train_dataloader())

    with pytest.warns(UserWarning, match=r"3 of 40 images cannot be read: .*others take their places") as caught:
        batches = again()
    (message,) = (str(each.message) for each in caught if "cannot be read" in str(each.message))
    assert all(str(paths[number]) in message for number in spoilt)
    assert [len(batch.image) for batch in batches] == [8] * 5
    labels = torch.cat([batch.label for batch in batches])
    assert len(labels) == 40
    assert torch.equal(labels, torch.cat([batch.label for batch in again()]))  # the same take their places again
    assert torch.cat([batch.image for batch in batches]).isfinite().all()


def test_too_many_corrupt_images(tmp_path: Path) -> None:
    path, other = write_images(tmp_path, "train/a/bad.png", "train/a/good.png")
    path.write_bytes(b"not an image")

    def start(**options: float) -> ImageBatch:
        datamodule = ImageDataModule("folder", str(tmp_path), 16, batch_size=2, num_workers=0, **options)
        datamodule.setup("fit")
        return next(iter(datamodule.train_dataloader()))

    with pytest.raises(
        RuntimeError, match=r"1 of 2 images cannot be read: .*bad\.png.* more than max_faulty=0\.1 allows"
    ):
        start()
    with pytest.warns(UserWarning, match=r"1 of 2 images cannot be read"):
        assert start(max_faulty=0.5).image.shape == (2, 3, 16, 16)
    other.write_bytes(b"")
    with pytest.raises(RuntimeError, match=r"2 images in a row cannot be read: .*bad\.png.*Repair or remove"):
        start(max_faulty=0.5)
    with pytest.raises(ValueError, match=r"max_faulty=1 must be a share"):
        start(max_faulty=1)


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
    for dataset in ("ImageNet", "folder"):
        with pytest.raises(FileNotFoundError, match=f"train does not exist, and dataset='{dataset}' downloads nothing"):
            ImageDataModule(dataset, str(tmp_path / "nowhere")).setup()
    with pytest.raises(FileNotFoundError, match="holds no images"):
        ImageDataModule("folder", str(tmp_path)).setup()


def test_mismatched_folders(tmp_path: Path) -> None:
    write_images(tmp_path, "train/a/0.png", "val/b/0.png")
    with pytest.raises(ValueError, match="classes that the training images do not have: b"):
        ImageDataModule("folder", str(tmp_path), batch_size=1).setup()
    write_images(tmp_path, "val/0.png")
    with pytest.raises(ValueError, match="sort ImageNet's images into"):
        ImageDataModule("ImageNet", str(tmp_path), batch_size=1).setup()
    with pytest.raises(ValueError, match="has 1 training images, fewer than batch_size=2"):
        ImageDataModule("folder", str(tmp_path), batch_size=2).setup()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "CIFAR-10"}, "did you mean 'CIFAR10'"),
        ({"dataset": "fashionmnist"}, "did you mean 'FashionMNIST'"),
        ({"dataset": "?"}, "choose one of MNIST, "),
        ({"train_split": "unlabeled"}, "FashionMNIST has only one training split"),
        ({"image_size": [28]}, r"image_size=\[28\]"),
        ({"image_size": 0}, "image_size=0"),
        ({"crop_scale": (0.5, 0.3)}, r"crop_scale=\(0.5, 0.3\)"),
        ({"crop_scale": (0.0, 1.0)}, "0 < smallest"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"mean": [0.5, 0.5, 0.5]}, "one number for each of the 1 channels"),
        ({"std": [0.0]}, "std must be positive"),
    ],
)
def test_rejects(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageDataModule(**arguments)


class Average(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return self.layer(batch.mean((2, 3))).square().mean()

    def validation_step(self, batch: torch.Tensor) -> None:
        raise AssertionError("there are no validation images")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def test_trainer_runs_without_validation_images(tmp_path: Path) -> None:
    write_images(tmp_path, "0.png", "1.png")
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Average(), ImageDataModule("folder", str(tmp_path), 16, batch_size=2, num_workers=0))
    assert trainer.global_step == 2


@pytest.mark.skipif(not torchvision_sets.DEBIAN_FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_debian_fashion_mnist(tmp_path: Path) -> None:
    """Debian's copy is read in place, and agrees with torchvision's reading of it."""
    datamodule = ImageDataModule(root=str(tmp_path / "empty"), num_workers=0, crop_scale=None)
    datamodule.prepare_data()
    datamodule.setup()
    assert not (tmp_path / "empty").exists()
    batch = first(datamodule.val_dataloader())
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in torchvision_sets.DEBIAN_FASHION_MNIST.glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    reference = torchvision.datasets.FashionMNIST(tmp_path, train=False)
    assert torch.equal(unnormalise(batch.image, datamodule)[:, 0], reference.data[:256])
    assert torch.equal(batch.label, reference.targets[:256])
    train = torch.cat([batch.image for batch in datamodule.train_dataloader()])
    assert len(train) == 60000 // 256 * 256
    assert abs(train.mean()) < 0.01
    assert abs(train.std() - 1) < 0.01

"""Image data sets: those of torchvision by name, and folders of images."""

import difflib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from jepa_lightning.data.decoding import UnreadableError
from jepa_lightning.data.faults import Faults, name_some
from jepa_lightning.data.files import FilesDataModule
from jepa_lightning.data.order import Order, run_seed, seeded
from jepa_lightning.data.shards import open_shards
from jepa_lightning.data.sources import IMAGENET, KNOWN, ROLES, Arrays, open_folder, open_known, read_image


class ImageBatch(NamedTuple):
    """A batch of labelled images (or, without the leading `B`, one sample).

    Attributes:
        image: `[B, C, H, W]` float32, normalised.
        label: `[B]` int64.
    """

    image: Tensor
    label: Tensor


def _as_tensor(image: Any) -> Tensor:
    tensor: Tensor = image if isinstance(image, Tensor) else F.pil_to_tensor(image.convert("RGB"))
    return tensor


class _Fit:
    """Resize an image until it just covers (rows, columns), and cut out its centre."""

    def __init__(self, size: list[int]) -> None:
        self.size = size

    def __call__(self, image: Tensor) -> Tensor:
        scale = max(wanted / given for wanted, given in zip(self.size, image.shape[-2:], strict=True))
        cover = [max(wanted, round(given * scale)) for wanted, given in zip(self.size, image.shape[-2:], strict=True)]
        return F.center_crop(F.resize(image, cover, antialias=True), self.size)


class _Images(Dataset[Any]):
    """Normalised images from a source (see `sources`), a batch at a time, each with what could not be read for it.

    Images are cropped and resized one by one, as 8-bit tensors; without a transform (which takes images in memory) a
    whole batch is one gather. Only the finished batch is converted to float32. What is random in a training is a
    function of seed, epoch and index.
    """

    def __init__(
        self,
        source: Any,
        transform: Callable[[Tensor], Tensor] | None,
        mean: list[float],
        std: list[float],
        seed: int,
        faults: Faults,
    ) -> None:
        self.source, self.transform, self.seed, self.faults = source, transform, seed, faults
        self.scale = 1 / (255 * torch.tensor(std).view(-1, 1, 1))
        self.shift = torch.tensor(mean).view(-1, 1, 1) / torch.tensor(std).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: list[int]) -> tuple[ImageBatch | Tensor, dict[str, str], int]:
        faulty: dict[str, str] = {}
        if self.transform is None:
            pixels, labels = self.source[indices]
        else:
            images, given = zip(*(self._sample(self.transform, index, faulty) for index in indices), strict=True)
            pixels = torch.stack(images)
            labels = None if given[0] is None else torch.tensor([int(label) for label in given])
        batch = pixels.float().mul_(self.scale).sub_(self.shift)
        return batch if labels is None else ImageBatch(batch, labels), faulty, len(indices) + len(faulty)

    def _sample(self, transform: Callable[[Tensor], Tensor], index: int, faulty: dict[str, str]) -> tuple[Tensor, Any]:
        with seeded(self.seed, index):
            image, label = self._read(index, faulty) if hasattr(self.source, "candidates") else self.source[index]
            return transform(_as_tensor(image)), label

    def _read(self, index: int, faulty: dict[str, str]) -> tuple[Any, int | None]:
        tried: dict[str, str] = {}
        for entry in self.source.candidates(index):
            try:
                image = read_image(entry)
                faulty |= tried
                return image, entry.label
            except UnreadableError as error:
                tried[entry.name] = str(error)
        raise RuntimeError(f"{len(tried)} images in a row cannot be read: {name_some(tried)}. Repair or remove them.")


class ImageDataModule(FilesDataModule):
    """Images of a torchvision data set, of a folder, or in webdataset shards.

    Batches are `ImageBatch`es, or bare image tensors `[B, C, H, W]` where there are no labels. Training images are
    cropped at random (see `crop_scale`); others are resized to cover `image_size` and cropped at the centre, and
    left alone if they have that size already.

    Data sets by name, looked for and downloaded in torchvision's layout below `root`: MNIST, FashionMNIST, CIFAR10,
    CIFAR100, SVHN, STL10 (which trains on its unlabelled split), Imagenette, Flowers102, OxfordIIITPet, Food101. Where
    one has no validation split, its test split is used for both. FashionMNIST is also found where Debian's package
    `dataset-fashion-mnist` puts it.

    Folders: `folder` and `ImageNet` read `root/train/<class>/*.jpg` and, where it exists,
    `root/val/<class>/*.jpg` (also used as the test split). `folder` takes images that are not in `root/train` or
    lie directly in it for unlabelled ones, and finds them at any depth. Folder images are converted to RGB.

    Shards: `shards` reads tar files of `key.jpg` with `key.cls` or `key.json` (its `label`), or neither, by the
    webdataset library: `root/train/*.tar` or `root/*.tar`, and `root/val/*.tar` where it exists; or `root` is a path or
    URL of training shards such as `https://example.org/{000..099}.tar` or
    `pipe:aws s3 cp s3://bucket/{000..099}.tar -`. An epoch has each image of shards that are files once, in any order,
    which asks for fast disks. Shards of any place can be streams, which every worker of every rank reads from beginning
    to end, in an order of each epoch's:

    - Of an index, each image comes once an epoch. `root` is then the path or URL of a .json file, of the kind that
      webdataset calls wids, `{"shardlist": [{"url": "000.tar", "nsamples": 9870}, …]}`, or a command as
      `pipe:aws s3 cp s3://bucket/index.json -`. Names of shards start from the folder of the index, or take its place
      in the command.
    - With `samples_per_epoch`, an epoch is cut off at that many images. Every worker has shards of its own, so there
      must be as many, and each image comes once where an epoch has all of them and every worker as many.

    A file of a folder or shard that cannot be read is replaced by another. At the end of an epoch a warning counts and
    names such files; too many of them are an error.

    Order and crops are a function of the epoch and of the seed that `seed_everything` was given, also where a training
    is resumed in an epoch; of streams, also of the number of workers and ranks, and an epoch is resumed by reading
    again, without decoding, what has been trained on.

    Args:
        dataset: name of a torchvision data set, "ImageNet", "folder" or "shards".
        root: folder of the data, or shards.
        image_size: side of the square images, or their [rows, columns]. By default the data set's own size, or 224
            where its images differ in size.
        batch_size: images per batch. Training drops an incomplete last batch.
        num_workers: worker processes per loader; 0 loads in the training process.
        crop_scale: range of the area of random crops, relative to the image's, between 0 and 1; their aspect ratio
            varies from 3/4 to 4/3 of that of `image_size`. None, like (1, 1), treats training images as the others.
        horizontal_flip: mirror every other training image, at random.
        mean: per channel, of pixels in [0, 1]; by default the data set's own, or ImageNet's.
        std: like `mean`.
        train_split: another split of the torchvision data set to train on: for STL10, "train" or "train+unlabeled", in
            which unlabelled images have the label -1.
        download: whether to download what is missing.
        samples_per_epoch: read training shards without an index as streams, that many images an epoch, over all ranks.
        max_faulty: share of the images read, or of the first 1000, that may be unreadable. Whatever it is, ten in a row
            are an error.

    Raises:
        ValueError: for an unknown data set or an argument out of range.
        ImportError: from `setup`, if webdataset is missing for shards.
        FileNotFoundError: from `prepare_data` or `setup`, if the data are missing.

    Example:
        >>> datamodule = ImageDataModule("CIFAR10", image_size=[24, 32], horizontal_flip=True)
        >>> datamodule.image_size, datamodule.mean
        ([24, 32], [0.4914, 0.4822, 0.4465])
    """

    def __init__(
        self,
        dataset: str = "FashionMNIST",
        root: str = "data",
        image_size: int | list[int] | None = None,
        batch_size: int = 256,
        num_workers: int = 2,
        crop_scale: tuple[float, float] | None = (0.3, 1.0),
        horizontal_flip: bool = False,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        train_split: str | None = None,
        download: bool = True,
        samples_per_epoch: int | None = None,
        max_faulty: float = 0.1,
    ) -> None:
        super().__init__()
        names = [*KNOWN, "ImageNet", "folder", "shards"]
        if dataset not in names:
            lower = {name.lower(): name for name in names}
            near = [lower[name] for name in difflib.get_close_matches(dataset.lower(), lower, cutoff=0.5)]
            raise ValueError(
                f"dataset={dataset!r} is unknown; "
                + (f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(names)}.")
            )
        known = KNOWN.get(dataset)
        if train_split is not None and (known is None or "split" not in known.arguments[0]):
            raise ValueError(f"train_split={train_split!r} does not apply: {dataset} has only one training split.")
        size = image_size if image_size is not None else known.size if known else 224
        self.image_size = [size, size] if isinstance(size, int) else list(size)
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(f"image_size={image_size!r} is neither a side in pixels nor [rows, columns].")
        if crop_scale is not None and not (len(crop_scale) == 2 and 0 < crop_scale[0] <= crop_scale[1] <= 1):
            raise ValueError(f"crop_scale={crop_scale!r} must be two areas, 0 < smallest <= largest <= 1, or None.")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        if num_workers < 0:
            raise ValueError(f"num_workers={num_workers} is negative; give 0 to load in the training process.")
        if samples_per_epoch is not None and (dataset != "shards" or samples_per_epoch < 1):
            raise ValueError(
                f"samples_per_epoch={samples_per_epoch} with dataset={dataset!r}: only shards are read as a stream, "
                "of 1 or more an epoch; an epoch of others has all of their images."
            )
        if not 0 <= max_faulty < 1:
            raise ValueError(f"max_faulty={max_faulty} must be a share of the images, from 0 to below 1.")
        self.save_hyperparameters(logger=False)  # a module may have an image_size of its own to log
        statistics = known.statistics if known else IMAGENET
        self.mean = statistics[0] if mean is None else mean
        self.std = statistics[1] if std is None else std
        channels = len(statistics[0])
        if len(self.mean) != channels or len(self.std) != channels or min(self.std) <= 0:
            raise ValueError(
                f"mean={mean} and std={std} must have one number for each of {dataset}'s {channels} channels, "
                "and std must be positive."
            )
        self.dataset, self.root, self.train_split, self.download = dataset, root, train_split, download
        self.batch_size, self.num_workers, self.samples_per_epoch = batch_size, num_workers, samples_per_epoch
        self.crop_scale, self.horizontal_flip, self.max_faulty = crop_scale, horizontal_flip, max_faulty

    def prepare_data(self) -> None:
        """Download what is missing (Lightning calls this in one process only)."""
        if self.dataset in KNOWN and self.download:
            for role in ROLES:
                self._open(role, download=True)

    def setup(self, stage: str | None = None) -> None:
        """Read the images of a stage ("fit", "validate", "test", "predict"; None for all).

        Raises:
            FileNotFoundError: if the data are missing; the message says how to get them.
            ValueError: if there are fewer training images than a batch holds.
        """
        roles = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}
        for role in ROLES if stage is None else roles[stage]:
            source = self._open(role, download=False)
            if source is None:
                continue
            if role == "train" and len(source) < self.batch_size:
                raise ValueError(
                    f"{self.dataset} has {len(source)} training images, fewer than batch_size={self.batch_size}, and "
                    "incomplete batches are dropped: give a smaller batch_size."
                )
            faults = Faults("images", self.max_faulty, len(source) if self.samples_per_epoch is None else math.inf)
            self._sets[role] = _Images(source, self._transform(role, source), self.mean, self.std, run_seed(), faults)

    def _open(self, role: str, download: bool) -> Any:
        if self.dataset in KNOWN:
            return open_known(Path(self.root), role, self.dataset, self.train_split, download)
        if self.dataset == "shards":
            kinds, workers = (IMG_EXTENSIONS,), self.num_workers
            return open_shards(self.root, role, kinds, self.samples_per_epoch, self.batch_size, workers, run_seed())
        return open_folder(Path(self.root), role, self.dataset)

    def _transform(self, role: str, source: Any) -> Callable[[Tensor], Tensor] | None:
        crop = role == "train" and self.crop_scale is not None and self.crop_scale[0] < 1
        flip = role == "train" and self.horizontal_flip
        if not (crop or flip) and isinstance(source, Arrays) and list(source.images.shape[-2:]) == self.image_size:
            return None
        if not crop:
            return v2.Compose([_Fit(self.image_size), v2.RandomHorizontalFlip()]) if flip else _Fit(self.image_size)
        aspect = self.image_size[1] / self.image_size[0]
        random_crop = v2.RandomResizedCrop(
            self.image_size, self.crop_scale, ratio=(3 / 4 * aspect, 4 / 3 * aspect), antialias=True
        )
        return v2.Compose([random_crop, v2.RandomHorizontalFlip()]) if flip else random_crop

    def order(self, samples: Any) -> Order:
        """A function of the seed of `seed_everything` and the epoch."""
        return Order(samples, self.batch_size, self.trainer)

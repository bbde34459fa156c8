"""Images of a torchvision data set, of a folder, or in shards."""

import math
from pathlib import Path
from typing import Any

from torchvision.datasets.folder import IMG_EXTENSIONS

from jepa_lightning.data.crops import IMAGENET, Crop, Fit, check_statistics
from jepa_lightning.data.datamodule import ROLES, FilesDataModule, roles_of
from jepa_lightning.data.faults import Faults
from jepa_lightning.data.folders import class_names, open_folder
from jepa_lightning.data.images.dataset import ImageBatch, Images
from jepa_lightning.data.images.torchvision_sets import KNOWN, Arrays, open_known
from jepa_lightning.data.resume import run_seed
from jepa_lightning.data.samples import Listed
from jepa_lightning.data.shards import open_shards
from jepa_lightning.errors import check_choice

__all__ = ["ImageBatch", "ImageDataModule"]


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
        super().__init__(batch_size, num_workers, max_faulty)
        check_choice("dataset", dataset, [*KNOWN, "ImageNet", "folder", "shards"])
        known = KNOWN.get(dataset)
        if train_split is not None and (known is None or "split" not in known.arguments[0]):
            raise ValueError(f"train_split={train_split!r} does not apply: {dataset} has only one training split.")
        if samples_per_epoch is not None and (dataset != "shards" or samples_per_epoch < 1):
            raise ValueError(
                f"samples_per_epoch={samples_per_epoch} with dataset={dataset!r}: only shards are read as a stream, "
                "of 1 or more an epoch; an epoch of others has all of their images."
            )
        size = image_size if image_size is not None else known.size if known else 224
        self.crop = Crop(size, crop_scale, flip=horizontal_flip)
        self.image_size = self.crop.size
        self.save_hyperparameters(logger=False)  # a module may have an image_size of its own to log
        statistics = known.statistics if known else IMAGENET
        self.mean = statistics[0] if mean is None else mean
        self.std = statistics[1] if std is None else std
        check_statistics(self.mean, self.std, len(statistics[0]), dataset)
        self.dataset, self.root, self.train_split, self.download = dataset, root, train_split, download
        self.samples_per_epoch = samples_per_epoch

    def prepare_data(self) -> None:
        """Download what is missing (Lightning calls this in one process only)."""
        if self.dataset in KNOWN and self.download:
            for role in ROLES:
                self._open(role, download=True)

    def setup(self, stage: str | None = None) -> None:
        """Read the images of a stage ("fit", "validate", "test", "predict"; None for all).

        Raises:
            FileNotFoundError: if the data of the stage are missing; the message says how to get them.
            ValueError: if there are fewer training images than a batch holds.
        """
        for role in roles_of(stage):
            source = self._open(role, download=False)
            if source is None:
                continue
            if role == "train" and len(source) < self.batch_size:
                raise ValueError(
                    f"{self.dataset} has {len(source)} training images, fewer than batch_size={self.batch_size}, and "
                    "incomplete batches are dropped: give a smaller batch_size."
                )
            transform: Any = self.crop.transform(role)
            if isinstance(transform, Fit) and isinstance(source, Arrays) and source.size == self.image_size:
                transform = None
            faults = Faults("images", self.max_faulty, len(source) if self.samples_per_epoch is None else math.inf)
            self.sets[role] = Images(source, transform, self.mean, self.std, run_seed(), faults)
        self.check_found(stage)

    def _open(self, role: str, download: bool) -> Any:
        root = Path(self.root)
        if self.dataset in KNOWN:
            return open_known(root, role, self.dataset, self.train_split, download)
        if self.dataset == "shards":
            kinds, workers = (IMG_EXTENSIONS,), self.num_workers
            return open_shards(self.root, role, kinds, self.samples_per_epoch, self.batch_size, workers, run_seed())
        if self.dataset == "ImageNet":
            _check_imagenet(root)
        files = open_folder(root, role, IMG_EXTENSIONS, "images")
        return None if files is None else Listed(files)


def _check_imagenet(root: Path) -> None:
    """Raise an error unless the folder has ImageNet's images, sorted into the folders of their classes."""
    if not (root / "train").is_dir():
        raise FileNotFoundError(
            f"{(root / 'train').absolute()} does not exist, and ImageNet cannot be downloaded: give as root the folder "
            "that has train/<class>/*.JPEG and val/<class>/*.JPEG."
        )
    for folder in (root / "train", root / "val"):
        if folder.is_dir() and class_names(folder, IMG_EXTENSIONS) is None:
            raise ValueError(
                f"{folder} has no folders of classes: sort ImageNet's images into {folder}/<class>/*.JPEG."
            )

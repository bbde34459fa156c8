"""Clips of the videos in a folder, in a list, or in shards."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torchvision.datasets.folder import IMG_EXTENSIONS

from jepa_lightning.data.crops import IMAGENET, Crop, check_statistics
from jepa_lightning.data.datamodule import FilesDataModule, roles_of
from jepa_lightning.data.faults import Faults
from jepa_lightning.data.folders import open_folder
from jepa_lightning.data.resume import Order, rank_and_ranks
from jepa_lightning.data.samples import Listed, Sample, Samples
from jepa_lightning.data.shards import open_shards
from jepa_lightning.data.videos.clips import Clips, Rounds
from jepa_lightning.data.videos.decoding import find_decoders, read_clips
from jepa_lightning.data.videos.lists import open_list
from jepa_lightning.errors import check_choice, check_numbers

VIDEO_EXTENSIONS = (
    *(".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg"),
    *(".ts", ".mts", ".m2ts", ".vob", ".ogv", ".flv", ".wmv", ".3gp"),
)


class VideoDataModule(FilesDataModule):
    """Clips of the videos in a folder, in a list, or in webdataset shards.

    Batches are `VideoBatch`es, or bare tensors `[B, 3, T, H, W]` where there are no labels: `num_clips` clips, one
    after the other, from each of `batch_size` videos. All frames of a clip are cropped alike. Training clips start at
    random and are cropped at random (see `crop_scale`); others are resized to cover `image_size` and cropped at the
    centre.

    Data sets:

    - `folder`: `root/train/<class>/*.mp4` and, where it exists, `root/val/<class>/*.mp4` (also used as the test split).
      Videos that are not in `root/train` or lie directly in it are unlabelled, and found at any depth. Images (.jpg,
      .png and so on) among them are videos of one frame (V-JEPA 2, arXiv:2506.09985).
    - `csv`: `root/train.csv` and, where it exists, `root/val.csv`, or `root` is a file of training videos. A line is a
      path and a label, with a space or `::` between them as in the official code, or a comma. Paths may have spaces;
      relative ones start from the folder of the list (the official code's from the working directory).
    - `shards`: tar files of `key.mp4` with `key.cls` or `key.json` (its `label`), or neither, read by the webdataset
      library: `root/train/*.tar` or `root/*.tar`, and `root/val/*.tar` where it exists; or `root` is a path or URL of
      training shards such as `https://example.org/{000..099}.tar` or `pipe:aws s3 cp s3://bucket/{000..099}.tar -`, or
      of their index. They are listed, or streamed by an index or with `samples_per_epoch`, as by `ImageDataModule`.

    Which frames: every `frame_stride`-th or, with a `frame_rate`, those on screen at that many times a second by the
    file's own timestamps, whether its rate is constant or not (the official code rounds to a stride). A clip that is
    longer than its video repeats the last frame. Of the possible starts, in order, each of n clips has one n-th to
    itself, and starts at random in it in training, in its middle otherwise (in the official code it is the video that
    is divided, and clips that do not start at random start with their part).

    Order, starts and crops are a function of the seed and the epoch, also where a training is resumed in an epoch; of
    streams, also of the number of workers and ranks, and an epoch is resumed by reading again, without decoding, what
    has been trained on. Only where unreadable videos of a stream have been replaced, some of it comes twice.

    A file that cannot be read is replaced by another, drawn likewise. At the end of an epoch a warning counts and names
    them (`faulty` has all); too many are an error. From a damaged file, decoders may still make disturbed frames.

    Args:
        root: folder, list or shards of the data.
        dataset: "folder", "csv" or "shards".
        num_frames: of a clip. With a list, all clips of a training batch have one of these lengths, in turn; so
            `accumulate_grad_batches`, set to their number, averages over them in each step, as V-JEPA 2 does. The last
            batches of an epoch that do not go through the list are dropped. Other batches have the first length.
        frame_stride: from one frame of a clip to the next; 4, V-JEPA's, unless `frame_rate` is given.
        frame_rate: frames a second; V-JEPA 2's is 4.
        num_clips: from each video, in training and else.
        image_size: side of the square frames, or their [rows, columns].
        batch_size: videos per batch. Training drops an incomplete last batch.
        num_workers: worker processes per loader; 0 decodes in the training process.
        crop_scale: range of the area of random crops, relative to the frame's, between 0 and 1. None, like (1, 1),
            treats training videos as the others.
        crop_aspect: range of the aspect ratio of random crops, width to height, relative to that of `image_size`.
        horizontal_flip: mirror every other training clip, at random.
        mean: per channel, of pixels in [0, 1]; by default ImageNet's.
        std: like `mean`.
        min_frames: of a video, or it counts as unreadable. Images are exempt.
        max_faulty: share of the videos read, or of the first 1000, that may be unreadable. Whatever it is, ten
            unreadable ones in a row are an error.
        samples_per_epoch: read training shards without an index as streams, that many videos an epoch, over all ranks.
        decoder: "torchcodec", "pyav", or "auto" for torchcodec where it works, with PyAV for files that it cannot read.
        seed: of all draws, at least 0.

    Raises:
        ValueError: for an unknown data set or an argument out of range.
        ImportError: from `setup`, if a library is missing.
        FileNotFoundError: from `setup`, if the data are missing.
        RuntimeError: from the loaders, if too many files are unreadable.

    Example:
        >>> datamodule = VideoDataModule("kinetics", "csv", num_frames=16, frame_rate=4, image_size=[192, 256])
        >>> datamodule.image_size, datamodule.frame_stride
        ([192, 256], None)
    """

    def __init__(
        self,
        root: str = "data",
        dataset: str = "folder",
        num_frames: int | list[int] = 16,
        frame_stride: int | None = None,
        frame_rate: float | None = None,
        num_clips: int = 1,
        image_size: int | list[int] = 224,
        batch_size: int = 16,
        num_workers: int = 2,
        crop_scale: tuple[float, float] | None = (0.3, 1.0),
        crop_aspect: tuple[float, float] = (0.75, 1.35),
        horizontal_flip: bool = False,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        min_frames: int = 1,
        max_faulty: float = 0.1,
        samples_per_epoch: int | None = None,
        decoder: str = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, max_faulty)
        check_choice("dataset", dataset, ("folder", "csv", "shards"))
        check_choice("decoder", decoder, ("auto", "torchcodec", "pyav"))
        self.num_frames = [num_frames] if isinstance(num_frames, int) else list(num_frames)
        if not self.num_frames or min(self.num_frames) < 1:
            raise ValueError(
                f"num_frames={num_frames!r} is neither a number of frames, at least 1, nor a list of them."
            )
        if frame_stride is not None and frame_rate is not None:
            raise ValueError(f"frame_stride={frame_stride} and frame_rate={frame_rate} exclude each other: give one.")
        if frame_rate is not None and not frame_rate > 0:
            raise ValueError(f"frame_rate={frame_rate} must be a positive number of frames a second.")
        numbers = {"frame_stride": frame_stride, "num_clips": num_clips, "min_frames": min_frames}
        check_numbers(numbers | {"samples_per_epoch": samples_per_epoch}, 1)
        if samples_per_epoch is not None and dataset != "shards":
            raise ValueError(
                f"samples_per_epoch={samples_per_epoch} with dataset={dataset!r}: an epoch has all of its videos; only "
                "shards are read as a stream of any length."
            )
        if seed < 0:
            raise ValueError(f"seed={seed} is negative; give an integer from 0.")
        self.crop = Crop(image_size, crop_scale, crop_aspect, horizontal_flip)
        self.image_size = self.crop.size
        self.save_hyperparameters(logger=False)  # a module may have an image_size of its own to log
        self.mean = IMAGENET[0] if mean is None else mean
        self.std = IMAGENET[1] if std is None else std
        check_statistics(self.mean, self.std, 3, "videos")
        self.root, self.dataset, self.decoder = root, dataset, decoder
        self.frame_rate = frame_rate
        self.frame_stride = 4 if frame_stride is None and frame_rate is None else frame_stride
        self.num_clips, self.min_frames, self.seed = num_clips, min_frames, seed
        self.samples_per_epoch = samples_per_epoch

    def setup(self, stage: str | None = None) -> None:
        """Find the videos of a stage ("fit", "validate", "test", "predict"; None for all).

        Raises:
            ImportError: if there is no decoder, or no webdataset for shards; the message says how to get it.
            FileNotFoundError: if the data are missing; the message says what is looked for.
            ValueError: if there are fewer training videos than a batch holds, or fewer shards than workers.
        """
        read = partial(
            read_clips,
            decoders=find_decoders(self.decoder),
            stride=self.frame_stride or 1,
            rate=self.frame_rate,
            min_frames=self.min_frames,
        )
        for role in roles_of(stage):
            source = self._open(role)
            if source is None:
                continue
            if role == "train":
                self._check_size(source)
            self.sets[role] = Clips(
                source,
                read,
                self.crop.transform(role),
                role == "train",
                self.num_frames,
                self.num_clips,
                self.seed,
                self.mean,
                self.std,
                Faults("videos", self.max_faulty, len(source) if isinstance(source, Listed) else math.inf),
            )
        self.check_found(stage)

    def _open(self, role: str) -> Samples | None:
        if self.dataset == "shards":
            kinds = VIDEO_EXTENSIONS, IMG_EXTENSIONS
            return open_shards(
                self.root, role, kinds, self.samples_per_epoch, self.batch_size, self.num_workers, self.seed
            )
        root = Path(self.root)
        samples: Sequence[Sample] | None
        if self.dataset == "csv":
            samples = open_list(root, role)
        else:
            samples = open_folder(root, role, VIDEO_EXTENSIONS + IMG_EXTENSIONS, "videos")
        return None if samples is None else Listed(samples)

    def _check_size(self, source: Samples) -> None:
        ranks = rank_and_ranks()[1]
        needed = self.batch_size * len(self.num_frames) * ranks
        if len(source) < needed:
            raise ValueError(
                f"there are {len(source)} training videos (samples_per_epoch, for shards), fewer than the {needed} of "
                f"batch_size={self.batch_size} for each of the lengths num_frames={self.num_frames} on {ranks} ranks, "
                "and incomplete batches are dropped: give a smaller batch_size."
            )

    def largest_batch(self, samples: int) -> int:
        """The largest batch that so many training videos make on each rank for every length of clips."""
        return super().largest_batch(samples) // len(self.num_frames)

    def order(self, samples: Any) -> Order:
        """A function of the seed and the epoch, in batches that go through the lengths of clips."""
        return Rounds(samples, self.batch_size, len(self.num_frames), self.trainer, self.seed)

"""Clips of video files for training and evaluation."""

import difflib
import math
from collections.abc import Callable, Sized
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from jepa_lightning.data.decoding import UnreadableError, find_decoders, read_clips, read_image
from jepa_lightning.data.entries import Entry, Listed, Source
from jepa_lightning.data.faults import Faults, name_some
from jepa_lightning.data.files import FilesDataModule
from jepa_lightning.data.images import _Fit
from jepa_lightning.data.order import Draw, Order, rank_and_ranks, seeded
from jepa_lightning.data.shards import open_shards
from jepa_lightning.data.sources import IMAGENET, ROLES
from jepa_lightning.data.video_sources import VIDEO_EXTENSIONS, open_folder, open_list


class VideoBatch(NamedTuple):
    """A batch of labelled clips.

    Attributes:
        video: `[B, 3, T, H, W]` float32, normalised.
        label: `[B]` int64.
    """

    video: Tensor
    label: Tensor


class _Videos(Dataset[tuple[VideoBatch | Tensor, dict[str, str], int]]):
    """Batches of normalised clips, each with what could not be read, and why, and how many videos were tried.

    Clips are cropped and resized as 8-bit tensors, all frames of a clip alike; only the batch is converted to float32.
    All that is random is a function of the seed, the epoch and the index.

    Args:
        source: of the videos.
        read_clips: from a path or bytes, a number of frames and the positions of clips.
        transform: of a clip `[T, 3, H, W]`.
        is_random: whether clips start at random.
        num_frames: of the clips: batches have these lengths in turn, and where it is not told which batch a video is
            for, the first.
        num_clips: from each video.
        seed: of all draws.
        mean: of each channel.
        std: of each channel.
        faults: where the loader keeps count.
    """

    def __init__(
        self,
        source: Source,
        read_clips: Callable[..., list[Tensor]],
        transform: Callable[[Tensor], Tensor],
        is_random: bool,
        num_frames: list[int],
        num_clips: int,
        seed: int,
        mean: list[float],
        std: list[float],
        faults: Faults,
    ) -> None:
        self.source, self.read_clips, self.transform, self.is_random = source, read_clips, transform, is_random
        self.num_frames, self.num_clips, self.seed, self.faults = num_frames, num_clips, seed, faults
        self.scale = 1 / (255 * torch.tensor(std).view(-1, 1, 1, 1))
        self.shift = (torch.tensor(mean) / torch.tensor(std)).view(-1, 1, 1, 1)

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: list[int]) -> tuple[VideoBatch | Tensor, dict[str, str], int]:
        faulty: dict[str, str] = {}
        clips, labels = zip(*(clip for index in indices for clip in self._sample(index, faulty)), strict=True)
        # Frames come before channels in the clips, and after them in the batch.
        video = torch.stack(clips).transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        video.mul_(self.scale).sub_(self.shift)
        read = len(indices) + len(faulty)
        if None not in labels:
            return VideoBatch(video, torch.tensor(labels)), faulty, read
        if any(label is not None for label in labels):
            raise RuntimeError("some of the videos in a batch have labels and others none: label all of them, or none.")
        return video, faulty, read

    def _sample(self, index: int, faulty: dict[str, str]) -> list[tuple[Tensor, int | None]]:
        draw = index if isinstance(index, Draw) else Draw(index, epoch=0, batch=0)
        num_frames = self.num_frames[draw.batch % len(self.num_frames)]
        tried: dict[str, str] = {}
        with seeded(self.seed, draw):
            for entry in self.source.candidates(index):
                try:
                    clips = self._read(entry, num_frames)
                    faulty |= tried
                    return [(self._finish(clip, num_frames), entry.label) for clip in clips]
                except UnreadableError as error:
                    tried[entry.name] = str(error)
        raise RuntimeError(f"{len(tried)} videos in a row cannot be read: {name_some(tried)}. Repair or remove them.")

    def _read(self, entry: Entry, num_frames: int) -> list[Tensor]:
        content = entry.read()
        if entry.name.lower().endswith(IMG_EXTENSIONS):
            return [read_image(content)] * self.num_clips
        phases = torch.rand(self.num_clips, dtype=torch.float64) if self.is_random else 0.5
        positions = (torch.arange(self.num_clips) + phases) / self.num_clips
        return self.read_clips(content, num_frames=num_frames, positions=positions.tolist())

    def _finish(self, clip: Tensor, num_frames: int) -> Tensor:
        clip = self.transform(clip)
        return torch.cat([clip, clip[-1:].expand(num_frames - len(clip), -1, -1, -1)])


class _Rounds(Order):
    """Videos in random order, in as many batches as go through the lengths of clips again and again."""

    def __init__(self, videos: Sized, batch_size: int, lengths: int, trainer: Any, seed: int) -> None:
        self.lengths = lengths
        super().__init__(videos, batch_size, trainer, seed)

    def __len__(self) -> int:
        per_round = self.batch_size * self.lengths
        return self.num_samples // per_round * per_round


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
        super().__init__()
        for name, value, names in (
            ("dataset", dataset, ("folder", "csv", "shards")),
            ("decoder", decoder, ("auto", "torchcodec", "pyav")),
        ):
            if value not in names:
                near = difflib.get_close_matches(value.lower(), names, n=1)
                raise ValueError(
                    f"{name}={value!r} is unknown; "
                    + (f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(names)}.")
                )
        self.num_frames = [num_frames] if isinstance(num_frames, int) else list(num_frames)
        if not self.num_frames or min(self.num_frames) < 1:
            raise ValueError(
                f"num_frames={num_frames!r} is neither a number of frames, at least 1, nor a list of them."
            )
        if frame_stride is not None and frame_rate is not None:
            raise ValueError(f"frame_stride={frame_stride} and frame_rate={frame_rate} exclude each other: give one.")
        if frame_rate is not None and not frame_rate > 0:
            raise ValueError(f"frame_rate={frame_rate} must be a positive number of frames a second.")
        self.image_size = [image_size] * 2 if isinstance(image_size, int) else list(image_size)
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(f"image_size={image_size!r} is neither a side in pixels nor [rows, columns].")
        if crop_scale is not None and not (len(crop_scale) == 2 and 0 < crop_scale[0] <= crop_scale[1] <= 1):
            raise ValueError(f"crop_scale={crop_scale!r} must be two areas, 0 < smallest <= largest <= 1, or None.")
        if not (len(crop_aspect) == 2 and 0 < crop_aspect[0] <= crop_aspect[1]):
            raise ValueError(f"crop_aspect={crop_aspect!r} must be two ratios, 0 < smallest <= largest.")
        for name, number in (
            ("frame_stride", frame_stride),
            ("num_clips", num_clips),
            ("batch_size", batch_size),
            ("min_frames", min_frames),
            ("samples_per_epoch", samples_per_epoch),
        ):
            if number is not None and number < 1:
                raise ValueError(f"{name}={number} must be at least 1.")
        if num_workers < 0:
            raise ValueError(f"num_workers={num_workers} is negative; give 0 to decode in the training process.")
        if not 0 <= max_faulty < 1:
            raise ValueError(f"max_faulty={max_faulty} must be a share of the videos, from 0 to below 1.")
        if samples_per_epoch is not None and dataset != "shards":
            raise ValueError(
                f"samples_per_epoch={samples_per_epoch} with dataset={dataset!r}: an epoch has all of its videos; only "
                "shards are read as a stream of any length."
            )
        if seed < 0:
            raise ValueError(f"seed={seed} is negative; give an integer from 0.")
        self.save_hyperparameters(logger=False)  # a module may have an image_size of its own to log
        self.mean = IMAGENET[0] if mean is None else mean
        self.std = IMAGENET[1] if std is None else std
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(
                f"mean={mean} and std={std} must have one number for each of 3 channels, and std positive."
            )
        self.root, self.dataset, self.decoder = root, dataset, decoder
        self.frame_rate = frame_rate
        self.frame_stride = 4 if frame_stride is None and frame_rate is None else frame_stride
        self.num_clips, self.batch_size, self.num_workers = num_clips, batch_size, num_workers
        self.crop_scale, self.crop_aspect, self.horizontal_flip = crop_scale, crop_aspect, horizontal_flip
        self.min_frames, self.max_faulty, self.seed = min_frames, max_faulty, seed
        self.samples_per_epoch = samples_per_epoch

    def setup(self, stage: str | None = None) -> None:
        """Find the videos of a stage ("fit", "validate", "test", "predict"; None for all).

        Raises:
            ImportError: if there is no decoder, or no webdataset for shards; the message says how to get it.
            FileNotFoundError: if the data are missing; the message says what is looked for.
            ValueError: if there are fewer training videos than a batch holds, or fewer shards than workers.
        """
        roles = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}
        read = partial(
            read_clips,
            decoders=find_decoders(self.decoder),
            stride=self.frame_stride or 1,
            rate=self.frame_rate,
            min_frames=self.min_frames,
        )
        for role in ROLES if stage is None else roles[stage]:
            source = self._open(role)
            if source is None:
                continue
            if role == "train":
                self._check_size(source)
            self._sets[role] = _Videos(
                source,
                read,
                self._transform(role),
                role == "train",
                self.num_frames,
                self.num_clips,
                self.seed,
                self.mean,
                self.std,
                Faults("videos", self.max_faulty, len(source) if isinstance(source, Listed) else math.inf),
            )

    def _open(self, role: str) -> Source | None:
        if self.dataset == "shards":
            kinds = VIDEO_EXTENSIONS, IMG_EXTENSIONS
            return open_shards(
                self.root, role, kinds, self.samples_per_epoch, self.batch_size, self.num_workers, self.seed
            )
        entries = (open_list if self.dataset == "csv" else open_folder)(Path(self.root), role)
        return None if entries is None else Listed(entries)

    def _check_size(self, source: Source) -> None:
        ranks = rank_and_ranks()[1]
        needed = self.batch_size * len(self.num_frames) * ranks
        if len(source) < needed:
            raise ValueError(
                f"there are {len(source)} training videos (samples_per_epoch, for shards), fewer than the {needed} of "
                f"batch_size={self.batch_size} for each of the lengths num_frames={self.num_frames} on {ranks} ranks, "
                "and incomplete batches are dropped: give a smaller batch_size."
            )

    def _transform(self, role: str) -> Callable[[Tensor], Tensor]:
        crop = role == "train" and self.crop_scale is not None and self.crop_scale[0] < 1
        aspect = self.image_size[1] / self.image_size[0]
        ratio = (self.crop_aspect[0] * aspect, self.crop_aspect[1] * aspect)
        resize = v2.RandomResizedCrop(self.image_size, self.crop_scale, ratio, antialias=True) if crop else None
        fit = resize or _Fit(self.image_size)
        return v2.Compose([fit, v2.RandomHorizontalFlip()]) if role == "train" and self.horizontal_flip else fit

    def order(self, samples: Any) -> Order:
        """A function of the seed and the epoch, in batches that go through the lengths of clips."""
        return _Rounds(samples, self.batch_size, len(self.num_frames), self.trainer, self.seed)

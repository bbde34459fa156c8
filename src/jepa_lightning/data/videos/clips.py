"""Batches of normalised clips."""

from collections.abc import Callable, Sized
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from jepa_lightning.data.faults import Faults, read_first
from jepa_lightning.data.resume import Visit, Visits, as_visit, seeded
from jepa_lightning.data.samples import Sample, Samples, as_labels, read_image


class VideoBatch(NamedTuple):
    """A batch of labelled clips.

    Attributes:
        video: `[B, 3, T, H, W]` float32, normalised.
        label: `[B]` int64.
    """

    video: Tensor
    label: Tensor


class Clips(Dataset[tuple[VideoBatch | Tensor, dict[str, str], int]]):
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
        source: Samples,
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

    def __getitems__(self, keys: list[int | Visit]) -> tuple[VideoBatch | Tensor, dict[str, str], int]:
        faulty: dict[str, str] = {}
        clips, labels = zip(*(clip for key in keys for clip in self._sample(as_visit(key), faulty)), strict=True)
        # Frames come before channels in the clips, and after them in the batch.
        video = torch.stack(clips).transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        video.mul_(self.scale).sub_(self.shift)
        read = len(keys) + len(faulty)
        known = as_labels(labels, "videos")
        return video if known is None else VideoBatch(video, known), faulty, read

    def _sample(self, visit: Visit, faulty: dict[str, str]) -> list[tuple[Tensor, int | None]]:
        num_frames = self.num_frames[(visit.batch or 0) % len(self.num_frames)]
        with seeded(self.seed, visit):
            read = partial(self._read, num_frames=num_frames)
            sample, clips = read_first(self.source.candidates(visit), read, "videos", faulty)
            return [(self._finish(clip, num_frames), sample.label) for clip in clips]

    def _read(self, sample: Sample, num_frames: int) -> list[Tensor]:
        if sample.name.lower().endswith(IMG_EXTENSIONS):
            return [read_image(sample)[None]] * self.num_clips
        content = sample.read()
        phases = torch.rand(self.num_clips, dtype=torch.float64) if self.is_random else 0.5
        positions = (torch.arange(self.num_clips) + phases) / self.num_clips
        return self.read_clips(content, num_frames=num_frames, positions=positions.tolist())

    def _finish(self, clip: Tensor, num_frames: int) -> Tensor:
        clip = self.transform(clip)
        return torch.cat([clip, clip[-1:].expand(num_frames - len(clip), -1, -1, -1)])


class Rounds(Visits):
    """Videos in random order, in as many batches as go through the lengths of clips again and again."""

    def __init__(self, videos: Sized, batch_size: int, lengths: int, trainer: Any, seed: int) -> None:
        self.lengths = lengths
        super().__init__(videos, batch_size, trainer, seed)

    def __len__(self) -> int:
        per_round = self.batch_size * self.lengths
        return self.num_samples // per_round * per_round

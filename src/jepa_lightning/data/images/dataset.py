"""Batches of normalised images."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from jepa_lightning.data.faults import Faults, read_first
from jepa_lightning.data.resume import Visit, as_visit, seeded
from jepa_lightning.data.samples import Samples, as_labels, pixels, read_image


class ImageBatch(NamedTuple):
    """A batch of labelled images (or, without the leading `B`, one sample).

    Attributes:
        image: `[B, C, H, W]` float32, normalised.
        label: `[B]` int64.
    """

    image: Tensor
    label: Tensor


class Images(Dataset[Any]):
    """Normalised images, a batch at a time, each with what could not be read for it and how many were tried.

    Images are cropped and resized one by one, as 8-bit tensors; without a transform a whole batch is one gather. Only
    the finished batch is converted to float32. What is random is a function of seed, epoch and index.

    Args:
        source: `Samples` to decode; or what gives an image, an 8-bit tensor `[C, H, W]` or a Pillow one, and its label
            or None, by its index. Without a transform, `Arrays`.
        transform: of an image.
        mean: of each channel.
        std: of each channel.
        seed: of all draws.
        faults: where the loader keeps count.
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

    def __getitems__(self, keys: list[int | Visit]) -> tuple[ImageBatch | Tensor, dict[str, str], int]:
        faulty: dict[str, str] = {}
        visits = [as_visit(key) for key in keys]
        if self.transform is None:
            pixels, labels = self.source[[visit.index for visit in visits]]
        else:
            images, given = zip(*(self._sample(self.transform, visit, faulty) for visit in visits), strict=True)
            pixels = torch.stack(images)
            labels = as_labels(given, "images")
        batch = pixels.float().mul_(self.scale).sub_(self.shift)
        return batch if labels is None else ImageBatch(batch, labels), faulty, len(visits) + len(faulty)

    def _sample(
        self, transform: Callable[[Tensor], Tensor], visit: Visit, faulty: dict[str, str]
    ) -> tuple[Tensor, Any]:
        with seeded(self.seed, visit):
            if isinstance(self.source, Samples):
                sample, image = read_first(self.source.candidates(visit), read_image, "images", faulty)
                return transform(image), sample.label
            image, label = self.source[visit.index]
            return transform(image if isinstance(image, Tensor) else pixels(image)), label

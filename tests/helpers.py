"""What several test files share: a tiny module's options, a quiet Trainer, and data that need no disk."""

from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

GOLDEN = Path(__file__).parent / "golden" / "ijepa"
TINY: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "predictor_embed_dim": 8,
    "predictor_depth": 1,
    "warmup": 0.0,
}


def quiet_trainer(folder: Path | str = ".", **options: Any) -> pl.Trainer:
    """A Trainer on the CPU that prints and, unless asked to, writes nothing."""
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": str(folder),
    }
    return pl.Trainer(**(quiet | options))


class Labelled(NamedTuple):
    """A batch with more than one label."""

    image: Tensor
    label: Tensor
    other: Tensor


class LabelledImages(Dataset[Labelled]):
    """Images of class `index % classes`: noise on a bright square whose place is the class; separable at a glance."""

    def __init__(self, num_images: int = 64, size: int = 16, classes: int = 4) -> None:
        self.num_images, self.size, self.classes = num_images, size, classes

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Labelled:
        image = 0.3 * torch.randn(3, self.size, self.size, generator=torch.Generator().manual_seed(index))
        label, half = index % self.classes, self.size // 2
        row, column = divmod(label, 2)
        image[:, row * half : (row + 1) * half, column * half : (column + 1) * half] += 2.0
        return Labelled(image, torch.tensor(label), torch.tensor(index % 3))


def random_images(num_images: int = 32, size: int | tuple[int, int] = 16, channels: int = 3) -> Tensor:
    """The same noise at every call."""
    shape = (size, size) if isinstance(size, int) else size
    return torch.randn(num_images, channels, *shape, generator=torch.Generator().manual_seed(num_images))


def loader(data: Tensor | Dataset[Any], batch_size: int = 8) -> DataLoader[Any]:
    """Batches in a fixed order; a bare tensor's are tuples of one tensor."""
    dataset: Dataset[Any] = TensorDataset(data) if isinstance(data, Tensor) else data
    return DataLoader(dataset, batch_size)

"""The training set of any DataModule, split once more: to choose by what is not the test set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler

from jepa_lightning import batches
from jepa_lightning.batches import UNLABELLED


def choose(
    labels: Tensor, generator: Generator, fraction: float = 1.0, shots: int | None = None, held_out: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Draw few labels, and the samples that are held out to choose by.

    The order of the samples is drawn first, and both are cut from it: so the samples of a smaller fraction are among
    those of a larger one, and the held-out ones are the same for all.

    Args:
        labels: LongTensor `[N]`; those of class -1 have no label and are left out.
        generator: of the order.
        fraction: share of what is not held out that is kept, in (0, 1].
        shots: keep that many of each class, at most.
        held_out: share of the samples that is held out, in [0, 1).

    Returns:
        The indices kept and those held out.
    """
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order] != UNLABELLED]
    cut = round(held_out * len(order))
    held, rest = order[:cut], order[cut:]
    rest = rest[: max(1, round(fraction * len(rest)))]
    if shots is not None:
        rest = torch.cat([rest[labels[rest] == kind][:shots] for kind in labels[rest].unique()])
    return rest, held


class HeldOut(pl.LightningDataModule):
    """The data that a classifier of frozen features is fitted, chosen and tested on.

    Training and validation data are two parts of the training set of another DataModule, its test data are that
    module's. So `jepa fit` never sees the images that `jepa test` reports on: what is chosen by them looks better than
    it is, as with the official code, which reports the best of 20 classifiers on the validation set.

    Args:
        data: the DataModule, whose training set is one of known length.
        share: of the training set that validates, in (0, 1).
        fraction: of the rest that is trained on, in (0, 1], drawn at random: 0.01 for the usual 1 %.
        shots: or so many samples of each class. The training set is read once to find them.
        label: the field of the batch that holds the class of the shots; the first label without.
        seed: of the split and of the order of the training batches.

    Raises:
        ValueError: a number out of its range, or a training set that cannot be split.
    """

    def __init__(
        self,
        data: pl.LightningDataModule,
        share: float = 0.1,
        fraction: float = 1.0,
        shots: int | None = None,
        label: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < share < 1 or not 0 < fraction <= 1:
            raise ValueError(f"share is in (0, 1) and fraction in (0, 1], got {share} and {fraction}")
        if shots is not None and shots < 1:
            raise ValueError(f"shots={shots} leaves no image of a class: give at least 1")
        self.data, self.share, self.fraction, self.shots = data, share, fraction, shots
        self.label, self.seed = label, seed
        self._loader: Any = None

    def prepare_data(self) -> None:
        """Download what the data need."""
        self.data.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Read the data of a stage, and split the training set.

        Raises:
            ValueError: a training set that cannot be split: a stream, or one without a sample on one side.
        """
        self.data.trainer = self.trainer
        self.data.setup("fit" if stage == "validate" else stage)  # type: ignore[arg-type]
        if stage in ("test", "predict") or self._loader is not None:
            return
        self._loader = self.data.train_dataloader()
        dataset = self._loader.dataset
        if isinstance(dataset, IterableDataset):
            raise ValueError(
                f"a {type(dataset).__name__} is a stream, which cannot be split: give data of known length"
            )
        labels = torch.zeros(len(dataset), dtype=torch.long)
        if self.shots is not None:
            labels = torch.cat([batches.label(batch, self.label) for batch in self._over(range(len(dataset)))])
            if len(labels) != len(dataset):
                raise ValueError(f"{len(labels)} labels for {len(dataset)} training samples: give one clip a video")
        generator = Generator().manual_seed(self.seed)
        kept, held = choose(labels, generator, self.fraction, self.shots, self.share)
        if not len(kept) or not len(held):
            raise ValueError(f"of {len(dataset)} training samples {len(kept)} are kept and {len(held)} held out")
        self._kept, self._held = kept.tolist(), held.tolist()

    def _over(self, sampler: Iterable[int]) -> DataLoader[Any]:
        loader = self._loader
        return type(loader)(
            loader.dataset,
            # One whose order makes the batches itself has none; the DataModule's is that of held-out samples.
            batch_size=loader.batch_size or getattr(self.data, "batch_size", 1),
            sampler=sampler,
            num_workers=loader.num_workers,
            pin_memory=loader.pin_memory,
            collate_fn=loader.collate_fn,
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """What is left of the training set, in random order; an incomplete last batch counts where labels are few."""
        # With a generator of its own, so that several processes share out the same order.
        return self._over(SubsetRandomSampler(self._kept, Generator().manual_seed(self.seed)))

    def val_dataloader(self) -> DataLoader[Any]:
        """The share of the training set."""
        return self._over(self._held)

    def test_dataloader(self) -> Any:
        """The test data of the other DataModule."""
        return self.data.test_dataloader()

    def predict_dataloader(self) -> Any:
        """The same."""
        return self.data.predict_dataloader()

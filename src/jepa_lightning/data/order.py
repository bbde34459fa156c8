"""Which samples a training sees in which order, as a function of seed and epoch, and where a resumed one goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler


class Draw(int):
    """An index of a data set, which knows where in the training it is asked for.

    Attributes:
        epoch: from 0.
        batch: of this process in the epoch, from 0.

    Example:
        >>> draw = Draw(7, epoch=2, batch=1)
        >>> draw, draw.epoch, "abcdefgh"[draw]
        (7, 2, 'h')
    """

    epoch: int
    batch: int

    def __new__(cls, index: int, epoch: int, batch: int) -> Draw:
        """An int cannot be given attributes any later."""
        draw = super().__new__(cls, index)
        draw.epoch, draw.batch = epoch, batch
        return draw

    def __reduce__(self) -> tuple[type[Draw], tuple[int, int, int]]:
        return Draw, (int(self), self.epoch, self.batch)


@contextmanager
def seeded(seed: int, index: int) -> Iterator[None]:
    """Make what torch's default generator draws for a sample a function of seed, epoch and index.

    So crops and the like depend neither on workers nor on what was drawn before, and the generator goes on afterwards
    as if nothing had been drawn. With an index that is no `Draw`, draws are those of the generator as it is.

    Example:
        >>> with seeded(0, Draw(7, epoch=2, batch=1)):
        ...     first = torch.rand(3)
        >>> with seeded(0, Draw(7, epoch=2, batch=5)):
        ...     print(torch.equal(torch.rand(3), first))
        True
    """
    if not isinstance(index, Draw):
        yield
        return
    with torch.random.fork_rng(devices=()):
        # torch.manual_seed would seed the accelerators too.
        torch.default_generator.manual_seed(hash((seed, index.epoch, int(index))) % 2**63)
        yield


class Order(DistributedSampler[Draw]):
    """The training samples in random order, a function of seed and epoch, without an incomplete last batch.

    The batches of all processes together hold the same samples whatever the number of processes, as long as their
    size together is the same: process r of W has those at r, r + W, … of the order. Being a `DistributedSampler`,
    Lightning leaves this sampler as it is and tells it the epoch.

    Args:
        dataset: what has the samples; only its length matters.
        batch_size: samples in a batch of one process.
        trainer: the Trainer whose place in the epoch is also this order's (see `ResumableLoader`).
        seed: of the order; that of `seed_everything`, or else 0, by default.

    Attributes:
        first_batch: where in the epoch to start.

    Raises:
        ValueError: fewer samples than the processes' batches hold together.

    Example:
        >>> order = Order(range(10), batch_size=4, seed=0)
        >>> list(order)
        [4, 1, 7, 5, 3, 9, 0, 8]
        >>> order.set_epoch(0)
        >>> order.first_batch = 1
        >>> list(order)
        [3, 9, 0, 8]
    """

    def __init__(self, dataset: Sized, batch_size: int, trainer: Any = None, seed: int | None = None) -> None:
        rank, ranks = rank_and_ranks()
        seed = run_seed() if seed is None else seed
        super().__init__(dataset, ranks, rank, shuffle=True, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.batch_size, self.trainer, self.first_batch = batch_size, trainer, 0
        if not len(self):
            raise ValueError(
                f"there are {len(dataset)} training samples, fewer than a batch_size={batch_size} on {ranks} ranks "
                "takes, and incomplete batches are dropped: give a smaller batch_size."
            )

    def __iter__(self) -> Iterator[Draw]:
        indices, epoch = list(super().__iter__()), self.epoch
        self.epoch += 1  # for loops of one's own, which tend to forget `set_epoch`
        for place in range(self.first_batch * self.batch_size, len(self)):
            yield Draw(indices[place], epoch, place // self.batch_size)

    def __len__(self) -> int:
        return self.num_samples // self.batch_size * self.batch_size


class ResumableLoader(DataLoader[Any]):
    """Batches of an `Order`; in an epoch that a Trainer resumes, those that it has not trained on yet.

    Where that is, the Trainer's own progress tells, and only when it asks for the first batch: loading, in workers too,
    begins no sooner. Give it to the Trainer as the only training loader, and to a data set that draws at random,
    `seeded`.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        order = self.sampler
        if isinstance(order, Order):  # and not what `Trainer(overfit_batches=…)` puts in its place
            trainer = order.trainer
            mine = trainer is not None and trainer.training and trainer.train_dataloader is self
            order.first_batch = trainer.fit_loop.batch_idx + 1 if mine else 0
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Nothing; that there is a state tells Lightning that it can resume an epoch."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing."""


def run_seed() -> int:
    """What `seed_everything` was given, which is the same in all processes of a run; 0 without."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def rank_and_ranks() -> tuple[int, int]:
    """Of this process, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)

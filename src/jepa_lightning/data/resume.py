"""Which samples a training sees in which order, as a function of seed and epoch, and where a resumed one goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, DistributedSampler

from jepa_lightning.clock import batches_done


class Visit(NamedTuple):
    """A sample, and when a training asks for it: what is drawn for the sample is a function of that.

    Attributes:
        index: of the sample in its data set.
        epoch: from 0.
        batch: of this process in the epoch, from 0; None outside of a training.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs
    epoch: int = 0
    batch: int | None = None


def as_visit(key: int | Visit) -> Visit:
    """What a sampler asks for: `Visits` say when, the samplers of held-out data give bare indices."""
    return key if isinstance(key, Visit) else Visit(key)


@contextmanager
def seeded(seed: int, visit: Visit) -> Iterator[None]:
    """Make what torch's default generator draws for a sample a function of seed, epoch and index.

    So crops and the like depend neither on workers nor on what was drawn before, and the generator goes on afterwards
    as if nothing had been drawn.

    Example:
        >>> with seeded(0, Visit(7, epoch=2, batch=1)):
        ...     first = torch.rand(3)
        >>> with seeded(0, Visit(7, epoch=2, batch=5)):
        ...     print(torch.equal(torch.rand(3), first))
        True
    """
    with torch.random.fork_rng(devices=()):
        # torch.manual_seed would seed the accelerators too.
        torch.default_generator.manual_seed(hash((seed, visit.epoch, visit.index)) % 2**63)
        yield


class Order(DistributedSampler[Any]):
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

    def __iter__(self) -> Iterator[Any]:
        indices = list(super().__iter__())
        self.epoch += 1  # for loops of one's own, which tend to forget `set_epoch`
        return iter(indices[self.first_batch * self.batch_size : len(self)])

    def __len__(self) -> int:
        return self.num_samples // self.batch_size * self.batch_size


class Visits(Order):
    """The same order, for a data set that draws at random (see `seeded`): it is asked for `Visit`s, not for indices.

    Example:
        >>> list(Visits(range(10), batch_size=4, seed=0))[3:5]
        [Visit(index=5, epoch=0, batch=0), Visit(index=3, epoch=0, batch=1)]
    """

    def __iter__(self) -> Iterator[Visit]:
        epoch, first = self.epoch, self.first_batch * self.batch_size
        for place, index in enumerate(super().__iter__(), first):
            yield Visit(index, epoch, place // self.batch_size)


class ResumableLoader(DataLoader[Any]):
    """Batches of an `Order`; in an epoch that a Trainer resumes, those that it has not trained on yet.

    Where that is, the order's Trainer is asked, and only when it asks for the first batch: loading, in workers too,
    begins no sooner.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        order = self.sampler
        if isinstance(order, Order):  # and not what `Trainer(overfit_batches=…)` puts in its place
            order.first_batch = batches_done(order.trainer) if self._trains(order.trainer) else 0
        yield from super().__iter__()

    def _trains(self, trainer: Any) -> bool:
        """Whether the Trainer reads this loader, and not somebody else while it trains."""
        if trainer is None or not trainer.training:
            return False
        return any(loader is self for loader in CombinedLoader(trainer.train_dataloader).flattened)

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

"""Batches of samples of about the same length, as many as a budget allows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from jepa_lightning.data.resume import Order, Visit, rank_and_ranks, run_seed

_FACTOR = 1.2  # how much longer the longest of a bucket may be than the shortest


class LengthOrder(Order):
    """The training samples in batches of about the same length, in random order, a function of seed and epoch.

    Samples whose lengths differ by less than a fifth share a bucket, within which they are drawn at random; a batch
    takes as many as may all be as long as the longest of their bucket, and what is left over goes to the next longer
    one; of the last, an incomplete batch is dropped. So every epoch has as many batches, and few of their steps are
    padding. The batches of all processes together hold the same samples whatever the number of processes, as long as
    their budget together is the same; of each, all processes have the same number.

    It yields whole batches, lists of `Visit`s: for a loader with `batch_size=None`, whose data set takes them.

    Args:
        lengths: of each sample, above zero, in any unit.
        budget: of a batch of one process, in that unit: the longest sample of a bucket times the number of samples.
        trainer: see `Order`.
        seed: see `Order`.

    Raises:
        ValueError: a sample that is longer than the budget, or fewer samples than processes.

    >>> batches = list(LengthOrder([1.0, 4.0, 1.1, 4.2, 1.0, 4.1], budget=8.4, seed=0))
    >>> [[visit.index for visit in batch] for batch in batches]
    [[2, 5], [3, 1], [4, 0]]
    """

    def __init__(self, lengths: Sequence[float], budget: float, trainer: Any = None, seed: int | None = None) -> None:
        ranks = rank_and_ranks()[1]
        if not lengths or len(lengths) < ranks:
            raise ValueError(f"there are {len(lengths)} training samples, fewer than one for each of {ranks} ranks")
        if max(lengths) > budget:
            raise ValueError(
                f"the longest training sample, {max(lengths):g}, is longer than a batch may be, {budget:g}"
            )
        longest = max(lengths)
        steps = [math.floor(math.log(longest / length) / math.log(_FACTOR)) for length in lengths]
        self.buckets: list[tuple[float, list[int]]] = []  # the longest that there may be, and who is in it
        for step in sorted(set(steps), reverse=True):
            inside = [index for index, own in enumerate(steps) if own == step]
            self.buckets.append((max(lengths[index] for index in inside), inside))
        self.budget = budget
        super().__init__(lengths, 1, trainer, run_seed() if seed is None else seed)
        self.batches = len(self._batches(0))

    def __iter__(self) -> Iterator[list[Visit]]:
        epoch = self.epoch
        batches = self._batches(epoch)
        self.epoch += 1  # for loops of one's own, which tend to forget `set_epoch`
        for number, batch in enumerate(batches[self.first_batch :], self.first_batch):
            yield [Visit(index, epoch, number) for index in batch[self.rank :: self.num_replicas]]

    def __len__(self) -> int:
        return getattr(self, "batches", 1)

    def _batches(self, epoch: int) -> list[list[int]]:
        """Those of all processes together."""
        generator = torch.Generator().manual_seed(self.seed + epoch)
        ranks, waiting, batches = self.num_replicas, list[int](), []
        for longest, inside in self.buckets:
            waiting += [inside[place] for place in torch.randperm(len(inside), generator=generator).tolist()]
            size = max(1, int(self.budget * ranks / longest) // ranks) * ranks
            while len(waiting) >= size:
                batches.append(waiting[:size])
                waiting = waiting[size:]
        if not batches:
            batches.append(waiting[: len(waiting) // ranks * ranks])
        return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]

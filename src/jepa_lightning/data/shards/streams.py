"""Shards that are read from beginning to end, as streams."""

import random
from collections.abc import Iterator
from itertools import chain, islice

from jepa_lightning.data.faults import PATIENCE
from jepa_lightning.data.resume import Visit, rank_and_ranks
from jepa_lightning.data.samples import Sample
from jepa_lightning.data.shards.members import Kinds, Part, read_shard, without_samples

_SHUFFLE_BUFFER = 100  # encoded samples of a shard, which stay in memory


class Streamed:
    """The samples of shards, as they come.

    Every reader (a worker of a rank) has its share of them in each epoch, drawn by the seed and the epoch, and starts
    again with it when it has seen all. It takes its next sample for whatever index it is asked. In an epoch that is
    resumed it reads up to the first batch that it is asked for, without decoding.

    Args:
        shards: their paths or URLs.
        counts: how many samples each holds. The share of a reader is then as many as its batches take, and may begin
            and end within a shard; without, it is whole shards.
        kinds: of files to read.
        samples_per_epoch: the length of an epoch, over all ranks.
        batch_size: samples of a batch on this rank.
        num_workers: that read, on this rank; 0, like 1, for one reader.
        seed: of the order.

    Raises:
        ValueError: fewer shards than readers, without counts.
    """

    def __init__(
        self,
        shards: list[str],
        counts: list[int] | None,
        kinds: Kinds,
        samples_per_epoch: int,
        batch_size: int,
        num_workers: int,
        seed: int,
    ) -> None:
        self.shards, self.counts, self.kinds, self.samples_per_epoch = shards, counts, kinds, samples_per_epoch
        self.batch_size, self.workers, self.seed = batch_size, max(1, num_workers), seed
        self.rank, self.ranks = rank_and_ranks()
        self._at = (-1, -1)
        if counts is None and len(shards) < self.ranks * self.workers:
            raise ValueError(
                f"num_workers={num_workers} on {self.ranks} ranks are too many for {len(shards)} shards, since each "
                "worker reads shards of its own: give fewer workers, smaller shards, or an index that counts samples."
            )

    def __len__(self) -> int:
        return self.samples_per_epoch

    def candidates(self, visit: Visit) -> Iterator[Sample]:
        """The next samples."""
        if visit.batch is None:
            raise TypeError("shards are a stream: a sample of theirs cannot be asked for by its index")
        # Workers take turns with the batches. Who begins depends on where an epoch is resumed, so a reader goes by
        # the batch and not by the worker's number.
        round_, reader = divmod(visit.batch, self.workers)
        if (visit.epoch, reader) != self._at:
            self._at = visit.epoch, reader
            self._samples = islice(self._read(visit.epoch, reader), round_ * self.batch_size, None)
        return islice(self._samples, PATIENCE)

    def _read(self, epoch: int, reader: int) -> Iterator[Sample]:
        from webdataset.filters import shuffle

        share = self._share(epoch, reader)
        generator = random.Random(f"{self.seed} {epoch} {share[0].shard}")
        while True:
            is_empty = True
            read = chain.from_iterable(read_shard(part, self.kinds) for part in share)
            for sample in shuffle(_SHUFFLE_BUFFER, rng=generator)(read):
                is_empty = False
                yield sample
            if is_empty:
                raise without_samples([part.shard for part in share], self.kinds)

    def _share(self, epoch: int, reader: int) -> list[Part]:
        """What a reader of this rank reads in an epoch."""
        order = list(range(len(self.shards)))
        random.Random(f"{self.seed} {epoch}").shuffle(order)  # the same for all readers
        if self.counts is None:
            mine = order[self.rank * self.workers + reader :: self.ranks * self.workers]
            return [Part(self.shards[shard], 0, None) for shard in mine]
        batches = self.samples_per_epoch // self.ranks // self.batch_size
        of_readers = [len(range(number, batches, self.workers)) for number in range(self.workers)]
        first = (self.rank * batches + sum(of_readers[:reader])) * self.batch_size
        stop = first + of_readers[reader] * self.batch_size
        share = []
        for shard in order:
            count = self.counts[shard]
            if first < count and stop > 0:
                share.append(Part(self.shards[shard], max(first, 0), min(stop, count)))
            first, stop = first - count, stop - count
        return share

"""Steps in memory, from which a training draws with replacement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from jepa_lightning.batches import Transitions
from jepa_lightning.data.episodes.preparation import Scale
from jepa_lightning.data.resume import Order
from jepa_lightning.data.transitions.reading import Steps


class TransitionSet(Dataset[Transitions]):
    """Steps in memory, whose states are there once, and not for each step that starts or ends there.

    The memory is shared with worker processes.

    Args:
        steps: in the world's units; of frames, `[R, rows, columns, channels]` uint8.
        units: what `observation` and `action` are normalised by, as they are drawn; what has none is left as it is.
        frame_stack: frames of an observation: that of the time, and those before it, from its episode; the first one
            again where there are fewer.
        shared: whether there will be workers.
    """

    def __init__(
        self, steps: Steps, units: Mapping[str, Scale] | None = None, frame_stack: int = 1, shared: bool = False
    ) -> None:
        self.units, self.frame_stack = dict(units or {}), frame_stack
        self.seen, self.action = torch.from_numpy(steps.seen), torch.from_numpy(steps.action)
        self.row, self.first = torch.from_numpy(steps.row), torch.from_numpy(steps.first)
        self.terminated, self.reward = torch.from_numpy(steps.terminated), torch.from_numpy(steps.reward)
        if shared:
            for tensor in (self.seen, self.action, self.reward, self.row, self.first, self.terminated):
                tensor.share_memory_()

    def __len__(self) -> int:
        return len(self.row)

    def __getitems__(self, indices: list[int] | Tensor) -> Transitions:
        """The batch of some steps."""
        chosen = torch.as_tensor(indices)
        row, first = self.row[chosen], self.first[chosen]
        action = self.action[chosen]
        if "action" in self.units:
            action = self.units["action"].to(action).clamp(-1, 1)  # their bounds, but for rounding
        return Transitions(
            self._observed(row, first),
            action,
            self._observed(row + 1, first),
            self.terminated[chosen],
            self.reward[chosen],
        )

    def __getitem__(self, index: int) -> Transitions:
        """One step, as a batch without its first axis."""
        return Transitions(*(field[0] for field in self.__getitems__([index])))

    def _observed(self, row: Tensor, first: Tensor) -> Tensor:
        if self.seen.ndim == 2:
            seen = self.seen.index_select(0, row)
            return self.units["observation"].to(seen) if "observation" in self.units else seen
        before = torch.arange(1 - self.frame_stack, 1)
        rows = torch.maximum(row[:, None] + before, first[:, None])
        return self.seen[rows].permute(0, 1, 4, 2, 3).flatten(1, 2)


class WithReplacement(Order):
    """Steps drawn uniformly, each as if it were the only one: a function of seed and epoch.

    Args:
        dataset: what has the steps; only its length matters.
        batch_size: steps in a batch of one process.
        batches: of an epoch.
        trainer: the Trainer whose place in the epoch is also this order's.
        seed: of the order; that of `seed_everything`, or else 0, by default.

    Example:
        >>> sum(1 for _ in WithReplacement(range(5), batch_size=4, batches=10, seed=0))
        40
    """

    def __init__(
        self, dataset: Any, batch_size: int, batches: int, trainer: Any = None, seed: int | None = None
    ) -> None:
        self.batches = batches
        super().__init__(dataset, 1, trainer, seed)
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
        number = self.batches * self.batch_size * self.num_replicas
        chosen = torch.randint(len(self.dataset), (number,), generator=generator)[self.rank :: self.num_replicas]  # type: ignore[arg-type]
        self.epoch += 1
        return iter(chosen[self.first_batch * self.batch_size :].tolist())

    def __len__(self) -> int:
        return self.batches * self.batch_size

"""Episodes of several kinds of robots in one training."""

from __future__ import annotations

import contextvars
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from jepa_lightning.data.datamodule import SplitDataModule
from jepa_lightning.data.episodes.datamodule import EpisodesDataModule
from jepa_lightning.data.episodes.dataset import EpisodeBatch, Windows
from jepa_lightning.data.episodes.preparation import Preparation


class MixedWindows(Dataset[EpisodeBatch]):
    """Windows of several embodiments, one after the other; a batch may hold any of them.

    Actions and states of fewer numbers than the longest are filled up with zeros.

    Args:
        parts: the windows of each embodiment.

    Raises:
        ValueError: observations, or lengths of windows, that do not fit into one batch.
    """

    def __init__(self, parts: Sequence[Windows]) -> None:
        self.parts, self.ends = list(parts), np.cumsum([len(part) for part in parts])
        first = [part[0] for part in self.parts]
        for name in ("observation", "valid"):
            shapes = [list(getattr(each, name).shape) for each in first]
            if any(shape != shapes[0] for shape in shapes):
                raise ValueError(
                    f"the windows of all embodiments make one batch, but have {name}s of the shapes "
                    f"{', '.join(map(str, shapes))}: give all the same image_size, views and steps"
                )
        self.widths = [max(getattr(each, name).shape[-1] for each in first) for name in ("action", "state")]

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitems__(self, indices: list[int]) -> EpisodeBatch:
        """The batch of some windows, in their order."""
        which = np.searchsorted(self.ends, indices, side="right")
        places, batches = [], []
        for kind in np.unique(which):
            mine = np.flatnonzero(which == kind)
            start = int(self.ends[kind]) - len(self.parts[kind])
            found = self.parts[kind].__getitems__([indices[place] - start for place in mine])
            action, state = (
                _filled(value, width) for value, width in zip((found.action, found.state), self.widths, strict=True)
            )
            batches.append(found._replace(action=action, state=state, embodiment=found.embodiment + int(kind)))
            places.append(mine)
        order = torch.tensor(np.argsort(np.concatenate(places)))
        return EpisodeBatch(*(torch.cat(field)[order] for field in zip(*batches, strict=True)))

    def __getitem__(self, index: int) -> EpisodeBatch:
        """One window, as a batch without its first axis."""
        return EpisodeBatch(*(field[0] for field in self.__getitems__([index])))


class EmbodimentsDataModule(SplitDataModule):
    """Windows of the episodes of several kinds of robots, for a model with a map of actions and states for each.

    Every window counts the same, wherever it comes from. Each kind has its own layout, actions, stride, and numbers
    that it is normalised by; observations have one shape. To give a module: `action_dim` and `state_dim` are those of
    the kind with the most numbers, what the others lack is zero; `num_embodiments` is how many there are.

    Args:
        sources: the options of an `EpisodesDataModule` for each kind, but for `batch_size` and `num_workers`.
        batch_size: windows per batch. Training drops an incomplete last batch.
        num_workers: worker processes per loader; 0 reads in the training process.

    Raises:
        ValueError: no sources, or an option out of its range; from `setup`, sources that do not fit into one batch.
        TypeError: an option that `EpisodesDataModule` does not have.
    """

    hparams: Any

    def __init__(self, sources: list[dict[str, Any]], batch_size: int = 32, num_workers: int = 0) -> None:
        super().__init__(batch_size, num_workers)
        if not sources:
            raise ValueError("give the sources, the options of an EpisodesDataModule for each embodiment")
        if any({"batch_size", "num_workers"} & set(source) for source in sources):
            raise ValueError("batch_size and num_workers are those of the whole, not of one of the sources")
        self.save_hyperparameters()
        # In a context of its own: on the command line, Lightning takes the options of this module for those of theirs.
        self.kinds = [contextvars.Context().run(EpisodesDataModule, **source, batch_size=1) for source in sources]

    @property
    def preparations(self) -> list[Preparation]:
        """What is done to the numbers of each kind, see `EpisodesDataModule`."""
        return [kind.preparation for kind in self.kinds]

    def setup(self, stage: str | None = None) -> None:
        """Open or record the episodes of all kinds."""
        if self.sets:
            return
        for kind in self.kinds:
            kind.setup(stage)
        for role in ("train", "val", "test"):
            if all(role in kind.sets for kind in self.kinds):
                self.sets[role] = MixedWindows([kind.sets[role] for kind in self.kinds])
        self.batch_size = self.batch_size  # no more than there are windows

    def state_dict(self) -> dict[str, Any]:
        """What the numbers of each kind are normalised by, and how."""
        return {"kinds": [kind.state_dict() for kind in self.kinds]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what a checkpoint's numbers were normalised by."""
        for kind, state in zip(self.kinds, state_dict["kinds"], strict=True):
            kind.load_state_dict(state)


def _filled(values: Tensor, width: int) -> Tensor:
    return F.pad(values, (0, width - values.shape[-1]))

"""Trips in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from jepa_lightning.batches import Trajectories
from jepa_lightning.data.trajectories.cells import Cells


class Tracks(Dataset[Trajectories]):
    """Tracks as the embeddings of their cells, padded to the longest of a batch.

    Args:
        places: each `[L, 2]`, latitude and longitude in degrees.
        cells: of the area.
    """

    def __init__(self, places: Sequence[NDArray[Any]], cells: Cells) -> None:
        self.places, self.cells = list(places), cells
        self.metres = [cells.metres(each) for each in self.places]

    def __len__(self) -> int:
        return len(self.places)

    def __getitems__(self, indices: list[int]) -> Trajectories:
        return together([self.metres[index] for index in indices], self.cells)


def together(metres: Sequence[NDArray[Any]], cells: Cells) -> Trajectories:
    """A batch of tracks, each `[L, 2]` on the map of the cells."""
    embedded = torch.nn.utils.rnn.pad_sequence([cells.embedded(each) for each in metres], batch_first=True)
    track = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(each).float() for each in metres], batch_first=True)
    lengths: Tensor = torch.tensor([len(each) for each in metres])
    return Trajectories(embedded, torch.arange(track.shape[1]) < lengths.unsqueeze(1), track)

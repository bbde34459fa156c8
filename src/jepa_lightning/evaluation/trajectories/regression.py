"""A small head on frozen features that stands in for a costly distance of tracks (T-JEPA, section 5.3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import Self

Array = NDArray[Any]


class DistanceHead:
    """Two layers on features, so that the L1 distance of what they give is a distance of the tracks.

    Features are standardised by those it is fitted on, and distances divided by the largest of them. It is fitted to
    pairs by their mean squared error, and keeps the weights that were best on the validation part.

    Args:
        width: of both layers.
        steps: of Adam, each on the pairs of 64 tracks.
        lr: learning rate.
        seed: of weights and batches.

    Source: T-JEPA (arXiv 2406.12913), section 5.3.
    """

    def __init__(self, width: int = 128, steps: int = 1500, lr: float = 1e-3, seed: int = 0) -> None:
        self.width, self.steps, self.lr, self.seed = width, steps, lr, seed

    def fit(self, train: tuple[Array, Array], val: tuple[Array, Array]) -> Self:
        """Fit the layers.

        Args:
            train: features `[n, D]` and distances `[n, n]` of some tracks.
            val: the same of others.

        Raises:
            ValueError: distances of another shape, or some that are not finite.
        """
        for given, pairs in (train, val):
            if pairs.shape != (len(given), len(given)) or not np.isfinite(pairs).all():
                raise ValueError(
                    f"expected finite distances {[len(given)] * 2} of {len(given)} tracks, got {list(pairs.shape)}"
                )
        self.mean, self.std = train[0].mean(0), train[0].std(0) + 1e-6
        self.scale = float(train[1].max()) or 1.0
        (features, matrix), (held, held_matrix) = (
            (self._scaled(each), torch.from_numpy(np.asarray(of_pairs / self.scale, np.float32)))
            for each, of_pairs in (train, val)
        )
        generator = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(self.seed)
            layers = nn.Sequential(
                nn.Linear(features.shape[1], self.width), nn.ReLU(), nn.Linear(self.width, self.width)
            )
        optimizer, best, self.layers = torch.optim.Adam(layers.parameters(), self.lr), np.inf, layers
        state = layers.state_dict()
        for step in range(1, self.steps + 1):
            chosen = torch.randperm(len(features), generator=generator)[:64]
            loss = F.mse_loss(_pairs(layers(features[chosen])), matrix[chosen][:, chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 50 == 0 or step == self.steps:
                with torch.no_grad():
                    error = float(F.mse_loss(_pairs(layers(held)), held_matrix))
                if error < best:
                    best, state = error, {name: value.clone() for name, value in layers.state_dict().items()}
        layers.load_state_dict(state)
        return self

    @torch.no_grad()
    def predict(self, features: Array) -> Array:
        """The distances `[n, n]` of tracks by their features `[n, D]`, in the unit of those it was fitted to."""
        return _pairs(self.layers(self._scaled(features))).numpy() * self.scale

    def _scaled(self, features: Array) -> Tensor:
        return torch.from_numpy(np.asarray((features - self.mean) / self.std, np.float32))


def _pairs(outputs: Tensor) -> Tensor:
    """Mean absolute differences `[n, n]`: L1 distances by features, whose scale does not depend on their number."""
    return torch.cdist(outputs, outputs, p=1) / outputs.shape[1]


def hits(predicted: Array, true: Array) -> dict[str, float]:
    """How well distances find the nearest of other tracks, `HR@5`, `HR@20` and `R5@20`.

    HR@k is the share of the k nearest that are among the k found, and R5@20 that of the 5 nearest among 20 found.

    Args:
        predicted: `[n, n]`, by which is searched.
        true: `[n, n]`, by which is judged; a track is not a neighbour of its own.

    Raises:
        ValueError: fewer than 21 tracks.
    """
    if len(true) < 21:
        raise ValueError(f"the 20 nearest are those of 21 tracks or more, got {len(true)}")

    def nearest(distances: Array, count: int) -> Array:
        alone = np.where(np.eye(len(distances), dtype=bool), np.inf, distances)
        return np.argsort(alone, 1, kind="stable")[:, :count]

    def share(found: int, wanted: int) -> float:
        pairs = zip(nearest(predicted, found), nearest(true, wanted), strict=True)
        return float(np.mean([len(np.intersect1d(a, b)) / wanted for a, b in pairs]))

    return {"HR@5": share(5, 5), "HR@20": share(20, 20), "R5@20": share(20, 5)}

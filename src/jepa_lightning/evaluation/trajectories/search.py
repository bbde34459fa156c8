"""Search among tracks: of each query the rank of its twin, the same trip by other points (T-JEPA, section 5.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jepa_lightning.data.trajectories.cells import EARTH

Array = NDArray[Any]
# From queries and the tracks of the data base, in degrees, to their distances `[n, m]`.
Distances = Callable[[Sequence[Array], Sequence[Array]], Array]


class Search(NamedTuple):
    """A mean rank.

    Attributes:
        setting: `size`, `down-sampling` or `distortion`.
        value: the share of the data base that there is, or of the points that are left out or moved.
        rank: the mean rank of the twins, 1 for a perfect search.
        database: tracks of the data base.
    """

    setting: str
    value: float
    rank: float
    database: int


def twins(tracks: Sequence[Array]) -> tuple[list[Array], list[Array]]:
    """Each track as that of its odd points and that of its even ones.

    >>> [[each.ravel().tolist() for each in half] for half in twins([np.arange(5.0)[:, None]])]
    [[[0.0, 2.0, 4.0]], [[1.0, 3.0]]]
    """
    return [each[::2] for each in tracks], [each[1::2] for each in tracks]


def mean_rank(distances: Array) -> float:
    """The mean rank of row i's twin, column i, among all columns; 1 where no other is as near.

    Of columns that are as near as the twin half count before it, so that a constant is no good search.

    >>> mean_rank(np.array([[1.0, 2.0, 3.0], [0.0, 5.0, 9.0]]))
    1.5
    """
    own = np.diagonal(distances)[:, None]
    nearer, level = (distances < own).sum(1), (distances == own).sum(1) - 1
    return float((1 + nearer + level / 2).mean())


def thinned(tracks: Sequence[Array], share: float, rng: np.random.Generator) -> list[Array]:
    """Tracks without a share of their points, at random; first and last stay."""
    found = []
    for each in tracks:
        kept = rng.random(len(each)) >= share
        kept[[0, -1]] = True
        found.append(each[kept])
    return found


def distorted(tracks: Sequence[Array], share: float, metres: float, rng: np.random.Generator) -> list[Array]:
    """Tracks in degrees, of which a share of the points are moved, by so many metres (standard deviation an axis)."""
    found = []
    for each in tracks:
        moved = (rng.random(len(each)) < share)[:, None]
        north, east = (metres / EARTH * rng.standard_normal((2, len(each)))) * moved.T
        latitude = np.radians(each[:, 0])
        found.append(np.degrees(np.stack([latitude + north, np.radians(each[:, 1]) + east / np.cos(latitude)], 1)))
    return found


def twin_search(
    distances: Distances,
    queries: Sequence[Array],
    others: Sequence[Array],
    sizes: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1.0),
    rates: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5),
    metres: float = 100.0,
    seed: int = 0,
) -> list[Search]:
    """The mean ranks of twins in data bases of several sizes, and of tracks that were thinned or distorted.

    The odd points of a query are searched with, and the data base has the even ones of all queries and of others. What
    is thinned or distorted is both.

    Args:
        distances: of queries and data base, such as `by_features(encoder)`.
        queries: each `[L, 2]` in degrees.
        others: what else is in the data base.
        sizes: shares of the data base, queries' twins included, which are always there.
        rates: shares of points that are left out, or moved, in the whole data base.
        metres: by which they are moved.
        seed: of what is drawn.
    """
    rng = np.random.default_rng(seed)
    odd, even = twins(queries)
    rest = twins([others[number] for number in rng.permutation(len(others))])[1]
    found, whole = [], len(even) + len(rest)
    matrix = distances(odd, even + rest)
    for size in sizes:
        count = max(len(even), round(size * whole))
        found.append(Search("size", size, mean_rank(matrix[:, :count]), count))
    changes: dict[str, Any] = {
        "down-sampling": thinned,
        "distortion": lambda tracks, rate, rng: distorted(tracks, rate, metres, rng),
    }
    for name, change in changes.items():
        for rate in rates:
            matrix = distances(change(odd, rate, rng), change(even + rest, rate, rng))
            found.append(Search(name, rate, mean_rank(matrix), whole))
    return found


def by_features(encoder: Any) -> Distances:
    """The L1 distance of features, which the official code compares by."""
    from scipy.spatial.distance import cdist

    def distances(queries: Sequence[Array], database: Sequence[Array]) -> Array:
        return np.asarray(cdist(encoder.transform(queries), encoder.transform(database), "cityblock"))

    return distances

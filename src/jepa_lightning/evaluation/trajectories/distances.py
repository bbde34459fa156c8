"""Distances between tracks as the field measures them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
import shapely
from numpy.typing import NDArray

from jepa_lightning.errors import check_choice

Array = NDArray[Any]
Measure = Literal["hausdorff", "frechet", "edr", "lcss", "dtw"]


def pairwise(measure: Measure, a: Sequence[Array], b: Sequence[Array] | None = None, epsilon: float = 200.0) -> Array:
    """The distances `[n, m]` of tracks.

    Hausdorff and the discrete Fréchet distance are in metres. EDR is the number of edits over that of the longer
    track's points, and LCSS one minus a share of the shorter's. DTW is the root of the sum of squares along the path.

    Args:
        measure: `hausdorff`, `frechet`, `edr`, `lcss` or `dtw`.
        a: n tracks `[L, 2]` in metres.
        b: m tracks; `a` without.
        epsilon: metres, within which points are the same for EDR and LCSS.

    Raises:
        ValueError: an unknown measure.

    >>> pairwise("hausdorff", [np.array([[0.0, 0.0], [3.0, 0.0]])], [np.array([[0.0, 4.0], [3.0, 4.0]])]).tolist()
    [[4.0]]
    """
    check_choice("measure", measure, get_args(Measure))
    if measure in ("dtw", "lcss"):
        return _by_aeon(measure, a, b, epsilon)
    if b is not None:
        pairs = np.indices((len(a), len(b))).reshape(2, -1)
        return _of_pairs(measure, a, b, pairs, epsilon).reshape(len(a), len(b))
    found, pairs = np.zeros((len(a), len(a))), np.stack(np.triu_indices(len(a), 1))
    found[pairs[0], pairs[1]] = found[pairs[1], pairs[0]] = _of_pairs(measure, a, a, pairs, epsilon)
    return found


def _of_pairs(measure: Measure, a: Sequence[Array], b: Sequence[Array], pairs: Array, epsilon: float) -> Array:
    """The distances of pairs `[2, P]`."""
    if measure == "hausdorff":  # of points: between lines, it would be to the nearest place of a line
        shapes = [np.array([shapely.MultiPoint(each) for each in tracks]) for tracks in (a, b)]
        return np.asarray(shapely.hausdorff_distance(shapes[0][pairs[0]], shapes[1][pairs[1]]))
    of_pair = _compiled(measure)
    tracks = [[np.ascontiguousarray(each, np.float64) for each in several] for several in (a, b)]
    return np.array([of_pair(tracks[0][i], tracks[1][j], epsilon) for i, j in pairs.T])


def _by_aeon(measure: Measure, a: Sequence[Array], b: Sequence[Array] | None, epsilon: float) -> Array:
    from aeon.distances import dtw_pairwise_distance, lcss_pairwise_distance

    given = [[np.ascontiguousarray(each.T) for each in tracks] for tracks in (a, b) if tracks is not None]
    if measure == "dtw":
        return np.sqrt(dtw_pairwise_distance(*given))
    return np.asarray(lcss_pairwise_distance(*given, epsilon=epsilon))


@cache
def _compiled(measure: Measure) -> Any:
    """Fréchet and EDR by numba, which aeon brings along.

    GEOS, and so shapely, gives discrete Fréchet distances that are too large for some tracks; aeon's EDR is smaller
    than the number of edits.
    """
    from numba import njit

    @njit(cache=True)
    def frechet(a: Any, b: Any, epsilon: float) -> float:
        row = np.empty(len(b))
        for i in range(len(a)):
            diagonal = 0.0
            for j in range(len(b)):
                d = np.sqrt((a[i, 0] - b[j, 0]) ** 2 + (a[i, 1] - b[j, 1]) ** 2)
                above = row[j]
                if i == 0:
                    row[j] = d if j == 0 else max(d, row[j - 1])
                elif j == 0:
                    row[j] = max(d, above)
                else:
                    row[j] = max(d, min(above, row[j - 1], diagonal))
                diagonal = above
        return row[-1]

    @njit(cache=True)
    def edr(a: Any, b: Any, epsilon: float) -> float:
        row = np.arange(len(b) + 1.0)
        for i in range(len(a)):
            diagonal, row[0] = row[0], i + 1.0
            for j in range(len(b)):
                d = np.sqrt((a[i, 0] - b[j, 0]) ** 2 + (a[i, 1] - b[j, 1]) ** 2)
                above = row[j + 1]
                row[j + 1] = min(above + 1, row[j] + 1, diagonal + (1.0 if d > epsilon else 0.0))
                diagonal = above
        return row[-1] / max(len(a), len(b))

    return {"frechet": frechet, "edr": edr}[measure]

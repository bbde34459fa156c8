"""Distances between tracks as the field measures them, by shapely and aeon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import shapely
from numpy.typing import NDArray

from jepa_lightning.errors import check_choice

Array = NDArray[Any]
Measure = Literal["hausdorff", "frechet", "edr", "lcss", "dtw"]


def pairwise(measure: Measure, a: Sequence[Array], b: Sequence[Array] | None = None, epsilon: float = 200.0) -> Array:
    """The distances `[n, m]` of tracks.

    Hausdorff and the discrete Fréchet distance are in metres. EDR is a share of the longer track's points, and LCSS one
    minus a share of the shorter's. DTW is the root of the sum of squares along the path.

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
    b = a if b is None else b
    if measure in ("hausdorff", "frechet"):
        # As points, for Hausdorff: between lines, it would be to the nearest place of a line.
        shape: Any = shapely.MultiPoint if measure == "hausdorff" else shapely.LineString
        of_pairs: Any = shapely.hausdorff_distance if measure == "hausdorff" else shapely.frechet_distance
        shapes = [np.array([_shape(shape, each) for each in tracks]) for tracks in (a, b)]
        if b is not a:
            return np.asarray(of_pairs(shapes[0][:, None], shapes[1][None]), np.float64)
        found, (row, column) = np.zeros((len(a), len(a))), np.triu_indices(len(a), 1)
        found[row, column] = found[column, row] = of_pairs(shapes[0][row], shapes[0][column])
        return found
    from aeon.distances import dtw_pairwise_distance, edr_pairwise_distance, lcss_pairwise_distance

    given: Any = {"edr": edr_pairwise_distance, "lcss": lcss_pairwise_distance, "dtw": dtw_pairwise_distance}[measure]
    options = {} if measure == "dtw" else {"epsilon": epsilon}
    channels = [[np.ascontiguousarray(each.T) for each in tracks] for tracks in (a, b)]
    found = np.asarray(given(channels[0], **options) if b is a else given(channels[0], channels[1], **options))
    return np.sqrt(found) if measure == "dtw" else found


def _shape(kind: Any, track: Array) -> Any:
    """A line of one point is twice that point."""
    return kind(track if len(track) > 1 else np.repeat(track, 2, 0))

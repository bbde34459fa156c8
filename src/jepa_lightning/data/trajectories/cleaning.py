"""From points to trips: what is no place, doubled, out of order or a jump, and where a trip ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jepa_lightning.data.trajectories.cells import EARTH
from jepa_lightning.data.trajectories.formats import Points

Array = NDArray[Any]


class Counts(NamedTuple):
    """What was found in the points of a source, and what became of it."""

    points: int = 0
    nowhere: int = 0
    outside: int = 0
    unsorted: int = 0
    doubled: int = 0
    jumps: int = 0
    untimed: int = 0
    gaps: int = 0
    incomplete: int = 0
    short: int = 0
    cut: int = 0
    trips: int = 0

    def __str__(self) -> str:
        parts = {
            "points without a place on earth, left out": self.nowhere,
            "points outside of the extent, left out": self.outside,
            "points out of order, sorted": self.unsorted,
            "points of a time that was there already, left out": self.doubled,
            "points that jump, left out": self.jumps,
            "points without a time, in whose tracks neither gaps nor jumps are found": self.untimed,
            "gaps, at which trips are split": self.gaps,
            "trips with missing data, left out": self.incomplete,
            "trips of too few points, left out": self.short,
            "trips of too many points, cut into pieces": self.cut,
        }
        told = [f"{count} {what}" for what, count in parts.items() if count]
        return f"{self.points} points, {self.trips} trips; " + ("; ".join(told) or "nothing amiss")


class Trips(NamedTuple):
    """Trips and who made them.

    Attributes:
        places: each `[L, 2]`, latitude and longitude in degrees.
        owner: `[N]`, number of who made each.
        counts: what was amiss.
    """

    places: list[Array]
    owner: Array
    counts: Counts


def trips_of(
    points: Points,
    max_gap: float,
    max_speed: float,
    min_points: int,
    max_points: int,
    extent: Sequence[float] | None = None,
) -> Trips:
    """Clean points, and split them into trips.

    Args:
        points: as they were read.
        max_gap: seconds, after which another trip begins.
        max_speed: metres a second. A point that is faster than this from the one before and to the one after is left
            out as a jump; where the track goes on from there, another trip begins.
        min_points: trips of fewer are left out.
        max_points: trips of more are cut into pieces, as equal as can be.
        extent: west, south, east and north in degrees (west above east where it crosses the date line); points
            outside are left out.
    """
    places = points.place.copy()
    latitude, longitude = places[:, 1], places[:, 2]
    # Longitudes up to 360 are taken, too; receivers without a fix send zeros.
    there = np.isfinite(places[:, 1:]).all(1) & (np.abs(latitude) <= 90) & (longitude >= -180) & (longitude <= 360)
    there &= (latitude != 0) | (longitude != 0)
    places[:, 2] = wrapped(longitude)
    inside = there.copy()
    if extent is not None:
        west, south, east, north = extent
        inside &= (
            (latitude >= south) & (latitude <= north) & (wrapped(places[:, 2] - west) % 360 <= (east - west) % 360)
        )
    counts = Counts(len(places), int((~there).sum()), int((there & ~inside).sum()), incomplete=points.incomplete)
    kept = points.name[inside].remove_unused_categories()
    names, owner = kept.categories, kept.codes
    places = places[inside]
    found: list[Array] = []
    owners: list[int] = []
    order = np.argsort(owner, kind="stable")
    for number, chosen in enumerate(np.split(order, np.searchsorted(owner[order], np.arange(1, len(names))))):
        own: dict[str, int] = {}
        for trip in _split(places[chosen], max_gap, max_speed, own):
            if len(trip) < min_points:
                own["short"] = own.get("short", 0) + 1
                continue
            pieces = -(-len(trip) // max_points)
            own["cut"] = own.get("cut", 0) + (pieces > 1)
            # Pieces of a long trip are never shorter than half of what is allowed.
            found += [piece[:, 1:] for piece in np.array_split(trip, pieces)]
            owners += [number] * pieces
        counts = counts._replace(**{key: getattr(counts, key) + value for key, value in own.items()})
    return Trips(found, np.asarray(owners, np.int64), counts._replace(trips=len(found)))


def _split(track: Array, max_gap: float, max_speed: float, counted: dict[str, int]) -> list[Array]:
    """The trips of a track `[L, 3]`, and what was counted."""
    if not len(track):
        return []
    if not np.isfinite(track[:, 0]).all():
        counted["untimed"] = int((~np.isfinite(track[:, 0])).sum())
        if counted["untimed"] == len(track):
            return [track]
        track = track[np.isfinite(track[:, 0])]
    counted["unsorted"] = int((np.diff(track[:, 0]) < 0).sum())
    track = track[np.argsort(track[:, 0], kind="stable")]
    fresh = np.diff(track[:, 0], prepend=-np.inf) > 0
    counted["doubled"] = int((~fresh).sum())
    track = track[fresh]
    fast = _fast(track, max_speed)
    jumps = np.r_[False, fast] & np.r_[fast, False]
    if len(track) > 2:  # at either end there is one neighbour only
        ends = fast[0] and not fast[1], fast[-1] and not fast[-2]
        jumps[0], jumps[-1] = ends
    counted["jumps"] = int(jumps.sum())
    track = track[~jumps]
    breaks = (np.diff(track[:, 0]) > max_gap) | _fast(track, max_speed)
    counted["gaps"] = int(breaks.sum())
    return np.split(track, np.flatnonzero(breaks) + 1)


def _fast(track: Array, max_speed: float) -> Array:
    """Between which neighbours of a track `[L, 3]` the speed is too high, `[L - 1]`."""
    return great_circle(track[:-1, 1:], track[1:, 1:]) > max_speed * np.diff(track[:, 0])


def great_circle(a: Array, b: Array) -> Array:
    """Metres on a sphere between places `[..., 2]` in degrees (the haversine formula).

    >>> bool(abs(great_circle(np.array([0.0, 179.5]), np.array([0.0, -179.5])) - 111_195) < 1)
    True
    """
    a, b = np.radians(a), np.radians(b)
    half = (b - a) / 2
    root = np.sin(half[..., 0]) ** 2 + np.cos(a[..., 0]) * np.cos(b[..., 0]) * np.sin(half[..., 1]) ** 2
    return 2 * EARTH * np.arcsin(np.sqrt(root.clip(0, 1)))


def wrapped(longitude: Array) -> Array:
    """Longitudes in [-180, 180)."""
    return (longitude + 180.0) % 360.0 - 180.0

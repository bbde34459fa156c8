"""Formats of tracks, each read into points `(time, latitude, longitude)` of whoever made them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jepa_lightning.data.frames import pandas_or_say, stamps_of

PORTO_SECONDS = 15.0  # from a point of Porto's file to the next
KNOWN = {
    "track_id": ("id", "trip_id", "track_id", "traj_id", "trajectory_id", "vehicle_id", "taxi_id", "user_id"),
    "time": ("time", "timestamp", "datetime"),
    "latitude": ("latitude", "lat"),
    "longitude": ("longitude", "lon", "lng"),
}
MILLISECONDS = 1e11  # times that are numbers above are no seconds since 1970


class Columns(NamedTuple):
    """The columns of tables by their meaning; the usual names are tried for what is None."""

    track_id: str | None = None
    time: str | None = None
    latitude: str | None = None
    longitude: str | None = None


class Points(NamedTuple):
    """Points as they were read.

    Attributes:
        name: `[N]` of who made them, a pandas `Categorical` of strings in order: of the 83 million points of Porto they
            would need gigabytes one by one.
        place: `[N, 3]` float64: time in seconds, NaN without one, latitude and longitude in degrees.
        incomplete: trips that the file itself says points are missing of, which are left out.
    """

    name: Any
    place: NDArray[Any]
    incomplete: int = 0


def names_of(names: Any) -> Any:
    """Names of points, of any kind, as `Points` has them."""
    pandas = pandas_or_say("trajectories")
    found = pandas.Categorical(names if pandas.api.types.is_numeric_dtype(names) else pandas.Series(names).astype(str))
    strings = [str(each) for each in found.categories]
    return found.rename_categories(strings).reorder_categories(sorted(strings))


def of_table(table: Any, name: str, columns: Columns) -> Points:
    """A row a point, or Porto's file, a row a trip.

    Raises:
        ValueError: columns that there are not, or times that are none.
    """
    if "POLYLINE" in table.columns:
        return _porto(table)
    lower = {str(column).lower(): column for column in table.columns}
    found: dict[str, Any] = {}
    for meaning, given in columns._asdict().items():
        if given is not None and given not in table.columns:
            raise ValueError(f"{name} has no column {given!r} ({meaning}); it has {', '.join(map(str, table.columns))}")
        usual = next((lower[each] for each in KNOWN[meaning] if each in lower), None)
        found[meaning] = given if given is not None else usual
    if columns.track_id is None and {"icao24", "callsign"} <= set(lower):  # of flights
        names = table[lower["icao24"]].astype(str) + " " + table[lower["callsign"]].astype(str)
    elif found["track_id"] is not None:
        names = table[found["track_id"]]
        if lost := int(names.isna().sum()):
            raise ValueError(f"{lost} points of {name} have no {found['track_id']!r}, which tells tracks apart")
    else:
        names = names_of([name]).repeat(len(table))
    if missing := [each for each in ("latitude", "longitude") if found[each] is None]:
        raise ValueError(
            f"{name} has no column for {' and '.join(missing)}, only {', '.join(map(str, table.columns))}: name it"
        )
    times = np.full(len(table), np.nan) if found["time"] is None else _seconds(table[found["time"]], name)
    places = [_numbers(table[found[each]]) for each in ("latitude", "longitude")]
    return Points(names_of(names), np.stack([times, *places], 1))


def _porto(table: Any) -> Points:
    """The taxis of Porto (ECML/PKDD 2015): of each trip `[[longitude, latitude], …]`, a point every 15 seconds."""
    names, places, incomplete = [], [], 0
    missing = table["MISSING_DATA"].astype(str).str.lower() == "true" if "MISSING_DATA" in table.columns else None
    starts = _seconds(table["TIMESTAMP"], "Porto's file") if "TIMESTAMP" in table.columns else np.zeros(len(table))
    trips = (
        table["TRIP_ID"].astype(str) if "TRIP_ID" in table.columns else [str(number) for number in range(len(table))]
    )
    for row, (trip, line) in enumerate(zip(trips, table["POLYLINE"], strict=True)):
        if missing is not None and missing.iloc[row]:
            incomplete += 1
            continue
        try:
            points = np.asarray(json.loads(line), np.float64).reshape(-1, 2)
        except (ValueError, TypeError) as error:
            raise ValueError(f"the POLYLINE of row {row + 1} is no list of [longitude, latitude]: {error}") from error
        times = starts[row] + PORTO_SECONDS * np.arange(len(points))
        names.append(trip)
        places.append(np.column_stack([times, points[:, 1], points[:, 0]]))
    lengths = [len(each) for each in places]
    return Points(names_of(names).repeat(lengths), np.concatenate(places or [np.empty((0, 3))]), incomplete)


def of_geolife(path: Path) -> Points:
    """GeoLife: six lines of header, then latitude, longitude, 0, feet, days since 1899-12-30, date, time."""
    table = pandas_or_say("trajectories").read_csv(path, skiprows=6, header=None)
    if table.shape[1] < 5:
        raise ValueError(f"expected at least 5 columns behind six lines, got {table.shape[1]}")
    days = (table[4].to_numpy(np.float64) - 25569.0) * 86400.0
    user = path.parent.parent.name if path.parent.name == "Trajectory" else path.stem
    return Points(names_of([user]).repeat(len(table)), np.column_stack([days, _numbers(table[0]), _numbers(table[1])]))


def of_t_drive(path: Path) -> Points:
    """T-Drive: taxi, time, longitude, latitude, without header; a file may be empty."""
    if not path.stat().st_size:
        return Points(names_of([]), np.empty((0, 3)))
    table = pandas_or_say("trajectories").read_csv(path, header=None)
    if table.shape[1] != 4:
        raise ValueError(f"expected taxi, time, longitude, latitude, got {table.shape[1]} columns")
    times = _seconds(table[1], str(path))
    return Points(names_of(table[0]), np.column_stack([times, _numbers(table[3]), _numbers(table[2])]))


def of_geojson(content: dict[str, Any], path: Path) -> Points:
    """Lines, whose properties may hold `coordTimes` or `times`, and points, whose properties hold an id and a time."""
    features = content.get("features", [content])
    names: list[str] = []
    places: list[list[float]] = []
    for number, feature in enumerate(features):
        shape, told = feature.get("geometry", feature) or {}, feature.get("properties") or {}
        lower = {str(key).lower(): value for key, value in told.items()}
        name = next((lower[each] for each in KNOWN["track_id"] if each in lower), feature.get("id", f"{number}"))
        if shape.get("type") == "Point":
            time = next((lower[each] for each in KNOWN["time"] if each in lower), None)
            lines, times = [[shape["coordinates"]]], [[time]]
        elif shape.get("type") in ("LineString", "MultiLineString"):
            single = shape["type"] == "LineString"
            lines = [shape["coordinates"]] if single else shape["coordinates"]
            given = told.get("coordTimes", told.get("times"))
            times = [[None] * len(line) for line in lines] if given is None else [given] if single else given
        else:
            raise ValueError(f"feature {number} is a {shape.get('type')}, neither a line nor a point")
        stamps = [_of_stamps(each, str(path)) for each in times]
        for part, (line, each) in enumerate(zip(lines, stamps, strict=True)):
            if len(line) != len(each):
                raise ValueError(f"feature {number} has {len(line)} points and {len(each)} times")
            # Without times, nothing but their order would tell the lines of one feature apart.
            names += [f"{name} {part}" if len(lines) > 1 else str(name)] * len(line)
            places += [[t, point[1], point[0]] for t, point in zip(each, line, strict=True)]
    return Points(names_of(names), np.asarray(places, np.float64).reshape(-1, 3))


def _seconds(column: Any, name: str) -> NDArray[Any]:
    """Times in seconds, NaN where there is none."""
    pandas = pandas_or_say("trajectories")
    if pandas.api.types.is_numeric_dtype(column):
        times = column.to_numpy(np.float64, na_value=np.nan)
        return times / 1000 if np.nanmax(times, initial=0.0) > MILLISECONDS else times
    stamps = stamps_of(column, f"the column of times of {name}", "trajectories")
    return (stamps - pandas.Timestamp(0, tz="UTC")).dt.total_seconds().to_numpy(np.float64)


def _of_stamps(times: Sequence[Any], name: str) -> list[float]:
    if all(time is None for time in times):
        return [float("nan")] * len(times)
    return [float(each) for each in _seconds(pandas_or_say("trajectories").Series(list(times)), name)]


def _numbers(column: Any) -> NDArray[Any]:
    """Numbers, NaN for what is none: it is counted with points that have no place."""
    return pandas_or_say("trajectories").to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)

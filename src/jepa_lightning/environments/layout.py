"""Rooms with doors: where one can go, how a door is found, and how it all looks. In pixels of a 224-pixel image."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

SIDE = 224
MIDDLE = 112.0
BORDER = (10.0, 13.0, 210.0, 213.0)  # first and last pixel of the border lines
DOOR_MARGIN = 1.75
ARRIVED = 10.5  # how near to a waypoint the next one counts


class Door(NamedTuple):
    """A door.

    Attributes:
        wall: 0 in the vertical wall, 1 in the horizontal one.
        centre: along the wall.
        half: half its length.
    """

    wall: int
    centre: float
    half: float

    def open_at(self, along: Any) -> Any:
        """Whether one who is there along the wall can pass."""
        return np.abs(along - self.centre) <= self.half + DOOR_MARGIN

    def place(self, across: float = MIDDLE) -> Array:
        """Its centre, or the point in line with it at another distance from the wall."""
        return np.array([across, self.centre] if self.wall == 0 else [self.centre, across])


class Layout:
    """A square of rooms, whose inner walls cross its middle.

    Args:
        doors: by number, which is also how one of them is closed.
        walls: 0 for the vertical wall, 1 for the horizontal one.
        radius: of the blobs.
        speed: pixels of a step at full action.
        thickness: of the inner walls.
    """

    def __init__(
        self, doors: Sequence[Door], walls: Sequence[int], radius: float, speed: float, thickness: int
    ) -> None:
        self.doors, self.walls, self.radius, self.speed = tuple(doors), tuple(walls), radius, speed
        self.half = thickness // 2
        self.low, self.high = 14.0 + radius, 210.0 - radius
        self.reach = self.half + radius
        self._known_ways: dict[Any, list[tuple[int, ...]]] = {}

    def move(self, position: Array, action: Array, closed: int = -1) -> Array:
        """Where an action `[..., 2]` in [−1, 1]² leads from a position `[..., 2]`, with one door closed (−1: none)."""
        before = np.asarray(position, dtype=np.float64)
        after = np.clip(before + self.speed * np.asarray(action), self.low, self.high)
        for wall in self.walls:
            start, end, along = before[..., wall], after[..., wall], after[..., 1 - wall]
            passes = np.zeros(np.shape(along), dtype=bool)
            for number, door in enumerate(self.doors):
                if door.wall == wall and number != closed:
                    passes |= door.open_at(along)
            stopped = np.where(
                start < MIDDLE,
                np.where(end > MIDDLE - self.reach, MIDDLE - self.reach - 0.5, end),
                np.where(end < MIDDLE + self.reach, MIDDLE + self.reach + 0.5, end),
            )
            after[..., wall] = np.where(passes, end, stopped)
        return after

    def draw_free(self, rng: np.random.Generator, clear: float | None = None) -> Array:
        """A position in a room, uniformly: within the border, or, if it is to be clear of walls, so much from them."""
        low, high = (14.0, 209.0) if clear is None else (self.low, self.high)
        while True:
            position = rng.uniform(low, high, 2)
            if not any(abs(position[wall] - MIDDLE) <= self.reach + (clear or 0.0) for wall in self.walls):
                return position

    def room(self, position: Array) -> tuple[int, ...]:
        """The room of a position, a side of each inner wall: 0 left or above, 1 right or below."""
        return tuple(int(position[wall] >= MIDDLE) for wall in self.walls)

    def path(self, start: Array, goal: Array, closed: int = -1) -> tuple[float, list[int]]:
        """The shortest way through the centres of open doors: its length, infinite if there is none, and the doors."""
        best: tuple[float, list[int]] = (math.inf, [])
        for doors in self._ways(self.room(start), self.room(goal), closed):
            points = [start, *(self.doors[number].place() for number in doors), goal]
            length = sum(math.dist(a, b) for a, b in itertools.pairwise(points))
            if length < best[0]:
                best = (length, list(doors))
        return best

    def _ways(self, first: tuple[int, ...], last: tuple[int, ...], closed: int) -> list[tuple[int, ...]]:
        """All ways from a room to another, as the doors one after the other; kept, for every step asks."""
        key = first, last, closed
        if key not in self._known_ways:
            usable = [n for n, door in enumerate(self.doors) if n != closed and door.half >= 1.1 * self.radius]
            every = (itertools.permutations(usable, count) for count in range(len(usable) + 1))
            self._known_ways[key] = [doors for doors in itertools.chain(*every) if self._leads(first, last, doors)]
        return self._known_ways[key]

    def _leads(self, first: tuple[int, ...], last: tuple[int, ...], doors: Sequence[int]) -> bool:
        """Whether doors, one after the other, lead from a room to another, and through no room twice."""
        room, seen = first, {first}
        for number in doors:
            door = self.doors[number]
            for place, wall in enumerate(self.walls):
                if wall != door.wall and room[place] != int(door.centre >= MIDDLE):
                    return False  # the door is in another room
            room = tuple(1 - side if wall == door.wall else side for side, wall in zip(room, self.walls, strict=True))
            if room in seen:
                return False
            seen.add(room)
        return room == last

    def waypoint(self, position: Array, goal: Array, closed: int = -1) -> Array:
        """Where to head for: beyond the first door of the shortest way, or else the door, or else the goal."""
        _, doors = self.path(position, goal, closed)
        if not doors:
            return goal
        door = self.doors[doors[0]]
        beyond = self.reach + 3.0
        for point in (door.place(MIDDLE + (beyond if position[door.wall] < MIDDLE else -beyond)), door.place()):
            if np.hypot(*(point - position)) > ARRIVED:
                return point
        return goal


class Painter:
    """Draws a layout and blobs, at any resolution.

    Args:
        layout: the rooms.
        image_size: rows and columns in pixels.
    """

    def __init__(self, layout: Layout, image_size: int) -> None:
        self.layout, self.scale = layout, SIDE / image_size
        # Where the centres of the pixels are; at 224 pixels, their numbers.
        self.places = ((np.arange(image_size) + 0.5) * self.scale - 0.5).astype(np.float32)
        self.backgrounds = {closed: self._background(closed) for closed in range(-1, len(layout.doors))}

    def frame(self, blobs: Sequence[tuple[Array, tuple[int, int, int]]], closed: int = -1) -> Array:
        """The frame, uint8 `[rows, columns, 3]`, of blobs `(position, colour)`; later ones cover earlier ones."""
        image = self.backgrounds[closed].copy()
        for position, colour in blobs:
            self._blob(image, position, np.array(colour, dtype=np.float32))
        return image

    def _blob(self, image: Array, position: Array, colour: Array) -> None:
        # Six radii away it changes no grey level.
        columns, rows = (self._near(float(value)) for value in position)
        falls = [
            np.exp(-((self.places[part] - np.float32(value)) ** 2) / (2 * self.layout.radius**2))
            for part, value in ((rows, position[1]), (columns, position[0]))
        ]
        alpha = falls[0][:, None] * falls[1]
        alpha = (alpha / alpha.max())[..., None].astype(np.float32)
        part = image[rows, columns]
        part[:] = (colour * alpha + part * (1 - alpha)).astype(np.uint8)

    def _near(self, value: float) -> slice:
        first = np.searchsorted(self.places, value - 6 * self.layout.radius)
        return slice(int(first), int(np.searchsorted(self.places, value + 6 * self.layout.radius)))

    def _background(self, closed: int) -> Array:
        places, layout = self.places, self.layout
        first, second, third, fourth = BORDER
        line = ((places >= first - 0.5) & (places < second + 0.5)) | ((places >= third - 0.5) & (places < fourth + 0.5))
        black = line[:, None] | line
        for wall in layout.walls:
            open_ = np.zeros(len(places), dtype=bool)
            for number, door in enumerate(layout.doors):
                if door.wall == wall and number != closed:
                    open_ |= np.abs(places - door.centre) < door.half + 0.5
            solid = (np.abs(places - MIDDLE) < layout.half + 0.5) & ~open_[:, None]  # [along, across]
            black |= solid if wall == 0 else solid.T
        return np.where(black[..., None], 0, 255).astype(np.uint8).repeat(3, axis=2)

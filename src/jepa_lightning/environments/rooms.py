"""A dot in rooms that has to find its way through doors: what TwoRoom and FourRoom share."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from jepa_lightning.environments.layout import SIDE, Layout, Painter
from jepa_lightning.environments.scenes import Array, SceneEnv, chosen

RED = (255, 0, 0)
GREEN = (0, 160, 0)
DISTRACTORS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66))
MAX_WAYS = 1_000  # that are tried to cut a task from; of those for H-JEPA's tasks one in some thirty will do
TELEPORT = 1 - math.exp(-1 / 35)  # of a distractor, in each step


class Rooms(SceneEnv):
    """A red dot in rooms, moved by actions in [−1, 1]²; the goal is a place within 16 pixels of 224.

    A scene is the position, the number of the closed door (−1: none) and the positions of distractors (−1 where there
    are none), in pixels of an image of 224, whatever the size that is drawn.

    `reset(options={"position": …, "goal": …, "closed_door": …})` says where an episode begins.

    Args:
        layout: the rooms.
        max_distractors: dots of other colours that may move around.
        observation: `pixels` or `scene`.
        image_size: rows and columns of a frame, 56 or more.
        endless: whether an episode goes on with another goal at success.
        goal_steps: let the goal be where the expert gets within that many steps; anywhere without.
        crossings: doors on the shortest way to the goal; any number without. With `goal_steps`, start and goal are
            exactly that many steps of the expert apart, a stretch of a longer way between two such rooms.
        render_mode: `rgb_array` or None.

    Raises:
        ValueError: an option out of its range.
    """

    success_distance = 16.0

    def __init__(
        self,
        layout: Layout,
        max_distractors: int,
        observation: Literal["pixels", "scene"],
        image_size: int,
        endless: bool,
        goal_steps: int | None,
        crossings: int | None,
        render_mode: str | None,
    ) -> None:
        if image_size < 56:
            raise ValueError(f"at image_size={image_size} the walls would be lost between pixels: give 56 or more")
        if goal_steps is not None and goal_steps * layout.speed <= self.success_distance:
            raise ValueError(
                f"within goal_steps={goal_steps} the expert never leaves the place that counts as the goal"
            )
        most = len(layout.walls)
        if crossings is not None and not 0 <= crossings <= most:
            raise ValueError(f"crossings={crossings}, but from a room to another one crosses 0 to {most} doors")
        if endless and crossings is not None and goal_steps is not None:
            raise ValueError("an endless episode has no goals both goal_steps away and so many crossings: give one")
        numbers = 3 + 2 * max_distractors
        low, high = np.full(numbers, -1.0), np.full(numbers, float(SIDE))
        high[2] = len(layout.doors) - 1
        super().__init__(observation, image_size, endless, render_mode, low, high)
        self.layout, self.max_distractors = layout, max_distractors
        self.goal_steps, self.crossings = goal_steps, crossings
        self.painter = Painter(layout, image_size)

    def draw(self, scene: Array) -> Array:
        """The frame of a scene `[S]`."""
        return self.painter.frame(self._blobs(scene), int(scene[2]))

    def draw_marked(self, scene: Array, goal: Array) -> Array:
        """The frame of a scene, with the place of a goal."""
        return self.painter.frame([(goal[:2], GREEN), *self._blobs(scene)], int(scene[2]))

    def begin(self, options: dict[str, Any]) -> None:
        """Draw what the options do not say: the closed door, the distractors, start and goal."""
        closed = options.pop("closed_door", None)
        closed = self.draw_closed() if closed is None else int(closed)
        if not -1 <= closed < len(self.layout.doors):
            raise ValueError(f"closed_door is -1 or one of the doors 0 to {len(self.layout.doors) - 1}, got {closed}")
        position, goal = chosen(options, "position", "start"), chosen(options, "goal", "place")
        if options:
            raise ValueError(f"a reset has the options position, goal and closed_door, not {', '.join(options)}")
        self.closed_door = closed
        if self.crossings is not None and self.goal_steps is not None and position is None and goal is None:
            return self._cut_from_a_way(self.crossings, self.goal_steps)
        self._populate()
        self.scene[:2] = self.layout.draw_free(self.np_random) if position is None else position
        if goal is None:
            self.new_goal()
        else:
            self._set_goal(goal)

    def _populate(self) -> None:
        """A scene with its closed door and distractors, but without the dot."""
        self.scene = np.full(3 + 2 * self.max_distractors, -1.0)
        self.scene[2] = self.closed_door
        count = self.draw_number()
        self.distractors = np.array([self.layout.draw_free(self.np_random) for _ in range(count)]).reshape(count, 2)
        self.headings = self.np_random.uniform(-np.pi, np.pi, count)
        self._put_distractors()

    def _cut_from_a_way(self, crossings: int, steps: int) -> None:
        """Let the expert go from a room to one so many doors away, and take any stretch of so many steps.

        Its ends, too, are so many doors apart; start and goal show all that moves as it was then.
        """
        for _ in range(MAX_WAYS):
            self._populate()
            self.scene[:2] = self.layout.draw_free(self.np_random, clear=1.0)
            self._set_goal(self.layout.draw_free(self.np_random, clear=1.0))
            if self._doors_between(self.scene, self.goal_scene) != crossings:
                continue
            way = [(self.scene.copy(), self.distractors, self.headings.copy())]
            while self.distance() >= self.success_distance:
                self.advance(self.expert())
                way.append((self.scene.copy(), self.distractors, self.headings.copy()))
            starts = [
                number
                for number in range(len(way) - steps)
                if self._doors_between(way[number][0], way[number + steps][0]) == crossings
            ]
            if starts:
                first = int(self.np_random.choice(starts))
                self.scene, self.distractors, self.headings = way[first]
                self.goal_scene = way[first + steps][0]
                return
        raise ValueError(
            f"found no way of {steps} steps through {crossings} doors among {MAX_WAYS}: give fewer goal_steps"
        )

    def _doors_between(self, start: Array, goal: Array) -> int:
        return len(self.layout.path(start[:2], goal[:2], self.closed_door)[1])

    def draw_closed(self) -> int:
        """The door that is closed in an episode."""
        return -1

    def draw_number(self) -> int:
        """The number of distractors in an episode."""
        return 0

    def advance(self, action: Array) -> None:
        """Move the dot, then the distractors."""
        layout, rng = self.layout, self.np_random
        self.scene[:2] = layout.move(self.scene[:2], action, self.closed_door)
        if len(self.distractors):
            direction = np.stack([np.cos(self.headings), np.sin(self.headings)], 1)
            # They have a speed of their own, 2.5 pixels.
            self.distractors = layout.move(self.distractors, direction * 2.5 / layout.speed, self.closed_door)
            for number in np.flatnonzero(rng.random(len(self.distractors)) < TELEPORT):
                self.distractors[number] = layout.draw_free(rng)
                self.headings[number] = rng.uniform(-np.pi, np.pi)
            self._put_distractors()

    def expert(self) -> Array:
        """A unit step towards the next waypoint; where that is nearer than a step, just to it."""
        target = self.layout.waypoint(self.scene[:2], self.goal_scene[:2], self.closed_door)
        return self._towards(self.scene[:2], target)

    def new_goal(self) -> None:
        """A place that counts as another, or where the expert gets within `goal_steps` steps."""
        for _ in range(MAX_WAYS):
            goal = self.layout.draw_free(self.np_random)
            if self.goal_steps is not None:
                goal = self._on_the_way(goal, self.goal_steps)
            far = np.hypot(*(goal - self.scene[:2])) >= self.success_distance
            if far and self.crossings in (None, self._doors_between(self.scene, goal)):
                return self._set_goal(goal)
        raise ValueError(f"there is no goal {self.goal_steps} steps and {self.crossings} doors from {self.scene[:2]}")

    def _on_the_way(self, goal: Array, steps: int) -> Array:
        position = self.scene[:2]
        for _ in range(steps):
            action = self._towards(position, self.layout.waypoint(position, goal, self.closed_door))
            position = self.layout.move(position, action, self.closed_door)
        return position

    def _towards(self, position: Array, target: Array) -> Array:
        gap = (target - position) / self.layout.speed
        return gap / max(1.0, float(np.hypot(*gap)))

    def _set_goal(self, goal: Array) -> None:
        self.goal_scene = self.scene.copy()
        self.goal_scene[:2] = goal

    def _put_distractors(self) -> None:
        self.scene[3 : 3 + 2 * len(self.distractors)] = self.distractors.ravel()

    def _blobs(self, scene: Array) -> list[tuple[Array, tuple[int, int, int]]]:
        places = zip(np.reshape(scene[3:], (-1, 2)), DISTRACTORS, strict=False)
        return [(place, colour) for place, colour in places if place[0] >= 0] + [(scene[:2], RED)]

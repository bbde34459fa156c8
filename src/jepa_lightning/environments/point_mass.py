"""PointMass: a disc that is pushed around, with inertia, and perhaps through a gate that nobody can predict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from jepa_lightning.environments.scenes import Array, SceneEnv, chosen

# From scenes [..., 4] (position, velocity) to rewards [...] in [0, 1].
REWARDS: dict[str, Callable[[Array], Array]] = {
    "top_left": lambda scene: _near(scene, -0.75, -0.75),
    "top_right": lambda scene: _near(scene, 0.75, -0.75),
    "bottom_left": lambda scene: _near(scene, -0.75, 0.75),
    "bottom_right": lambda scene: _near(scene, 0.75, 0.75),
    "ring": lambda scene: _falls(np.hypot(scene[..., 0], scene[..., 1]) - 0.6),
    "line": lambda scene: _falls(scene[..., 1]),
    "speed": lambda scene: np.minimum(np.hypot(scene[..., 2], scene[..., 3]), 1.0),
}


class PointMass(SceneEnv):
    """A disc in [−1, 1]² with mass and damping, pushed by a force in [−1, 1]²; walls stop it.

    A scene is position and velocity, `[4]`; the y axis points down, as in the frames. Velocities do not show in one.
    `reset(options={"position": …, "velocity": …, "goal": …})` says where an episode begins.

    Args:
        task: `goal`, to be within 0.1 of the goal, which ends an episode; or one of `REWARDS`, which every step is
            rewarded with, and no episode ends.
        gate: whether a wall across the middle (y = 0) leaves a gap only, of a width of 0.5, which throws the disc left
            or right, each with a probability of one half.
        mass: of the disc.
        damping: force against the motion at a speed of 1: the reciprocal of the largest speed.
        observation: `pixels` or `scene`.
        image_size: rows and columns of a frame.
        endless: whether an episode goes on with another goal at success.
        goal_steps: let the goal be where the disc is after that many steps of a steady force; anywhere without.
        render_mode: `rgb_array` or None.

    Raises:
        ValueError: an option out of its range.
    """

    success_distance = 0.1
    radius, step_seconds = 0.08, 0.05
    gap, throw = 0.5, 1.0  # width of the gate, and the speed that it throws with

    def __init__(
        self,
        task: str = "goal",
        gate: bool = False,
        mass: float = 0.3,
        damping: float = 1.0,
        observation: Literal["pixels", "scene"] = "pixels",
        image_size: int = 64,
        endless: bool = False,
        goal_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        if task != "goal" and task not in REWARDS:
            raise ValueError(f"task is goal or one of {', '.join(REWARDS)}, got {task!r}")
        if not mass > 0 or not 0 <= damping * self.step_seconds <= mass:
            raise ValueError(f"needs mass > 0 and 0 <= damping <= mass / {self.step_seconds}, got {mass}, {damping}")
        if image_size < 16:
            raise ValueError(f"at image_size={image_size} the disc would be lost between pixels: give 16 or more")
        if goal_steps is not None and goal_steps < 10:
            raise ValueError(f"within goal_steps={goal_steps} the disc hardly moves: give 10 or more")
        fastest = self.throw + (1 / damping if damping else 1e3)
        bounds = np.array([1.0, 1.0, fastest, fastest])
        super().__init__(observation, image_size, endless, render_mode, -bounds, bounds)
        self.task, self.gate, self.mass, self.damping, self.goal_steps = task, gate, mass, damping, goal_steps
        self._places = ((np.arange(image_size) + 0.5) * 2 / image_size - 1).astype(np.float32)

    def draw(self, scene: Array) -> Array:
        """The frame of a scene `[4]`: a red disc on white, and the gate's wall."""
        return self._disc(self._background(), scene, (255, 0, 0))

    def draw_marked(self, scene: Array, goal: Array) -> Array:
        """The frame of a scene, with the place of a goal."""
        return self._disc(self._disc(self._background(), goal, (0, 160, 0)), scene, (255, 0, 0))

    def begin(self, options: dict[str, Any]) -> None:
        """Draw what the options do not say: start and goal; the disc is at rest."""
        position, velocity = chosen(options, "position", "start"), chosen(options, "velocity", "start's")
        goal = chosen(options, "goal", "place")
        if options:
            raise ValueError(f"a reset has the options position, velocity and goal, not {', '.join(options)}")
        start = self._anywhere() if position is None else np.clip(position, -1 + self.radius, 1 - self.radius)
        self.scene = np.concatenate([start, np.zeros(2) if velocity is None else velocity])
        if goal is None:
            self.new_goal()
        else:
            self.goal_scene = np.concatenate([goal, np.zeros(2)])

    def advance(self, action: Array) -> None:
        """Push the disc."""
        self.scene = self._after(self.scene, action, self.np_random.choice([-1.0, 1.0]) if self.gate else 0.0)

    def expert(self) -> Array:
        """Proportional control with damping; through the gate, if there is one in between."""
        target = self.goal_scene[:2]
        if self.gate and self.scene[1] * target[1] < 0:
            # In front of the gap first, then through it.
            side, in_line = np.sign(self.scene[1]), abs(self.scene[0]) < self.gap / 4
            target = np.array([0.0, -0.3 * side if in_line else 0.25 * side])
        return np.clip(4.0 * (target - self.scene[:2]) - 1.5 * self.scene[2:], -1.0, 1.0)

    def new_goal(self) -> None:
        """A place that counts as another, or where a steady force leads."""
        while True:
            goal = np.concatenate([self._anywhere(), np.zeros(2)])
            if self.goal_steps is not None:
                goal, angle = self.scene, self.np_random.uniform(-np.pi, np.pi)
                for _ in range(self.goal_steps):
                    goal = self._after(goal, np.array([np.cos(angle), np.sin(angle)]), 0.0)
                goal = np.concatenate([goal[:2], np.zeros(2)])
            if np.hypot(*(goal - self.scene)[:2]) >= 2 * self.success_distance:
                self.goal_scene = goal
                return

    def reward(self) -> float:
        """That of the task; of a goal, 1 where it is reached."""
        if self.task == "goal":
            return float(self.distance() < self.success_distance)
        return float(REWARDS[self.task](self.scene))

    def rewards(self, scenes: Array, actions: Array) -> Array:
        """What the task gives for being in scenes `[N, 4]`, `[N]`.

        Raises:
            ValueError: a task with a goal, which is another one in every episode.
        """
        if self.task == "goal":
            raise ValueError(f"goals are others in every episode: give one of the tasks {', '.join(REWARDS)}")
        return np.asarray(REWARDS[self.task](scenes))

    def _info(self) -> dict[str, Any]:
        info = super()._info()
        return info if self.task == "goal" else info | {"success": False}

    def _after(self, scene: Array, force: Array, thrown: float) -> Array:
        before, velocity = scene[:2], scene[2:]
        velocity = velocity + self.step_seconds / self.mass * (force - self.damping * velocity)
        after, side = before + self.step_seconds * velocity, 1.0 if before[1] >= 0 else -1.0
        if self.gate and abs(after[0]) > self.gap / 2:
            nearest = min(self.radius, side * before[1])  # nearer only for one that comes out of the gap sideways
            if side * after[1] < nearest:
                after[1], velocity[1] = side * nearest, 0.0
        elif self.gate and side * after[1] < 0:
            velocity[0] = thrown * self.throw
        limit = 1 - self.radius
        velocity = np.where(np.abs(after) > limit, 0.0, velocity)
        return np.concatenate([np.clip(after, -limit, limit), velocity])

    def _anywhere(self) -> Array:
        while True:
            place = self.np_random.uniform(-0.9, 0.9, 2)
            if not self.gate or abs(place[1]) > self.radius:
                return place

    def _background(self) -> Array:
        image = np.full((self.image_size, self.image_size, 3), 255, dtype=np.uint8)
        if self.gate:
            middle = self.image_size // 2
            image[middle - 1 : middle + 1, np.abs(self._places) > self.gap / 2] = 0
        return image

    def _disc(self, image: Array, scene: Array, colour: tuple[int, int, int]) -> Array:
        columns, rows = (self._near(float(value)) for value in scene[:2])
        away = np.hypot(self._places[columns] - scene[0], (self._places[rows] - scene[1])[:, None])
        pixel = 2 / self.image_size  # its edge is as soft as a pixel is wide
        cover = np.clip((self.radius - away) / pixel + 0.5, 0.0, 1.0)[..., None]
        part = image[rows, columns]
        part[:] = np.rint(np.array(colour) * cover + part * (1 - cover)).astype(np.uint8)
        return image

    def _near(self, value: float) -> slice:
        reach = self.radius + 2 / self.image_size
        first, last = np.searchsorted(self._places, [value - reach, value + reach])
        return slice(int(first), int(last))


def _near(scene: Array, x: float, y: float) -> Array:
    return _falls(np.hypot(scene[..., 0] - x, scene[..., 1] - y))


def _falls(distance: Array) -> Array:
    """1 at no distance, 0.1 at 0.3."""
    return np.exp(-np.square(distance / 0.2))

"""What the environments share: scenes of a few numbers, frames drawn from them, and goals that are scenes too."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import gymnasium
import numpy as np

Array = np.ndarray[Any, Any]
RENDER_MODES = ["rgb_array"]


class SceneEnv(gymnasium.Env[Any, Any]):
    """A world of a few numbers, the scene, of which one sees a picture, and a goal, another scene, to get to.

    Observations are frames, uint8 `[rows, columns, 3]`, or the scenes themselves, float32 `[S]`. `info` has `scene` and
    `position`, `distance` to the goal and whether that is `success`; at a reset the `goal` too, which is what would be
    observed at the goal, and `goal_scene`. To record positions and draw the frames later: `draw(scene)`.

    Args:
        observation: `pixels` or `scene`.
        image_size: rows and columns of a frame in pixels.
        endless: whether an episode goes on with another goal where it would end with success: to collect data.
        render_mode: `rgb_array` or None; what is rendered shows the goal too, in green.
        low: the least value of each number of a scene, `[S]`.
        high: the largest.

    Raises:
        ValueError: another kind of observations, or a size that is not positive.
    """

    metadata = {"render_modes": RENDER_MODES, "render_fps": 10}  # noqa: RUF012 - gymnasium's own

    scene: Array
    goal_scene: Array
    success_distance: float

    def __init__(
        self,
        observation: Literal["pixels", "scene"],
        image_size: int,
        endless: bool,
        render_mode: str | None,
        low: Array,
        high: Array,
    ) -> None:
        if observation not in ("pixels", "scene"):
            raise ValueError(f"observation is 'pixels' or 'scene', got {observation!r}")
        if render_mode not in (None, *RENDER_MODES):
            raise ValueError(f"render_mode is 'rgb_array' or None, got {render_mode!r}")
        self.pixels, self.image_size = observation == "pixels", image_size
        self.endless, self.render_mode = endless, render_mode
        frames = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        scenes = gymnasium.spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
        self.observation_space = frames if self.pixels else scenes
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    @abstractmethod
    def draw(self, scene: Array) -> Array:
        """The frame of a scene `[S]`: uint8 `[image_size, image_size, 3]`."""

    @abstractmethod
    def draw_marked(self, scene: Array, goal: Array) -> Array:
        """The frame of a scene, with the place of a goal."""

    @abstractmethod
    def begin(self, options: dict[str, Any]) -> None:
        """Set `scene` and `goal_scene` for an episode, by `np_random` where `options` do not say."""

    @abstractmethod
    def advance(self, action: Array) -> None:
        """Move `scene` on by one step."""

    @abstractmethod
    def expert(self) -> Array:
        """The action `[2]` that somebody takes who knows the scene and wants to get to the goal."""

    @abstractmethod
    def new_goal(self) -> None:
        """Draw another goal that is not reached yet."""

    def observe(self, scene: Array) -> Array:
        """What is observed of a scene."""
        return self.draw(scene) if self.pixels else scene.astype(np.float32)

    def distance(self) -> float:
        """How far the first two numbers of the scene are from the goal's."""
        return float(np.hypot(*(self.scene[:2] - self.goal_scene[:2])))

    def reward(self) -> float:
        """What a step is rewarded with."""
        return 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin an episode; `options` may say where (see the environment)."""
        super().reset(seed=seed)
        self.begin(dict(options or {}))
        goal = {"goal": self.observe(self.goal_scene), "goal_scene": self.goal_scene.astype(np.float32)}
        return self.observe(self.scene), self._info() | goal

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Act.

        Raises:
            ValueError: an action that is not two finite numbers.
        """
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise ValueError(f"an action is two finite numbers, got {action}")
        self.advance(np.clip(action, -1.0, 1.0))
        info, reward = self._info(), self.reward()
        if self.endless and info["success"]:
            self.new_goal()
        return self.observe(self.scene), reward, info["success"] and not self.endless, False, info

    def render(self) -> Array | None:
        """The frame, with the goal in green."""
        return self.draw_marked(self.scene, self.goal_scene) if self.render_mode == "rgb_array" else None

    def _info(self) -> dict[str, Any]:
        distance = self.distance()
        return {
            "scene": self.scene.astype(np.float32),
            "position": self.scene[:2].astype(np.float32),
            "distance": distance,
            "success": distance < self.success_distance,
        }


def chosen(options: dict[str, Any], name: str, kind: str) -> Array | None:
    """A position that the options of a reset give, `[2]`.

    Raises:
        ValueError: something else.
    """
    value = options.pop(name, None)
    if value is None:
        return None
    position = np.asarray(value, dtype=np.float64)
    if position.shape != (2,) or not np.isfinite(position).all():
        raise ValueError(f"the {kind} {name!r} is two numbers, got {value}")
    return position

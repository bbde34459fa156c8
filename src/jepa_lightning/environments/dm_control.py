"""The tasks of dm_control's suite as a Gymnasium environment, whose states can be rewarded again by another task."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium
import numpy as np

Array = np.ndarray[Any, Any]


class DMControl(gymnasium.Env[Array, Array]):
    """A task of dm_control's suite: `gymnasium.make("jepa_lightning/DMControl-v0", domain="walker", task="run")`.

    Observations are all of the suite's, one after the other, or frames. An episode ends by dm_control's time limit,
    which truncates it, or where the task says that nothing follows. `info["physics"]` is the simulator's whole state,
    of which `rewards` tells what any task of the domain would have given.

    Shimmy has such an environment, too; it does not show that state.

    Args:
        domain: of the suite, such as `point_mass`.
        task: of the domain, such as `easy`.
        observation: `state`, or `pixels`.
        image_size: rows and columns of a frame.
        camera: which one frames are seen by.
        render_mode: `rgb_array` or None. Frames need a renderer of MuJoCo's (`MUJOCO_GL=egl`).
        control_timestep: seconds that an action lasts, a multiple of the simulator's step; the domain's own without.
            The time limit stays, so that episodes of longer actions have fewer steps.

    Raises:
        ValueError: a domain or task that the suite does not have, or a time that is no multiple.
        ImportError: dm_control is not installed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012 - Gymnasium's

    def __init__(
        self,
        domain: str,
        task: str,
        observation: Literal["state", "pixels"] = "state",
        image_size: int = 64,
        camera: int = 0,
        render_mode: str | None = None,
        control_timestep: float | None = None,
    ) -> None:
        try:
            from dm_control import suite
            from dm_control.rl.control import Environment
        except ImportError as error:
            raise ImportError(
                "the suite's tasks need dm-control, which is in the extra `control`: "
                'pip install "jepa-lightning[control]"'
            ) from error
        if (domain, task) not in suite.ALL_TASKS:
            tasks = [f"{one} {other}" for one, other in suite.ALL_TASKS if one == domain]
            there = tasks or sorted({one for one, _ in suite.ALL_TASKS})
            raise ValueError(f"dm_control's suite has no {domain} {task}, but {', '.join(there)}")
        if observation not in ("state", "pixels"):
            raise ValueError(f"observation is state or pixels, got {observation!r}")
        self.environment = suite.load(domain, task)
        if control_timestep is not None:
            # As an argument of the suite's, it would clash with that of the domains which set one themselves.
            made = self.environment
            limit = made._step_limit * made.control_timestep()
            self.environment = Environment(made.physics, made.task, limit, control_timestep)
        self.observation, self.image_size, self.camera, self.render_mode = observation, image_size, camera, render_mode
        action = self.environment.action_spec()
        low, high = (
            np.broadcast_to(each, action.shape).astype(np.float32) for each in (action.minimum, action.maximum)
        )
        self.action_space = gymnasium.spaces.Box(low, high)
        if observation == "pixels":
            self.observation_space = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        else:
            size = sum(int(np.prod(spec.shape)) for spec in self.environment.observation_spec().values())
            self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        if seed is not None:
            self.environment.task._random = np.random.RandomState(seed)
        return self._seen(self.environment.reset()), self._info()

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Act once."""
        step = self.environment.step(np.asarray(action, np.float64))
        terminated = bool(step.last() and step.discount == 0)
        return self._seen(step), float(step.reward), terminated, bool(step.last()) and not terminated, self._info()

    def rewards(self, physics: Array, actions: Array) -> Array:
        """What this task gives for being in states `[N, P]` of the simulator, got into by actions `[N, A]`; `[N]`."""
        simulator, task = self.environment.physics, self.environment.task
        found = np.empty(len(physics), np.float32)
        before = simulator.get_state()
        for row, (state, action) in enumerate(zip(physics, actions, strict=True)):
            with simulator.reset_context():
                simulator.set_state(state)
            simulator.set_control(np.asarray(action, np.float64))
            simulator.forward()
            found[row] = task.get_reward(simulator)
        with simulator.reset_context():
            simulator.set_state(before)
        return found

    def render(self) -> Any:
        """A frame.

        Raises:
            RuntimeError: MuJoCo has no renderer here.
        """
        from mujoco import FatalError

        try:
            return self.environment.physics.render(self.image_size, self.image_size, camera_id=self.camera)
        except (FatalError, AttributeError, RuntimeError) as error:  # by what is missing
            raise RuntimeError(
                "MuJoCo cannot draw frames here: without a screen it needs MUJOCO_GL=egl in the environment, or "
                f"MUJOCO_GL=osmesa, and its library ({error})"
            ) from error

    def _seen(self, step: Any) -> Array:
        if self.observation == "pixels":
            return np.asarray(self.render())
        return np.concatenate([np.ravel(part) for part in step.observation.values()]).astype(np.float32)

    def _info(self) -> dict[str, Any]:
        return {"physics": self.environment.physics.get_state()}

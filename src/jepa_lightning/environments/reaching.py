"""Goals for environments that have none: where an episode that somebody has played is some steps later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from jepa_lightning.data.episodes.policies import Mixture

Array = np.ndarray[Any, Any]
TRIES = 100  # episodes that are played to find one that ends away from where it starts


class Reaching(gymnasium.Env[Any, Any]):
    """Reach what an episode of a policy shows `goal_steps` steps later, in any environment.

    At a reset, a policy plays some steps, and what is seen then is the goal. The environment then begins again, by the
    same seed: it need not be able to set its state, but has to begin the same for the same seed. The tasks of DINO-WM,
    LeWorldModel and stable-worldmodel are made like this, too, of episodes that lie in files.

    Observations and actions are those of the environment. `info` has `success`, and at a reset the `goal`, what is
    observed there. Success ends an episode; where the environment itself ends one without it, it is truncated.

    Args:
        environment: `{"id": …, …}`, the arguments of `gymnasium.make`.
        goal_steps: steps of the policy from the start to the goal.
        within: what success is: how near an entry of `info`, or of observations by name (`observation` without names),
            has to be to what it is at the goal. One number is the Euclidean distance, a list that of each axis. In
            PushT, `{"pos_agent": 20}` is reaching by the agent, and `{"pos_agent": 20, "block_pose": [20, 20, 0.35]}`
            about the task of DINO-WM, positions within 20 pixels and the angle within 20°.
        policies: who plays, with the shares of the episodes (see `Mixture`).
        render_mode: `rgb_array` or None.

    Raises:
        ValueError: an option out of its range; from `reset`, an environment that does not begin the same for the same
            seed, a policy that gets nowhere, or an entry that is not there.

    Source: DINO-WM (arXiv 2411.04983), section 4 and `PushTWrapper.eval_state` of its code.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - gymnasium's own

    def __init__(
        self,
        environment: Mapping[str, Any],
        goal_steps: int,
        within: Mapping[str, float | Sequence[float]],
        policies: Mapping[str, Any] | None = None,
        render_mode: str | None = None,
    ) -> None:
        if "id" not in environment:
            raise ValueError(f"an environment is given as {{id: …}}, with its options, not as {dict(environment)}")
        if goal_steps < 1:
            raise ValueError(f"goal_steps={goal_steps} must be at least 1")
        if not within or not all(np.all(np.asarray(distance) > 0) for distance in within.values()):
            raise ValueError(f"within says how near what has to be, such as {{pos_agent: 20}}, got {dict(within)}")
        self.inner: Any = gymnasium.make(**{**environment, "render_mode": render_mode})
        self.observation_space, self.action_space = self.inner.observation_space, self.inner.action_space
        self.goal_steps, self.within, self.render_mode = goal_steps, dict(within), render_mode
        self.policy = Mixture(policies or {"random": 1.0})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; `options` are those of the environment."""
        super().reset(seed=seed)
        for _ in range(TRIES):
            begin = int(self.np_random.integers(2**31))
            first, info = self.inner.reset(seed=begin, options=options)
            start = self._places(first, info)
            goal = self._play(first, begin)
            if not self._near(start):
                break
        else:
            raise ValueError(
                f"after {self.goal_steps} steps the policy is still within {self.within} of where it started, in "
                f"{TRIES} of {TRIES} episodes: give more goal_steps, another policy or smaller distances"
            )
        seen, info = self.inner.reset(seed=begin, options=options)
        if not np.allclose(
            np.concatenate(list(start.values())), np.concatenate(list(self._places(seen, info).values()))
        ):
            raise ValueError(f"{self.inner.spec.id} does not begin the same for the same seed")
        self._step = 0
        return seen, {**info, "success": False, "goal": goal}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act."""
        seen, reward, terminated, truncated, info = self.inner.step(action)
        self._step += 1
        success = self._near(self._places(seen, info))
        return seen, float(reward), success, truncated or terminated, {**info, "success": success}

    def expert(self) -> Any:
        """What the policy did at this step of the episode that ends at the goal."""
        return self.actions[min(self._step, len(self.actions) - 1)]

    def render(self) -> Any:
        """The environment's picture."""
        return self.inner.render()

    def close(self) -> None:
        """Close the environment."""
        self.inner.close()

    def _play(self, seen: Any, seed: int) -> Any:
        """What the policy sees after its steps; keeps them, and what has to be reached."""
        rng = np.random.default_rng(seed)
        self.policy.begin(self.inner, rng)
        info: dict[str, Any] = {}
        ends = False
        self.actions: list[Any] = []
        while len(self.actions) < self.goal_steps and not ends:
            self.actions.append(self.policy.act(seen, self.inner, rng))
            seen, _, terminated, truncated, info = self.inner.step(self.actions[-1])
            ends = terminated or truncated
        self.goal_places = self._places(seen, info)
        return seen

    def _places(self, seen: Any, info: Mapping[str, Any]) -> dict[str, Array]:
        shown = {**info, **(seen if isinstance(seen, Mapping) else {"observation": seen})}
        if missing := [name for name in self.within if name not in shown]:
            raise ValueError(f"within names {', '.join(missing)}, but the environment shows {', '.join(shown)}")
        return {name: np.asarray(shown[name], dtype=np.float64).ravel() for name in self.within}

    def _near(self, places: Mapping[str, Array]) -> bool:
        gaps = {name: place - self.goal_places[name] for name, place in places.items()}
        return all(
            bool(
                np.linalg.norm(gap) < self.within[name]
                if np.ndim(self.within[name]) == 0
                else (np.abs(gap) < self.within[name]).all()
            )
            for name, gap in gaps.items()
        )

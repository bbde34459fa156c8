"""Episodes of a policy in environments, several at once: does it get to its goals, and how long does it think?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


def wilson(successes: int, number: int, z: float = 1.96) -> tuple[float, float]:
    """The interval that holds a probability, of which so many trials have succeeded, with 95 % confidence.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".

    >>> [round(end, 3) for end in wilson(8, 10)]
    [0.49, 0.943]
    """
    share, spread = successes / number, z * z / number
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * float(np.sqrt(share * (1 - share) / number + spread / number / 4))
    return max(0.0, middle - half), min(1.0, middle + half)


class Outcome(NamedTuple):
    """What came of some episodes.

    Attributes:
        success: BoolArray `[N]`.
        steps: `[N]`, steps of the environment until success, or until the end.
        seconds: of thought for each decision of each environment.
        film: frames `[T, rows, columns, 3]` of the first episode; empty without.
    """

    success: Array
    steps: Array
    seconds: float
    film: list[Array]

    def __str__(self) -> str:
        low, high = wilson(int(self.success.sum()), len(self.success))
        arrived = self.steps[self.success]
        return (
            f"success {100 * self.success.mean():.1f} % ({100 * low:.1f} to {100 * high:.1f}) of {len(self.success)} "
            f"episodes, in {arrived.mean() if len(arrived) else float('nan'):.1f} steps; "
            f"{1000 * self.seconds:.1f} ms a decision"
        )


class Reference:
    """Who needs no model, and what planning is measured against.

    Args:
        kind: `expert`, the environment's own; `straight`, at the goal, whatever is in between; or `random`.
        seed: of random actions.

    Raises:
        ValueError: another kind; when episodes begin, one that has no expert, or no scenes.
    """

    def __init__(self, kind: Literal["expert", "straight", "random"], seed: int = 0) -> None:
        if kind not in ("expert", "straight", "random"):
            raise ValueError(f"a reference is expert, straight or random, got {kind!r}")
        self.kind, self._random = kind, np.random.default_rng(seed)

    def enter(self, envs: Sequence[Any]) -> None:
        """Look into the environments."""
        self.envs = [env.unwrapped for env in envs]
        needed = {"expert": "expert", "straight": "goal_scene"}.get(self.kind)
        if needed is not None and not hasattr(self.envs[0], needed):
            raise ValueError(f"{type(self.envs[0]).__name__} has no {needed}, so that nobody can act as {self.kind}")

    def __call__(self, observation: Array, goal: Array, state: Array | None = None, active: Any = None) -> Array:
        """The actions, `[N, A]`."""
        return np.stack([self._action(env) for env in self.envs])

    def _action(self, env: Any) -> Array:
        if self.kind == "expert":
            return np.asarray(env.expert())
        space = env.action_space
        if self.kind == "random":
            return self._random.uniform(space.low, space.high)
        gap = env.goal_scene[:2] - env.scene[:2]
        return np.asarray(gap / max(float(np.hypot(*gap)), 1e-6))


def play(
    policy: Callable[..., Array],
    environment: Mapping[str, Any],
    num_episodes: int = 50,
    num_envs: int = 10,
    max_steps: int | None = None,
    observation: str = "observation",
    state: str | None = None,
    seed: int = 0,
    film: bool = False,
) -> Outcome:
    """Let a policy act in an environment, towards the goal of each episode.

    The goal of an episode is `info["goal"]` at its reset, or `desired_goal` of observations by name, as of Gymnasium's
    robots; an environment without any has goals in `jepa_lightning/Reaching-v0`. It is reached where `info["success"]`
    (or `is_success`) says so, or, of environments that say nothing, where the episode terminates.

    Args:
        policy: called with observations, goals, states and which environments still act, see `Policy`. If it has
            them, `bound` is told the bounds of actions, `enter` given the environments, and `reset` called, before each
            set of episodes.
        environment: `{"id": …, …}`, the arguments of `gymnasium.make`.
        num_episodes: N.
        num_envs: environments at once.
        max_steps: steps of an episode at most; as many as the environment lets it have without.
        observation: which of an environment's observations the policy sees, where these have names.
        state: which one is the state, or the entry of `info` that is.
        seed: of the first episode; the next ones have the next seeds.
        film: whether the first episode is filmed.

    Raises:
        ValueError: an environment without goals, or without what it is asked for.
        ImportError: gymnasium is not installed.
    """
    import jepa_lightning.environments  # noqa: F401 - registers them, and says what is missing

    import gymnasium  # isort: skip

    options = {name: value for name, value in environment.items() if name != "id"} | {"render_mode": "rgb_array"}
    success, lengths, frames = [], [], list[Array]()
    thought, decisions = 0.0, 0
    for first in range(0, num_episodes, num_envs):
        count = min(num_envs, num_episodes - first)
        envs: Any = gymnasium.make_vec(environment["id"], count, vectorization_mode="sync", **options)
        seen, info = envs.reset(seed=[seed + first + number for number in range(count)])
        space = envs.single_action_space
        if hasattr(policy, "bound"):
            policy.bound(space.low, space.high)
        if hasattr(policy, "enter"):
            policy.enter(envs.envs)
        if hasattr(policy, "reset"):
            policy.reset()
        goal = _goal(seen, info, observation, environment["id"])
        active, arrived, steps = np.ones(count, bool), np.zeros(count, bool), np.zeros(count, int)
        while active.any():
            if film and first == 0 and active[0]:
                frames.append(envs.envs[0].render())
            before = time.perf_counter()
            given = None if state is None else _named(seen, info, state)
            actions = policy(_named(seen, info, observation), goal, state=given, active=active)
            thought, decisions = thought + time.perf_counter() - before, decisions + int(active.sum())
            seen, _, terminated, truncated, info = envs.step(
                np.clip(actions, space.low, space.high).astype(space.dtype)
            )
            steps += active
            reached = next((np.asarray(info[n], bool) for n in ("success", "is_success") if n in info), terminated)
            arrived |= active & reached
            ended = reached | terminated | truncated
            active &= ~ended if max_steps is None else ~ended & (steps < max_steps)
        envs.close()
        success.append(arrived)
        lengths.append(steps)
    return Outcome(np.concatenate(success), np.concatenate(lengths), thought / max(1, decisions), frames)


def _goal(seen: Any, info: Mapping[str, Any], observation: str, name: str) -> Array:
    if "goal" in info:
        return _named(info["goal"], {}, observation)
    if isinstance(seen, Mapping) and "desired_goal" in seen:
        return np.asarray(seen["desired_goal"])
    raise ValueError(
        f"{name} has no goals: neither its info has `goal` at a reset, nor its observations `desired_goal`. "
        f"Reaching-v0 makes goals of what a policy gets to: {{id: jepa_lightning/Reaching-v0, environment: {{id: "
        f"{name}}}, goal_steps: 25, within: {{…}}}}"
    )


def _named(seen: Any, info: Mapping[str, Any], name: str) -> Array:
    """The observations, or those of a name."""
    if isinstance(seen, Mapping) and name in seen:
        return np.asarray(seen[name])
    if name in info:
        return np.asarray(info[name])
    if isinstance(seen, Mapping) or name != "observation":
        there = [*(seen if isinstance(seen, Mapping) else ()), *(key for key in info if not key.startswith("_"))]
        raise ValueError(f"there is no {name!r} among what the environment shows: {', '.join(there)}")
    return np.asarray(seen)

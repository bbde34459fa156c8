"""Who acts while episodes are recorded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from jepa_lightning.errors import unknown_options
from jepa_lightning.importing import imported

Array = np.ndarray[Any, Any]


class RecordingPolicy(Protocol):
    """Acts by what it sees, in an environment whose insides it may look at, too."""

    def begin(self, env: Any, rng: np.random.Generator) -> None:
        """Begin an episode."""

    def act(self, observation: Any, env: Any, rng: np.random.Generator) -> Any:
        """The next action."""


class RandomPolicy:
    """Every action on its own, uniformly."""

    def begin(self, env: Any, rng: np.random.Generator) -> None:
        """Seed the actions by the recording's numbers."""
        env.action_space.seed(int(rng.integers(2**31)))

    def act(self, observation: Any, env: Any, rng: np.random.Generator) -> Any:
        """Any action."""
        return env.action_space.sample()


class WalkPolicy:
    """Walks along smooth curves through a plane, of changing curvature and speed, towards nothing.

    Source: H-JEPA (arXiv 2610.06805), the policy `explore` of its FourRoom data.
    """

    def begin(self, env: Any, rng: np.random.Generator) -> None:
        """Head anywhere.

        Raises:
            ValueError: actions that are not those of a plane.
        """
        if getattr(env.action_space, "shape", None) != (2,):
            raise ValueError(f"a walk is for actions of two numbers, not {env.action_space}")
        self.heading, self.wanted = rng.uniform(-np.pi, np.pi, 2)
        self.turning, self.speed = 0.0, 0.75

    def act(self, observation: Any, env: Any, rng: np.random.Generator) -> Array:
        """A step ahead."""
        if rng.random() < 1 - np.exp(-1 / 50):
            self.wanted = rng.uniform(-np.pi, np.pi)
        gap = (self.wanted - self.heading + np.pi) % (2 * np.pi) - np.pi
        self.turning = float(np.clip(0.995 * self.turning + 0.015 * gap + rng.normal(0, 0.002), -0.08, 0.08))
        self.heading += self.turning
        self.speed = float(np.clip(0.75 + 0.95 * (self.speed - 0.75) + rng.normal(0, 0.005), 0.05, 1.0))
        action = self.speed * np.array([np.cos(self.heading), np.sin(self.heading)])
        space = env.action_space
        return (space.low + (action + 1) / 2 * (space.high - space.low)).astype(space.dtype)


class ExpertPolicy:
    """The environment's own expert (`env.unwrapped.expert()`), with noise, and at times the action before once more.

    Args:
        noise: standard deviation that is added to each number of an action.
        repeat: probability of the action before.
    """

    def __init__(self, noise: float = 1.0, repeat: float = 0.05) -> None:
        self.noise, self.repeat = noise, repeat

    def begin(self, env: Any, rng: np.random.Generator) -> None:
        """Ask the expert.

        Raises:
            ValueError: an environment without one.
        """
        if not hasattr(env.unwrapped, "expert"):
            raise ValueError(f"{type(env.unwrapped).__name__} has no expert: give another policy, or your own")
        self.action: Array | None = None

    def act(self, observation: Any, env: Any, rng: np.random.Generator) -> Array:
        """The expert's action, disturbed."""
        if self.action is None or rng.random() >= self.repeat:
            action = env.unwrapped.expert()
            disturbed = action + self.noise * rng.standard_normal(np.shape(action))
            space = env.action_space
            self.action = np.clip(disturbed, space.low, space.high).astype(space.dtype)
        return self.action


POLICIES: dict[str, type[Any]] = {"random": RandomPolicy, "walk": WalkPolicy, "expert": ExpertPolicy}


class Mixture:
    """One of several policies for each episode.

    Args:
        given: the share of the episodes of each policy: `random`, `walk`, `expert`, or the path of a class of your own,
            which has `begin(env, rng)` and `act(observation, env, rng)`. With options of the policy, the share is one
            of these: `{"random": 0.5, "expert": {"share": 0.5, "noise": 2.0}}`.

    Raises:
        ValueError: a policy that there is not, or shares that are not positive.
        TypeError: an option that the policy does not have.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        options = {name: dict(each) if isinstance(each, Mapping) else {"share": each} for name, each in given.items()}
        shares = [each.pop("share", 0.0) for each in options.values()]
        if not shares or not all(share > 0 for share in shares):
            raise ValueError(f"policies are given with their shares of the episodes, above 0, got {dict(given)}")
        self.policies = [_policy(name, each) for name, each in options.items()]
        self.shares = np.array(shares) / sum(shares)

    def begin(self, env: Any, rng: np.random.Generator) -> None:
        """Choose who acts."""
        self.chosen = self.policies[rng.choice(len(self.policies), p=self.shares)]
        self.chosen.begin(env, rng)

    def act(self, observation: Any, env: Any, rng: np.random.Generator) -> Any:
        """The chosen policy's action."""
        return self.chosen.act(observation, env, rng)


def _policy(name: str, options: Mapping[str, Any]) -> Any:
    found = POLICIES.get(name)
    if found is None:
        try:
            found = imported(name)
        except ValueError as error:
            raise ValueError(f"there is no policy {name!r}: {', '.join(POLICIES)}, or the path of a class") from error
    known = set(inspect.signature(found).parameters)
    if unknown := sorted(set(options) - known):
        raise TypeError(unknown_options(name, unknown, known))
    policy = found(**options)
    if missing := [part for part in ("begin", "act") if not hasattr(policy, part)]:
        raise ValueError(f"{name} is no policy to record by: it has no {' and no '.join(missing)}")
    return policy

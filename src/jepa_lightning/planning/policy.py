"""From a planner and a world model to somebody who acts: observation and goal to action."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jepa_lightning.checkpoints.reading import read_file
from jepa_lightning.data.episodes.preparation import Preparation
from jepa_lightning.importing import imported
from jepa_lightning.planning.building import policy_options
from jepa_lightning.planning.costs import GoalCost
from jepa_lightning.planning.planner import Planner
from jepa_lightning.planning.projections import Box

Array = np.ndarray[Any, Any]


class Policy:
    """Plans, acts for a while, and plans again from there: receding horizon.

    `policy(observation, goal)` is the next action of the world, for one environment or for several at once. It goes on
    with its plan, and starts the next from it, as long as the goal stays the same; `reset` forgets it.

    Args:
        world: the model to plan in, with `start`, `goal`, `step` and `distance`, such as `VJEPA2AC.world`.
        planner: of actions in the model's units.
        preparation: how what is seen comes into the model's units, and actions back into the world's.
        execute: actions of the model that are done before it plans again.
        last: of how many steps at the end of a plan the distances to the goal are added up; of all with None.
        bounds: the least and the largest action of the world, one for all axes or one each.
        seed: of the planner's draws.
        embodiment: of a model of several, which one acts.

    Raises:
        ValueError: more actions to do than are planned.
    """

    def __init__(
        self,
        world: Any,
        planner: Planner,
        preparation: Preparation,
        execute: int = 1,
        last: int | None = 1,
        bounds: tuple[Any, Any] | None = None,
        seed: int = 0,
        embodiment: int | None = None,
    ) -> None:
        if not 1 <= execute <= planner.horizon:
            raise ValueError(f"execute must be 1 to the horizon {planner.horizon}, got {execute}")
        self.world, self.planner, self.preparation = world, planner, preparation
        self.execute, self.last, self.seed, self.embodiment = execute, last, seed, embodiment
        self._own_projections = planner.projections
        if bounds is not None:
            self.bound(*bounds)
        if planner.noise is None:
            planner.noise = self._noise
        self._random = torch.Generator().manual_seed(seed)
        self.reset()

    def bound(self, low: Any, high: Any) -> None:
        """Plan no actions of the world below and above these bounds, one for all axes or one each."""
        self.planner.projections = (*self._own_projections, self._box(low, high))

    def reset(self) -> None:
        """Forget the plan, as at the beginning of an episode."""
        self._plans: Tensor | None = None
        self._actions: list[Array] = []
        self._goal: Any = None
        self._goal_seen: Array | None = None

    @torch.no_grad()
    def __call__(
        self, observation: Array, goal: Array, state: Array | None = None, active: Array | None = None
    ) -> Array:
        """The next action.

        Args:
            observation: a frame `[rows, columns, C]` or vector `[F]`, or one for each environment, with an axis more.
            goal: what would be observed there, of the same shape.
            state: the robot's state `[S]`, or `[N, S]`, for a model that was trained with states.
            active: of several environments `[N]`, those that are still to act; the others' actions are zero.

        Returns:
            `[A]`, or `[N, A]`.

        Raises:
            ValueError: observation and goal of different shapes.
        """
        seen, wanted = np.asarray(observation), np.asarray(goal)
        if seen.shape != wanted.shape:
            raise ValueError(f"the goal is an observation, of shape {list(seen.shape)}, not of {list(wanted.shape)}")
        if seen.ndim in (1, 3):
            given = None if state is None else np.asarray(state)[None]
            return self(seen[None], wanted[None], given)[0]
        if self._goal_seen is None or not np.array_equal(self._goal_seen, wanted):
            self.reset()
            self._goal_seen = wanted.copy()
            self._goal = self.world.goal({"observation": self._prepared(wanted)})
        rows = np.arange(len(seen)) if active is None else np.flatnonzero(active)
        if not self._actions:
            self._plan(seen, None if state is None else np.asarray(state), rows)
        action = self._actions.pop(0)
        action[np.setdiff1d(np.arange(len(seen)), rows)] = 0.0
        return action

    def _plan(self, seen: Array, state: Array | None, rows: Array) -> None:
        """Plan for some environments, and queue the actions of the world to do."""
        observations = {"observation": self._prepared(seen[rows])}
        if state is not None:
            observations["state"] = self.preparation.states(state[rows]).to(self._device)
        if self.embodiment is not None:
            observations["embodiment"] = torch.full((len(rows),), self.embodiment, device=self._device)
        nominal = self.planner.start(len(seen), self._device) if self._plans is None else self._plans
        cost = GoalCost(self.world, self.world.start(observations), self._goal[rows], self.last)
        plan = self.planner(cost, nominal[rows])
        nominal = nominal.clone()
        nominal[rows] = self.planner.later(plan.nominal, self.execute)
        self._plans = nominal
        done = self.preparation.world_actions(plan.actions[:, : self.execute]).cpu().numpy()
        actions = np.zeros((len(seen), *done.shape[1:]), np.float32)
        actions[rows] = done
        self._actions = list(actions.swapaxes(0, 1))

    def _prepared(self, seen: Array) -> Tensor:
        prepared = self.preparation.observations(seen)
        return (prepared if prepared.ndim == 2 else prepared.transpose(0, 1)).to(self._device)

    @property
    def _device(self) -> torch.device:
        predictor = getattr(self.world, "predictor", None)
        parameter = next(predictor.parameters(), None) if isinstance(predictor, nn.Module) else None
        return torch.device("cpu") if parameter is None else parameter.device

    def _noise(self, iteration: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self._random)  # drawn on the CPU: the same on any device

    def _box(self, low: Any, high: Any) -> Box:
        """Bounds of the world's actions as those of the model's."""
        blocks = self.planner.action_dim // self.preparation.stride
        count = self.planner.action_dim if self.preparation.differences else blocks
        least, most = (torch.as_tensor(np.asarray(each, np.float32)).expand(count) for each in (low, high))
        scale = self.preparation.scales.get("action")
        if scale is not None:
            least, most = scale.to(least), scale.to(most)
        repeats = 1 if self.preparation.differences else self.preparation.stride
        return Box(least.repeat(repeats).tolist(), most.repeat(repeats).tolist())


def load_planner(
    path: str | Path,
    planner: Mapping[str, Any] | None = None,
    bounds: tuple[Any, Any] | None = None,
    device: torch.device | str = "cpu",
    embodiment: int | None = None,
    **options: Any,
) -> Policy:
    """Somebody who acts by the world model of a checkpoint, which needs no Trainer: `policy(observation, goal)`.

    Args:
        path: a checkpoint of this package of a world model, such as `VJEPA2AC`. The class that it names is imported, so
            load files from people you trust.
        planner: another one than the checkpoint's, `{"class_path": …, "init_args": {…}}`.
        bounds: the least and the largest action of the world.
        device: where it plans.
        embodiment: of a checkpoint of several embodiments, which one acts, 0 being the first of its sources.
        **options: those of `Policy`: `execute`, `last`, `seed`.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a checkpoint of something else, or one that does not say how actions are normalised.
    """
    checkpoint = read_file(Path(path))
    class_path = str(checkpoint.get("class_path", ""))
    if not class_path:
        raise ValueError(f"{path} is no checkpoint of a world model, such as VJEPA2AC: it names no class")
    found = imported(class_path)
    if not (isinstance(found, type) and issubclass(found, nn.Module) and hasattr(found, "world")):
        raise ValueError(f"{path} is of {class_path}, which is no world model: it has no `world`")
    kept = _kept(checkpoint, path, embodiment)
    model: Any = found.load_from_checkpoint(path, map_location=device, weights_only=True)  # type: ignore[attr-defined]
    return policy_of(model.eval(), Preparation.from_state(kept), planner, bounds, embodiment=embodiment, **options)


def policy_of(
    module: Any,
    preparation: Preparation,
    planner: Mapping[str, Any] | None = None,
    bounds: tuple[Any, Any] | None = None,
    **options: Any,
) -> Policy:
    """The policy of a module that is a world model, by its own planner or another one, see `load_planner`."""
    chosen = module.hparams.planner if planner is None else planner
    built, own = policy_options(chosen, preparation.action_dim or module.hparams.action_dim)
    return Policy(module.world, built, preparation, bounds=bounds, **{**own, **options})


def _kept(checkpoint: Mapping[str, Any], path: str | Path, embodiment: int | None) -> dict[str, Any]:
    """How the numbers of a checkpoint, or of one of its embodiments, were prepared."""
    states = [each for each in checkpoint.values() if isinstance(each, Mapping)]
    kinds = next((each["kinds"] for each in states if "kinds" in each), None)
    if kinds is not None:
        if embodiment is None or not 0 <= embodiment < len(kinds):
            raise ValueError(f"{path} is of {len(kinds)} embodiments: give embodiment=0 to {len(kinds) - 1}")
        return dict(kinds[embodiment]["preparation"])
    if embodiment is not None:
        raise ValueError(f"{path} is of one embodiment: leave embodiment={embodiment} out")
    kept = next((each["preparation"] for each in states if "preparation" in each), None)
    if kept is None:
        raise ValueError(
            f"{path} does not say how its actions are normalised, as checkpoints of trainings on an EpisodesDataModule "
            "do: make the policy yourself, Policy(module.world, planner, preparation)"
        )
    return dict(kept)

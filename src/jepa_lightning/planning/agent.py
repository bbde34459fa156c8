"""From a checkpoint to somebody who acts for any reward: observation and task to action."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jepa_lightning.checkpoints.reading import read_file
from jepa_lightning.data.episodes.preparation import Scale
from jepa_lightning.importing import imported

Array = np.ndarray[Any, Any]


class Agent:
    """Acts in the world's units, for whatever task is inferred from rewards or from a goal.

    Example:
        agent = load_agent("last.ckpt")
        task = agent.infer_task(observations, rewards)  # some states, and what each is worth
        action = agent.act(observation, task)

    Args:
        module: with `infer_task`, `infer_goal` and `act`, such as `TDJEPA`.
        units: what `observation` (of vectors) and `action` are normalised by.
        frame_stack: frames that make one observation.
    """

    def __init__(self, module: Any, units: Mapping[str, Scale], frame_stack: int = 1) -> None:
        self.module, self.units, self.frame_stack = module.eval(), dict(units), frame_stack

    def infer_task(self, observations: Array, rewards: Array) -> Tensor:
        """The task `[Z]` of a reward.

        Args:
            observations: some states `[N, F]`, or frames `[N, rows, columns, C]`, stacked ones `[N, K, …]`.
            rewards: `[N]`, what being in each is worth.

        Raises:
            ValueError: rewards that are not finite, all zero, or not one for each state.
        """
        found: Tensor = self.module.infer_task(self.prepared(observations), torch.as_tensor(np.asarray(rewards)))
        return found

    def infer_goal(self, observation: Array) -> Tensor:
        """The task `[Z]` of being in a state `[F]`, or where a frame shows."""
        found: Tensor = self.module.infer_goal(self.prepared(np.asarray(observation)[None]))[0]
        return found

    def act(self, observation: Array, task: Tensor) -> Array:
        """The action `[A]` in a state `[F]`, or those `[N, A]` in several `[N, F]`; tasks `[Z]`, or one each.

        Raises:
            ValueError: observations of another shape than the module's.
        """
        seen = np.asarray(observation)
        axes = 1 if "observation" in self.units or seen.dtype != np.uint8 else 3 + (self.frame_stack > 1)
        if seen.ndim == axes:
            return self.act(seen[None], task)[0]
        action = self.module.act(self.prepared(seen), task.to(self.module.device)).cpu()
        return np.asarray(self.units["action"].back(action) if "action" in self.units else action)

    def prepared(self, observations: Array) -> Tensor:
        """Observations of the world as the module sees them."""
        values = torch.from_numpy(np.ascontiguousarray(observations))
        if values.dtype != torch.uint8:
            values = values.float()
            values = self.units["observation"].to(values) if "observation" in self.units else values
        elif values.ndim >= 4:
            stacked = values.unsqueeze(1) if values.ndim == 4 else values
            values = stacked.permute(0, 1, 4, 2, 3).flatten(1, 2)
        return values.to(self.module.device)


def load_agent(path: str | Path, device: torch.device | str = "cpu") -> Agent:
    """Somebody who acts for any reward by a checkpoint's policy, which needs no Trainer.

    Args:
        path: a checkpoint of this package, such as a `TDJEPA`'s of a training on a `TransitionsDataModule`. The class
            that it names is imported, so load files from people you trust.
        device: where it acts.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a checkpoint of something else, or one that does not say how its numbers are normalised.
    """
    checkpoint = read_file(Path(path))
    class_path = str(checkpoint.get("class_path", ""))
    found = imported(class_path) if class_path else None
    if not (isinstance(found, type) and issubclass(found, nn.Module) and hasattr(found, "infer_task")):
        raise ValueError(f"{path} is of {class_path or 'no named class'}, which infers no tasks, as TDJEPA does")
    kept = next((each for each in checkpoint.values() if isinstance(each, Mapping) and "units" in each), None)
    if kept is None:
        raise ValueError(
            f"{path} does not say how its observations and actions are normalised, as checkpoints of trainings on a "
            "TransitionsDataModule do: make the agent yourself, Agent(module, units)"
        )
    units = {name: Scale(*(torch.tensor(each[key]) for key in ("mean", "std"))) for name, each in kept["units"].items()}
    module = found.load_from_checkpoint(path, map_location=device, weights_only=True)  # type: ignore[attr-defined]
    return Agent(module, units, kept.get("frame_stack", 1))

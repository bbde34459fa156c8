"""Steps of recorded episodes, or of episodes that are recorded from an environment, in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jepa_lightning.data.datamodule import SplitDataModule
from jepa_lightning.data.episodes.columns import ArrayColumn, Episode
from jepa_lightning.data.episodes.formats import open_episodes
from jepa_lightning.data.episodes.preparation import Scale
from jepa_lightning.data.episodes.record import make_environment, record
from jepa_lightning.data.transitions.dataset import TransitionSet, WithReplacement
from jepa_lightning.data.transitions.reading import Steps, read_steps
from jepa_lightning.errors import check_numbers


class TransitionsDataModule(SplitDataModule):
    """Steps of an environment, drawn uniformly with replacement; batches are `Transitions`.

    Steps are read from `root`: ExoRL's episodes (npz), ogbench's npz, D4RL's and minari's HDF5, our own recordings, and
    whatever else `open_episodes` reads (see `read_steps` for what is in which row). Without a `root`, they are recorded
    from the `environment`. All of them are in memory, once, whatever the number of workers. What observations are
    normalised by is found in the training's steps, and kept in checkpoints; so are the bounds of actions, which become
    −1 and 1.

    Args:
        root: file or folder of episodes; recorded without.
        columns: names of the columns `observation`, `action`, `reward` and `terminated`, where they are none of the
            layouts above.
        environment: `{"id": …, …}`, the arguments of `gymnasium.make`, which is recorded.
        policies: who acts while it is, each for a share of the episodes (see `Mixture`); at random by default.
        num_episodes: how many are recorded.
        max_steps: steps of a recorded episode, at most.
        standardize: whether observations that are vectors are normalised.
        action_bounds: the least and the largest action, a number for all or one each; those of the environment where it
            is recorded, −1 and 1 without.
        frame_stack: frames that make one observation.
        batches_an_epoch: batches of all processes that an epoch has.
        held_out: share of the episodes that is held out, to validate, test and predict on.
        batch_size: steps a batch.
        num_workers: worker processes per loader; 0 draws in the training process, which is fast.
        seed: of the recording and of which episodes are held out.

    Raises:
        ValueError: for an argument out of range; from `setup`, for episodes that do not fit or actions out of bounds.
        FileNotFoundError: from `setup`, if there are no episodes.
        ImportError: from `setup`, if a library is missing.
    """

    hparams: Any

    def __init__(
        self,
        root: str | None = None,
        columns: dict[str, str] | None = None,
        environment: dict[str, Any] | None = None,
        policies: dict[str, Any] | None = None,
        num_episodes: int = 100,
        max_steps: int | None = None,
        standardize: bool = True,
        action_bounds: list[Any] | None = None,
        frame_stack: int = 1,
        batches_an_epoch: int = 1000,
        held_out: float = 0.0,
        batch_size: int = 1024,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers)
        numbers = {"num_episodes": num_episodes, "max_steps": max_steps, "frame_stack": frame_stack}
        check_numbers(numbers | {"batches_an_epoch": batches_an_epoch}, 1)
        if not 0 <= held_out < 1:
            raise ValueError(f"held_out={held_out} must be a share of the episodes, from 0 to below 1.")
        if root is None and environment is None:
            raise ValueError("give a root to read episodes from, or an environment to record them from.")
        if environment is not None and "id" not in environment:
            raise ValueError(f"an environment is given as {{id: …}}, with its options, not as {environment}.")
        if unknown := set(columns or {}) - {"observation", "action", "reward", "terminated"}:
            raise ValueError(f"columns are of observation, action, reward and terminated, not of {', '.join(unknown)}.")
        self.save_hyperparameters()
        self._units: dict[str, Scale] | None = None
        self.steps: dict[str, Steps] = {}

    @property
    def units(self) -> dict[str, Scale]:
        """What `observation` (of vectors) and `action` are normalised by; known after `setup`.

        Raises:
            RuntimeError: before.
        """
        if self._units is None:
            raise RuntimeError("what numbers are normalised by is known after setup()")
        return self._units

    def setup(self, stage: str | None = None) -> None:
        """Read or record the episodes, once, and normalise them."""
        if self.sets:
            return
        given = self.hparams
        found, source, bounds = self._episodes()
        order = np.random.default_rng([given.seed, 1]).permutation(len(found)).tolist()
        held_out = set(order[: round(given.held_out * len(found))])
        splits = {"train": [each for number, each in enumerate(found) if number not in held_out]}
        if held_out:
            splits["val"] = [found[number] for number in sorted(held_out)]
        for role, episodes in splits.items():
            self.steps[role] = read_steps(episodes, source, given.columns)
        if self._units is None:
            self._units = self._measured(self.steps["train"], bounds)
        self._make_sets(source)

    def state_dict(self) -> dict[str, Any]:
        """What numbers are normalised by, and how many frames make an observation."""
        if self._units is None:
            return {}
        units = {name: {"mean": each.mean.tolist(), "std": each.std.tolist()} for name, each in self._units.items()}
        return {"units": units, "frame_stack": self.hparams.frame_stack}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what a checkpoint's numbers were normalised by."""
        if "units" in state_dict:
            self._units = units_of(state_dict["units"])
            if self.sets:
                self._make_sets("the data")

    def order(self, samples: Any) -> WithReplacement:
        """Drawn with replacement."""
        return WithReplacement(samples, self.batch_size, self.hparams.batches_an_epoch, self.trainer)

    def largest_batch(self, samples: int) -> int:
        """Any: a step may be drawn again."""
        return 2**31

    def _make_sets(self, source: str) -> None:
        for role, steps in self.steps.items():
            if float(self.units["action"].to(torch.from_numpy(steps.action)).abs().max()) > 1 + 1e-4:
                raise ValueError(
                    f"actions of {source} reach from {steps.action.min():.3g} to {steps.action.max():.3g}, beyond "
                    "their bounds: give action_bounds=[least, largest]"
                )
            if steps.seen.ndim != 2 and (steps.seen.dtype != np.uint8 or steps.seen.ndim != 4):
                shape = list(steps.seen.shape[1:])
                raise ValueError(f"observations are vectors, or frames of uint8, not {steps.seen.dtype} {shape}")
            samples = TransitionSet(steps, self.units, self.hparams.frame_stack, shared=self.num_workers > 0)
            self.sets[role] = samples
            # The memory that workers share is the only one.
            self.steps[role] = steps._replace(seen=samples.seen.numpy(), action=samples.action.numpy())
        if "val" in self.sets:
            self.sets["test"] = self.sets["val"]

    def _measured(self, steps: Steps, bounds: Any) -> dict[str, Scale]:
        size = steps.action.shape[1]
        try:
            low, high = (torch.as_tensor(np.broadcast_to(each, size).copy(), dtype=torch.float32) for each in bounds)
        except ValueError as error:
            raise ValueError(f"action_bounds={bounds} are not those of actions of {size} numbers") from error
        if not (low < high).all() or not (high - low).isfinite().all():
            raise ValueError(f"actions must have finite bounds, the least below the largest, got {bounds}")
        units = {"action": Scale((low + high) / 2, (high - low) / 2)}
        if steps.seen.ndim == 2 and self.hparams.standardize:
            units["observation"] = Scale.of([steps.seen])
        return units

    def _episodes(self) -> tuple[list[Episode], str, Any]:
        given = self.hparams
        if given.root is not None:
            return open_episodes(Path(given.root)), given.root, given.action_bounds or [-1.0, 1.0]
        options: dict[str, Any] = {name: value for name, value in given.environment.items() if name != "id"}
        environment = make_environment(given.environment["id"], **options)
        table = record(environment, given.policies or {"random": 1.0}, given.num_episodes, given.max_steps, given.seed)
        space = environment.action_space
        bounds = given.action_bounds or [space.low, space.high]
        environment.close()
        return episodes_of(table), f"the recording of {given.environment['id']}", bounds


def episodes_of(table: Mapping[str, Any]) -> list[Episode]:
    """The episodes of a table, as `record` gives it."""
    ends = np.cumsum(table["ep_len"]).tolist()
    columns = {name: values for name, values in table.items() if name != "ep_len"}
    return [
        {name: ArrayColumn(values, start, stop) for name, values in columns.items()}
        for start, stop in zip([0, *ends[:-1]], ends, strict=True)
    ]


def units_of(state: Mapping[str, Any]) -> dict[str, Scale]:
    """What a checkpoint holds of them."""
    return {name: Scale(torch.tensor(each["mean"]), torch.tensor(each["std"])) for name, each in state.items()}

"""Windows of recorded episodes, or of episodes that are recorded from an environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jepa_lightning.data.crops import IMAGENET, check_statistics
from jepa_lightning.data.datamodule import SplitDataModule
from jepa_lightning.data.episodes.columns import ArrayColumn, Episode
from jepa_lightning.data.episodes.dataset import Windows
from jepa_lightning.data.episodes.formats import open_episodes
from jepa_lightning.data.episodes.preparation import Preparation, Scale, difference
from jepa_lightning.data.episodes.record import make_environment, record
from jepa_lightning.data.episodes.windows import Episodes, Keys, joined
from jepa_lightning.errors import check_numbers


class EpisodesDataModule(SplitDataModule):
    """Windows of episodes: what was seen, what was done, and, where it is known, in which state.

    Batches are `EpisodeBatch`es. A window has `steps` times, `stride` steps of the world apart; the actions in between
    are one action of the model, one after the other.

    Episodes are read from `root` (see `open_episodes` for the layouts: npz, HDF5, minari, LeRobot, tables with videos
    beside them). Its folders `train` and `val` are the splits where there are both; otherwise a share of the episodes
    is held out, drawn by the seed. Without a `root`, episodes are recorded from the `environment`. Held-out episodes
    serve to test and predict, too.

    What numbers are normalised by is found in the training episodes, is kept in checkpoints, and is that of the
    checkpoint wherever one is loaded.

    Args:
        root: file or folder of episodes; recorded without.
        observation: the column of frames or vectors; several are several views. Of recorded episodes of this package's
            environments, `scene`, of which frames are drawn.
        action: the column of actions, or several, whose numbers are put together. None: actions are the differences of
            the states of two times, of poses (7 numbers) as V-JEPA 2-AC's.
        state: the column of states, or several, if there are any.
        environment: `{"id": …, …}`, the arguments of `gymnasium.make`: which draws the frames where observations are
            scenes, and which episodes are recorded from.
        policies: who acts while episodes are recorded, each for a share of them: `random`, `walk`, `expert`, or the
            path of a class of your own, with options or without: `{"walk": 0.5, "expert": {"share": 0.5, "noise": 2}}`
            (see `Mixture`).
        num_episodes: how many are recorded.
        max_steps: steps of a recorded episode, at most.
        draw: whether observations are scenes of which the environment draws frames.
        steps: T, times of a window.
        stride: steps of the world from one time to the next.
        every: steps of the world from the start of one window to that of the next.
        pad: whether windows may go beyond the end of an episode.
        image_size: side of the frames in pixels, or `[rows, columns]`; as they are without.
        mean: of each channel of frames in [0, 1]; ImageNet's by default.
        std: like `mean`.
        standardize: what is normalised, of `action`, `state` and, where they are vectors, `observation`.
        held_out: share of the episodes that is held out.
        batch_size: windows per batch. Training drops an incomplete last batch.
        num_workers: worker processes per loader; 0 reads in the training process.
        seed: of the recording and of which episodes are held out.

    Raises:
        ValueError: for an argument out of range; from `setup`, for episodes that are too short, or whose columns are
            missing, do not fit or are not finite.
        FileNotFoundError: from `setup`, if there are no episodes.
        ImportError: from `setup`, if a library is missing.
    """

    hparams: Any

    def __init__(
        self,
        root: str | None = None,
        observation: str | list[str] = "observation",
        action: str | list[str] | None = "action",
        state: str | list[str] | None = None,
        environment: dict[str, Any] | None = None,
        policies: dict[str, Any] | None = None,
        num_episodes: int = 100,
        max_steps: int | None = None,
        draw: bool = False,
        steps: int = 8,
        stride: int = 1,
        every: int = 1,
        pad: bool = False,
        image_size: int | list[int] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        standardize: tuple[str, ...] = ("action", "state", "observation"),
        held_out: float = 0.1,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers)
        numbers = {"num_episodes": num_episodes, "max_steps": max_steps}
        check_numbers(numbers | {"steps": steps, "stride": stride, "every": every}, 1)
        if not 0 <= held_out < 1:
            raise ValueError(f"held_out={held_out} must be a share of the episodes, from 0 to below 1.")
        if unknown := set(standardize) - {"action", "state", "observation"}:
            raise ValueError(f"standardize names action, state and observation, not {', '.join(sorted(unknown))}.")
        if root is None and environment is None:
            raise ValueError("give a root to read episodes from, or an environment to record them from.")
        if draw and environment is None:
            raise ValueError("scenes are drawn by an environment: give environment={id: jepa_lightning/TwoRoom-v0}.")
        if environment is not None and "id" not in environment:
            raise ValueError(f"an environment is given as {{id: …}}, with its options, not as {environment}.")
        if not action and not state:
            raise ValueError("without a column of actions they are the differences of states: give the column `state`.")
        self.mean, self.std = mean or IMAGENET[0], std or IMAGENET[1]
        check_statistics(self.mean, self.std, len(self.mean), "the frames")
        self.save_hyperparameters()
        self.keys = Keys(_names(observation), _names(action), _names(state))
        size = [image_size, image_size] if isinstance(image_size, int) else image_size
        self.image_size = size
        self._preparation: Preparation | None = None

    @property
    def preparation(self) -> Preparation:
        """What is done to the numbers: that of a checkpoint, or else of the training episodes.

        Raises:
            RuntimeError: before `setup`.
        """
        if self._preparation is None:
            raise RuntimeError("what numbers are normalised by is found in the training episodes: call setup() first")
        return self._preparation

    def setup(self, stage: str | None = None) -> None:
        """Open or record the episodes, and cut them into windows."""
        if self.sets:
            return
        given = self.hparams
        splits = self._episodes()
        if self._preparation is None:
            self._preparation = self._prepare(splits["train"])
        drawing = None
        if given.draw:
            drawing = {"environment": given.environment["id"], **_options(given.environment)}
        for role, episodes in splits.items():
            self.sets[role] = Windows(episodes, self._preparation, given.steps, given.every, given.pad, drawing)
        if "val" in self.sets:
            self.sets["test"] = self.sets["val"]
        self.batch_size = self.batch_size  # no more than there are windows

    def state_dict(self) -> dict[str, Any]:
        """What numbers are normalised by, and how."""
        return {} if self._preparation is None else {"preparation": self._preparation.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what a checkpoint's numbers were normalised by."""
        if "preparation" in state_dict:
            self._preparation = Preparation.from_state(state_dict["preparation"])
            for windows in self.sets.values():
                windows.preparation = self._preparation

    def _episodes(self) -> dict[str, Episodes]:
        given = self.hparams
        if given.root is None:
            source, found = f"the recording of {given.environment['id']}", self._recorded()
        else:
            root = Path(given.root)
            if (root / "train").is_dir() and (root / "val").is_dir():
                return {
                    role: Episodes(open_episodes(root / role), self.keys, str(root / role)) for role in ("train", "val")
                }
            source, found = str(root), open_episodes(root)
        order = np.random.default_rng([given.seed, 1]).permutation(len(found))
        held_out = sorted(order[: round(given.held_out * len(found))].tolist())
        if given.held_out and not held_out and len(found) > 1:
            held_out = [int(order[0])]
        training = [episode for number, episode in enumerate(found) if number not in held_out]
        splits = {"train": Episodes(training, self.keys, source)}
        if held_out:
            splits["val"] = Episodes([found[number] for number in held_out], self.keys, source)
        return splits

    def _recorded(self) -> list[Episode]:
        given = self.hparams
        options = {**_options(given.environment), **({"observation": "scene", "endless": True} if given.draw else {})}
        environment = make_environment(given.environment["id"], **options)
        policies = given.policies or {"random": 1.0}
        table = record(environment, policies, given.num_episodes, given.max_steps, given.seed)
        ends = np.cumsum(table.pop("ep_len")).tolist()
        return [
            {name: ArrayColumn(values, start, stop) for name, values in table.items()}
            for start, stop in zip([0, *ends[:-1]], ends, strict=True)
        ]

    def _prepare(self, episodes: Episodes) -> Preparation:
        """Find what numbers are normalised by."""
        given, keys = self.hparams, self.keys
        rows: dict[str, list[Any]] = {}
        for episode, length in zip(episodes.episodes, episodes.lengths.tolist(), strict=True):
            if keys.action:
                rows.setdefault("action", []).append(joined(episode, keys.action, 0, length - 1))
            if keys.state:
                states = joined(episode, keys.state, 0, length)
                rows.setdefault("state", []).append(states)
                if not keys.action:
                    for first in range(given.stride):
                        rows.setdefault("action", []).append(difference(states[first :: given.stride]).numpy())
            if len(episode[keys.observation[0]].shape) == 1 and not given.draw:
                rows.setdefault("observation", []).append(episode[keys.observation[0]].read(0, length))
        scales = {name: Scale.of(values) for name, values in rows.items() if name in given.standardize}
        size = rows["action"][0].shape[1] * (given.stride if keys.action else 1)
        return Preparation(given.stride, self.image_size, self.mean, self.std, scales, not keys.action, size)


def _names(given: str | list[str] | None) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given or ())


def _options(environment: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in environment.items() if name != "id"}

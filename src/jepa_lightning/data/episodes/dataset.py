"""Batches of windows."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from jepa_lightning.data.episodes.columns import Array, Episode
from jepa_lightning.data.episodes.preparation import Preparation
from jepa_lightning.data.episodes.record import make_environment
from jepa_lightning.data.episodes.windows import Episodes, window_starts


class EpisodeBatch(NamedTuple):
    """A batch of windows of episodes.

    Attributes:
        observation: frames `[B, C, T, H, W]`, of several views `[B, V, C, T, H, W]`, or vectors `[B, T, F]`.
        action: `[B, T, A]`, each the one that leads to the next time; the last one is zero.
        state: `[B, T, S]`; S is 0 where there are none.
        valid: BoolTensor `[B, T]`, which times lie in the episode; those after its end repeat its last one.
        embodiment: `[B]` int64, which kind of robot it is.
    """

    observation: Tensor
    action: Tensor
    state: Tensor
    valid: Tensor
    embodiment: Tensor


class Windows(Dataset[EpisodeBatch]):
    """Windows of episodes; `__getitems__` gives a batch.

    Args:
        episodes: whose they are.
        preparation: what is done to their numbers.
        steps: times of a window.
        every: steps of the world between the starts of windows.
        pad: whether windows may go beyond the end of an episode, with two times in it or more.
        drawing: `gymnasium.make`'s arguments of an environment that draws observations that are scenes.

    Raises:
        ValueError: episodes that are all too short.
    """

    def __init__(
        self,
        episodes: Episodes,
        preparation: Preparation,
        steps: int,
        every: int,
        pad: bool,
        drawing: dict[str, Any] | None,
    ) -> None:
        self.episodes, self.preparation, self.steps = episodes, preparation, steps
        self.span = (steps - 1) * preparation.stride + 1
        least = preparation.stride + 1 if pad and steps > 1 else self.span
        self.starts = window_starts(episodes.lengths, self.span, least, every)
        if not len(self.starts):
            raise ValueError(
                f"all {len(episodes)} episodes of {episodes.source} are too short: the longest has "
                f"{episodes.lengths.max()} steps, but a window of {steps} times takes {least}; give fewer, or pad=true"
            )
        self.drawing, self._drawer = drawing, cast(Any, None)

    def __len__(self) -> int:
        return len(self.starts)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_drawer": None}  # each process makes its own

    def __getitems__(self, indices: list[int]) -> EpisodeBatch:
        """The batch of some windows."""
        return EpisodeBatch(*(torch.stack(field) for field in zip(*map(self._window, indices), strict=True)))

    def __getitem__(self, index: int) -> EpisodeBatch:
        """One window, as a batch without its first axis."""
        return EpisodeBatch(*(field[0] for field in self.__getitems__([index])))

    def _window(self, index: int) -> EpisodeBatch:
        number, first = self.starts[index].tolist()
        episode, keys, prepare = self.episodes[number], self.episodes.keys, self.preparation
        rows = min(self.steps, (int(self.episodes.lengths[number]) - 1 - first) // prepare.stride + 1)
        last = first + (rows - 1) * prepare.stride + 1
        views = [
            _extended(prepare.observations(self._seen(episode, name, first, last)), self.steps)
            for name in keys.observation
        ]
        observation = views[0] if len(views) == 1 else torch.stack(views)
        states = None
        if keys.state is not None:
            raw = episode[keys.state].read(first, last, prepare.stride)
            states = _extended(prepare.states(raw).unsqueeze(0), self.steps)[0]
        if keys.action is None:
            actions = prepare.between(raw)
        else:
            actions = prepare.blocks(episode[keys.action].read(first, last - 1))
        missing = self.steps - len(actions)
        actions = torch.cat([actions, actions.new_zeros(missing, actions.shape[1])])
        valid = torch.arange(self.steps) < rows
        states = torch.zeros(self.steps, 0) if states is None else states
        return EpisodeBatch(observation, actions, states, valid, torch.tensor(0))

    def _seen(self, episode: Episode, name: str, first: int, last: int) -> Array:
        raw = episode[name].read(first, last, self.preparation.stride)
        if self.drawing is None:
            return raw
        if self._drawer is None:
            self._drawer = make_environment(**self.drawing).unwrapped
        return np.stack([self._drawer.draw(scene) for scene in raw])


def _extended(values: Tensor, steps: int) -> Tensor:
    """Values `[C, T, ...]`, or vectors `[T, F]`, of which the last time is repeated up to `steps`."""
    if values.ndim == 2:
        return _extended(values.unsqueeze(0), steps)[0]
    missing = steps - values.shape[1]
    return values if missing == 0 else torch.cat([values, values[:, -1:].expand(-1, missing, *values.shape[2:])], 1)

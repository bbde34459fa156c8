"""Windows of episodes: which there are, and the numbers of one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jepa_lightning.data.episodes.columns import Array, Episode


class Keys(NamedTuple):
    """The columns that are read.

    Attributes:
        observation: frames or vectors; one a view.
        action: whose numbers are put together; none for differences of states.
        state: whose numbers are put together; none for no states.
    """

    observation: tuple[str, ...]
    action: tuple[str, ...]
    state: tuple[str, ...]


def joined(episode: Episode, names: Sequence[str], start: int, stop: int, step: int = 1) -> Array:
    """Rows `[start:stop:step]` of several columns, their numbers put together, `[N, F]`."""
    parts = [episode[name].read(start, stop, step) for name in names]
    return np.concatenate([part.reshape(len(part), math.prod(part.shape[1:])) for part in parts], axis=1)


class Episodes(Sequence[Episode]):
    """Episodes whose columns are there, and of lengths that fit.

    An episode has as many observations and states as steps, and as many actions or one fewer.

    Args:
        episodes: their columns.
        keys: the columns that are read.
        source: what they are called in errors.

    Raises:
        ValueError: a column that is missing, of another shape or length than the others', or an action, a state or
            an observed vector that is not finite.
    """

    def __init__(self, episodes: Sequence[Episode], keys: Keys, source: str) -> None:
        self.episodes, self.keys, self.source = list(episodes), keys, source
        if not self.episodes:
            raise ValueError(f"{source} has no episodes")
        wanted = [*keys.observation, *keys.action, *keys.state]
        for number, episode in enumerate(self.episodes):
            if missing := [name for name in wanted if name not in episode]:
                raise ValueError(
                    f"episode {number} of {source} has no {', '.join(missing)}: it has {', '.join(sorted(episode))}"
                )
            for name in wanted:
                if episode[name].shape != self.episodes[0][name].shape:
                    raise ValueError(
                        f"{name} of episode {number} of {source} has rows of {list(episode[name].shape)}, that of "
                        f"episode 0 of {list(self.episodes[0][name].shape)}"
                    )
                rows, steps = len(episode[name]), len(episode[keys.observation[0]])
                if rows != steps and not (name in keys.action and rows == steps - 1):
                    raise ValueError(
                        f"episode {number} of {source} has {steps} rows of {keys.observation[0]}, but {rows} of {name}"
                    )
        self.lengths = np.array([len(episode[keys.observation[0]]) for episode in self.episodes])
        for name in keys.action:
            self._check_finite(name, last=False)
        vectors = [name for name in keys.observation if len(self.episodes[0][name].shape) == 1]
        for name in [*keys.state, *vectors]:
            self._check_finite(name, last=True)

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, index: Any) -> Any:
        return self.episodes[index]

    def _check_finite(self, name: str, last: bool) -> None:
        """Of actions the one after the last step may be missing, which nothing follows."""
        for number, (episode, length) in enumerate(zip(self.episodes, self.lengths, strict=True)):
            values = episode[name].read(0, int(length) - (not last))
            if values.dtype.kind not in "biuf":
                raise ValueError(f"{name} of {self.source} are {values.dtype}, not numbers")
            wrong = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(1))
            if len(wrong):
                raise ValueError(
                    f"{name} of episode {number} of {self.source} is {values[wrong[0]]} at step {wrong[0]}, not finite"
                )


def window_starts(lengths: Array, span: int, least: int, every: int) -> Array:
    """The windows of episodes, as rows of the episode and the first step, `[W, 2]`.

    Args:
        lengths: steps of each episode.
        span: steps from a window's first to its last, both included.
        least: steps that have to be there, less than the span where windows are padded.
        every: steps between the starts of windows.
    """
    least = min(span, least)
    counts = np.maximum(0, (lengths - least) // every + 1)
    episodes = np.repeat(np.arange(len(lengths)), counts)
    firsts = np.concatenate([np.arange(count) for count in counts]) * every if counts.sum() else np.zeros(0, int)
    return np.stack([episodes, firsts], 1).astype(np.int64)

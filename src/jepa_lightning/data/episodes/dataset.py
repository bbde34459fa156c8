"""Batches of windows."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from jepa_lightning.data.episodes.columns import Array
from jepa_lightning.data.episodes.preparation import Preparation
from jepa_lightning.data.episodes.record import make_environment
from jepa_lightning.data.episodes.windows import Episodes, joined, window_starts


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
        views, *rest = zip(*map(self._window, indices), strict=True)
        # Frames of all windows at once: one by one they would take twice as long.
        seen = [self._prepared(np.concatenate(view), len(indices)) for view in zip(*views, strict=True)]
        return EpisodeBatch(seen[0] if len(seen) == 1 else torch.stack(seen, 1), *map(torch.stack, rest))

    def __getitem__(self, index: int) -> EpisodeBatch:
        """One window, as a batch without its first axis."""
        return EpisodeBatch(*(field[0] for field in self.__getitems__([index])))

    def _window(self, index: int) -> tuple[list[Array], Tensor, Tensor, Tensor, Tensor]:
        """What each view shows, `[T, ...]`, and actions, states, which times are valid, and the embodiment."""
        number, first = self.starts[index].tolist()
        episode, keys, prepare = self.episodes[number], self.episodes.keys, self.preparation
        rows = min(self.steps, (int(self.episodes.lengths[number]) - 1 - first) // prepare.stride + 1)
        last = first + (rows - 1) * prepare.stride + 1
        # Times after the end repeat the last one.
        times = np.minimum(np.arange(self.steps), rows - 1)
        views = [self._seen(episode[name].read(first, last, prepare.stride))[times] for name in keys.observation]
        states = torch.zeros(self.steps, 0)
        if keys.state:
            raw = joined(episode, keys.state, first, last, prepare.stride)
            states = prepare.states(raw[times])
        done = joined(episode, keys.action, first, last - 1) if keys.action else None
        actions = prepare.between(raw) if done is None else prepare.blocks(done)
        actions = F.pad(actions, (0, 0, 0, self.steps - len(actions)))
        return views, actions, states, torch.arange(self.steps) < rows, torch.tensor(0)

    def _seen(self, raw: Array) -> Array:
        if self.drawing is None:
            return raw
        if self._drawer is None:
            self._drawer = make_environment(**self.drawing).unwrapped
        return np.stack([self._drawer.draw(scene) for scene in raw])

    def _prepared(self, raw: Array, windows: int) -> Tensor:
        """Frames `[B · T, ...]` of a view as `[B, C, T, H, W]`, vectors as `[B, T, F]`."""
        values = self.preparation.observations(raw)
        if values.ndim == 2:
            return values.unflatten(0, (windows, -1))
        return values.unflatten(1, (windows, -1)).transpose(0, 1).contiguous()

"""The world model of V-JEPA 2-AC: an encoder of frames, and a predictor of the next one from actions and states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_lightning.poses import move_pose


class Imagined(NamedTuple):
    """What has been seen and imagined so far.

    Attributes:
        frames: tokens `[B, t, N, D]`.
        actions: `[B, t − 1, A]`, those between the frames.
        states: `[B, t, S]`, or None.
        embodiment: `[B]`, or None.
        grid: `(rows, columns)` of a frame's patches.
    """

    frames: Tensor
    actions: Tensor
    states: Tensor | None
    embodiment: Tensor | None
    grid: tuple[int, int]


class ActionWorld:
    """Imagines frames' tokens, one after the other, each from all before it.

    Args:
        encoder: of frames `[B, C, H, W]`, or of other observations, to tokens `[B, N, D]`, with `grid_of`.
        predictor: an `ActionPredictor`.
        next_state: `pose`, by the action (see `move_pose`), or `keep`, the state that one started with.
        window: of how many frames the predictor sees the last; of all without.
        normalize: whether a frame's tokens are layer-normed, before and after they are predicted.
    """

    def __init__(
        self, encoder: Any, predictor: Any, next_state: str = "pose", window: int | None = None, normalize: bool = True
    ) -> None:
        self.encoder, self.predictor = encoder, predictor
        self.next_state, self.window, self.normalize = next_state, window, normalize

    def encode(self, observation: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The tokens of each time, and the grid of their patches.

        Args:
            observation: frames `[B, C, T, H, W]`, those of several views `[B, V, C, T, H, W]`, or vectors `[B, T, F]`.

        Returns:
            `[B, T, N, D]`, and `(rows, columns)` of one view.

        Raises:
            ValueError: observations of another shape, or of another number of views.
        """
        views = self.predictor.num_views
        if observation.ndim == 6 and observation.shape[1] == views:
            observation = observation.transpose(1, 3).transpose(2, 3)  # [B, T, V, C, H, W]
        elif observation.ndim == 5 and views == 1:
            observation = observation.transpose(1, 2)
        elif observation.ndim != 3 or views != 1:
            shape = "[B, C, T, H, W]" if views == 1 else f"[B, {views} views, C, T, H, W]"
            raise ValueError(f"expected frames {shape} or vectors [B, T, F], got {list(observation.shape)}")
        batch, times = observation.shape[:2]
        each = observation.flatten(0, 2 if views > 1 else 1)
        with torch.no_grad():
            grid = tuple(self.encoder.grid_of(each))
            tokens = self.encoder(each)
        rows, columns = (1, *grid)[-2:]
        if math.prod(grid) != rows * columns:
            raise ValueError(f"a frame has a grid of rows and columns, not of {grid} tokens")
        return self.normalized(tokens.unflatten(0, (batch, times, -1)).flatten(2, 3)), (rows, columns)

    def predict(
        self,
        frames: Tensor,
        actions: Tensor,
        states: Tensor | None,
        grid: tuple[int, int],
        embodiment: Tensor | None = None,
        last: bool = False,
    ) -> Tensor:
        """The frames `[B, T, N, D]` one time later, or the last of them, see `ActionPredictor`."""
        return self.normalized(self.predictor(frames, actions, states, grid, embodiment, last))

    def normalized(self, tokens: Tensor) -> Tensor:
        """Layer-normed without weights, if they are to be."""
        return F.layer_norm(tokens, tokens.shape[-1:]) if self.normalize else tokens

    def seen(
        self, observation: Tensor, action: Tensor, state: Tensor | None = None, embodiment: Tensor | None = None
    ) -> Imagined:
        """All that an episode shows, as it would be imagined: of its T times, and the T − 1 actions in between.

        Args:
            observation: see `encode`.
            action: `[B, T, A]` or `[B, T − 1, A]`; one after the last time is left out.
            state: `[B, T, S]`, for a model with states.
            embodiment: `[B]`, for a model of several.

        Raises:
            ValueError: actions or states of another shape.
        """
        frames, grid = self.encode(observation)
        times, predictor = frames.shape[1], self.predictor
        self._check("action", action, (times, times - 1), predictor.action_dim)
        if state is not None:
            self._check("state", state, (times,), predictor.state_dim)
        several = embodiment if predictor.num_embodiments > 1 else None
        return Imagined(frames, action[:, : times - 1], state, several, grid)

    def _check(self, name: str, values: Tensor, times: tuple[int, ...], size: int) -> None:
        if values.ndim != 3 or values.shape[1] not in times or values.shape[2] != size:
            raise ValueError(
                f"expected `{name}` [B, {times[0]}, {size}] beside {times[0]} frames, got {list(values.shape)}"
            )

    def start(self, observations: Tensor | Mapping[str, Tensor]) -> Imagined:
        """What one sees: `observation` `[B, C, H, W]` (or a view more, or a vector), `state` `[B, S]`, `embodiment`.

        Raises:
            ValueError: no state for a model that was trained with states.
        """
        given = observations if isinstance(observations, Mapping) else {"observation": observations}
        frames, grid = self.encode(_one_time(given["observation"]))
        state = None
        if self.predictor.state_encoder is not None:
            if "state" not in given:
                raise ValueError(
                    "this model was trained with states: to plan it needs the `state` beside `observation`"
                )
            state = self._filled(given["state"].unsqueeze(1), self.predictor.state_dim)
        actions = frames.new_empty(len(frames), 0, self.predictor.action_dim)
        return Imagined(frames, actions, state, given.get("embodiment"), grid)

    def goal(self, observations: Tensor | Mapping[str, Tensor]) -> Tensor:
        """The tokens `[B, N, D]` of what is to be seen."""
        given = observations["observation"] if isinstance(observations, Mapping) else observations
        return self.encode(_one_time(given))[0][:, 0]

    def step(self, state: Imagined, action: Tensor) -> Imagined:
        """Imagine the frame after an action `[B, A]`, or of fewer numbers where other embodiments have more."""
        frames, actions, states, embodiment, grid = state
        action = self._filled(action, self.predictor.action_dim)
        actions = torch.cat([actions, action.unsqueeze(1)], 1)
        seen = slice(None if self.window is None else -self.window, None)
        now = None if states is None else states[:, seen]
        frame = self.predict(frames[:, seen], actions[:, seen], now, grid, embodiment, last=True)
        if states is not None:
            following = move_pose(states[:, -1], action) if self.next_state == "pose" else states[:, -1]
            states = torch.cat([states, following.unsqueeze(1)], 1)
        return Imagined(torch.cat([frames, frame], 1), actions, states, embodiment, grid)

    def _filled(self, values: Tensor, size: int) -> Tensor:
        """What the largest embodiment has more of is zero for the others, as in training."""
        missing = size - values.shape[-1]
        return F.pad(values, (0, missing)) if missing > 0 and self.predictor.num_embodiments > 1 else values

    def distance(self, state: Imagined, goal: Tensor) -> Tensor:
        """The mean absolute difference of the last frame to goals `[B, N, D]`, `[B]`."""
        return (state.frames[:, -1] - goal).abs().mean((1, 2))


def _one_time(observation: Tensor) -> Tensor:
    """Observations of one time with an axis of time: `[B, …, C, 1, H, W]` of frames, `[B, 1, F]` of vectors."""
    return observation.unsqueeze(-3 if observation.ndim > 2 else 1)

"""From world models to costs: imagined futures, and how far they end from a goal."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

State = TypeVar("State")


class World(Protocol[State]):
    """A model to plan in. Its `State` is a NamedTuple of tensors `[B, ...]`: embeddings, history, pose, whatever."""

    def start(self, observations: Any) -> State:
        """The state that observations show."""

    def step(self, state: State, action: Tensor) -> State:
        """The state after an action `[B, A]`."""

    def distance(self, state: State, goal: Any) -> Tensor:
        """How far states are from goals, `[B]`."""


def rollout(world: World[State], state: State, actions: Tensor) -> list[State]:
    """Imagine: the states after each of the actions `[B, H, A]`, H of them.

    >>> class Line:
    ...     def step(self, state, action):
    ...         return state + action
    >>> [state.tolist() for state in rollout(Line(), torch.zeros(1, 1), torch.tensor([[[1.0], [2.0]]]))]
    [[[1.0]], [[3.0]]]
    """
    states = []
    for action in actions.unbind(1):
        state = world.step(state, action)
        states.append(state)
    return states


def repeat_state(state: State, samples: int) -> State:
    """Each of the B states `samples` times in a row: every tensor `[B, ...]` becomes `[B · samples, ...]`."""
    repeated: State = apply_to_collection(state, Tensor, torch.repeat_interleave, samples, dim=0)
    return repeated


class GoalCost:
    """How far plans end from a goal, in a world model.

    Args:
        world: the model.
        state: the B states to start from.
        goal: what `world.distance` takes: tensors `[B, ...]`, or a collection of such.
        last: of how many steps at the end the distances are added up; of all without.

    Raises:
        ValueError: no step to compare.
    """

    def __init__(self, world: World[Any], state: Any, goal: Any, last: int | None = 1) -> None:
        if last is not None and last < 1:
            raise ValueError(f"last must be 1 step or more, got {last}")
        self.world, self.state, self.goal, self.last = world, state, goal, last

    def __call__(self, actions: Tensor) -> Tensor:
        """The cost `[B, S]` of plans `[B, S, H, A]`."""
        batch, samples = actions.shape[:2]
        state, goal = (repeat_state(each, samples) for each in (self.state, self.goal))
        states = rollout(self.world, state, actions.flatten(0, 1))
        compared = states if self.last is None else states[-self.last :]
        distances = [self.world.distance(each, goal) for each in compared]
        return torch.stack(distances).sum(0).view(batch, samples)

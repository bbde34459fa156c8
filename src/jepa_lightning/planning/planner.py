"""What all planners share: their sizes, how they draw, which actions they allow, and where they start."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_lightning.networks.tokens import check_sizes

# From plans [B, S, H, A], S for each of B start states, to how bad they are, [B, S].
Cost = Callable[[Tensor], Tensor]


class Plan(NamedTuple):
    """What a planner has found for each start state.

    Attributes:
        actions: `[B, H, A]`, to be executed.
        cost: `[B]`, theirs.
        nominal: `[B, H, A]`, where the next planning may start (see `Planner.later`): the actions before they were
            brought into their bounds.
    """

    actions: Tensor
    cost: Tensor
    nominal: Tensor


class Planner(ABC):
    """Finds the actions of least cost, for several start states at once.

    A planner is called with a cost and the plans to start from: `planner(cost, planner.start(B))`.

    Args:
        horizon: H, actions of a plan.
        action_dim: A, numbers of an action.
        samples: S, plans that are compared for each start state.
        std: of the samples' normal distribution at the start: one for all axes of an action, or one each.
        project: what brings actions `[..., H, A]` into their bounds, in turn: `Box`, `Ball`, `FixedAxes`, or any
            function.
        noise: `noise(iteration, shape)` gives the standard normal numbers `[B, S, H, A]` of an iteration; without,
            torch's default generator.

    Raises:
        ValueError: a size that is not positive, or a standard deviation for another number of axes.
    """

    def __init__(
        self,
        horizon: int,
        action_dim: int,
        samples: int,
        std: float | Sequence[float],
        project: Sequence[Callable[[Tensor], Tensor]] = (),
        noise: Callable[[int, tuple[int, ...]], Tensor] | None = None,
    ) -> None:
        check_sizes(horizon=horizon, action_dim=action_dim, samples=samples)
        self.horizon, self.action_dim, self.samples = horizon, action_dim, samples
        self.std = self.per_axis("std", std)
        self.projections = tuple(project)
        self.noise = noise

    @abstractmethod
    def __call__(self, cost: Cost, nominal: Tensor) -> Plan:
        """Plan.

        Args:
            cost: from plans `[B, S, H, A]` to `[B, S]`.
            nominal: `[B, H, A]`, the plans to start from.
        """

    def start(self, batch_size: int, device: torch.device | str = "cpu") -> Tensor:
        """The plans of no action at all, `[B, H, A]`."""
        return torch.zeros(batch_size, self.horizon, self.action_dim, device=device)

    def later(self, nominal: Tensor, steps: int) -> Tensor:
        """Plans `[B, H, A]` after their first steps have been executed: shifted, with no action at the end.

        >>> from jepa_lightning.planning import CEM
        >>> CEM(horizon=3, action_dim=1).later(torch.tensor([[[1.0], [2.0], [3.0]]]), 2).flatten()
        tensor([3., 0., 0.])
        """
        rest = nominal[:, steps : steps + self.horizon]
        return F.pad(rest, (0, 0, 0, self.horizon - rest.shape[1]))

    def project(self, actions: Tensor) -> Tensor:
        """Bring actions `[..., H, A]` into their bounds."""
        for projection in self.projections:
            actions = projection(actions)
        return actions

    def drawn(self, iteration: int, nominal: Tensor) -> Tensor:
        """Standard normal numbers `[B, S, H, A]`."""
        shape = (len(nominal), self.samples, *nominal.shape[1:])
        if self.noise is None:
            return torch.randn(shape, device=nominal.device, dtype=nominal.dtype)
        return self.noise(iteration, shape).to(nominal)

    def per_axis(self, name: str, value: float | Sequence[float]) -> Tensor:
        """An option as `[A]` or, if it is the same for all axes, `[]`."""
        given = torch.tensor(value, dtype=torch.get_default_dtype(), device="cpu")
        if given.ndim and given.shape != (self.action_dim,):
            raise ValueError(f"{name} is one number, or one for each of the {self.action_dim} axes, got {value}")
        if not (given >= 0).all():
            raise ValueError(f"{name} must not be negative, got {value}")
        return given

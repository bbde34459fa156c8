"""The cross-entropy method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jepa_lightning.planning.planner import Cost, Plan, Planner


class CEM(Planner):
    """Draw plans from a normal distribution, fit it to the best of them, and again; the plan is its mean at the end.

    Args:
        horizon: H, actions of a plan.
        action_dim: A, numbers of an action.
        samples: S, plans an iteration.
        elites: how many of them the distribution is fitted to, 2 to S.
        iterations: how often.
        std: standard deviation at the start: one for all axes of an action, or one each.
        momentum: how much of the mean is kept at each iteration, in [0, 1): one for all axes, or one each.
        std_momentum: the same of the standard deviation.
        **options: `project` and `noise`, see `Planner`.

    Raises:
        ValueError: an option out of its range.

    Source: Rubinstein and Kroese (2004), "The cross-entropy method"; with momentum, V-JEPA 2 (arXiv 2506.09985),
    section 3.2.

    >>> target = torch.tensor([0.5, -0.3])
    >>> _ = torch.manual_seed(0)
    >>> planner = CEM(horizon=1, action_dim=2, samples=256, elites=16, iterations=12)
    >>> plan = planner(lambda actions: (actions - target).square().sum((2, 3)), planner.start(batch_size=4))
    >>> torch.allclose(plan.actions, target.expand(4, 1, 2), atol=1e-2)
    True
    """

    def __init__(
        self,
        horizon: int,
        action_dim: int,
        samples: int = 400,
        elites: int = 10,
        iterations: int = 10,
        std: float | Sequence[float] = 1.0,
        momentum: float | Sequence[float] = 0.0,
        std_momentum: float | Sequence[float] = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(horizon, action_dim, samples, std, **options)
        if not 2 <= elites <= samples:
            raise ValueError(f"elites must be 2 to samples={samples}, for there to be a spread; got {elites}")
        if iterations < 1:
            raise ValueError(f"iterations must be 1 or more, got {iterations}")
        self.elites, self.iterations = elites, iterations
        self.momentum = self.per_axis("momentum", momentum)
        self.std_momentum = self.per_axis("std_momentum", std_momentum)
        for name, value in {"momentum": self.momentum, "std_momentum": self.std_momentum}.items():
            if not (value < 1).all():
                raise ValueError(f"{name} must be below 1, or nothing is ever learnt; got {value.tolist()}")

    @torch.no_grad()
    def __call__(self, cost: Cost, nominal: Tensor) -> Plan:
        """Plan, see `Planner`."""
        mean, std = nominal, self.std.to(nominal).expand_as(nominal)
        keep, keep_std = self.momentum.to(nominal), self.std_momentum.to(nominal)
        plans = torch.arange(len(nominal), device=nominal.device).unsqueeze(1)
        for iteration in range(self.iterations):
            actions = self.project(mean.unsqueeze(1) + std.unsqueeze(1) * self.drawn(iteration, nominal))
            best = actions[plans, cost(actions).topk(self.elites, largest=False).indices]
            mean = (1 - keep) * best.mean(1) + keep * mean
            std = (1 - keep_std) * best.std(1) + keep_std * std
        actions = self.project(mean)
        return Plan(actions, cost(actions.unsqueeze(1)).squeeze(1), mean)

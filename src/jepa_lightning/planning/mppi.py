"""Model predictive path integral control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jepa_lightning.planning.planner import Cost, Plan, Planner


class MPPI(Planner):
    """Draw plans around the nominal one, which becomes their mean, weighted by `exp(−cost / temperature)`.

    Args:
        horizon: H, actions of a plan.
        action_dim: A, numbers of an action.
        samples: S, plans an iteration.
        iterations: how often.
        temperature: λ: the lower, the more the best plan counts alone.
        std: standard deviation of the samples: one for all axes of an action, or one each.
        elites: how many of the best plans count; all without.
        fitted_std: range that the standard deviation is kept in, which is then fitted to the weighted plans after each
            iteration, as in TD-MPC. Without, it stays as it is, and the cost has the term of information-theoretic
            MPPI, `λ Σ nominal · noise / std²`, which holds back plans that the nominal one explains.
        **options: `project` and `noise`, see `Planner`.

    Raises:
        ValueError: an option out of its range.

    Source: Williams et al. (2017), "Information theoretic MPC for model-based reinforcement learning", algorithm 2;
    with a fitted deviation, TD-MPC (arXiv 2203.04955), equation 4.

    >>> target = torch.tensor([0.5, -0.3])
    >>> _ = torch.manual_seed(0)
    >>> planner = MPPI(horizon=1, action_dim=2, samples=512, iterations=8, temperature=0.01, fitted_std=(0.01, 1.0))
    >>> plan = planner(lambda actions: (actions - target).square().sum((2, 3)), planner.start(batch_size=4))
    >>> torch.allclose(plan.actions, target.expand(4, 1, 2), atol=5e-2)
    True
    """

    def __init__(
        self,
        horizon: int,
        action_dim: int,
        samples: int = 500,
        iterations: int = 1,
        temperature: float = 0.1,
        std: float | Sequence[float] = 1.0,
        elites: int | None = None,
        fitted_std: tuple[float, float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(horizon, action_dim, samples, std, **options)
        self.elites = samples if elites is None else elites
        if not 1 <= self.elites <= samples:
            raise ValueError(f"elites must be 1 to samples={samples}, got {elites}")
        if iterations < 1 or not temperature > 0:
            raise ValueError(f"needs iterations >= 1 and temperature > 0, got {iterations} and {temperature}")
        if fitted_std is not None and not 0 <= fitted_std[0] <= fitted_std[1]:
            raise ValueError(f"fitted_std is a range of standard deviations, low to high, got {fitted_std}")
        if fitted_std is None and not (self.std > 0).all():
            raise ValueError(f"std must be positive, got {std}: fix an axis by project=[FixedAxes(...)]")
        self.iterations, self.temperature, self.fitted_std = iterations, temperature, fitted_std

    @torch.no_grad()
    def __call__(self, cost: Cost, nominal: Tensor) -> Plan:
        """Plan, see `Planner`."""
        mean, std = nominal, self.std.to(nominal).expand_as(nominal)
        plans = torch.arange(len(nominal), device=nominal.device).unsqueeze(1)
        for iteration in range(self.iterations):
            actions = self.project(mean.unsqueeze(1) + std.unsqueeze(1) * self.drawn(iteration, nominal))
            costs = cost(actions)
            if self.fitted_std is None:
                noise = actions - mean.unsqueeze(1)
                costs = costs + (self.temperature * mean / std.square()).unsqueeze(1).mul(noise).sum((2, 3))
            costs, chosen = costs.topk(self.elites, largest=False)
            best, weights = actions[plans, chosen], (-costs / self.temperature).softmax(1)[:, :, None, None]
            mean = (weights * best).sum(1)
            if self.fitted_std is not None:
                std = (weights * (best - mean.unsqueeze(1)).square()).sum(1).sqrt().clamp(*self.fitted_std)
        actions = self.project(mean)
        return Plan(actions, cost(actions.unsqueeze(1)).squeeze(1), mean)

"""Planning by gradient descent through the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jepa_lightning.planning.planner import Cost, Plan, Planner


class GradientPlanner(Planner):
    """Improve several plans for each start state by AdamW on their actions; the plan is the best one at the end.

    The nominal plan is one of them, the others lie around it. A start state is done when its best plan has hardly
    become better for a while; the others go on.

    Args:
        horizon: H, actions of a plan.
        action_dim: A, numbers of an action.
        samples: S, plans that are improved.
        iterations: steps of AdamW, at most.
        lr: its learning rate, in units of the actions.
        weight_decay: its weight decay.
        std: standard deviation of the plans at the start: one for all axes of an action, or one each.
        improvement: share of the least cost so far by which a better plan has to be better to count as such.
        patience: iterations without one after which a start state is done; never without.
        least: iterations that are made in any case.
        **options: `project`, which is done after each step, and `noise`, see `Planner`.

    Raises:
        ValueError: an option out of its range.

    Source: H-JEPA (arXiv 2610.06805), `solver/gd.py` of its code, whose values are the defaults.

    >>> target = torch.tensor([0.5, -0.3])
    >>> _ = torch.manual_seed(0)
    >>> planner = GradientPlanner(horizon=1, action_dim=2, samples=4, weight_decay=0.0, patience=None)
    >>> plan = planner(lambda actions: (actions - target).square().sum((2, 3)), planner.start(batch_size=4))
    >>> torch.allclose(plan.actions, target.expand(4, 1, 2), atol=1e-2)
    True
    """

    def __init__(
        self,
        horizon: int,
        action_dim: int,
        samples: int = 100,
        iterations: int = 90,
        lr: float = 0.1,
        weight_decay: float = 0.01,
        std: float | Sequence[float] = 1.0,
        improvement: float = 0.01,
        patience: int | None = 5,
        least: int = 30,
        **options: Any,
    ) -> None:
        super().__init__(horizon, action_dim, samples, std, **options)
        if iterations < 1 or not lr > 0 or (patience is not None and patience < 1):
            raise ValueError(f"needs iterations, patience >= 1 and lr > 0, got {iterations}, {patience} and {lr}")
        self.iterations, self.lr, self.weight_decay = iterations, lr, weight_decay
        self.improvement, self.least = improvement, least
        self.patience = math.inf if patience is None else patience

    @torch.enable_grad()
    def __call__(self, cost: Cost, nominal: Tensor) -> Plan:
        """Plan, see `Planner`."""
        noise = self.drawn(0, nominal).index_fill(1, torch.zeros(1, dtype=torch.long, device=nominal.device), 0.0)
        actions = (nominal.unsqueeze(1) + self.std.to(nominal) * noise).detach().requires_grad_()
        optimizer = torch.optim.AdamW([actions], lr=self.lr, weight_decay=self.weight_decay)
        least = torch.full_like(nominal[:, 0, 0], torch.inf)
        waited = torch.zeros_like(least)
        for iteration in range(self.iterations):
            costs = cost(actions)
            (actions.grad,) = torch.autograd.grad(costs.sum(), actions)
            before, best = actions.detach().clone(), costs.detach().amin(1)
            done = waited >= self.patience
            optimizer.step()
            with torch.no_grad():
                actions.copy_(torch.where(done[:, None, None, None], before, self.project(actions)))
            better = (best < least - self.improvement * least.abs()) | least.isinf()
            least = torch.where(better, best, least)
            if iteration >= self.least:
                waited = torch.where(better & ~done, 0.0, waited + 1)
                if bool((waited >= self.patience).all()):
                    break
        with torch.no_grad():
            costs, plans = cost(actions), torch.arange(len(nominal), device=nominal.device)
            chosen = actions.detach()[plans, costs.argmin(1)]
            return Plan(chosen, costs.amin(1), chosen)

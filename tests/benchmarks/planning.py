"""How fast episodes are drawn and recorded, and what share of a decision is the planner's own work.

    OMP_NUM_THREADS=1 python tests/benchmarks/planning.py

Frames and recorded steps a second are the fastest of five stretches. The planner's share is the least of five decisions
of a CEM of 300 plans of five actions, five iterations, for four start states, by a model of eight square products of
width 256, which is little: the shares of larger models are smaller.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import jepa_lightning.environments  # noqa: F401 - registers them
from jepa_lightning.data.episodes.record import record
from jepa_lightning.planning import CEM, Ball


def fastest(run: Callable[[], Any], count: int) -> float:
    """Of five stretches, so many a second."""
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        run()
        rates.append(count / (time.perf_counter() - start))
    return max(rates)


def own_share() -> float:
    """Of the time of a decision, the planner's."""
    weights = [torch.randn(256, 256) / 16 for _ in range(8)]
    models = 0.0

    def cost(actions: Tensor) -> Tensor:
        nonlocal models
        start = time.perf_counter()
        state = F.pad(actions.flatten(0, 1)[:, 0], (0, 254))
        for _ in range(actions.shape[2]):
            for weight in weights:
                state = torch.tanh(state @ weight)
        models += time.perf_counter() - start
        return state.square().mean(1).view(actions.shape[:2])

    planner = CEM(5, 2, samples=300, elites=30, iterations=5, project=[Ball(1.0)])
    shares = []
    for _ in range(5):
        models, start = 0.0, time.perf_counter()
        planner(cost, planner.start(4))
        shares.append(1 - models / (time.perf_counter() - start))
    return min(shares)


def main() -> None:
    for name in ("TwoRoom", "FourRoom", "PointMass"):
        for size in (64, 224):
            env = gymnasium.make(f"jepa_lightning/{name}-v0", image_size=size, endless=True)
            env.reset(seed=0)
            rate = fastest(lambda env=env: [env.step(np.array([0.3, -0.2], np.float32)) for _ in range(200)], 200)  # type: ignore[misc]
            print(f"{name}, {size} pixels: {rate:,.0f} frames a second")
    scenes = gymnasium.make("jepa_lightning/TwoRoom-v0", observation="scene", endless=True)
    print(f"recorded: {fastest(lambda: record(scenes, {'walk': 1.0}, 5, max_steps=400), 2000):,.0f} steps a second")
    print(f"the planner's own share of a decision: {own_share():.1%}")


if __name__ == "__main__":
    main()

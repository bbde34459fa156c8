"""Bounds of actions: what brings them there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Projection(ABC):
    """Brings actions into bounds; a recipe names subclasses by their paths."""

    @abstractmethod
    def __call__(self, actions: Tensor) -> Tensor:
        """Actions `[..., H, A]` within the bounds."""


class Box(Projection):
    """Clip every axis of an action.

    Args:
        low: the least value, one for all axes or one each.
        high: the largest.

    Raises:
        ValueError: bounds that leave nothing.

    >>> Box(-1.0, [1.0, 0.5])(torch.tensor([[3.0, 3.0], [-2.0, 0.0]]))
    tensor([[ 1.0000,  0.5000],
            [-1.0000,  0.0000]])
    """

    def __init__(self, low: float | Sequence[float], high: float | Sequence[float]) -> None:
        self.low, self.high = (torch.tensor(each, device="cpu") for each in (low, high))
        if not (self.low <= self.high).all():
            raise ValueError(f"a box from low={low} to high={high} is empty")

    def __call__(self, actions: Tensor) -> Tensor:
        """Actions `[..., A]`, clipped."""
        return torch.minimum(torch.maximum(actions, self.low.to(actions)), self.high.to(actions))


class Ball(Projection):
    """Scale actions down to a Euclidean length.

    Args:
        radius: the largest length.
        axes: the axes whose length it is; all without.

    Raises:
        ValueError: a radius that is not positive.

    >>> Ball(2.0)(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
    tensor([[1.2000, 1.6000],
            [0.3000, 0.4000]])
    """

    def __init__(self, radius: float, axes: Sequence[int] | None = None) -> None:
        if not radius > 0:
            raise ValueError(f"the radius of a ball must be positive, got {radius}")
        self.radius, self.axes = radius, axes

    def __call__(self, actions: Tensor) -> Tensor:
        """Actions `[..., A]`, the long ones scaled."""
        axes = list(range(actions.shape[-1])) if self.axes is None else list(self.axes)
        length = actions[..., axes].norm(dim=-1, keepdim=True)
        scaled = actions.clone()
        scaled[..., axes] = actions[..., axes] * (length.clamp(max=self.radius) / (length + 1e-6))
        return scaled


class FixedAxes(Projection):
    """Set axes of an action to a value.

    Args:
        values: by number of the axis.
        first: from which step of a plan on.

    >>> FixedAxes({1: 9.0}, first=1)(torch.zeros(2, 2))
    tensor([[0., 0.],
            [0., 9.]])
    """

    def __init__(self, values: Mapping[int, float], first: int = 0) -> None:
        self.values, self.first = {int(axis): float(value) for axis, value in values.items()}, first

    def __call__(self, actions: Tensor) -> Tensor:
        """Actions `[..., H, A]` with these values."""
        fixed = actions.clone()
        for axis, value in self.values.items():
            fixed[..., self.first :, axis] = value
        return fixed

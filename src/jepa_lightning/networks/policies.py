"""The networks of agents: encoders of states, predictors of what follows an action for a task, and actors."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SphereEncoder(nn.Module):
    """A vector's embedding on the sphere of radius √D.

    Args:
        input_dim: numbers of an observation.
        embed_dim: D.
        hidden_dim: width of the hidden layers.
        hidden_layers: how many there are, of which the first one has a norm; a linear map with none.

    Source: TD-JEPA (arXiv 2510.00739), appendix on architectures.
    """

    def __init__(self, input_dim: int, embed_dim: int, hidden_dim: int = 256, hidden_layers: int = 2) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        layers: list[nn.Module] = []
        if hidden_layers:
            layers = [nn.Linear(input_dim, hidden_dim), nn.LayerNorm(hidden_dim), Tanh()]
            for _ in range(hidden_layers - 1):
                layers += [nn.Linear(hidden_dim, hidden_dim), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear(hidden_dim if hidden_layers else input_dim, embed_dim))
        self.apply(orthogonal)

    def forward(self, observation: Tensor) -> Tensor:
        """Observations `[B, F]` to `[B, D]`."""
        return to_sphere(self.net(observation))


class TaskPredictor(nn.Module):
    """What follows an action, if the policy of a task acts from there: several heads, each a network of its own.

    Two branches, of state and task and of state and action, are joined.

    Args:
        state_dim: numbers of an embedded state.
        action_dim: numbers of an action.
        task_dim: numbers of a task.
        output_dim: numbers D of what is predicted.
        hidden_dim: width.
        hidden_layers: of the part after the branches.
        embedding_layers: of each branch.
        heads: H.

    Source: TD-JEPA (arXiv 2510.00739), appendix on architectures; Touati et al. (arXiv 2209.14935).
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        task_dim: int,
        output_dim: int,
        hidden_dim: int = 1024,
        hidden_layers: int = 1,
        embedding_layers: int = 2,
        heads: int = 2,
    ) -> None:
        super().__init__()
        self.embed_task = branch(state_dim + task_dim, hidden_dim, embedding_layers, heads)
        self.embed_action = branch(state_dim + action_dim, hidden_dim, embedding_layers, heads)
        self.head = trunk(hidden_dim, output_dim, hidden_layers, heads)
        self.heads = heads
        self.apply(orthogonal)

    def forward(self, state: Tensor, action: Tensor, task: Tensor) -> Tensor:
        """Of states `[B, S]`, actions `[B, A]` and tasks `[B, Z]`, the prediction of each head, `[H, B, D]`."""
        of_task, of_action = (torch.cat([state, other], -1).expand(self.heads, -1, -1) for other in (task, action))
        return self.head(torch.cat([self.embed_action(of_action), self.embed_task(of_task)], -1))


class TaskActor(nn.Module):
    """The mean action of a policy for a task, in [−1, 1]; or, of a policy of noise, what the noise is turned into.

    Args:
        state_dim: numbers of what it sees.
        task_dim: numbers of a task.
        action_dim: numbers of an action.
        hidden_dim: width.
        hidden_layers: of the part after the two branches, of the state and of state and task.
        embedding_layers: of each branch.
        noise: whether it turns noise into actions.

    Source: TD-JEPA (arXiv 2510.00739), appendix on architectures; Park et al. (arXiv 2502.02538), the one-step policy.
    """

    def __init__(
        self,
        state_dim: int,
        task_dim: int,
        action_dim: int,
        hidden_dim: int = 1024,
        hidden_layers: int = 1,
        embedding_layers: int = 2,
        noise: bool = False,
    ) -> None:
        super().__init__()
        state_dim += action_dim if noise else 0
        self.embed_task = branch(state_dim + task_dim, hidden_dim, embedding_layers)
        self.embed_state = branch(state_dim, hidden_dim, embedding_layers)
        self.head = trunk(hidden_dim, action_dim, hidden_layers)
        self.noise = noise
        self.apply(orthogonal)

    def forward(self, state: Tensor, task: Tensor, noise: Tensor | None = None) -> Tensor:
        """Of states `[B, S]`, tasks `[B, Z]` and, where it takes it, noise `[B, A]`, actions `[B, A]`."""
        further = [noise] if self.noise and noise is not None else []
        embedded = [
            self.embed_state(torch.cat([state, *further], -1)),
            self.embed_task(torch.cat([state, task, *further], -1)),
        ]
        return torch.tanh(self.head(torch.cat(embedded, -1)))


class VectorField(nn.Module):
    """The velocity at which noise flows into the actions of the data, whatever their tasks.

    Args:
        state_dim: numbers of what it sees.
        action_dim: numbers of an action.
        hidden_dim: width.
        hidden_layers: how many there are.

    Source: Lipman et al. (arXiv 2210.02747), section 3; Park et al. (arXiv 2502.02538).
    """

    def __init__(self, state_dim: int, action_dim: int, hidden_dim: int = 512, hidden_layers: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(state_dim + action_dim + 1, hidden_dim), nn.GELU()]
        for _ in range(hidden_layers - 1):
            layers += [nn.Linear(hidden_dim, hidden_dim), nn.GELU()]
        self.net = nn.Sequential(*layers, nn.Linear(hidden_dim, action_dim))
        self.apply(orthogonal)

    def forward(self, state: Tensor, action: Tensor, time: Tensor) -> Tensor:
        """At states `[B, S]`, points `[B, A]` on the way and times `[B, 1]` in [0, 1], `[B, A]`."""
        return self.net(torch.cat([state, action, time], -1))

    def integrate(self, state: Tensor, noise: Tensor, steps: int) -> Tensor:
        """Where noise `[B, A]` ends by so many of Euler's steps, within [−1, 1]."""
        action = noise
        for step in range(steps):
            time = noise.new_full((len(noise), 1), step / steps)
            action = action + self(state, action, time) / steps
        return action.clamp(-1, 1)


class ParallelLinear(nn.Module):
    """Linear maps `[H, B, inputs]` to `[H, B, outputs]`, one a head."""

    def __init__(self, heads: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(heads, 1, outputs))

    def forward(self, values: Tensor) -> Tensor:
        """All heads at once."""
        return torch.baddbmm(self.bias, values, self.weight)


class ParallelLayerNorm(nn.Module):
    """Layer norms of `[H, B, width]`, whose scale and shift each head has of its own."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, 1, width))
        self.bias = nn.Parameter(torch.zeros(heads, 1, width))

    def forward(self, values: Tensor) -> Tensor:
        """All heads at once."""
        return F.layer_norm(values, values.shape[-1:]) * self.weight + self.bias


class Tanh(nn.Module):
    """The hyperbolic tangent; on CPUs as 2 σ(2 x) − 1, which is within 2e-7 of torch's, in a third of the time.

    Torch's own took a tenth of an update of small networks (a core of an AMD EPYC; see `tests/benchmarks/td_jepa.py`).
    """

    def forward(self, values: Tensor) -> Tensor:
        """Of each number."""
        return _TanhBySigmoid.apply(values) if values.device.type == "cpu" else torch.tanh(values)


class _TanhBySigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        found = torch.sigmoid(2 * values).mul_(2).sub_(1)
        ctx.save_for_backward(found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (found,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(gradients[0], found)


def branch(inputs: int, hidden_dim: int, layers: int, heads: int = 1) -> nn.Sequential:
    """Layers to half of a width, of which the first one has a norm."""
    parts: list[nn.Module] = [_linear(heads, inputs, hidden_dim), _norm(heads, hidden_dim), Tanh()]
    for _ in range(layers - 2):
        parts += [_linear(heads, hidden_dim, hidden_dim), nn.ReLU()]
    return nn.Sequential(*parts, _linear(heads, hidden_dim, hidden_dim // 2), nn.ReLU())


def trunk(hidden_dim: int, outputs: int, hidden_layers: int, heads: int = 1) -> nn.Sequential:
    """Layers after the branches."""
    parts: list[nn.Module] = []
    for _ in range(hidden_layers):
        parts += [_linear(heads, hidden_dim, hidden_dim), nn.ReLU()]
    return nn.Sequential(*parts, _linear(heads, hidden_dim, outputs))


def to_sphere(vectors: Tensor) -> Tensor:
    """Vectors `[..., D]` at the length √D.

    >>> to_sphere(torch.tensor([[3.0, 4.0]]))
    tensor([[0.8485, 1.1314]])
    """
    return math.sqrt(vectors.shape[-1]) * F.normalize(vectors, dim=-1)


def pessimistic(heads: Tensor, penalty: float) -> Tensor:
    """The mean of H heads `[H, ...]`, less a penalty times how far two of them are apart on average.

    >>> pessimistic(torch.tensor([[1.0], [3.0]]), 0.5)
    tensor([1.])
    """
    mean = heads.mean(0)
    if not penalty or len(heads) == 1:
        return mean
    apart = (heads.unsqueeze(0) - heads.unsqueeze(1)).abs().sum((0, 1)) / (len(heads) * (len(heads) - 1))
    return mean - penalty * apart


def orthogonal(layer: nn.Module) -> None:
    """Initialise a layer: orthogonal weights, of heads by √2 larger, and no biases."""
    if isinstance(layer, nn.Linear):
        nn.init.orthogonal_(layer.weight)
        nn.init.zeros_(layer.bias)
    elif isinstance(layer, ParallelLinear):
        for weight in layer.weight.data:
            nn.init.orthogonal_(weight, gain=math.sqrt(2))
        nn.init.zeros_(layer.bias)


def _linear(heads: int, inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs, outputs) if heads == 1 else ParallelLinear(heads, inputs, outputs)


def _norm(heads: int, width: int) -> nn.Module:
    return nn.LayerNorm(width) if heads == 1 else ParallelLayerNorm(heads, width)

"""Linear layers that take the faster of the two matrix products that torch brings along for processors."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# In float32 torch multiplies with MKL, which leaves the AVX-512 of other makers' processors unused. oneDNN, which is in
# the same wheels and which torch takes for convolutions and half precision, uses it, and is twice as fast there.
AVX512 = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
LEAST = 2**21  # multiplications, below which a call of oneDNN costs more than it saves


class _OneDNNLinear(torch.autograd.Function):
    """`x Wᵀ + b` and its gradients, all three by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        rows, inputs = gradient.flatten(0, -2), x.flatten(0, -2)
        if ctx.needs_input_grad[0]:
            of_x = _product(gradient, weight.T)
        if ctx.needs_input_grad[1]:
            # The first factor is copied if it is transposed: let that be the smaller one.
            wide = len(weight) > inputs.shape[1]
            of_weight = _product(inputs.T, rows.T).T if wide else _product(rows.T, inputs.T)
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0)
        return of_x, of_weight, of_bias


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x Wᵀ + b`, without gradient, by the operator that `torch.compile` calls on processors."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


class Linear(nn.Linear):
    """`nn.Linear`, computed by oneDNN where that is faster: in float32, on processors with AVX-512, in eager mode.

    The results differ by rounding. `torch.backends.mkldnn.flags(enabled=False)` gives those of `nn.Linear`; second
    derivatives need it on such a processor, and so does `torch.utils.flop_counter`, which does not know oneDNN.

    >>> layer = Linear(64, 96)
    >>> x = torch.randn(512, 64)
    >>> bool(torch.allclose(layer(x), nn.functional.linear(x, layer.weight, layer.bias), atol=1e-5))
    True
    """

    def forward(self, input: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        if (
            AVX512
            and input.dtype == self.weight.dtype == torch.float32
            and input.device.type == self.weight.device.type == "cpu"
            and input.numel() * self.out_features >= LEAST
            and torch.backends.mkldnn.enabled
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        ):
            output: Tensor = _OneDNNLinear.apply(input, self.weight, self.bias)
            return output
        return F.linear(input, self.weight, self.bias)


class Mlp(nn.Module):
    """`x ↦ W₂ GELU(W₁ x)`, the second half of a transformer block. Parameter names are the official (and timm's) ones.

    Args:
        dim: width of what goes in and comes out.
        hidden_dim: width between.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., dim]` to `[..., dim]`."""
        return self.fc2(F.gelu(self.fc1(x)))

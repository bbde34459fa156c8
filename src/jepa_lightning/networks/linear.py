"""Linear layers by the faster of the two matrix products that torch brings along for processors."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Activation = Literal["gelu", "relu"]

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


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)`, by oneDNN where that is faster: in float32, on processors with AVX-512, in eager mode.

    The layers stay torch's own, so that what goes by the class finds them, as quantisation and adapters do; one with
    hooks, or of another class, is called as usual. The results differ by rounding.
    `torch.backends.mkldnn.flags(enabled=False)` gives those of `nn.Linear`; second derivatives need it on such a
    processor, and so does `torch.utils.flop_counter`, which does not know oneDNN.

    Args:
        layer: from `in_features` to `out_features`.
        x: `[..., in_features]`.

    Returns:
        `[..., out_features]`.

    >>> layer, x = nn.Linear(64, 96), torch.randn(512, 64)
    >>> bool(torch.allclose(linear(layer, x), layer(x), atol=1e-5))
    True
    """
    if (
        AVX512
        and type(layer) is nn.Linear
        and x.dtype == layer.weight.dtype == torch.float32
        and x.device.type == layer.weight.device.type == "cpu"
        and x.numel() * layer.out_features >= LEAST
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
    ):
        output: Tensor = _OneDNNLinear.apply(x, layer.weight, layer.bias)
        return output
    return layer(x)


class Mlp(nn.Module):
    """`x ↦ W₂ GELU(W₁ x)`, the second half of a transformer block. Parameter names are the official (and timm's) ones.

    Args:
        dim: width of what goes in and comes out.
        hidden_dim: width between.
        activation: `gelu`, or `relu` in its place.
    """

    def __init__(self, dim: int, hidden_dim: int, activation: Activation = "gelu") -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.activation = F.gelu if activation == "gelu" else F.relu

    def forward(self, x: Tensor) -> Tensor:
        """`[..., dim]` to `[..., dim]`."""
        return linear(self.fc2, self.activation(linear(self.fc1, x)))

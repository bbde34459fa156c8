"""The transformer block: attention that can rotate, hide and be asked for its last tokens only, and an MLP."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lightning.networks.linear import Activation, Mlp, linear
from jepa_lightning.networks.positions import Rotation, rotate


class Attention(nn.Module):
    """Multi-head self-attention, see `Block`. Parameter names are the official (and timm's) ones."""

    def __init__(self, dim: int, num_heads: int, head_dim: int | None = None, bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = dim if head_dim is None else num_heads * head_dim
        self.qkv = nn.Linear(dim, 3 * inner, bias)
        self.proj = nn.Linear(inner, dim, bias)

    def forward(self, x: Tensor, by: Rotation | None = None, mask: Tensor | None = None, last: int = 0) -> Tensor:
        """Attend, see `Block`."""
        q, k, v = linear(self.qkv, x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if by is not None:
            q, k = rotate(q, by), rotate(k, by)
        if mask is not None and mask.shape[-2] > 1:
            mask = mask[..., -last:, :]
        attended = F.scaled_dot_product_attention(q[:, :, -last:], k, v, attn_mask=mask)
        return linear(self.proj, attended.transpose(1, 2).flatten(2))


class BlockOutput(NamedTuple):
    """What a block gives.

    Attributes:
        tokens: `[B, K, dim]`.
        added: what its MLP adds to its input, of the same shape: before the sum and, of post-norm blocks, the norm.
    """

    tokens: Tensor
    added: Tensor


class Block(nn.Module):
    """A transformer block.

    Rotation and mask are the caller's: they depend on the places only, so one serves all blocks of a forward pass.

    Args:
        dim: width of the tokens, a multiple of `num_heads`.
        num_heads: attention heads.
        mlp_ratio: width of the MLP over `dim`.
        norm_first: whether the norms come before attention and MLP, on the branches (pre-norm), or after the sums
            (post-norm, as in BERT and data2vec).
        activation: of the MLP, `gelu` or `relu`.
        head_dim: width of a head; `dim / num_heads` without.
        bias: whether attention and norms have biases; the MLP always has.
        eps: epsilon of the norms.
        layer_scale: what the features of both branches are multiplied by at the start, by weights of their own that are
            trained (`gamma_1`, `gamma_2`, as in BEiT); by nothing without.
    """

    forward_methods = ("output",)  # which a strategy that shards has to know

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        norm_first: bool = True,
        activation: Activation = "gelu",
        head_dim: int | None = None,
        bias: bool = True,
        eps: float = 1e-6,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.norm1 = nn.LayerNorm(dim, eps=eps, bias=bias)
        self.attn = Attention(dim, num_heads, head_dim, bias)
        self.norm2 = nn.LayerNorm(dim, eps=eps, bias=bias)
        self.mlp = Mlp(dim, round(dim * mlp_ratio), activation)
        self.gamma_1, self.gamma_2 = (
            None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale)) for _ in range(2)
        )

    def forward(self, x: Tensor, by: Rotation | None = None, mask: Tensor | None = None, last: int = 0) -> Tensor:
        """Let tokens attend to tokens.

        Args:
            x: tokens `[B, K, dim]`.
            by: how queries and keys are rotated; not at all where the tokens hold their positions themselves.
            mask: which keys each query sees, BoolTensor that broadcasts to `[B, heads, K, K]`, or what is added to the
                logits, of that shape; every query sees all keys without.
            last: how many of the last tokens are wanted, where nobody reads the others: these save their MLP. All with
                zero.

        Returns:
            `[B, K, dim]`, or `[B, last, dim]`.
        """
        return self._output(x, by, mask, last).tokens

    def output(self, x: Tensor, by: Rotation | None = None, mask: Tensor | None = None) -> BlockOutput:
        """The same of all tokens, and what the MLP adds to them."""
        return self._output(x, by, mask, 0)

    def _output(self, x: Tensor, by: Rotation | None, mask: Tensor | None, last: int) -> BlockOutput:
        if self.norm_first:
            x = x[:, -last:] + _scaled(self.attn(self.norm1(x), by, mask, last), self.gamma_1)
            added = _scaled(self.mlp(self.norm2(x)), self.gamma_2)
            return BlockOutput(x + added, added)
        x = self.norm1(x[:, -last:] + _scaled(self.attn(x, by, mask, last), self.gamma_1))
        added = _scaled(self.mlp(x), self.gamma_2)
        return BlockOutput(self.norm2(x + added), added)


def _scaled(branch: Tensor, gamma: Tensor | None) -> Tensor:
    return branch if gamma is None else branch * gamma

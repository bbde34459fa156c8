"""The encoder of a checkpoint as an evaluation reads it: frozen, and by its last layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from jepa_lightning.checkpoints import load_encoder


class FrozenEncoder(nn.Module):
    """The encoder of any checkpoint that `load_encoder` reads, without gradients, and the tokens of its last blocks.

    Args:
        path: a checkpoint file, or a folder in the layout of the Hugging Face hub.
        layers: blocks from the last one back whose tokens are given.
        options: further arguments of `load_encoder`, such as `{"network": "context_encoder", "image_size": 384}`.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file that cannot be read, or an encoder of fewer blocks.
    """

    def __init__(self, path: str, layers: int = 1, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        encoder = load_encoder(path, **(options or {}))
        if not 1 <= layers <= len(encoder.blocks):
            raise ValueError(f"{path} has {len(encoder.blocks)} blocks: its last {layers} cannot be read")
        self.encoder = encoder
        self.embed_dim, self.num_heads, self.grid = encoder.embed_dim, encoder.num_heads, encoder.grid
        self._tokens: list[Tensor] = []
        for block in list(encoder.blocks)[-layers:]:
            block.register_forward_hook(lambda _block, _inputs, tokens: self._tokens.append(tokens))

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Images or clips to the tokens `[B, layers, N, D]` of the last blocks, each after the encoder's norm."""
        self._tokens.clear()
        self.encoder(x)
        tokens = torch.stack([self.encoder.norm(tokens) for tokens in self._tokens], 1)
        self._tokens.clear()
        return tokens

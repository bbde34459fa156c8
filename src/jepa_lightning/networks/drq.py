"""Frames of an environment as vectors, and the shifts that they are augmented by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class DrQEncoder(nn.Module):
    """Frames to a vector of 256 numbers: four convolutions, of which the first halves the sides, and a linear map.

    Args:
        frame_shape: channels (of stacked frames, of all together), rows and columns.

    Raises:
        ValueError: frames too small for the convolutions, or not of three axes.

    Source: DrQ-v2 (Yarats et al., arXiv 2107.09645), appendix; its size is TD-JEPA's (arXiv 2510.00739).
    """

    embed_dim = 256

    def __init__(self, frame_shape: Sequence[int]) -> None:
        super().__init__()
        if len(frame_shape) != 3:
            raise ValueError(f"frames are given by [channels, rows, columns], not by {list(frame_shape)}")
        channels, rows, columns = frame_shape
        if min(rows, columns) < 15:
            raise ValueError(f"frames of {rows} × {columns} pixels are too small for four convolutions: give 15")
        layers: list[nn.Module] = [nn.Conv2d(channels, 32, 3, stride=2), nn.ReLU()]
        for _ in range(3):
            layers += [nn.Conv2d(32, 32, 3), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        left = [(side - 3) // 2 + 1 - 6 for side in (rows, columns)]
        self.projection = nn.Sequential(
            nn.Flatten(), nn.Linear(32 * left[0] * left[1], self.embed_dim), nn.LayerNorm(self.embed_dim), nn.Tanh()
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                gain = nn.init.calculate_gain("relu") if isinstance(layer, nn.Conv2d) else 1.0
                nn.init.orthogonal_(layer.weight, gain)
                nn.init.constant_(layer.bias, 0.0)  # type: ignore[arg-type]

    def forward(self, frames: Tensor) -> Tensor:
        """Frames `[B, C, H, W]` in 0 … 255, uint8 or float, to `[B, 256]`."""
        return self.projection(self.convolutions(frames.float() / 255 - 0.5))


def shift_frames(frames: Tensor, uniform: Tensor, most: int) -> Tensor:
    """Frames moved by whole pixels; what comes in at an edge repeats the edge.

    Args:
        frames: `[B, C, H, W]`.
        uniform: numbers in [0, 1) that say how far down and to the right, `[B, 2]`.
        most: pixels that a frame is moved by at most, along each axis.

    Returns:
        `[B, C, H, W]`.

    >>> frame = torch.arange(3.0).expand(1, 1, 3, 3)
    >>> shift_frames(frame, torch.tensor([[0.5, 0.0]]), 1)[0, 0, 0]
    tensor([0., 0., 1.])

    Source: DrQ-v2 (Yarats et al., arXiv 2107.09645), without its bilinear interpolation, as shifts are whole pixels.
    """
    shift = (uniform * (2 * most + 1)).long() - most  # [B, 2]
    rows, columns = (
        (torch.arange(side, device=frames.device) + shift[:, axis, None]).clamp(0, side - 1)
        for axis, side in enumerate(frames.shape[2:])
    )
    sample = torch.arange(len(frames), device=frames.device)[:, None, None]
    return frames.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

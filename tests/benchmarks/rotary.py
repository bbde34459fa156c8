"""Rotations once a forward pass against anew in each block: `python tests/benchmarks/rotary.py`.

The whole training step of V-JEPA 2, ViT-S on 16 frames of 128 pixels, three ways in turn, in one run on one core: as it
is; with the table of rotations computed in each block; and with the angles of queries and keys computed for each head
and axis of each block, which is what a straightforward version does. Prints medians of the processor's time.
"""

import argparse
import statistics
import time
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from jepa_lightning import VJEPA2
from jepa_lightning.draws import Rng
from jepa_lightning.networks import blocks, predictors, transformer
from jepa_lightning.networks.positions import rotate as rotate_by_table
from jepa_lightning.networks.positions import rotation


class Later:
    """What a rotation is computed from, handed on to where it is used."""

    def __init__(self, places: Tensor, grid: Any, head_dim: int, tiled: bool = False) -> None:
        self.arguments = (places, grid, head_dim, tiled)


def in_each_block(x: Tensor, by: Later) -> Tensor:
    """Rotate queries (or keys) by a table that is computed for them."""
    return rotate_by_table(x, rotation(*by.arguments))


def in_each_head(x: Tensor, by: Later) -> Tensor:
    """The same, with angles for each head, axis by axis."""
    places, (_, rows, columns), head_dim, _ = by.arguments
    share = head_dim // 3 // 2 * 2
    places = places.unsqueeze(1).expand(x.shape[0], x.shape[1], -1)
    parts, start = [], 0
    for axis in (places // (rows * columns), places // columns % rows, places % columns):
        frequencies = 10000.0 ** (-torch.arange(share // 2, dtype=torch.float32) / (share // 2))
        angles = (axis.unsqueeze(-1) * frequencies).repeat_interleave(2, -1)
        part = x[..., start : start + share]
        first, second = part.unflatten(-1, (-1, 2)).unbind(-1)
        parts.append(part * angles.cos() + torch.stack([-second, first], -1).flatten(-2) * angles.sin())
        start += share
    return torch.cat([*parts, x[..., start:]], -1)


def main() -> None:
    """Time the three, in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clips", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = VJEPA2(
        image_size=128,
        num_frames=16,
        embed_dim=384,
        depth=12,
        num_heads=6,
        predictor_embed_dim=384,
        predictor_depth=12,
        predictor_num_heads=12,
    )
    clips = torch.randn(arguments.clips, 3, 16, 128, 128)
    masks = module.draw(clips, Rng(0, batch_size=len(clips)))

    def step() -> tuple[float, float]:
        module.zero_grad()
        start = time.process_time()
        loss = module.loss(module.latents(clips, masks))["loss"]
        loss.backward()
        return time.process_time() - start, loss.item()

    ways: dict[str, Any] = {"once": None, "in each block": in_each_block, "in each head": in_each_head}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(arguments.rounds + 1):
        losses = []
        for way, rotate in ways.items():
            later = Later if rotate else rotation
            with (
                mock.patch.object(blocks, "rotate", rotate or rotate_by_table),
                mock.patch.object(transformer, "rotation", later),
                mock.patch.object(predictors, "rotation", later),
            ):
                seconds, loss = step()
            losses.append(loss)
            if number:  # the first round warms up
                times[way].append(seconds)
        assert max(losses) - min(losses) < 1e-5, losses
    for way in ways:
        ratios = [a / b for a, b in zip(times[way], times["once"], strict=True)]
        spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"{way}: {statistics.median(times[way]):.3f} s a step, {spread} times as long as once")


if __name__ == "__main__":
    main()

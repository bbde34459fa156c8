"""The official samplers, faults included: kept to reproduce what was published, and its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Generator, Tensor

from jepa_lightning.masking.blocks import Blocks, frame_sides, union_of_blocks
from jepa_lightning.masking.masks import Masks, between

Range: TypeAlias = tuple[float, float]


def multi_block(
    batch_size: int,
    grid: Sequence[int],
    generator: Generator,
    num_targets: int,
    target_scale: Range,
    target_aspect: Range,
    context_scale: Range,
    min_keep: int,
) -> Masks:
    """I-JEPA's masks: `src/masks/multiblock.py` of facebookresearch/ijepa.

    One block size a batch, scale and aspect ratio from the same random number, the last row and column out of reach,
    and all contexts cut to the shortest of the batch by dropping their last rows.

    Args:
        batch_size: number of images.
        grid: `(rows, columns)` of the token grid.
        generator: of all numbers.
        num_targets: target blocks an image.
        target_scale: range of a target block's share of the grid.
        target_aspect: range of a target block's height over its width.
        context_scale: range of the context block's share of the grid.
        min_keep: a context has more tokens than that.

    Raises:
        ValueError: blocks that may be too small on the grid.
    """
    check_multi_block(grid, target_scale, target_aspect, context_scale, min_keep)
    target_sides, context_sides = (
        _sides(scale, aspect, grid, number=float(_uniform((), generator)))
        for scale, aspect in ((target_scale, target_aspect), (context_scale, (1.0, 1.0)))
    )
    blocks = _places((batch_size, num_targets), target_sides, grid, generator)
    covered = blocks.cover(grid)
    targets = covered.flatten(0, 1).nonzero()[:, 1].view(batch_size, num_targets, -1)

    # Contexts that keep too little are drawn again; after every 20 attempts one more target may be overlapped.
    context = torch.zeros(batch_size, grid[0] * grid[1], dtype=torch.bool, device=covered.device)
    missing = torch.arange(batch_size, device=covered.device)
    attempt = 0
    while len(missing):
        allowed = ~covered[missing, : max(0, num_targets - attempt // 20)].any(1)
        block = _places((len(missing),), context_sides, grid, generator)
        drawn = block.cover(grid) & allowed
        context[missing] = drawn
        missing = missing[drawn.sum(1) <= min_keep]
        attempt += 1
    return Masks(_first(context), targets)


def check_multi_block(
    grid: Sequence[int], target_scale: Range, target_aspect: Range, context_scale: Range, min_keep: int
) -> None:
    """Raise a ValueError if `multi_block` may draw a block of too few tokens."""
    smallest = {
        "target": _sides(target_scale, target_aspect, grid, number=0.0),
        "context": _sides(context_scale, (1.0, 1.0), grid, number=0.0),
    }
    for name, (height, width) in smallest.items():
        if height * width <= min_keep:
            raise ValueError(
                f"the official sampler wants blocks of more than {min_keep} tokens, but a {name} block may be "
                f"{height}x{width} on a {tuple(grid)} grid: use a finer grid, larger blocks or a smaller min_keep"
            )


def tubes(
    batch_size: int,
    grid: Sequence[int],
    generator: Generator,
    num_blocks: int,
    spatial_scale: Range,
    temporal_scale: Range,
    aspect: Range,
) -> Masks:
    """V-JEPA's masks: `src/masks/multiblock3d.py` of facebookresearch/jepa.

    One block size a batch, and the tokens of all clips cut to the fewest in the batch by dropping the last frames.

    Args:
        batch_size: number of clips.
        grid: `(frames, rows, columns)` of the token grid.
        generator: of all numbers.
        num_blocks: blocks a clip.
        spatial_scale: range of a block's share of a frame.
        temporal_scale: range of a block's share of the clip's length.
        aspect: range of a block's height over its width.

    Raises:
        ValueError: blocks that cover the whole grid.
    """
    length = max(1, int(float(between(_uniform((), generator), *temporal_scale)) * grid[0]))
    scale = between(_uniform((), generator), *spatial_scale)
    height, width = frame_sides(scale, between(_uniform((), generator), *aspect), grid)
    sides = (torch.full_like(height, length), height, width)
    if all(float(side) == cells for side, cells in zip(sides, grid, strict=True)):
        raise ValueError(f"blocks of this scale cover the whole of a {tuple(grid)} grid and leave no context")
    covered = torch.ones(batch_size, math.prod(grid), dtype=torch.bool, device=height.device)
    missing = torch.arange(batch_size, device=height.device)
    while len(missing):  # clips without any context are drawn again
        shape = (len(missing), num_blocks)
        starts = [_uniform(shape, generator) for _ in grid]
        covered[missing] = union_of_blocks([side.expand(shape) for side in sides], starts, grid)
        missing = missing[covered[missing].all(1)]
    return Masks(_first(~covered), _first(covered).unsqueeze(1))


def _sides(scale: Range, aspect: Range, grid: Sequence[int], number: float) -> tuple[int, int]:
    """One block size for the batch: scale and aspect ratio from the same number, never the whole of a side."""
    area = int((scale[0] + number * (scale[1] - scale[0])) * grid[0] * grid[1])
    ratio = aspect[0] + number * (aspect[1] - aspect[0])
    height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    return min(height, grid[0] - 1), min(width, grid[1] - 1)


def _places(shape: tuple[int, ...], sides: tuple[int, int], grid: Sequence[int], generator: Generator) -> Blocks:
    """Places whose upper end is left out, so that no block touches the last row or column."""
    top = (_uniform(shape, generator) * (grid[0] - sides[0])).floor()
    left = (_uniform(shape, generator) * (grid[1] - sides[1])).floor()
    return Blocks(top, left, torch.full_like(top, sides[0]), torch.full_like(left, sides[1]))


def _first(tokens: Tensor) -> Tensor:
    """The indices of the first tokens of each row of a BoolTensor, as many as the row with the fewest has."""
    fewest = int(tokens.sum(1).min())
    return (tokens & (tokens.cumsum(1) <= fewest)).nonzero()[:, 1].view(len(tokens), fewest)


def _uniform(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Uniform numbers in the order of a generator: these samplers look at one after another."""
    return torch.rand(shape, generator=generator, device=generator.device)

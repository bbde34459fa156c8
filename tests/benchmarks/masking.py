"""Masks against a Python loop over samples, and against a training step: `python tests/benchmarks/masking.py`.

All parts alternate what they compare, in one run on one core, and print medians.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import lightning.pytorch as pl
import numpy as np
import torch

from jepa_lightning import IJEPA
from jepa_lightning.draws import Rng
from jepa_lightning.masking import Masks, MultiBlockMasking, SpanMasking


def loop_over_samples(batch_size: int, grid: tuple[int, int], generator: torch.Generator) -> Masks:
    """What `MultiBlockMasking()` draws, one image at a time, as one would write it first."""
    rows, columns = grid
    tokens = rows * columns
    context_tokens, target_tokens = round(tokens / 4), round(0.15 * tokens)

    def block(scale: tuple[float, float], aspect: tuple[float, float], at_least: int) -> tuple[int, int, int, int]:
        number = torch.rand(4, generator=generator).tolist()
        area = (scale[0] + number[0] * (scale[1] - scale[0])) * tokens
        ratio = aspect[0] + number[1] * (aspect[1] - aspect[0])
        height = min(max(round(math.sqrt(area * ratio)), 1), rows)
        width = min(max(round(math.sqrt(area / ratio)), 1, math.ceil(at_least / height)), columns)
        return int(number[2] * (rows - height + 1)), int(number[3] * (columns - width + 1)), height, width

    contexts, targets = [], []
    for _ in range(batch_size):
        while True:
            blocks = [block((0.15, 0.2), (0.75, 1.5), target_tokens) for _ in range(4)]
            free = torch.ones(rows, columns, dtype=torch.bool)
            for top, left, height, width in blocks:
                free[top : top + height, left : left + width] = False
            if int(free.sum()) >= context_tokens:
                break
        for top, left, height, width in blocks:
            row, column = torch.meshgrid(torch.arange(height) + top, torch.arange(width) + left, indexing="ij")
            start = int(torch.randint(height * width, (), generator=generator))
            targets.append((row * columns + column).flatten().roll(-start)[:target_tokens])
        top, left, height, width = block((0.85, 1.0), (1.0, 1.0), 1)
        priority = torch.rand(rows, columns, generator=generator) + free
        priority[top : top + height, left : left + width] += free[top : top + height, left : left + width]
        contexts.append(priority.flatten().topk(context_tokens).indices)
    return Masks(torch.stack(contexts), torch.stack(targets).view(batch_size, 4, -1))


def loop_over_sounds(batch_size: int, tokens: int, generator: np.random.Generator) -> Masks:
    """What `SpanMasking(0.41, 10, 0.65)` draws, one sequence at a time, with numpy, which is faster at that than torch.

    As data2vec's official code does it, but that so many tokens are hidden of each instead of as many as of the fewest.
    """
    wanted, everywhere = round(0.41 * tokens), np.arange(tokens)
    contexts, targets = [], []
    for _ in range(batch_size):
        count = int(0.065 * tokens + generator.random())
        starts = generator.choice(tokens - 9, count, replace=False)
        covered = np.unique((starts[:, None] + np.arange(10)).ravel())
        if len(covered) > wanted:
            covered = np.sort(generator.choice(covered, wanted, replace=False))
        while len(covered) < wanted:
            start = int(generator.integers(tokens - 9))
            covered = np.union1d(covered, np.arange(start, start + 10))[:wanted]
        contexts.append(np.setdiff1d(everywhere, covered, assume_unique=True))
        targets.append(covered)
    return Masks(torch.from_numpy(np.stack(contexts)), torch.from_numpy(np.stack(targets)[:, None]))


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def alternate(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float]:
    """The median time of each, in turns, after one round to warm up."""
    pairs = [(seconds(first), seconds(second)) for _ in range(rounds + 1)][1:]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch_size", type=int, default=2048, help="for the comparison with the loop")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pl.seed_everything(0, verbose=False)
    generator, grid, masking = torch.Generator().manual_seed(0), (16, 16), MultiBlockMasking()
    batch_size = arguments.batch_size

    ours, loop = alternate(
        lambda: masking(batch_size, grid, rng=Rng(0, batch_size)),
        lambda: loop_over_samples(batch_size, grid, generator),
        arguments.rounds,
    )
    print(
        f"{batch_size} images at 16x16: {1e3 * ours:.1f} ms, loop over samples {1e3 * loop:.0f} ms: {loop / ours:.0f}x"
    )

    spans, draws = SpanMasking(0.41, 10, 0.65), np.random.default_rng(0)
    for sounds in (64, batch_size):
        ours, loop = alternate(
            lambda sounds=sounds: spans(sounds, (500,), rng=Rng(0, sounds)),
            lambda sounds=sounds: loop_over_sounds(sounds, 500, draws),
            arguments.rounds,
        )
        print(
            f"{sounds} sounds of 500 tokens: {1e3 * ours:.1f} ms, loop over samples {1e3 * loop:.0f} ms: "
            f"{loop / ours:.1f}x"
        )

    # ViT-S/16 at 256 pixels, batch 32: forward, backward and optimiser step in float32.
    module = IJEPA(256, 16, embed_dim=384, num_heads=6)
    optimizer = torch.optim.AdamW(parameter for parameter in module.parameters() if parameter.requires_grad)
    images = torch.randn(32, 3, 256, 256)

    def step() -> None:
        optimizer.zero_grad()
        module.loss(module.latents(images, masks))["loss"].backward()
        optimizer.step()

    masks = masking(32, grid, rng=Rng(0, 32))
    drawing, training = alternate(lambda: masking(32, grid, rng=Rng(0, 32)), step, rounds=1)
    print(f"batch of 32: {1e3 * drawing:.2f} ms of a step of {1e3 * training:.0f} ms: {drawing / training:.3%}")


if __name__ == "__main__":
    main()

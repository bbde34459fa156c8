"""Multi-block masking: what holds for every mask, the distribution, and the official sampler by its description."""

import itertools
import math
import random
from typing import Any

import pytest
import torch
from helpers import TINY
from torch import Tensor

from jepa_lightning import IJEPA
from jepa_lightning.draws import Rng
from jepa_lightning.masking import Masks, MultiBlockMasking
from jepa_lightning.masking.multiblock import Blocks

LARGE_GRIDS = [(14, 14), (16, 16), (28, 28), (8, 16)]
GRIDS = [*LARGE_GRIDS, (7, 7), (4, 4), (10, 5)]
# Of 14x14 tokens, scale 0.15-0.2 and aspect 0.75-1.5: what one random number for both gives, and what two add.
COUPLED = {(5, 6), (6, 5), (6, 6), (7, 5), (8, 5)}
INDEPENDENT = COUPLED | {(5, 5), (5, 7), (6, 4), (6, 7), (7, 4), (7, 6)}


def drawn(masking: MultiBlockMasking, batch_size: int, grid: tuple[int, int], seed: int = 0, **place: int) -> Masks:
    return masking(batch_size, grid, rng=Rng(seed, batch_size, **place))


def as_map(indices: Tensor, grid: tuple[int, int]) -> Tensor:
    """`[..., K]` indices as `[..., rows, columns]` of zeros and ones."""
    flat = torch.zeros(*indices.shape[:-1], grid[0] * grid[1]).scatter_(-1, indices, 1.0)
    return flat.unflatten(-1, grid)


def z_score(samples: Tensor) -> float:
    """How many standard errors the mean of independent samples is from zero."""
    return float(samples.mean() / (samples.std() / len(samples) ** 0.5).clamp(min=1e-12))


@pytest.mark.parametrize("batch_size", [1, 2, 37])
@pytest.mark.parametrize(("grid", "official"), [*((grid, False) for grid in GRIDS), *((g, True) for g in LARGE_GRIDS)])
def test_every_mask(grid: tuple[int, int], official: bool, batch_size: int) -> None:
    tokens = grid[0] * grid[1]
    masking = MultiBlockMasking(official=official)
    masks = drawn(masking, batch_size, grid, 3)
    context, targets = masks
    assert context.dtype == targets.dtype == torch.int64
    assert context.shape[0] == batch_size
    assert targets.shape[:2] == (batch_size, 4)
    if not official:
        assert context.shape[1] == round(tokens / 4)  # whatever the batch size
        assert targets.shape[2] == round(0.15 * tokens)
    for indices in (context, targets.flatten(0, 1)):
        assert 0 <= int(indices.min()) <= int(indices.max()) < tokens
        assert (as_map(indices, grid).sum((1, 2)) == indices.shape[1]).all()  # no token twice
    overlap = as_map(context, grid) * as_map(targets, grid).amax(1)
    assert not overlap.any()
    again, other = drawn(masking, batch_size, grid, 3), drawn(masking, batch_size, grid, 4)
    assert all(map(torch.equal, masks, again))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(masks, other, strict=True))


def test_options_and_generator() -> None:
    masking = MultiBlockMasking(2, (0.1, 0.3), (0.5, 2.0), context_tokens=11, target_tokens=7)
    masks = drawn(masking, 5, (9, 12))
    assert (masks.context.shape, masks.targets.shape) == ((5, 11), (5, 2, 7))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    drawn(MultiBlockMasking(), 2, (8, 8))
    assert torch.equal(torch.get_rng_state(), state)  # given numbers are the only source
    first, second = (MultiBlockMasking()(2, (8, 8)) for _ in range(2))
    assert not torch.equal(first.context, second.context)
    torch.manual_seed(0)
    assert torch.equal(MultiBlockMasking()(2, (8, 8)).context, first.context)


def test_masks_follow_seed_epoch_batch_and_place() -> None:
    """Every image's: a rank draws its own, and one process those of two in turns; a second call draws others."""
    masking, grid = MultiBlockMasking(), (14, 14)
    one = drawn(masking, 32, grid)
    for place in ({"epoch": 1}, {"epoch": -1}, {"batch": 1}, {"rank": 1, "ranks": 2}):
        for ours, others in zip(one, drawn(masking, 32, grid, **place), strict=True):
            assert not (ours == others).flatten(1).all(1).any()
    for rank in range(2):
        halves = drawn(masking, 16, grid, rank=rank, ranks=2)
        assert all(torch.equal(whole[rank::2], half) for whole, half in zip(one, halves, strict=True))
    rng = Rng(0, 32)
    first, second = (masking(32, grid, rng=rng) for _ in range(2))
    assert torch.equal(first.context, one.context)
    assert not (first.context == second.context).all(1).any()
    # The official sampler looks at a batch as a whole: what a rank draws is its own, too.
    ranks = [drawn(MultiBlockMasking(official=True), 32, grid, rank=rank, ranks=2) for rank in range(2)]
    assert ranks[0].targets.shape != ranks[1].targets.shape or not torch.equal(ranks[0].targets, ranks[1].targets)


def test_what_masks_are_not_drawn_for() -> None:
    with pytest.raises(ValueError, match="draws for 4 samples, but masks are wanted for 5"):
        MultiBlockMasking()(5, (8, 8), rng=Rng(0, 4))
    with pytest.raises(ValueError, match="takes no lengths"):
        MultiBlockMasking()(4, (8, 8), torch.full((4,), 64), Rng(0, 4))


def test_scale_and_aspect_are_independent() -> None:
    """All shapes of the independent draw, and only those; area and aspect ratio without correlation."""
    numbers = Rng(0, 200_000).sample(4)
    blocks = MultiBlockMasking()._blocks(numbers, (14, 14), (0.15, 0.2), (0.75, 1.5), 1)
    assert set(zip(blocks.height.tolist(), blocks.width.tolist(), strict=True)) == INDEPENDENT
    for grid in ((64, 64), (48, 96)):  # fine enough that rounding does not matter
        blocks = MultiBlockMasking()._blocks(numbers[:50_000], grid, (0.15, 0.2), (0.75, 1.5), 1)
        area, aspect = (blocks.height * blocks.width).double(), blocks.height / blocks.width.double()
        assert abs(float(torch.corrcoef(torch.stack([area, aspect]))[0, 1])) < 0.05
        assert float(area.mean()) / (grid[0] * grid[1]) == pytest.approx(0.175, rel=0.01)
        assert float(aspect.mean()) == pytest.approx(1.125, rel=0.01)
        # Places are uniform over all that fit.
        assert int(blocks.top.min()) == int(blocks.left.min()) == 0
        assert float((blocks.top / (grid[0] - blocks.height)).mean()) == pytest.approx(0.5, abs=0.01)
        assert float((blocks.left / (grid[1] - blocks.width)).mean()) == pytest.approx(0.5, abs=0.01)


class Recorded(MultiBlockMasking):
    """Keeps the target blocks that it draws."""

    def _targets_with_room(self, *arguments: Any) -> tuple[Blocks, Tensor]:
        self.blocks, preference = super()._targets_with_room(*arguments)
        return self.blocks, preference


@pytest.mark.parametrize("grid", [(14, 14), (8, 16)])
def test_targets_lie_in_blocks(grid: tuple[int, int]) -> None:
    """Of a block, all tokens are left out equally often; blocks with fewer tokens than a target do not occur."""
    masking, num, target_tokens = Recorded(), 4000, round(0.15 * grid[0] * grid[1])
    targets, blocks = as_map(drawn(masking, num, grid).targets, grid), masking.blocks
    covered = torch.zeros(num, 4, *grid)
    for image, block in itertools.product(range(0, num, 10), range(4)):
        top, left, height, width = (int(side[image, block]) for side in blocks)
        covered[image, block, top : top + height, left : left + width] = 1
    assert (targets[::10] <= covered[::10]).all()
    shapes = torch.stack([blocks.height, blocks.width], -1)
    for height, width in torch.unique(shapes.flatten(0, 1), dim=0).long().tolist():
        assert height * width >= target_tokens
        chosen = ((shapes == torch.tensor([height, width])).all(-1)).nonzero()
        if len(chosen) < 500:
            continue
        kept = torch.stack(
            [
                targets[i, m, top : top + height, left : left + width]
                for i, m in chosen.tolist()
                for top, left in [(int(blocks.top[i, m]), int(blocks.left[i, m]))]
            ]
        )
        share = target_tokens / (height * width)
        sigma = math.sqrt(max(share * (1 - share), 1e-9) / len(kept))
        assert float((kept.mean(0) - share).abs().max()) < 4.5 * sigma + 1e-6, (height, width)


def mirror_scores(maps: Tensor) -> list[float]:
    """z-scores of row i against its mirror row, and of columns; per image, since the tokens of an image go together."""
    rows, columns = maps.sum(2), maps.sum(1)
    return [
        z_score(side[:, index] - side[:, -1 - index]) for side in (rows, columns) for index in range(side.shape[1] // 2)
    ]


@pytest.mark.parametrize("grid", [(14, 14), (16, 16), (7, 7), (8, 16), (4, 4)])
def test_no_side_is_preferred(grid: tuple[int, int]) -> None:
    masks = drawn(MultiBlockMasking(), 8192, grid, 1)
    for maps in (as_map(masks.context, grid), as_map(masks.targets, grid).sum(1)):
        assert max(map(abs, mirror_scores(maps))) < 4.5
        assert (maps.sum(0) > 0).all()  # the last row and column are reached, as every other token
    # The same score tells the official sampler's bias from far away.
    if grid == (16, 16):
        biased = drawn(MultiBlockMasking(official=True), 8192, grid, 1)
        assert max(map(abs, mirror_scores(as_map(biased.context, grid)))) > 50
        assert max(map(abs, mirror_scores(as_map(biased.targets, grid).sum(1)))) > 10


def test_context_comes_from_its_block() -> None:
    """Where the block has enough free tokens, all of the context lies in it; else others fill it up."""
    masking = MultiBlockMasking(1, (0.05, 0.1), context_scale=(0.3, 0.3), context_tokens=8)
    context = as_map(drawn(masking, 2000, (16, 16)).context, (16, 16))
    for side in (context.amax(2), context.amax(1)):
        occupied = side.nonzero()[:, 1].split(side.sum(1).int().tolist())
        assert max(int(places.max() - places.min()) for places in occupied) == 8  # blocks of 9x9
    filling = MultiBlockMasking(1, (0.05, 0.1), context_scale=(0.01, 0.01), context_tokens=100)
    filled = drawn(filling, 50, (16, 16))
    assert filled.context.shape == (50, 100)


def test_images_of_a_batch_differ() -> None:
    """Every block has its own size and place, and the context size does not depend on the batch."""
    masking = MultiBlockMasking()
    masks = drawn(masking, 256, (16, 16))
    assert len({tuple(sorted(row)) for row in masks.context.tolist()}) == 256
    assert len({tuple(row) for row in masks.targets.flatten(0, 1).tolist()}) > 900
    assert {drawn(masking, size, (16, 16)).context.shape[1] for size in (1, 8, 64, 2048)} == {64}
    # Giving up on four separate blocks is rare: then all four are one.
    many = drawn(masking, 8192, (16, 16), 5).targets
    one = (many.sort(-1).values.amin(1).amin(-1) == many.amin(-1).amax(1)).float().mean()
    assert one < 0.02


# --- The official sampler -------------------------------------------------------------------------------------------

TABLE = {  # facts: mean context tokens at batch sizes 1, 32 and 128, and target tokens
    (14, 14): ((81.2, 56.3, 51.4), 33.4),
    (16, 16): ((111.8, 78.6, 68.6), 43.9),
    (28, 28): ((357.0, 262.0, 237.0), 136.0),
}


def official_batches(batch_size: int, grid: tuple[int, int], number: int, seed: int = 0) -> list[Masks]:
    masking, rng = MultiBlockMasking(official=True), Rng(seed, batch_size)
    return [masking(batch_size, grid, rng=rng) for _ in range(number)]


@pytest.mark.parametrize("grid", TABLE)
def test_official_counts_by_batch_size(grid: tuple[int, int]) -> None:
    contexts, target = TABLE[grid]
    for batch_size, expected, number in zip((1, 32, 128), contexts, (1500, 300, 150), strict=True):
        batches = official_batches(batch_size, grid, number)
        counts = torch.tensor([masks.context.shape[1] for masks in batches]).double()
        error = float(counts.std()) / number**0.5
        assert abs(float(counts.mean()) - expected) < 4 * error + 0.01 * expected
        targets = torch.tensor([masks.targets.shape[2] for masks in batches]).double()
        assert abs(float(targets.mean()) - target) < 4 * float(targets.std()) / number**0.5 + 0.01 * target


@pytest.mark.parametrize(
    ("batch_size", "thirds"), [(1, (0.55, 0.29, 0.47)), (32, (0.54, 0.25, 0.16)), (128, (0.54, 0.21, 0.09))]
)
def test_official_visible_thirds(batch_size: int, thirds: tuple[float, float, float]) -> None:
    """The cut takes the lower rows, the more the larger the batch (of 16x16: 5, 5 and 6 rows)."""
    batches = official_batches(batch_size, (16, 16), 1500 if batch_size == 1 else 150)
    visible = torch.stack([as_map(masks.context, (16, 16)).mean(0) for masks in batches]).mean((0, 2))
    found = [float(rows.mean()) for rows in visible.split([5, 5, 6])]
    assert found == pytest.approx(thirds, abs=0.025)


@pytest.mark.parametrize("grid", [(14, 14), (16, 16), (10, 20)])
def test_official_faults(grid: tuple[int, int]) -> None:
    """One size a batch; last row and column never reached; contexts cut in raster order."""
    sizes = set()
    for masks in official_batches(16, grid, 200):
        targets, context = as_map(masks.targets, grid), as_map(masks.context, grid)
        for maps in (targets.flatten(0, 1), context):
            assert not maps[:, -1].any()
            assert not maps[:, :, -1].any()
        rows, columns = targets.amax(3).sum(2), targets.amax(2).sum(2)
        assert len({*zip(rows.flatten().tolist(), columns.flatten().tolist(), strict=True)}) == 1
        assert (targets.sum((2, 3)) == rows * columns).all()  # whole blocks
        sizes.add((int(rows[0, 0]), int(columns[0, 0])))
        assert (masks.context.diff() > 0).all()
        assert masks.context.shape[1] > 10
    if grid == (14, 14):
        assert sizes == COUPLED


def brute_force(batch_size: int, grid: tuple[int, int], draw: random.Random) -> tuple[list[list[int]], list[list[int]]]:
    """The official sampler as described, one image at a time: contexts of the batch, and its targets in one list."""

    def sides(scale: tuple[float, float], aspect: tuple[float, float]) -> list[int]:
        number = draw.random()  # one for both
        area = int(grid[0] * grid[1] * (scale[0] + number * (scale[1] - scale[0])))
        ratio = aspect[0] + number * (aspect[1] - aspect[0])
        found = [round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))]
        for axis in range(2):
            while found[axis] >= grid[axis]:
                found[axis] -= 1
        return found

    def block(size: list[int]) -> set[int]:
        top, left = draw.randrange(grid[0] - size[0]), draw.randrange(grid[1] - size[1])
        return {row * grid[1] + col for row in range(top, top + size[0]) for col in range(left, left + size[1])}

    target_size, context_size = sides((0.15, 0.2), (0.75, 1.5)), sides((0.85, 1.0), (1.0, 1.0))
    contexts, targets = [], []
    for _ in range(batch_size):
        taken = [block(target_size) for _ in range(4)]
        targets += [sorted(one) for one in taken]
        tries = 0
        while True:
            avoided = taken[: max(0, 4 - tries // 20)]
            kept = block(context_size).difference(*avoided)
            tries += 1
            if len(kept) > 10:
                break
        contexts.append(sorted(kept))
    shortest = min(map(len, contexts))
    return [kept[:shortest] for kept in contexts], targets


@pytest.mark.parametrize(("grid", "batch_size"), [((14, 14), 6), ((12, 18), 6), ((9, 9), 12)])
def test_official_against_brute_force(grid: tuple[int, int], batch_size: int) -> None:
    """The same distribution: numbers of tokens, and how often each token is context or target."""
    number, draw = 500, random.Random(0)
    ours: dict[str, list[Tensor]] = {"count": [], "context": [], "target": []}
    theirs: dict[str, list[Tensor]] = {"count": [], "context": [], "target": []}

    def note(into: dict[str, list[Tensor]], context: Tensor, targets: Tensor) -> None:
        into["count"].append(torch.tensor([context.shape[-1], targets.shape[-1]]).float())
        into["context"].append(as_map(context, grid).mean(0).flatten())
        into["target"].append(as_map(targets, grid).mean(0).flatten())

    for masks in official_batches(batch_size, grid, number):
        note(ours, masks.context, masks.targets.flatten(0, 1))
        contexts, targets = brute_force(batch_size, grid, draw)
        note(theirs, torch.tensor(contexts), torch.tensor(targets))
    for name in ours:
        a, b = torch.stack(ours[name]), torch.stack(theirs[name])
        error = ((a.var(0) + b.var(0)) / number).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() <= 4.5 * error + 1e-6).all(), name


# --- What cannot be drawn --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_tokens": 14}, r"context_tokens=14 does not fit a \(4, 4\) grid.*choose between 1 and"),
        ({"context_tokens": 0}, "context_tokens=0"),
        ({"target_tokens": 17}, "target_tokens=17 does not fit the 16 tokens"),
        ({"target_tokens": 0}, "target_tokens=0"),
        ({"official_masks": True}, r"official sampler wants blocks of more than 10 tokens.*\(4, 4\) grid"),
        ({"target_scale": (0.2, 0.1)}, "target_scale must be a range"),
        ({"target_scale": (0.0, 0.1)}, "target_scale must be a range"),
        ({"context_scale": (0.5, 1.1)}, "context_scale must be a range"),
        ({"target_aspect": (0.0, 1.0)}, "target_aspect must be a range"),
        ({"num_targets": 0}, "num_targets must be at least 1"),
    ],
)
def test_impossible_settings(options: dict[str, Any], message: str) -> None:
    """They are errors when the module is built, not in the first batch."""
    with pytest.raises(ValueError, match=message):
        IJEPA(**TINY | options)


def test_the_largest_possible_context() -> None:
    """The error's bound is sharp enough to be used, and at the bound every batch can be drawn."""
    for grid in GRIDS:
        with pytest.raises(ValueError, match="choose between 1 and") as caught:
            MultiBlockMasking(context_tokens=grid[0] * grid[1]).check(grid)
        most = int(str(caught.value).split("between 1 and ")[1].split(",")[0])
        assert most > 0.6 * grid[0] * grid[1]
        masks = drawn(MultiBlockMasking(context_tokens=most), 300, grid)
        assert masks.context.shape == (300, most)
        assert not (as_map(masks.context, grid) * as_map(masks.targets, grid).amax(1)).any()

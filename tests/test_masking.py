"""Multi-block masking: what holds for every mask, the distribution, and the official sampler by its description."""

import math
import random
from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import TINY
from torch import Tensor

from jepa_lightning import IJEPA
from jepa_lightning.draws import Rng
from jepa_lightning.masking import Masks, MultiBlockMasking

Grid = tuple[int, ...]
# Sizes of 14x14 tokens at scale 0.15-0.2 and aspect 0.75-1.5, both of one random number.
COUPLED = {(5, 6), (6, 5), (6, 6), (7, 5), (8, 5)}


def drawn(masking: Any, batch_size: int, grid: Grid, seed: int = 0, **place: int) -> Masks:
    return masking(batch_size, grid, rng=Rng(seed, batch_size, **place))


def as_map(indices: Tensor, grid: Grid) -> Tensor:
    """`[..., K]` indices as `[..., *grid]` of zeros and ones."""
    return torch.zeros(*indices.shape[:-1], math.prod(grid)).scatter_(-1, indices, 1.0).unflatten(-1, grid)


def assert_same_mean(ours: Tensor, theirs: Tensor) -> None:
    """Of independent rows of two samples, column by column."""
    a, b = ours.double(), theirs.double()
    error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() <= 4.5 * error + 1e-6).all()


@pytest.mark.parametrize(
    ("grid", "batch_size", "official"),
    [
        ((14, 14), 37, False),
        ((14, 14), 1, False),
        ((8, 16), 2, False),
        ((7, 7), 2, False),
        ((4, 4), 2, False),
        ((14, 14), 37, True),
        ((8, 16), 1, True),
    ],
)
def test_every_mask(grid: Grid, batch_size: int, official: bool) -> None:
    tokens = grid[0] * grid[1]
    masking = MultiBlockMasking(official=official)
    context, targets = masks = drawn(masking, batch_size, grid, 3)
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
    masking, grid = MultiBlockMasking(2, (0.1, 0.3), (0.5, 2.0), context_tokens=11, target_tokens=7), (9, 12)
    masks = drawn(masking, 5, grid)
    assert (masks.context.shape, masks.targets.shape) == ((5, 11), (5, 2, 7))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    drawn(masking, 2, grid)
    assert torch.equal(torch.get_rng_state(), state)  # given numbers are the only source
    first, second = (masking(2, grid) for _ in range(2))
    assert not torch.equal(first.context, second.context)
    torch.manual_seed(0)
    assert torch.equal(masking(2, grid).context, first.context)
    rng = Rng(0, 5)
    first, second = (masking(5, grid, rng=rng) for _ in range(2))
    assert torch.equal(first.context, masks.context)
    assert not (first.context == second.context).all(1).any()
    # The official sampler looks at a batch as a whole: what a rank draws is its own.
    ranks = [drawn(MultiBlockMasking(official=True), 32, (14, 14), rank=rank, ranks=2) for rank in range(2)]
    assert ranks[0].targets.shape != ranks[1].targets.shape or not torch.equal(ranks[0].targets, ranks[1].targets)


def test_what_masks_are_not_drawn_for() -> None:
    with pytest.raises(ValueError, match=r"4 samples.* 5"):
        MultiBlockMasking()(5, (8, 8), rng=Rng(0, 4))
    with pytest.raises(ValueError, match="lengths"):
        MultiBlockMasking()(4, (8, 8), torch.full((4,), 64), Rng(0, 4))


def test_images_of_a_batch_differ() -> None:
    """Every block has its own size and place, and the context size does not depend on the batch."""
    masking = MultiBlockMasking()
    masks = drawn(masking, 256, (16, 16))
    assert len({tuple(sorted(row)) for row in masks.context.tolist()}) == 256
    assert len({tuple(row) for row in masks.targets.flatten(0, 1).tolist()}) > 900
    assert {drawn(masking, size, (16, 16)).context.shape[1] for size in (1, 8, 64)} == {64}


# --- The distribution ------------------------------------------------------------------------------------------------

Block = tuple[int, int, int, int]  # top, left, height, width


def block_tokens(block: Block, grid: Grid) -> list[int]:
    top, left, height, width = block
    return [row * grid[1] + column for row in range(top, top + height) for column in range(left, left + width)]


def draw_block(scale: Any, aspect: Any, least: int, grid: Grid, draw: random.Random) -> Block:
    """Of a scale, an aspect ratio and a place of its own, and widened until it has so many tokens."""
    area, ratio = int(draw.uniform(*scale) * grid[0] * grid[1]), draw.uniform(*aspect)
    height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    height, width = min(max(1, height), grid[0]), min(max(1, width), grid[1])
    while height * width < least:
        height, width = (height, width + 1) if width < grid[1] else (height + 1, width)
    return draw.randrange(grid[0] - height + 1), draw.randrange(grid[1] - width + 1), height, width


def draw_image(masking: MultiBlockMasking, grid: Grid, draw: random.Random) -> tuple[list[int], list[list[int]]]:
    """Context and targets of an image as described, token by token; all numbers of tokens are given."""
    context_tokens, target_tokens = masking.context_tokens or 0, masking.target_tokens or 0
    inside = set(block_tokens(draw_block(masking.context_scale, (1, 1), 1, grid, draw), grid))
    for attempt in range(4):
        options = masking.target_scale, masking.target_aspect, target_tokens
        blocks = [block_tokens(draw_block(*options, grid, draw), grid) for _ in range(masking.num_targets)]
        if attempt == 3:
            blocks = blocks[:1] * masking.num_targets
        hidden = {token for block in blocks for token in block}
        free = [token for token in range(grid[0] * grid[1]) if token not in hidden]
        if len(free) >= context_tokens:
            break
    draw.shuffle(free)
    context = sorted(free, key=lambda token: token not in inside)[:context_tokens]
    starts = [draw.randrange(len(block)) for block in blocks]
    return context, [
        (block + block)[start : start + target_tokens] for block, start in zip(blocks, starts, strict=True)
    ]


def profile(images: Iterable[tuple[Tensor, Tensor]], grid: Grid) -> Tensor:
    """How often each token is context or target, of what size targets are, and how all of them lie together."""
    context, targets = (as_map(torch.stack(part), grid) for part in zip(*images, strict=True))
    size = targets.amax(3).sum(2) * (grid[1] + 1) + targets.amax(2).sum(2)
    sizes = F.one_hot(size.long(), (grid[0] + 1) * (grid[1] + 1)).float().mean(1)
    together = []
    for maps in (context.unsqueeze(1), targets, targets.sum(1, keepdim=True)):
        for apart in (maps[..., 1:] * maps[..., :-1], maps[:, :, 1:] * maps[:, :, :-1], maps * maps):
            together.append(apart.sum((1, 2, 3)))
    for side in (context.amax(2).sum(1), context.amax(1).sum(1)):
        together.append(side)
    return torch.cat([context.flatten(1), targets.mean(1).flatten(1), sizes, torch.stack(together, 1)], 1)


@pytest.mark.parametrize(
    ("masking", "grid"),
    [
        pytest.param(MultiBlockMasking(context_tokens=27, target_tokens=16), (9, 12), id="default"),
        pytest.param(MultiBlockMasking(4, (0.15, 0.3), context_tokens=30, target_tokens=9), (8, 8), id="little room"),
        pytest.param(
            MultiBlockMasking(2, (0.1, 0.4), (0.2, 4.0), (0.1, 0.3), context_tokens=20, target_tokens=10),
            (6, 11),
            id="more context than its block has",
        ),
    ],
)
def test_against_brute_force(masking: MultiBlockMasking, grid: Grid) -> None:
    draw = random.Random(0)
    theirs = [draw_image(masking, grid, draw) for _ in range(1500)]
    as_tensors = [(torch.tensor(context), torch.tensor(targets)) for context, targets in theirs]
    ours = drawn(masking, 6000, grid)
    assert_same_mean(profile(zip(*ours, strict=True), grid), profile(as_tensors, grid))


def test_no_side_is_preferred() -> None:
    """Rows and columns against their mirror images, all tokens within reach; in more images than the test above."""
    grid = (8, 16)
    masks = drawn(MultiBlockMasking(), 6000, grid, 1)
    for maps in (as_map(masks.context, grid), as_map(masks.targets, grid).sum(1)):
        assert (maps.sum(0) > 0).all()
        for sides in (maps.sum(1), maps.sum(2)):
            assert_same_mean(sides, sides.flip(1))


# --- The official sampler -------------------------------------------------------------------------------------------


def official_batches(batch_size: int, grid: Grid, number: int, num_targets: int = 4) -> list[Masks]:
    masking, rng = MultiBlockMasking(num_targets, official=True), Rng(0, batch_size)
    return [masking(batch_size, grid, rng=rng) for _ in range(number)]


@pytest.mark.parametrize(
    ("batch_size", "number", "context", "thirds"),
    [(1, 800, 111.8, (0.55, 0.29, 0.47)), (32, 100, 78.6, (0.54, 0.25, 0.16)), (128, 50, 68.6, (0.54, 0.21, 0.09))],
)
def test_official_counts_by_batch_size(
    batch_size: int, number: int, context: float, thirds: tuple[float, float, float]
) -> None:
    """Of 16x16 tokens, as the official code draws them; the cut takes the lower of 5, 5 and 6 rows."""
    batches = official_batches(batch_size, (16, 16), number)
    for counts, expected in (
        ([m.context.shape[1] for m in batches], context),
        ([m.targets.shape[2] for m in batches], 43.9),
    ):
        found = torch.tensor(counts).double()
        assert abs(float(found.mean()) - expected) < 4 * float(found.std()) / number**0.5 + 0.01 * expected
    visible = torch.stack([as_map(masks.context, (16, 16)).mean(0) for masks in batches]).mean((0, 2))
    assert [float(rows.mean()) for rows in visible.split([5, 5, 6])] == pytest.approx(thirds, abs=0.03)


@pytest.mark.parametrize("grid", [(14, 14), (10, 20)])
def test_official_faults(grid: Grid) -> None:
    """One size a batch; last row and column never reached; contexts cut in raster order."""
    sizes = set()
    for masks in official_batches(16, grid, 100):
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


def official_brute_force(
    batch_size: int, grid: Grid, num_targets: int, draw: random.Random
) -> tuple[list[list[int]], list[list[int]]]:
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

    def block(size: list[int]) -> list[int]:
        top, left = draw.randrange(grid[0] - size[0]), draw.randrange(grid[1] - size[1])
        return block_tokens((top, left, *size), grid)

    target_size, context_size = sides((0.15, 0.2), (0.75, 1.5)), sides((0.85, 1.0), (1.0, 1.0))
    contexts, targets = [], []
    for _ in range(batch_size):
        taken = [block(target_size) for _ in range(num_targets)]
        targets += taken
        tries = 0
        while True:
            avoided = taken[: max(0, num_targets - tries // 20)]
            kept = set(block(context_size)).difference(*avoided)
            tries += 1
            if len(kept) > 10:
                break
        contexts.append(sorted(kept))
    shortest = min(map(len, contexts))
    return [kept[:shortest] for kept in contexts], targets


@pytest.mark.parametrize(("grid", "batch_size", "num_targets"), [((12, 18), 4, 4), ((9, 9), 3, 8)])
def test_official_against_brute_force(grid: Grid, batch_size: int, num_targets: int) -> None:
    """The same distribution: numbers of tokens, and how often each token is context or target.

    Eight targets often leave no room for a context, which then may overlap some.
    """

    def profile(context: Tensor, targets: Tensor) -> Tensor:
        counts = torch.tensor([context.shape[-1], targets.shape[-1]]).float()
        return torch.cat([counts, *(as_map(part, grid).mean(0).flatten() for part in (context, targets))])

    number, draw = 250, random.Random(0)
    ours = official_batches(batch_size, grid, number, num_targets)
    theirs = [official_brute_force(batch_size, grid, num_targets, draw) for _ in range(number)]
    assert_same_mean(
        torch.stack([profile(masks.context, masks.targets.flatten(0, 1)) for masks in ours]),
        torch.stack([profile(*map(torch.tensor, parts)) for parts in theirs]),
    )


# --- What cannot be drawn --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_tokens": 14}, r"context_tokens=14.*\(4, 4\).*between 1 and"),
        ({"context_tokens": 0}, "context_tokens=0"),
        ({"target_tokens": 17}, "target_tokens=17.* 16 tokens"),
        ({"target_tokens": 0}, "target_tokens=0"),
        ({"official_masks": True}, r"more than 10 tokens.*\(4, 4\)"),
        ({"target_scale": (0.2, 0.1)}, r"target_scale.*\(0.2, 0.1\)"),
        ({"target_scale": (0.0, 0.1)}, r"target_scale.*\(0.0, 0.1\)"),
        ({"context_scale": (0.5, 1.1)}, r"context_scale.*\(0.5, 1.1\)"),
        ({"target_aspect": (0.0, 1.0)}, r"target_aspect.*\(0.0, 1.0\)"),
        ({"num_targets": 0}, "num_targets.* 0"),
    ],
)
def test_impossible_settings(options: dict[str, Any], message: str) -> None:
    """They are errors when the module is built, not in the first batch."""
    with pytest.raises(ValueError, match=message):
        IJEPA(**TINY | options)


@pytest.mark.parametrize("grid", [(14, 14), (8, 16), (7, 7), (4, 4)])
def test_the_largest_possible_context(grid: Grid) -> None:
    """The error's bound is sharp enough to be used, and at the bound every batch can be drawn."""
    with pytest.raises(ValueError, match="between 1 and") as caught:
        MultiBlockMasking(context_tokens=grid[0] * grid[1]).check(grid)
    most = int(str(caught.value).split("between 1 and ")[1].split(",")[0])
    assert most > 0.6 * grid[0] * grid[1]
    masks = drawn(MultiBlockMasking(context_tokens=most), 300, grid)
    assert masks.context.shape == (300, most)
    assert not (as_map(masks.context, grid) * as_map(masks.targets, grid).amax(1)).any()

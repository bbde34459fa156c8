"""Masks of clips: what holds for every mask, the distribution by brute force, and the official sampler's statistics."""

import itertools
import math
import random
from collections import Counter
from typing import Any, NamedTuple

import pytest
import torch
from test_masking import as_map, assert_same_mean, drawn
from torch import Tensor

from jepa_lightning.draws import Rng
from jepa_lightning.masking import MaskingList, Masks, RandomTubeMasking, TubeMasking
from jepa_lightning.modules.vjepa import LONG_RANGE, SHORT_RANGE

Grid = tuple[int, int, int]
PUBLISHED: Grid = (8, 14, 14)
KINDS = {"short": SHORT_RANGE, "long": LONG_RANGE}


def p_value(statistic: float, freedom: int) -> float:
    """How often a chi-square variable is larger."""
    return float(torch.special.gammaincc(torch.tensor(freedom / 2), torch.tensor(statistic / 2)))


def evenness(counts: Tensor) -> float:
    """The p-value of clips' counts `[B, F]` with equal sums, if all F have the same mean (Hotelling's T squared).

    A clip's tokens go together, and so the counts are no independent draws, as which Pearson's test would take them.
    """
    away = (counts - counts.mean(1, keepdim=True))[:, :-1].double()
    if not away.any():
        return 1.0
    mean = away.mean(0)
    statistic = len(counts) * float(mean @ torch.linalg.solve(torch.cov(away.T), mean))
    return p_value(statistic, away.shape[1])


# --- Every mask ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("masking", "grid", "batch_size"),
    [
        pytest.param(TubeMasking(**SHORT_RANGE), PUBLISHED, 19, id="short"),
        pytest.param(TubeMasking(**LONG_RANGE), (8, 10, 4), 2, id="long"),
        pytest.param(TubeMasking(**LONG_RANGE), (1, 8, 8), 1, id="a single clip of a single frame"),
        pytest.param(TubeMasking(3, (0.1, 0.6), (0.3, 1.0), (0.5, 2.0), 0.5, 0.5), (3, 5, 8), 5, id="everything"),
        pytest.param(TubeMasking(**SHORT_RANGE, official=True), (2, 4, 4), 2, id="official short"),
        pytest.param(TubeMasking(**LONG_RANGE, official=True), PUBLISHED, 19, id="official long"),
        pytest.param(RandomTubeMasking(), (3, 5, 8), 2, id="random tubes"),
    ],
)
def test_every_mask(masking: Any, grid: Grid, batch_size: int) -> None:
    tokens = math.prod(grid)
    masks = drawn(masking, batch_size, grid, 3)
    context, targets = masks
    assert isinstance(masks, Masks)
    assert context.dtype == targets.dtype == torch.int64
    assert context.shape[0] == targets.shape[0] == batch_size
    assert targets.shape[1] == 1
    if isinstance(masking, RandomTubeMasking):
        visible = max(1, round(0.1 * grid[1] * grid[2])) * grid[0]
        assert (context.shape[1], targets.shape[2]) == (visible, tokens - visible)
    elif not masking.official:  # whatever the batch size
        assert context.shape[1] == max(1, round(masking.context_ratio * tokens))
        assert targets.shape[2] == max(1, round(masking.target_ratio * tokens))
    for indices in (context, targets[:, 0]):
        assert 0 <= int(indices.min()) <= int(indices.max()) < tokens
        assert (as_map(indices, grid).sum((1, 2, 3)) == indices.shape[1]).all()  # no token twice
    assert not (as_map(context, grid) * as_map(targets[:, 0], grid)).any()
    assert all(map(torch.equal, masks, drawn(masking, batch_size, grid, 3)))
    others = [drawn(masking, batch_size, grid, seed) for seed in range(4, 9)]
    assert not all(other.context.shape == context.shape and torch.equal(other.context, context) for other in others)


@pytest.mark.parametrize("masking", [TubeMasking(), TubeMasking(official=True), RandomTubeMasking()])
def test_the_generator_is_the_only_source(masking: Any) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    drawn(masking, 2, (2, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)
    first = masking(2, (2, 8, 8))
    torch.manual_seed(0)
    assert torch.equal(masking(2, (2, 8, 8)).context, first.context)
    with pytest.raises(ValueError, match=r"4 samples.* 5"):
        masking(5, (2, 8, 8), rng=Rng(0, 4))
    with pytest.raises(ValueError, match="lengths"):
        masking(4, (2, 8, 8), torch.full((4,), 128), Rng(0, 4))


@pytest.mark.parametrize("masking", [TubeMasking(), RandomTubeMasking()])
def test_masks_of_a_clip_are_its_own(masking: Any) -> None:
    """A rank draws its own, and one process those of two in turns."""
    one = drawn(masking, 8, (2, 8, 8))
    for rank in range(2):
        half = drawn(masking, 4, (2, 8, 8), rank=rank, ranks=2)
        assert all(torch.equal(whole[rank::2], part) for whole, part in zip(one, half, strict=True))


def test_clips_of_a_batch_differ() -> None:
    masks = drawn(TubeMasking(), 128, PUBLISHED)
    assert len({tuple(sorted(clip)) for clip in masks.context.tolist()}) == 128
    assert len({tuple(sorted(clip)) for clip in masks.targets[:, 0].tolist()}) == 128


@pytest.mark.parametrize("official", [False, True])
def test_a_tube_hides_the_same_places_in_every_frame(official: bool) -> None:
    """Where there is room a place is context in some frames or target in some, and never both."""
    grid = (4, 9, 7)
    masking = TubeMasking(2, (0.2, 0.4), context_ratio=0.1, target_ratio=0.1, official=official)
    masks = drawn(masking, 400, grid)
    seen, hidden = (as_map(indices, grid).amax(1) for indices in (masks.context, masks.targets[:, 0]))
    assert not (seen * hidden).any()
    if not official:  # a choice among the tokens, not among the places
        assert (as_map(masks.context, grid).sum(1) < 4).any()


def test_blocks_of_part_of_the_frames() -> None:
    """One block of half the clip: its tokens lie in neighbouring frames, the same places in each."""
    masking = TubeMasking(1, (0.25, 0.25), (0.5, 0.5), official=True)
    firsts = set()
    for seed in range(60):
        (block,) = as_map(drawn(masking, 1, (6, 6, 6), seed).targets[:, 0], (6, 6, 6))
        frames = block.amax((1, 2)).nonzero().flatten().tolist()
        assert frames == [frames[0], frames[0] + 1, frames[0] + 2]
        assert torch.equal(block[frames], block[frames[:1]].expand(3, -1, -1))
        firsts.add(frames[0])
    assert firsts == {0, 1, 2, 3}
    # A share of less than a frame is one frame.
    short = drawn(TubeMasking(1, (0.25, 0.25), (0.1, 0.1), official=True), 1, (6, 6, 6)).targets[0]
    assert int(as_map(short, (6, 6, 6)).amax((2, 3)).sum()) == 1


# --- The distribution ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_no_frame_and_no_side_is_preferred(kind: str) -> None:
    """Frames against one another, rows and columns against their mirror images; all of them are reached."""
    grid = (4, 5, 8)
    masks = drawn(TubeMasking(**KINDS[kind]), 2000, grid, 1)
    for indices in (masks.context, masks.targets[:, 0]):
        assert evenness(as_map(indices, grid).sum((2, 3))) > 1e-4
        maps = as_map(indices, grid).sum(1)
        for sides in (maps.sum(2), maps.sum(1)):
            assert (sides.sum(0) > 0).all()
            assert_same_mean(sides, sides.flip(1))


class Options(NamedTuple):
    """Those of a masking, in the words of `TubeMasking`."""

    num_blocks: int
    spatial_scale: tuple[float, float]
    temporal_scale: tuple[float, float] = (1.0, 1.0)
    aspect: tuple[float, float] = (0.75, 1.5)
    context_ratio: float = 0.24
    target_ratio: float = 0.475


def draw_sides(options: Options, grid: Grid, draw: random.Random) -> list[int]:
    """Frames, rows and columns of a block, from three numbers of its own."""
    length = max(1, int(draw.uniform(*options.temporal_scale) * grid[0]))
    area, aspect = int(draw.uniform(*options.spatial_scale) * grid[1] * grid[2]), draw.uniform(*options.aspect)
    sides = [round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))]
    return [length, *(min(max(1, side), cells) for side, cells in zip(sides, grid[1:], strict=True))]


def draw_union(blocks: list[list[int]], grid: Grid, draw: random.Random) -> set[int]:
    """The tokens of blocks of given sides, each anywhere in the grid."""
    union = set()
    for sides in blocks:
        starts = [draw.randrange(cells - side + 1) for side, cells in zip(sides, grid, strict=True)]
        ranges = [range(start, start + side) for start, side in zip(starts, sides, strict=True)]
        union |= {(t * grid[1] + row) * grid[2] + column for t, row, column in itertools.product(*ranges)}
    return union


def draw_clip(options: Options, grid: Grid, draw: random.Random) -> tuple[list[int], list[int]]:
    """Context and targets of one clip as described, token by token."""
    tokens = math.prod(grid)
    context_tokens, target_tokens = (round(ratio * tokens) for ratio in (options.context_ratio, options.target_ratio))
    unions: list[set[int]] = []
    while len(unions) < 4:
        blocks = [draw_sides(options, grid, draw) for _ in range(options.num_blocks)]
        unions.append(draw_union(blocks, grid, draw))
        if len(unions[-1]) >= target_tokens and tokens - len(unions[-1]) >= context_tokens:
            break
    else:
        unions.append(unions[0])
    inside = unions[-1]
    outside = sorted(set(range(tokens)) - inside)
    inside_first, outside_first = (
        draw.sample(first, len(first)) + draw.sample(second, len(second))
        for first, second in ((sorted(inside), outside), (outside, sorted(inside)))
    )
    context = outside_first[:context_tokens]
    return context, [token for token in inside_first if token not in context][:target_tokens]


def profile(indices: Tensor, grid: Grid) -> Tensor:
    """Of clips `[B, K]`: how often each token occurs, and how often the places of frames and neighbours go together."""
    maps = as_map(indices, grid).double()
    together = [maps.sum(1).square().sum((1, 2)), (maps[..., 1:] * maps[..., :-1]).sum((1, 2, 3))]
    together.append((maps[:, :, 1:] * maps[:, :, :-1]).sum((1, 2, 3)))
    return torch.cat([maps.flatten(1), torch.stack(together, dim=1)], dim=1)


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        pytest.param(Options(8, (0.15, 0.15)), (2, 6, 6), id="short"),
        pytest.param(Options(2, (0.7, 0.7), context_ratio=0.07, target_ratio=0.7), (2, 6, 6), id="long"),
        pytest.param(Options(4, (0.1, 0.3), aspect=(0.5, 2.0)), (3, 4, 7), id="rectangular"),
        pytest.param(Options(3, (0.3, 0.5), temporal_scale=(0.3, 0.8)), (4, 5, 4), id="part of the frames"),
        pytest.param(Options(1, (0.2, 0.2), context_ratio=0.3, target_ratio=0.7), (2, 4, 5), id="too little inside"),
        pytest.param(Options(3, (0.8, 0.9), context_ratio=0.5, target_ratio=0.3), (2, 5, 4), id="too little outside"),
    ],
)
def test_against_brute_force(options: Options, grid: Grid) -> None:
    """How often each token is context or target, and how they lie together."""
    draw = random.Random(0)
    ours = drawn(TubeMasking(**options._asdict()), 3000, grid)
    theirs = [draw_clip(options, grid, draw) for _ in range(600)]
    for indices, clips in zip((ours.context, ours.targets[:, 0]), zip(*theirs, strict=True), strict=True):
        assert_same_mean(profile(indices, grid), profile(torch.tensor(clips), grid))


def test_the_first_of_four_sets_that_will_do() -> None:
    """Only if none will do is a place context in one frame and target in another."""
    options, grid, draw = Options(1, (0.1, 0.9), context_ratio=0.1, target_ratio=0.5), (6, 5, 5), random.Random(0)
    context_tokens, target_tokens = 15, 75
    covered = [len(draw_union([draw_sides(options, grid, draw)], grid, draw)) for _ in range(2000)]
    enough = sum(target_tokens <= inside <= 150 - context_tokens for inside in covered) / len(covered)
    masks = drawn(TubeMasking(**options._asdict()), 4000, grid)
    seen, hidden = (as_map(indices, grid).amax(1) for indices in (masks.context, masks.targets[:, 0]))
    none = float((seen * hidden).amax((1, 2)).mean())
    error = (none * (1 - none) / 4000) ** 0.5 + 4 * (1 - enough) ** 3 * (enough * (1 - enough) / 2000) ** 0.5
    assert 0.3 < enough < 0.7
    assert abs(none - (1 - enough) ** 4) < 4.5 * error


# --- The official sampler --------------------------------------------------------------------------------------------

SHARES = {  # facts: the shares of context and of targets, by clips a batch
    "short": {1: (0.372, 0.628), 6: (0.272, 0.524), 24: (0.239, 0.475)},
    "long": {1: (0.191, 0.809), 6: (0.089, 0.729), 24: (0.069, 0.700)},
}
FRAMES = {  # and how many tokens of the first, the middle and the last frame (24 clips a batch)
    "short": ((73, 48, 4), (123, 120, 9)),
    "long": ((37, 4.3, 1.7), (159, 159, 35)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_official_shares_and_frames(kind: str) -> None:
    """As the official code draws them; the cut takes the last frames, the more the larger the batch."""
    masking = TubeMasking(**KINDS[kind], official=True)
    for batch_size, number in ((1, 200), (6, 40), (24, 40)):
        rng = Rng(0, batch_size)
        batches = [masking(batch_size, PUBLISHED, rng=rng) for _ in range(number)]
        for part, expected in enumerate(SHARES[kind][batch_size]):
            shares = torch.tensor([masks[part].shape[-1] / math.prod(PUBLISHED) for masks in batches])
            assert abs(float(shares.mean()) - expected) < 4 * float(shares.std()) / number**0.5 + 0.01
    for part, expected in enumerate(FRAMES[kind]):
        frames = torch.stack([as_map(masks[part].flatten(1), PUBLISHED).sum((2, 3)).mean(0) for masks in batches])
        for frame, tokens in zip((0, 4, 7), expected, strict=True):
            error = float(frames[:, frame].std()) / number**0.5
            assert abs(float(frames[:, frame].mean()) - tokens) < 4.5 * error + 0.03 * tokens + 1


def official_brute_force(
    options: Options, grid: Grid, batch_size: int, draw: random.Random
) -> tuple[list[list[int]], list[list[int]]]:
    """Contexts and targets of a batch: one block size for all, cut to the shortest in raster order."""
    sides = draw_sides(options, grid, draw)
    contexts, targets = [], []
    for _ in range(batch_size):
        outside: list[int] = []
        while not outside:
            union = draw_union([sides] * options.num_blocks, grid, draw)
            outside = sorted(set(range(math.prod(grid))) - union)
        contexts.append(outside)
        targets.append(sorted(union))
    contexts, targets = ([clip[: min(map(len, clips))] for clip in clips] for clips in (contexts, targets))
    return contexts, targets


@pytest.mark.parametrize(
    ("options", "grid", "batch_size"),
    [
        (Options(8, (0.15, 0.15)), (2, 6, 6), 6),
        (Options(3, (0.2, 0.5), (0.3, 1.0), (0.5, 2.0)), (4, 5, 5), 4),
        (Options(4, (0.7, 0.7)), (2, 4, 3), 2),  # four blocks of up to 3x3 of 4x3 places: often no context at first
    ],
)
def test_official_against_brute_force(options: Options, grid: Grid, batch_size: int) -> None:
    """The numbers of tokens, and how often each is context or target."""
    number, draw, rng = 150, random.Random(0), Rng(0, batch_size)
    chosen = {name: value for name, value in options._asdict().items() if not name.endswith("ratio")}
    masking = TubeMasking(**chosen, official=True)
    ours = [masking(batch_size, grid, rng=rng) for _ in range(number)]
    theirs = [official_brute_force(options, grid, batch_size, draw) for _ in range(number)]
    for part in range(2):
        found = []
        for batches in ([masks[part].flatten(1) for masks in ours], [torch.tensor(clips[part]) for clips in theirs]):
            counts = torch.tensor([[float(batch.shape[1])] for batch in batches])
            maps = torch.stack([as_map(batch, grid).mean(0).flatten() for batch in batches])
            found.append(torch.cat([counts, counts.square(), maps], dim=1))
        assert_same_mean(*found)


def test_official_block_sizes() -> None:
    """One size a batch, of every aspect ratio."""
    masking, rng, sizes = TubeMasking(1, official=True), Rng(0, 5), set()
    for _ in range(100):
        masks = masking(5, PUBLISHED, rng=rng)
        blocks = as_map(masks.targets[:, 0], PUBLISHED)
        rows, columns = blocks.amax((1, 3)).sum(1), blocks.amax((1, 2)).sum(1)
        assert (blocks.sum((1, 2, 3)) == 8 * rows * columns).all()  # whole blocks, through all frames
        ((height, width),) = {*zip(rows.tolist(), columns.tolist(), strict=True)}
        sizes.add((height, width))
        assert (masks.context.diff() > 0).all()
        assert masks.context.shape[1] == 8 * (196 - height * width)
    area = int(0.15 * 196)
    aspects = torch.linspace(0.75, 1.5, 10_001).tolist()
    assert sizes == {(round(math.sqrt(area * a)), round(math.sqrt(area / a))) for a in aspects}


def test_official_cut() -> None:
    """A token in neither comes after the last of the context, or after the last of the targets."""
    context, targets = drawn(TubeMasking(official=True), 24, PUBLISHED)
    chosen = (as_map(context, PUBLISHED) + as_map(targets[:, 0], PUBLISHED)).flatten(1)
    assert (chosen == 0).any(1).sum() >= 20
    for clip, places in enumerate(chosen):
        dropped = (places == 0).nonzero()
        assert (dropped > min(int(context[clip].max()), int(targets[clip].max()))).all()


@pytest.mark.parametrize("official", [False, True])
def test_places_are_uniform(official: bool) -> None:
    """A block of 3x3 places in 2x5x6 tokens starts in any of 3x4, the last row and column within reach."""
    masking = TubeMasking(1, (0.3, 0.3), aspect=(1.0, 1.0), context_ratio=0.01, target_ratio=0.3, official=official)
    masks = drawn(masking, 6000, (2, 5, 6))
    assert masks.targets.shape[2] == 18  # the whole of the block
    starts = Counter(masks.targets[:, 0].amin(1).tolist())
    assert set(starts) == {row * 6 + column for row in range(3) for column in range(4)}
    expected = len(masks.targets) / len(starts)
    assert p_value(sum((count - expected) ** 2 / expected for count in starts.values()), len(starts) - 1) > 1e-4


# --- Random tubes, and several maskings ------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "visible"), [(0.9, 20), (0.999, 1), (0.001, 195)])
def test_random_tubes(ratio: float, visible: int) -> None:
    masks = drawn(RandomTubeMasking(ratio), 3, PUBLISHED)
    maps = as_map(masks.context, PUBLISHED)
    assert (maps.sum((2, 3)) == visible).all()
    assert torch.equal(maps, maps[:, :1].expand_as(maps))  # the same places in every frame
    assert (maps + as_map(masks.targets[:, 0], PUBLISHED) == 1).all()  # nothing is left out


def test_random_tubes_are_uniform() -> None:
    """Every place as often as another, and every pair of places."""
    maps = as_map(drawn(RandomTubeMasking(0.5), 6000, (2, 3, 4)).context, (2, 3, 4))[:, 0].flatten(1)
    assert evenness(maps) > 1e-4
    pairs = (maps.T @ maps) / len(maps)
    expected = (6 * 5) / (12 * 11)
    error = (expected * (1 - expected) / len(maps)) ** 0.5
    assert ((pairs - expected).abs()[~torch.eye(12, dtype=torch.bool)] < 4.5 * error).all()


def test_a_list_draws_one_after_another() -> None:
    short, long = TubeMasking(**SHORT_RANGE), TubeMasking(**LONG_RANGE)
    maskings = MaskingList([short, RandomTubeMasking(), long, short])
    together, rng = drawn(maskings, 4, (2, 6, 6)), Rng(0, 4)
    apart = [masking(4, (2, 6, 6), rng=rng) for masking in maskings]
    assert len(together) == 4
    for mine, theirs in zip(together, apart, strict=True):
        assert all(map(torch.equal, mine, theirs))
    assert not torch.equal(together[0].context, together[3].context)
    torch.manual_seed(0)
    first = maskings(4, (2, 6, 6))
    torch.manual_seed(0)
    torch.testing.assert_close(maskings(4, (2, 6, 6)), first, rtol=0, atol=0)


# --- What cannot be drawn --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masking", [TubeMasking(**SHORT_RANGE), RandomTubeMasking()])
def test_the_smallest_grids(masking: Any) -> None:
    for grid in ((1, 1, 2), (1, 2, 1), (3, 1, 2)):
        masks = drawn(masking, 50, grid)
        assert masks.context.shape[1] >= 1
        assert masks.targets.shape[2] >= 1
        assert not (as_map(masks.context, grid) * as_map(masks.targets[:, 0], grid)).any()
        assert masks.context.unique().tolist() == list(range(math.prod(grid)))
    with pytest.raises(ValueError, match=r"\(1, 1, 1\) grid"):
        masking(2, (1, 1, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_scale": (0.2, 0.1)}, r"spatial_scale.*\(0.2, 0.1\)"),
        ({"spatial_scale": (0.0, 0.1)}, r"spatial_scale.*\(0.0, 0.1\)"),
        ({"temporal_scale": (0.5, 1.5)}, r"temporal_scale.*\(0.5, 1.5\)"),
        ({"aspect": (0.0, 1.0)}, r"aspect.*\(0.0, 1.0\)"),
        ({"aspect": (2.0, 1.0)}, r"aspect.*\(2.0, 1.0\)"),
        ({"context_ratio": 0.6, "target_ratio": 0.5}, r"ratio.* 0.6 and 0.5"),
        ({"context_ratio": 0.0}, r"ratio.* 0.0 and"),
        ({"target_ratio": -0.1}, r"ratio.* -0.1"),
        ({"num_blocks": 0}, r"num_blocks.* 0"),
    ],
)
def test_rejected_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TubeMasking(**options)


def test_other_errors() -> None:
    for ratio in (0.0, 1.0, -0.5):
        with pytest.raises(ValueError, match=rf"ratio.* {ratio}"):
            RandomTubeMasking(ratio)
    with pytest.raises(ValueError, match=r"\(2, 3, 3\) grid.*no context"):
        drawn(TubeMasking(2, (1.0, 1.0), official=True), 2, (2, 3, 3))
    # Blocks that cover everything leave the context what the targets do not need.
    masks = drawn(TubeMasking(2, (1.0, 1.0)), 2, (2, 3, 3))
    assert (masks.context.shape[1], masks.targets.shape[2]) == (4, 9)

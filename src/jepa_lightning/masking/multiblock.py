"""Multi-block masking: several target blocks an image, and a context that keeps clear of them (I-JEPA, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jepa_lightning.draws import Rng
from jepa_lightning.masking import official
from jepa_lightning.masking.blocks import Blocks, block_sides
from jepa_lightning.masking.masks import Masks, between, checked, on_device

ATTEMPTS = 4  # sets of target blocks drawn for an image that is to have room for its context


class MultiBlockMasking:
    """Draw `num_targets` target blocks and one context an image, all with the same number of tokens.

    Every block draws its own scale, aspect ratio and place. A target block is cut down to `target_tokens` by leaving
    out a run of its tokens that starts anywhere, so each is left out as often as any other; the context is a random
    choice of `context_tokens` among those of the context block that lie in no target block, and, should these be too
    few, among the others outside the targets. No token is ever both context and target.

    With `official=True` the masks are those of the official code, faults included: one block size a batch, scale and
    aspect ratio from the same random number, the last row and column out of reach, and all contexts cut to the shortest
    of the batch by dropping their last rows, so that the task changes with the batch size.

    Args:
        num_targets: target blocks an image, M.
        target_scale: range of a target block's share of the grid.
        target_aspect: range of a target block's height over its width.
        context_scale: range of the context block's share of the grid (it is square).
        context_tokens: K_c; a quarter of the grid by default, the mean context of the paper (not used by `official`).
        target_tokens: K_t; the lower end of `target_scale` by default (not used by `official`).
        min_keep: with `official`, a context has more tokens than that.
        official: reproduce the official sampler.

    Raises:
        ValueError: a range that is empty or leaves (0, 1], no target at all, or an option that would not be used.

    Source: I-JEPA (arXiv 2301.08243), section 3 and appendix A.1.

    >>> masks = MultiBlockMasking()(8, (14, 14), rng=Rng(0, batch_size=8))
    >>> masks.context.shape, masks.targets.shape
    (torch.Size([8, 49]), torch.Size([8, 4, 29]))
    """

    def __init__(
        self,
        num_targets: int = 4,
        target_scale: tuple[float, float] = (0.15, 0.2),
        target_aspect: tuple[float, float] = (0.75, 1.5),
        context_scale: tuple[float, float] = (0.85, 1.0),
        context_tokens: int | None = None,
        target_tokens: int | None = None,
        min_keep: int = 10,
        official: bool = False,
    ) -> None:
        for name, (low, high) in {"target_scale": target_scale, "context_scale": context_scale}.items():
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} must be a range within (0, 1], got {(low, high)}")
        if not 0 < target_aspect[0] <= target_aspect[1]:
            raise ValueError(f"target_aspect must be a range of positive numbers, got {tuple(target_aspect)}")
        if num_targets < 1:
            raise ValueError(f"num_targets must be at least 1, got {num_targets}")
        unused = {"context_tokens": context_tokens, "target_tokens": target_tokens} if official else {}
        if given := [f"{name}={value}" for name, value in unused.items() if value is not None]:
            raise ValueError(f"the official sampler has no fixed numbers of tokens: leave out {', '.join(given)}")
        if not official and min_keep != 10:
            raise ValueError(f"min_keep={min_keep} is an option of the official sampler: give context_tokens instead")
        self.num_targets = num_targets
        self.target_scale = target_scale
        self.target_aspect = target_aspect
        self.context_scale = context_scale
        self.context_tokens = context_tokens
        self.target_tokens = target_tokens
        self.min_keep = min_keep
        self.official = official

    def __call__(
        self, batch_size: int, grid: Sequence[int], lengths: Tensor | None = None, rng: Rng | None = None
    ) -> Masks:
        """Draw the masks of a batch, on the device of `rng`.

        Args:
            batch_size: number of images B.
            grid: `(rows, columns)` of the token grid.
            lengths: not of images, which all have the whole grid.
            rng: source of all randomness; without it, one seeded by torch's default generator.

        Raises:
            ValueError: blocks that do not fit the grid, or more context tokens than the targets leave.
        """
        rng = checked(rng, batch_size, lengths)
        if self.official:
            masks = official.multi_block(batch_size, grid, rng.generator(), self.num_targets, *self._official_options())
            return on_device(masks, rng)
        context_tokens, target_tokens = self._token_counts(grid)
        per_block, tokens = 4, grid[0] * grid[1]
        counts = (per_block, ATTEMPTS * self.num_targets * per_block, self.num_targets, tokens)
        of_context, of_targets, of_starts, of_choice = rng.sample(sum(counts)).split(counts, dim=1)
        block = self._blocks(of_context.unsqueeze(1), grid, self.context_scale, (1.0, 1.0), 1)
        attempts = of_targets.unflatten(1, (ATTEMPTS, self.num_targets, per_block)).unbind(1)
        blocks, preference = self._targets_with_room(block, attempts, grid, context_tokens, target_tokens)

        # The tokens of a block in raster order, without a run of them that wraps round its end. In floating point, as
        # division is exact for numbers as small as these, and in place, as fresh memory costs more than the sums.
        width, corner = blocks.width.unsqueeze(-1), (blocks.top * grid[1] + blocks.left).unsqueeze(-1)
        area = blocks.height.unsqueeze(-1) * width
        place = (of_starts.unsqueeze(-1) * area).floor() + torch.arange(target_tokens, device=area.device)
        place -= (place / area).floor_().mul_(area)
        row = (place / width).floor_()
        targets = row.mul_(grid[1] - width).add_(place).add_(corner).long()
        return Masks(_random_choice(preference, context_tokens, of_choice), targets)

    def check(self, grid: Sequence[int]) -> None:
        """Raise a ValueError if masks like these cannot be drawn on a grid."""
        if self.official:
            official.check_multi_block(grid, *self._official_options())
        else:
            self._token_counts(grid)

    def _official_options(self) -> tuple[official.Range, official.Range, official.Range, int]:
        return self.target_scale, self.target_aspect, self.context_scale, self.min_keep

    def _token_counts(self, grid: Sequence[int]) -> tuple[int, int]:
        """`(context_tokens, target_tokens)` on a grid."""
        tokens = grid[0] * grid[1]
        context = self.context_tokens if self.context_tokens is not None else max(1, round(tokens / 4))
        target = self.target_tokens if self.target_tokens is not None else max(1, round(self.target_scale[0] * tokens))
        if not 1 <= target <= tokens:
            raise ValueError(f"target_tokens={target} does not fit the {tokens} tokens of a {tuple(grid)} grid")
        largest = self._largest_block(grid, target)
        if not 1 <= context <= tokens - largest:
            raise ValueError(
                f"context_tokens={context} does not fit a {tuple(grid)} grid: a target block may take {largest} of its "
                f"{tokens} tokens; choose between 1 and {tokens - largest}, smaller targets or a finer grid"
            )
        return context, target

    def _largest_block(self, grid: Sequence[int], target_tokens: int) -> int:
        """An upper bound on the tokens of a target block."""
        area = torch.tensor([max(self.target_scale[1] * grid[0] * grid[1], target_tokens)], device="cpu")
        aspects = torch.linspace(*self.target_aspect, 257, device="cpu")
        height, width = block_sides(area, aspects, grid, target_tokens)
        return int((height * width).max())

    def _blocks(
        self,
        numbers: Tensor,
        grid: Sequence[int],
        scale: tuple[float, float],
        aspect: tuple[float, float],
        min_tokens: int,
    ) -> Blocks:
        """Blocks `[...]` from four uniform numbers each, `[..., 4]`."""
        of_area, of_aspect, of_top, of_left = numbers.unbind(-1)
        area = (between(of_area, *scale) * (grid[0] * grid[1])).floor()  # as the official code does
        height, width = block_sides(area, between(of_aspect, *aspect), grid, min_tokens)
        top = (of_top * (grid[0] - height + 1)).floor()
        left = (of_left * (grid[1] - width + 1)).floor()
        return Blocks(top, left, height, width)

    def _targets_with_room(
        self,
        context: Blocks,
        attempts: Sequence[Tensor],
        grid: Sequence[int],
        context_tokens: int,
        target_tokens: int,
    ) -> tuple[Blocks, Tensor]:
        """Target blocks `[B, M]` that leave at least `context_tokens` free, and what each token then is to the context.

        Rejection sampling without a loop over images: those without room take the next set of numbers `[B, M, 4]`, and
        in the last set all blocks of an image are one, so that there always is room. A GPU is not asked whether a set
        was the last one needed, since the answer would have to be waited for.

        The second result, `[B, N]`, is 2 for tokens in the context's block `[B, 1]`, 1 outside it, 0 in a target.
        """
        context_rows, context_columns = context.sides(grid)
        room: Tensor | None = None
        for attempt, numbers in enumerate(attempts, start=1):
            drawn = self._blocks(numbers, grid, self.target_scale, self.target_aspect, target_tokens)
            if attempt == len(attempts):
                drawn = Blocks(*(side[:, :1].expand_as(side) for side in drawn))
            rows, columns = drawn.sides(grid)
            # One product adds up 1 for the context block and -2 for every target block that a token lies in.
            signs = torch.cat([context_rows.float(), rows.float() * -2], dim=1)
            sums = torch.bmm(signs.mT, torch.cat([context_columns, columns], dim=1).float())
            fitness = sums.clamp_(-1, 1).add_(1).int().flatten(1)
            if room is None:
                blocks, preference = drawn, fitness
            else:
                blocks = Blocks(*(torch.where(room, old, new) for old, new in zip(blocks, drawn, strict=True)))
                preference = torch.where(room, preference, fitness)
            room = preference.clamp(max=1).sum(1, keepdim=True) >= context_tokens
            if room.device.type == "cpu" and room.all():
                break
        return blocks, preference


def _random_choice(preference: Tensor, number: int, noise: Tensor) -> Tensor:
    """The indices `[B, number]` of the largest preferences `[B, N]` (int32, 0 to 3), by the noise among equal ones."""
    # Keys of preference, noise and index, from the highest bit to the lowest: the largest keys are the choice.
    bits = preference.shape[1].bit_length()
    keys = (noise * 2 ** min(15, 29 - bits)).int().bitwise_left_shift_(bits)
    keys += torch.arange(preference.shape[1], device=keys.device, dtype=torch.int32)
    keys += preference.bitwise_left_shift(29)
    if keys.device.type == "cpu":  # where NumPy's partition takes a tenth of the time of torch's topk
        keys.numpy().partition(-number, axis=1)
        chosen = keys[:, -number:]
    else:
        chosen = keys.topk(number, sorted=False).values
    return (chosen & (2**bits - 1)).long()

"""DMT-JEPA: the neighbours of a token, their aggregation, what is predicted from it, and pictures of both."""

import copy
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import TINY, LabelledImages, copies, loader, logged_images, quiet_trainer, random_images
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from jepa_lightning import DMTJEPA, IJEPA
from jepa_lightning.callbacks import NeighbourPictures
from jepa_lightning.callbacks.pictures import draw_neighbours
from jepa_lightning.callbacks.pictures.drawing import BLOCK_COLOURS, TITLE_HEIGHT
from jepa_lightning.networks.aggregation import LocalAggregation

Grid = tuple[int, ...]


def tiny(**options: Any) -> DMTJEPA:
    torch.manual_seed(0)
    return DMTJEPA(**TINY | options)


def random_weights(module: nn.Module, seed: int = 0) -> nn.Module:
    """Large ones, norms and biases too: at the initial values neither attention nor norms can be told from none."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return module


def head(grid: Grid = (3, 4), width: int = 8, num_heads: int = 2, num_neighbours: int = 4) -> Any:
    return random_weights(LocalAggregation(grid, width, num_heads, num_neighbours)).double()


def random_tokens(batch_size: int, grid: Sequence[int], width: int = 8, seed: int = 0) -> Tensor:
    """With an offset of their own in every image, so that their means differ."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch_size, math.prod(grid), width, generator=generator, dtype=torch.float64)
    return tokens + torch.randn(batch_size, 1, width, generator=generator, dtype=torch.float64)


# --- By hand ---------------------------------------------------------------------------------------------------------


def adjacent(grid: Sequence[int], place: int) -> list[int]:
    """The places of the 3x3(x3) window around a place, as far as they lie in the grid."""
    places = list(itertools.product(*(range(side) for side in grid)))
    near = [other for other in places if max(abs(a - b) for a, b in zip(other, places[place], strict=True)) == 1]
    return [places.index(other) for other in near]


def nearest(tokens: Tensor, grid: Sequence[int], place: int, k: int) -> list[int]:
    """The k adjacent places of one image's tokens `[N, D]` with the largest cosine, or all if they are fewer."""
    cosine = {}
    for other in adjacent(grid, place):
        a, b = tokens[place], tokens[other]
        cosine[other] = float((a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt())
    return sorted(cosine, key=lambda other: -cosine[other])[:k]


def norm(layer: Any, x: Tensor) -> Tensor:
    return (x - x.mean()) / (x.var(correction=0) + 1e-6).sqrt() * layer.weight + layer.bias


def linear(layer: Any, x: Tensor) -> Tensor:
    return layer.weight @ x + layer.bias


def attend(block: Any, query: Tensor, tokens: Sequence[Tensor], num_heads: int) -> Tensor:
    """What one query `[D]` reads from itself and from tokens `[D]`, head by head."""
    seen = [norm(block.norm1, token) for token in (query, *tokens)]
    asked = linear(block.attn.q, seen[0])
    width = len(query) // num_heads
    heads = []
    for i in range(num_heads):
        part = slice(i * width, (i + 1) * width)
        scores = [(asked[part] @ linear(block.attn.k, token)[part]).item() / math.sqrt(width) for token in seen]
        total = sum(math.exp(score) for score in scores)
        values = [linear(block.attn.v, token)[part] for token in seen]
        heads.append(sum(math.exp(score) / total * value for score, value in zip(scores, values, strict=True)))
    return linear(block.attn.proj, torch.cat(heads))


def add_mlp(block: Any, x: Tensor) -> Tensor:
    hidden = linear(block.mlp.fc1, norm(block.norm2, x))
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + linear(block.mlp.fc2, hidden)


def summary(module: Any, query: Tensor, tokens: Sequence[Tensor], num_heads: int) -> Tensor:
    for block in module.cls_blocks:
        query = add_mlp(block, query + attend(block, query, tokens, num_heads))
    return norm(module.norm, query)


def mean_of(tokens: Sequence[Tensor]) -> Tensor:
    return sum(tokens[1:], tokens[0]) / len(tokens)


@torch.no_grad()
def neighbourhoods(module: Any, tokens: Tensor, grid: Sequence[int], num_heads: int, k: int) -> Tensor:
    """Image by image and place by place; the mean of an image's own tokens asks."""
    module = copy.deepcopy(module).double()
    images = []
    for image in tokens.double():
        near = [nearest(image, grid, place, k) for place in range(len(image))]
        mean = mean_of(list(image))
        images.append(torch.stack([summary(module, mean, [image[i] for i in some], num_heads) for some in near]))
    return torch.stack(images)


# --- Neighbours ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "k"), [((4, 4), 1), ((4, 4), 7), ((3, 5), 4), ((1, 6), 2), ((6, 1), 4), ((2, 3, 3), 4)]
)
def test_neighbours_by_brute_force(grid: Grid, k: int) -> None:
    tokens = random_tokens(3, grid)
    picked, exists = head(grid, num_neighbours=k).neighbours(tokens)
    assert picked.shape == exists.shape == (3, math.prod(grid), k)
    for image, place in itertools.product(range(3), range(math.prod(grid))):
        there = exists[image, place]
        assert picked[image, place][there].tolist() == nearest(tokens[image], grid, place, k)
        assert int(there.sum()) == min(k, len(adjacent(grid, place)))
    assert picked.min() >= 0  # what does not exist can be gathered all the same
    assert picked.max() < math.prod(grid)


def test_numbers_of_neighbours() -> None:
    """Three in a corner, five at the border, eight within; of three dimensions up to 26."""
    _, exists = LocalAggregation((4, 4), 8, 2, 8).neighbours(random_tokens(1, (4, 4)))
    assert exists.sum(-1).view(4, 4).tolist() == [[3, 5, 5, 3], [5, 8, 8, 5], [5, 8, 8, 5], [3, 5, 5, 3]]
    _, exists = LocalAggregation((3, 3, 3), 8, 2, 26).neighbours(random_tokens(1, (3, 3, 3)))
    assert exists.sum(-1).view(3, 3, 3)[:, 1, 1].tolist() == [17, 26, 17]


def test_neighbours_in_mixed_precision() -> None:
    """Cosines in bfloat16 would rank close ones by their rounding."""
    tokens = 1.0 + 0.1 * random_tokens(8, (4, 4)).float()
    expected, _ = head((4, 4)).float().neighbours(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        picked, _ = head((4, 4)).float().neighbours(tokens)
    assert torch.equal(picked, expected)


@pytest.mark.parametrize("grid", [(3, 5), (1, 6), (2, 3, 3)])
def test_windows_do_not_wrap_round(grid: Grid) -> None:
    """Every token outside the window is the same as the one asked about, and none of them is chosen."""
    for place in range(math.prod(grid)):
        tokens = torch.zeros(1, math.prod(grid), 8, dtype=torch.float64)
        tokens[..., 0] = 1.0
        near = adjacent(grid, place)
        tokens[0, near] = random_tokens(1, (len(near),))[0]
        picked, exists = head(grid).neighbours(tokens)
        assert picked[0, place][exists[0, place]].tolist() == nearest(tokens[0], grid, place, 4)


@pytest.mark.parametrize(
    ("grid", "k", "message"),
    [
        ((4, 4), 0, r"1 to 8.* 0"),
        ((4, 4), 9, r"1 to 8.* 9"),
        ((2, 2, 2), 27, r"1 to 26.* 27"),
        ((1, 1), 4, r"4.*\(1, 1\)"),
    ],
)
def test_neighbours_that_no_token_has(grid: Grid, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LocalAggregation(grid, 8, 2, k)


# --- Aggregation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("grid", "k", "num_heads"), [((3, 4), 4, 2), ((1, 5), 3, 4), ((2, 2, 3), 6, 1)])
def test_neighbourhoods_by_brute_force(grid: Grid, k: int, num_heads: int) -> None:
    module, tokens = head(grid, num_heads=num_heads, num_neighbours=k), random_tokens(3, grid)
    torch.testing.assert_close(module.neighbourhoods(tokens), neighbourhoods(module, tokens, grid, num_heads, k))


def test_images_of_a_batch_are_apart() -> None:
    """Each image alone gives what it gives in the batch: no query comes from another image's mean."""
    module, tokens = head(), random_tokens(3, (3, 4))
    for function in (module.neighbourhoods, module.context, module.summary):
        together = function(tokens)
        for image in range(3):
            torch.testing.assert_close(together[image : image + 1], function(tokens[image : image + 1]))
        assert not torch.allclose(together[0], together[1], atol=0.1)


def test_only_the_window_and_the_mean_are_read() -> None:
    """Two tokens change and the mean does not: what is out of their reach stays as it is, what has them does not."""
    module, tokens = head((4, 4)), random_tokens(1, (4, 4))
    changed, change = tokens.clone(), random_tokens(1, (1,), seed=5)[0, 0]
    changed[0, 14] += change
    changed[0, 15] -= change
    before, after = module.neighbourhoods(tokens)[0], module.neighbourhoods(changed)[0]
    reached = {14, 15, *adjacent((4, 4), 14), *adjacent((4, 4), 15)}
    for place in set(range(16)) - reached:
        torch.testing.assert_close(before[place], after[place])
    assert not torch.allclose(before[15], after[15], atol=1e-3)  # whose three neighbours are all chosen, 14 among them


def test_context_by_brute_force() -> None:
    """What the mean attends to is added to all tokens, and the second block takes the mean of what came of that."""
    module, tokens = head(), random_tokens(3, (5,))
    expected = []
    for image in tokens:
        rows = list(image)
        for block in module.cls_blocks:
            attended = attend(block, mean_of(rows), rows, 2)
            rows = [add_mlp(block, row + attended) for row in rows]
        expected.append(torch.stack([norm(module.norm, row) for row in rows]))
    torch.testing.assert_close(module.context(tokens), torch.stack(expected))


def test_summary_by_brute_force() -> None:
    module, tokens = head(), random_tokens(3, (5,))
    expected = torch.stack([summary(module, mean_of(list(image)), list(image), 2) for image in tokens])
    torch.testing.assert_close(module.summary(tokens), expected.unsqueeze(1))


# --- Module ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("image_size", "k"), [([16, 16], 4), ([16, 24], 8)])
def test_targets_are_aggregates_of_the_teachers_tokens(image_size: list[int], k: int) -> None:
    module = tiny(image_size=image_size, num_neighbours=k)
    random_weights(module.target_head)
    random_weights(module.target_encoder.norm)  # or its tokens are layer-normed already
    images, grid = random_images(2, tuple(image_size)), (image_size[0] // 4, image_size[1] // 4)
    assert module.context_encoder.grid == grid
    masks = module.draw(images, module.rng(2, 0))
    latents = module.latents(images, masks)
    tokens = module.target_encoder(images)
    torch.testing.assert_close(latents.features.values, tokens)
    normed = torch.stack(
        [torch.stack([(t - t.mean()) / (t.var(correction=0) + 1e-5).sqrt() for t in i]) for i in tokens]
    )
    expected = neighbourhoods(module.target_head, normed, grid, 2, k)
    for image, block in itertools.product(range(2), range(4)):
        for target, place in zip(latents.target[image, block], masks.targets[image, block], strict=True):
            torch.testing.assert_close(target.double(), expected[image, place], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(module.loss(latents)["loss"], F.smooth_l1_loss(latents.prediction, latents.target))


@pytest.mark.parametrize("kind", ["added", "pooled"])
def test_the_predictor_gets_the_aggregated_context(kind: Any) -> None:
    """All tokens with what their mean has read, or that one vector at every place."""
    module = tiny(context_aggregation=kind)
    random_weights(module.context_head)
    random_weights(module.predictor)
    images = random_images(3)
    masks = module.draw(images, module.rng(3, 0))
    latents = module.latents(images, masks)
    given = module.context_encoder(images, masks.context)
    torch.testing.assert_close(latents.embeddings["context"].values, given)
    if kind == "added":
        given = module.context_head.context(given)
    else:
        given = torch.stack(
            [module.context_head.summary(image.unsqueeze(0))[0, 0].repeat(len(image), 1) for image in given]
        )
    expected = module.predictor(given, masks.context, masks.targets)
    torch.testing.assert_close(latents.prediction, expected, rtol=1e-4, atol=1e-4)
    module.loss(latents)["loss"].backward()
    assert all(parameter.grad is not None for parameter in module.context_head.parameters())


@pytest.mark.parametrize("kind", ["added", "pooled"])
def test_trains(kind: Any, tmp_path: Path) -> None:
    """Towards targets that stand still, the loss of the images that it is trained on falls."""
    module = tiny(context_aggregation=kind, lr=3e-3, start_lr=3e-3, momentum=(1.0, 1.0))
    images = random_images(8)
    masks = module.draw(images, module.rng(8, 0))
    before = copies(module)
    first = module.loss(module.latents(images, masks))["loss"].item()
    trainer = quiet_trainer(tmp_path, max_epochs=20)
    trainer.fit(module, loader(images), loader(images))
    assert module.loss(module.latents(images, masks))["loss"].item() < 0.8 * first
    assert trainer.callback_metrics["val/loss"].isfinite()
    moved = {name.split(".")[0] for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"context_encoder", "context_head", "predictor"}


def test_the_head_has_a_teacher_too() -> None:
    """Which contracts of all methods look at: that it follows, in evaluation mode, and is saved."""
    pairs = [(teacher.student, teacher.teacher) for teacher in tiny().teachers()]
    assert pairs == [("context_encoder", "target_encoder"), ("context_head", "target_head")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_aggregation": "mean"}, "context_aggregation.*added, pooled.*'mean'"),
        ({"num_neighbours": 9}, r"1 to 8.* 9"),
        ({"image_size": 4}, r"1x1|\(1, 1\)"),
    ],
)
def test_rejected_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_starts_from_weights_of_ijepa(tmp_path: Path) -> None:
    """Which have no heads: these start anew."""
    donor = IJEPA(**TINY)
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(donor, loader(random_images(8)))
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    module = tiny(weights=str(tmp_path / "it.ckpt"))
    fresh = copies(module)
    with pytest.warns(UserWarning, match="head"):
        quiet_trainer(tmp_path).validate(module, loader(random_images(8)), verbose=False)
    for name, value in module.state_dict().items():
        expected = donor.state_dict() if name in donor.state_dict() else fresh
        assert torch.equal(value, expected[name]), name


# --- Pictures --------------------------------------------------------------------------------------------------------


def panels(picture: Tensor, rows: int, side: int = 96) -> list[list[Tensor]]:
    """The three pictures of each row of a grid with two pixels of padding."""
    starts = [2 + i * (side + 2) for i in range(max(rows, 3))]
    return [[picture[:, top : top + side, left : left + side] for left in starts[:3]] for top in starts[:rows]]


def test_drawn_pixels() -> None:
    """White on the patch, orange on the neighbours that it has, and cosines from the lowest (black) to one (white)."""
    torch.manual_seed(0)
    images = torch.rand(2, 3, 96, 96)
    images[:, :, 0, 0], images[:, :, 0, 1] = 0.0, 1.0  # of unit range already
    tokens, others = (random_tokens(2, (4, 4), seed=seed) for seed in (1, 2))
    patch = torch.tensor([3, 9])  # the first has three neighbours, and place 0, which stands for the fourth, is none
    picked, exists = head((4, 4)).neighbours(tokens)
    picture = draw_neighbours(images, patch, picked, exists, (tokens, others), (4, 4))
    assert picture.shape == (3, 2 * 98 + 2, 3 * 98 + 2)
    for row, (image, *similarities) in enumerate(panels(picture, 2)):
        mine = int(patch[row])
        near = nearest(tokens[row], (4, 4), mine, 4)
        assert len(near) == (3, 4)[row]
        cosines = [F.cosine_similarity(kind[row], kind[row, mine], dim=-1) for kind in (tokens, others)]
        for token in range(16):
            top, left = token // 4 * 24, token % 4 * 24
            place = (slice(None), slice(top, top + 24), slice(left, left + 24))
            shown = images[row][place]
            if token == mine:
                shown = 0.35 * shown + 0.65
            elif token in near:
                shown = 0.35 * shown + 0.65 * BLOCK_COLOURS[0].view(3, 1, 1)
            torch.testing.assert_close(image[place], shown)
            for panel, cosine in zip(similarities, cosines, strict=True):
                grey = float((cosine[token] - cosine.min()) / (1 - cosine.min()))
                torch.testing.assert_close(panel[place], torch.full((3, 24, 24), grey), rtol=1e-4, atol=1e-5)
        for panel in similarities:
            assert panel[0, mine // 4 * 24, mine % 4 * 24] == pytest.approx(1.0, abs=1e-6)
            assert panel.min() == pytest.approx(0.0, abs=1e-6)


def test_pictures_in_tensorboard(tmp_path: Path) -> None:
    """Of the first images, the masked patch that is least like the mean one, after every validation."""
    kept: list[tuple[Any, Any]] = []

    class Record(pl.Callback):
        def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
            kept.append((outputs, batch))

    module, logger = tiny(), TensorBoardLogger(tmp_path)
    random_weights(module.target_head)
    random_weights(module.target_encoder.norm)
    trainer = quiet_trainer(tmp_path, max_epochs=1, logger=logger, callbacks=[Record(), NeighbourPictures(3)])
    trainer.fit(module, loader(LabelledImages(16)), loader(LabelledImages(16)))
    pictures = logged_images(logger, "pictures/neighbours")
    assert list(pictures) == [2]
    outputs, batch = kept[0]
    tokens = F.layer_norm(outputs["latents"].features.values[:3], (16,))
    picked, exists = module.target_head.neighbours(tokens)
    aggregated = neighbourhoods(module.target_head, tokens, (4, 4), 2, 4)
    patches = []
    for image, hidden in zip(tokens.numpy(), outputs["drawn"].targets[:3].flatten(1).tolist(), strict=True):
        mean = image.mean(0)
        cosine = {place: image[place] @ mean / np.linalg.norm(image[place]) for place in hidden}
        patches.append(min(cosine, key=lambda place: cosine[place]))
    patch = torch.tensor(patches)
    drawn = draw_neighbours(batch.image[:3], patch, picked, exists, (tokens, aggregated), (4, 4))
    assert (pictures[2][:, TITLE_HEIGHT:] - drawn).abs().max() < 1.5 / 255


def test_pictures_need_a_row() -> None:
    with pytest.raises(ValueError, match=r"num_images.* 0"):
        NeighbourPictures(0)


def test_pictures_of_another_method(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[NeighbourPictures()])
    with pytest.raises(TypeError, match=r"DMTJEPA.*IJEPA"):
        trainer.fit(IJEPA(**TINY), loader(random_images(8)))

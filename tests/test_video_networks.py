"""Rotary positions, encoder and predictor of clips, and attentive pooling, against other libraries and by hand."""

import copy
import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import eager, random_clips, random_images
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import VJEPA2Config
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2AttentivePooler, rotate_queries_or_keys

from jepa_lightning.networks import AttentivePooler, Block, Predictor, VideoTransformer, gather_tokens, linear
from jepa_lightning.networks.linear import AVX512
from jepa_lightning.networks.positions import rotate, rotation

POSITIONS = ("sincos", "rope", "tiled_rope")
HEADS = [12, 20]  # widths: of the second, features are left over
Grid = tuple[int, int, int]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def shuffled(batch_size: int, tokens: int) -> Tensor:
    """All places, in another order for each sample."""
    return torch.stack([torch.randperm(tokens, generator=torch.Generator().manual_seed(i)) for i in range(batch_size)])


# --- Rotary positions ------------------------------------------------------------------------------------------------


def places_of(grid: Grid, batch_size: int = 2) -> tuple[Tensor, Tensor]:
    """Places `[B, K]`, and by counting their frames, rows and columns `[3, B, K]`."""
    coordinates = torch.tensor(list(itertools.product(*map(range, grid))))
    places = shuffled(batch_size, len(coordinates))[:, : len(coordinates) - 1]
    return places, coordinates[places].permute(2, 0, 1)


@pytest.mark.parametrize("head_dim", HEADS)
def test_tiled_rotation_is_that_of_transformers(head_dim: int) -> None:
    grid, share = (3, 4, 5), head_dim // 3 // 2 * 2
    places, axes = places_of(grid)
    x = random(2, 3, places.shape[1], head_dim)
    parts = [
        rotate_queries_or_keys(part, axis.unsqueeze(1).expand(-1, 3, -1))
        for part, axis in zip(x.split(share, dim=-1), axes, strict=False)
    ]
    expected = torch.cat([*parts, x[..., 3 * share :]], dim=-1)
    torch.testing.assert_close(rotate(x, rotation(places, grid, head_dim, tiled=True)), expected)


@pytest.mark.parametrize("head_dim", HEADS)
def test_rotation_is_a_complex_product(head_dim: int) -> None:
    grid, pairs = (3, 4, 5), head_dim // 3 // 2
    places, axes = places_of(grid)
    x = random(2, 3, places.shape[1], head_dim).double()
    factors = [
        torch.exp(1j * axes[axis].double() * 10000.0 ** (-pair / pairs)) for axis in range(3) for pair in range(pairs)
    ]
    turned = torch.view_as_complex(x[..., : 6 * pairs].unflatten(-1, (-1, 2))) * torch.stack(factors, -1).unsqueeze(1)
    expected = torch.cat([torch.view_as_real(turned).flatten(-2), x[..., 6 * pairs :]], dim=-1)
    torch.testing.assert_close(rotate(x.float(), rotation(places, grid, head_dim)), expected.float())


def spread_of_scores(tiled: bool, head_dim: int = 20, grid: Grid = (3, 4, 5)) -> tuple[float, float]:
    """How far attention scores of pairs with the same difference of places are apart, and those of all pairs."""
    places = torch.arange(math.prod(grid)).unsqueeze(0)
    by = rotation(places, grid, head_dim, tiled)
    query, key = (random(head_dim, seed=seed).expand(1, 1, math.prod(grid), -1) for seed in range(2))
    scores = (rotate(query, by) @ rotate(key, by).mT)[0, 0]
    coordinates = list(itertools.product(*map(range, grid)))
    groups = defaultdict(list)
    for (i, a), (j, b) in itertools.product(enumerate(coordinates), repeat=2):
        groups[tuple(x - y for x, y in zip(a, b, strict=True))].append(float(scores[i, j]))
    assert len(groups) == 5 * 7 * 9
    return max(max(group) - min(group) for group in groups.values()), float(scores.max() - scores.min())


def test_scores_depend_on_differences_alone() -> None:
    """Those of the official code, whose pairs turn at two frequencies, do not."""
    same, all_pairs = spread_of_scores(tiled=False)
    assert same < 1e-4 < 1 < all_pairs
    same, _ = spread_of_scores(tiled=True)
    assert same > 1


def test_places_of_one_sample_serve_all() -> None:
    x = random(4, 2, 12, 16)
    one = rotation(torch.arange(12).unsqueeze(0), (1, 3, 4), 16)
    each = rotation(torch.arange(12).expand(4, -1), (1, 3, 4), 16)
    assert one.cos.shape == (1, 1, 12, 16)
    assert torch.equal(rotate(x, one), rotate(x, each))


def test_half_precision_is_rotated_in_single() -> None:
    places, _ = places_of((4, 4, 4))
    by, x = rotation(places, (4, 4, 4), 16), random(2, 2, 63, 16).bfloat16()
    assert rotate(x, by).dtype == torch.bfloat16
    assert torch.equal(rotate(x, by), rotate(x.float(), by).bfloat16())


@pytest.mark.parametrize("head_dim", [4, 7])
def test_heads_that_cannot_be_shared_out(head_dim: int) -> None:
    with pytest.raises(ValueError, match=rf"at least 6.* {head_dim}"):
        rotation(torch.arange(4).unsqueeze(0), (1, 2, 2), head_dim)


def test_a_block_without_rotation_is_timms() -> None:
    block = eager(Block(24, num_heads=2, mlp_ratio=3))
    theirs = TimmBlock(24, 2, mlp_ratio=3, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))
    theirs.load_state_dict(block.state_dict())
    x = random(3, 7, 24)
    close(block(x, None), theirs(x))
    # Rotation by place zero is none; by others it is not.
    grid = (2, 2, 2)
    close(block(x, rotation(torch.zeros(3, 7, dtype=torch.long), grid, 12)), block(x, None))
    turned = block(x, rotation(torch.arange(7).expand(3, -1), grid, 12))
    assert (turned - block(x, None)).abs().max() > 0.1


@pytest.mark.parametrize("rotary", [False, True])
def test_last_tokens_alone(rotary: bool) -> None:
    """They, and the gradients, are those of a block that computes all; the other tokens have no MLP."""
    block, x = eager(Block(24, num_heads=2)), random(3, 7, 24).requires_grad_()
    by = rotation(torch.arange(7).expand(3, -1), (2, 2, 2), 12) if rotary else None
    seen: list[tuple[int, ...]] = []
    block.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    expected, found = block(x, by)[:, -2:], block(x, by, last=2)
    close(found, expected)
    assert seen == [(3, 7, 24), (3, 2, 24)]
    inputs, upstream = [x, *block.parameters()], random(3, 2, 24, seed=1)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        close(ours / theirs.abs().max(), theirs / theirs.abs().max())


@pytest.mark.parametrize(("grid", "num_mask_tokens"), [((2, 4, 4), 2), ((4, 8), None)])
def test_the_last_block_of_a_predictor_computes_what_is_predicted(
    grid: Sequence[int], num_mask_tokens: int | None
) -> None:
    network = Predictor(grid, 24, 16, depth=2, num_heads=2, num_mask_tokens=num_mask_tokens)
    order = shuffled(2, 32)
    seen: list[int] = []
    for block in network.predictor_blocks:
        block.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    network(random(2, 9, 24), order[:, :9], order[:, 9:].view(2, 1, 23))
    assert seen == [9 + 23, 23]


# --- Linear layers ---------------------------------------------------------------------------------------------------


class Products(TorchDispatchMode):
    """Counts the calls of oneDNN."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        self.count += func.namespace == "mkldnn"
        return func(*args, **kwargs or {})


def products(layer: nn.Module, x: Tensor) -> int:
    with Products() as seen:
        linear.linear(layer, x)
    return seen.count


@pytest.mark.parametrize(
    ("shape", "inputs", "outputs", "bias"),
    [((300,), 96, 160, True), ((5, 60), 160, 96, True), ((3, 4, 25), 96, 160, False)],
)
def test_linear_layers_in_double_precision(shape: tuple[int, ...], inputs: int, outputs: int, bias: bool) -> None:
    layer = nn.Linear(inputs, outputs, bias=bias)
    x = random(*shape, inputs).requires_grad_()
    upstream = random(*shape, outputs, seed=1)
    double = copy.deepcopy(layer).double()
    y = x.detach().double().requires_grad_()
    expected = F.linear(y, double.weight, double.bias)
    expected.backward(upstream.double())
    assert products(layer, x) == AVX512
    output = linear.linear(layer, x)
    output.backward(upstream)
    pairs = [(output, expected), (x.grad, y.grad), (layer.weight.grad, double.weight.grad)]
    for ours, theirs in pairs + ([(layer.bias.grad, double.bias.grad)] if bias else []):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-4)


def test_linear_layers_take_tensors_of_any_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transposed inputs, gradients that are one number over and over, a single vector, and none at all."""
    monkeypatch.setattr(linear, "LEAST", 0)
    layer, x = nn.Linear(6, 10), random(6, 4, 3).permute(2, 1, 0).requires_grad_()
    linear.linear(layer, x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(3, 4, 6))
    torch.testing.assert_close(layer.weight.grad, x.sum((0, 1)).expand(10, 6))
    assert layer.bias.grad.tolist() == [12.0] * 10
    for rows in ((), (0,), (2, 0)):
        one = random(*rows, 6)
        torch.testing.assert_close(linear.linear(layer, one), F.linear(one, layer.weight, layer.bias))


def test_frozen_linear_layers_get_no_gradient() -> None:
    layer, x = nn.Linear(128, 128).requires_grad_(False), random(256, 128).requires_grad_()
    with Products() as seen:
        linear.linear(layer, x).sum().backward()
    assert seen.count == 2 * AVX512  # forward, and the gradient of the inputs
    assert layer.weight.grad is None is layer.bias.grad
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(256, -1))
    with torch.no_grad():
        torch.testing.assert_close(linear.linear(layer, x), F.linear(x, layer.weight, layer.bias))


def test_where_linear_layers_are_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half and double precision, few numbers, `torch.compile`, and where oneDNN is switched off."""
    layer, x = nn.Linear(128, 128), random(256, 128)
    assert products(layer, x) == AVX512
    assert products(layer, x[:16]) == 0
    assert products(copy.deepcopy(layer).double(), x.double()) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert linear.linear(layer, x).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        assert products(layer, x) == 0
    hook = layer.register_forward_hook(lambda *_: None)
    assert products(layer, x) == 0  # it is called as usual
    hook.remove()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert products(layer, x) == 0


# --- Encoder ---------------------------------------------------------------------------------------------------------


def encoder(
    size: tuple[int, int] = (16, 16), frames: int = 4, positions: Any = "sincos", depth: int = 2, **options: Any
) -> VideoTransformer:
    torch.manual_seed(0)
    network = VideoTransformer(
        size, frames, (4, 4), embed_dim=32, depth=depth, num_heads=2, positions=positions, **options
    )
    eager(network.blocks)
    return network


def test_encoder_without_blocks_in_closed_form() -> None:
    """Tubelets in raster order times the weights of the convolution, plus the position, normalised."""
    network = VideoTransformer((6, 20), 6, (3, 5), 3, in_channels=2, embed_dim=8, depth=1, num_heads=1)
    network.blocks = network.blocks[:0]
    clips = random_clips(2, 6, (6, 20), 2)
    tubelets = [
        clips[:, :, t : t + 3, row : row + 3, column : column + 5].flatten(1)
        for t, row, column in itertools.product(range(0, 6, 3), range(0, 6, 3), range(0, 20, 5))
    ]
    tokens = torch.stack(tubelets, dim=1) @ network.patch_embed.proj.weight.flatten(1).T + network.pos_embed
    expected = F.layer_norm(tokens, (8,), eps=1e-6)
    assert network.grid == (2, 2, 4)
    torch.testing.assert_close(network(clips), expected)
    indices = torch.tensor([[3, 0, 15], [7, 8, 1]])
    torch.testing.assert_close(network(clips, indices), gather_tokens(expected, indices))
    for positions in ("rope", "tiled_rope"):
        rotary = VideoTransformer((6, 20), 6, (3, 5), 3, 2, 8, depth=1, num_heads=1, positions=positions)
        rotary.blocks = rotary.blocks[:0]
        rotary.load_state_dict({n: value for n, value in network.state_dict().items() if n != "pos_embed"})
        torch.testing.assert_close(rotary(clips), F.layer_norm(tokens - network.pos_embed, (8,), eps=1e-6))


@pytest.mark.parametrize(("dim", "share"), [(24, 8), (20, 8)])
def test_positions_by_hand(dim: int, share: int) -> None:
    """Frame, row, column; each as sines, then cosines, at frequencies from 1 down; what goes beyond is cut off."""
    network = VideoTransformer((8, 16), 6, (4, 4), 2, embed_dim=dim, depth=1, num_heads=1)
    network.blocks = network.blocks[:0]
    assert network.grid == (3, 2, 4)
    for frame, row, column in itertools.product(range(3), range(2), range(4)):
        angles = [[place / 10000 ** (2 * k / share) for k in range(share // 2)] for place in (frame, row, column)]
        expected = [f(angle) for axis in angles for f in (math.sin, math.cos) for angle in axis][:dim]
        found = network.pos_embed[0, (frame * 2 + row) * 4 + column]
        assert found.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("positions", "tubelet"), [("sincos", 1), ("rope", 2), ("tiled_rope", 3)])
def test_an_image_is_a_clip_that_stands_still(positions: Any, tubelet: int) -> None:
    network = encoder(frames=2 * tubelet, positions=positions, tubelet_size=tubelet)
    images = random_images(2, (8, 12))
    standing = images.unsqueeze(2).repeat(1, 1, tubelet, 1, 1)
    assert network.grid_of(images) == network.grid_of(standing) == (1, 2, 3)
    torch.testing.assert_close(network(images), network(standing))
    indices = torch.tensor([[5, 0], [1, 2]])
    torch.testing.assert_close(network(images, indices), network(standing, indices))


@pytest.mark.parametrize("positions", POSITIONS)
def test_other_lengths_and_sizes(positions: Any) -> None:
    """As an encoder that was built for them, also where their tokens are as many as those it was built for."""
    network = encoder(positions=positions)
    for frames, size in ((2, (16, 16)), (8, (8, 24)), (4, (32, 8))):
        built = encoder(size, frames, positions)
        state = {name: value for name, value in network.state_dict().items() if name != "pos_embed"}
        built.load_state_dict(state, strict=positions != "sincos")
        clips = random_clips(2, frames, size)
        assert network.grid_of(clips) == built.grid
        torch.testing.assert_close(network(clips), built(clips))


@pytest.mark.parametrize("positions", ["rope", "tiled_rope"])
def test_rotary_features_move_along(positions: Any) -> None:
    """Tokens seen by themselves: the corrected ones are the same wherever their clip stands, the official ones not."""
    network, clips = encoder(positions=positions), random_clips(2, 4, (8, 8))
    wide = F.pad(clips, (8, 0, 4, 0))  # two columns and a row further on
    here = torch.arange(8).expand(2, -1)
    frame, row, column = here // 4, here // 2 % 2, here % 2
    there = (frame * 3 + row + 1) * 4 + column + 2
    difference = (network(clips, here) - network(wide, there)).abs().max()
    assert (difference < 1e-3) == (positions == "rope"), difference


@pytest.mark.parametrize("shape", [(2, 1, 4, 16, 16), (2, 3, 3, 16, 16), (2, 3, 4, 16, 15), (2, 3, 18, 16)])
def test_clips_that_do_not_fit(shape: tuple[int, ...]) -> None:
    sizes = rf"\[B, 3, T, H, W\].*multiple of 2.*multiple of 4.*\[{', '.join(map(str, shape))}\]"
    with pytest.raises(ValueError, match=sizes):
        encoder()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (16, 18)}, r"\(4, 16, 18\).*\(2, 4, 4\)"),
        ({"num_frames": 5}, r"\(5, 16, 16\)"),
        ({"num_heads": 5}, "32.*5 heads"),
        ({"embed_dim": 15, "num_heads": 3}, r"multiple of 2.* 15"),
    ],
)
def test_encoders_that_cannot_be(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"image_size": (16, 16), "num_frames": 4, "patch_size": (4, 4), "embed_dim": 32, "depth": 1}
    with pytest.raises(ValueError, match=message):
        VideoTransformer(**given | {"num_heads": 2} | options)


@pytest.mark.parametrize("positions", ["sincos", "rope"])
def test_first_weights(positions: Any) -> None:
    """Normal of std 0.02; of rotary networks, what the l-th block adds is divided by sqrt(2 l)."""
    torch.manual_seed(0)
    network = VideoTransformer((16, 16), 4, (4, 4), embed_dim=192, depth=3, num_heads=3, positions=positions)
    predictor = Predictor(network.grid, 192, 96, depth=3, num_heads=3, num_mask_tokens=2, positions=positions)
    assert float(network.patch_embed.proj.weight.detach().std()) == pytest.approx((3 * 2 * 4 * 4) ** -0.5, rel=0.05)
    for blocks in (network.blocks, predictor.predictor_blocks):
        for number, block in enumerate(blocks, start=1):
            share = 1.0 if positions == "sincos" else (2 * number) ** -0.5
            for layer, factor in (
                (block.attn.qkv, 1.0), (block.mlp.fc1, 1.0), (block.attn.proj, share), (block.mlp.fc2, share)
            ):  # fmt: skip
                assert float(layer.weight.detach().std()) == pytest.approx(0.02 * factor, rel=0.05)
                assert not layer.bias.any()
    assert not any(token.any() for token in predictor.mask_tokens)


@pytest.mark.parametrize(
    ("width", "depth", "heads", "ratio", "millions"),
    [(1024, 24, 16, 4, 303.9), (1408, 40, 22, 48 / 11, 1012)],
)
def test_published_sizes(width: int, depth: int, heads: int, ratio: float, millions: float) -> None:
    """V-JEPA 2's numbers of parameters, and those of V-JEPA's with its positions, by hand from the table of shapes."""
    mlp = round(width * ratio)
    block = 4 * width + 4 * width * width + 4 * width + 2 * width * mlp + mlp + width
    patch = 3 * 2 * 16 * 16 * width + width
    for positions, frames, side in (("rope", 64, 256), ("tiled_rope", 64, 384), ("sincos", 16, 224)):
        with torch.device("meta"):
            network = VideoTransformer((side, side), frames, (16, 16), 2, 3, width, depth, heads, ratio, positions)
        count = sum(p.numel() for p in network.parameters())
        tokens = math.prod(network.grid) * width if positions == "sincos" else 0
        assert count == patch + depth * block + 2 * width + tokens
        if not tokens:
            assert round(count / 1e6, 0 if millions > 1000 else 1) == millions


def test_published_predictor() -> None:
    with torch.device("meta"):
        network = Predictor((32, 16, 16), 1024, depth=12, num_heads=12, num_mask_tokens=10, positions="tiled_rope")
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 22.1


# --- Predictor -------------------------------------------------------------------------------------------------------


def predictor(grid: Sequence[int] = (2, 4, 4), positions: Any = "sincos", depth: int = 2) -> Predictor:
    torch.manual_seed(0)
    network = Predictor(grid, 24, 32, depth, num_heads=2, num_mask_tokens=3, positions=positions)
    return eager(network)  # type: ignore[return-value]


def test_predictor_without_blocks_in_closed_form() -> None:
    network, context, order = predictor(depth=1), random(2, 9, 24), shuffled(2, 32)
    network.predictor_blocks = network.predictor_blocks[:0]
    targets = order[:, 9:].view(2, 1, 23)
    for index in range(3):
        tokens = network.mask_tokens[index] + gather_tokens(
            network.predictor_pos_embed.expand(2, -1, -1), targets[:, 0]
        )
        expected = F.layer_norm(tokens, (32,), eps=1e-6) @ network.predictor_proj.weight.T + network.predictor_proj.bias
        torch.testing.assert_close(network(context, order[:, :9], targets, index), expected.unsqueeze(1))


@pytest.mark.parametrize("positions", ["sincos", "rope"])
def test_the_order_of_tokens_does_not_matter(positions: Any) -> None:
    network, context, order = predictor(positions=positions), random(2, 9, 24), shuffled(2, 32)
    seen, hidden = order[:, :9], order[:, 9:21]
    expected = network(context, seen, hidden)
    assert expected.shape == (2, 12, 24)
    other = shuffled(2, 9)
    close(network(gather_tokens(context, other), seen.gather(1, other), hidden), expected)
    turned = shuffled(2, 12)
    close(network(context, seen, hidden.gather(1, turned)), gather_tokens(expected, turned))
    # Where the tokens are does matter, and what they are.
    assert (network(context, seen.gather(1, other), hidden) - expected).abs().max() > 0.1
    assert (network(context, seen, order[:, 20:32]) - expected).abs().max() > 0.1
    assert (network(context + random(9, 24), seen, hidden) - expected).abs().max() > 0.1
    assert (network(context, seen, hidden, condition=2) - expected).abs().max() > 0.1


@pytest.mark.parametrize("positions", ["sincos", "tiled_rope"])
def test_sets_are_predicted_apart(positions: Any) -> None:
    """Several sets at once are those one at a time, also sets that overlap and lie in memory in another order."""
    network, context, order = predictor(positions=positions), random(3, 6, 24), shuffled(3, 32)
    sets = torch.stack([order[:, 6:16], order[:, 10:20], order[:, 22:32]]).transpose(0, 1)
    together = network(context, order[:, :6], sets, condition=1)
    assert together.shape == (3, 3, 10, 24)
    for number in range(3):
        close(network(context, order[:, :6], sets[:, number], condition=1), together[:, number])


@pytest.mark.parametrize("positions", ["sincos", "rope"])
def test_predictions_on_another_grid(positions: Any) -> None:
    """As by a predictor that was built for it, also where the tokens are as many."""
    network, context = predictor(positions=positions), random(2, 8, 24)
    for grid in ((3, 2, 5), (4, 8, 1)):
        built, order = predictor(grid, positions), shuffled(2, math.prod(grid))
        state = {name: value for name, value in network.state_dict().items() if name != "predictor_pos_embed"}
        built.load_state_dict(state, strict=positions != "sincos")
        expected = built(context, order[:, :8], order[:, 8:])
        torch.testing.assert_close(network(context, order[:, :8], order[:, 8:], grid=grid), expected)
        assert (network(context, order[:, :8], order[:, 8:]) - expected).abs().max() > 0.1


def test_predictors_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"predictor.* 20 .*3 heads"):
        Predictor((2, 2, 2), 8, 20, 1, num_heads=3, num_mask_tokens=2)
    with pytest.raises(ValueError, match=r"at least 6.* 4"):
        Predictor((2, 2, 2), 8, 8, 1, num_heads=2, num_mask_tokens=2, positions="rope")(
            random(1, 1, 8), torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.long)
        )


# --- Attentive pooling -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 3])
def test_pooling_is_that_of_transformers(depth: int) -> None:
    torch.manual_seed(0)
    ours = eager(AttentivePooler(24, num_heads=3, depth=depth))
    theirs = VJEPA2AttentivePooler(
        VJEPA2Config(hidden_size=24, num_attention_heads=3, num_pooler_layers=depth - 1, layer_norm_eps=1e-5)
    )
    state = {"query_tokens": ours.query}
    names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "mlp": "mlp", "attn.proj": "self_attn.out_proj"}
    for name, value in ours.state_dict().items():
        if name.startswith("blocks."):
            _, number, part = name.split(".", 2)
            prefix = f"self_attention_layers.{number}."
            if ".qkv." in name:
                kind = name.rpartition(".")[2]
                state |= {f"{prefix}self_attn.{x}_proj.{kind}": v for x, v in zip("qkv", value.chunk(3), strict=True)}
            else:
                (old,) = (old for old in names if part.startswith(old))
                state[prefix + part.replace(old, names[old])] = value
        elif name.startswith("cross_attention."):
            _, part, *rest = name.split(".")
            prefix, kind = "cross_attention_layer.", rest[-1]
            if part == "kv":
                keys, values = value.chunk(2)
                state |= {f"{prefix}cross_attn.k_proj.{kind}": keys, f"{prefix}cross_attn.v_proj.{kind}": values}
            else:
                new = {"q": "cross_attn.q_proj"} | names
                state[".".join([prefix + new[part], *rest])] = value
    theirs.load_state_dict(state)
    x = random(2, 7, 24)
    torch.testing.assert_close(ours(x), theirs.eval()(x).view(2, 24), rtol=1e-3, atol=1e-3)
    assert ours(x).shape == (2, 24)


def test_the_first_weights_of_pooling() -> None:
    """As published: what a block adds to its input starts at 0.02 over `sqrt(2 l)`, the block with the query first."""
    torch.manual_seed(0)
    pooler = AttentivePooler(192, num_heads=3, depth=3)
    layers = [pooler.cross_attention.mlp.fc2, *(layer for b in pooler.blocks for layer in (b.attn.proj, b.mlp.fc2))]
    expected = [0.02 / (2 * number) ** 0.5 for number in (1, 2, 2, 3, 3)]
    assert [float(layer.weight.detach().std()) for layer in layers] == pytest.approx(expected, rel=0.02)
    assert float(pooler.cross_attention.kv.weight.detach().std()) == pytest.approx(0.02, rel=0.02)


def test_pooling_does_not_see_the_order() -> None:
    """Nor tokens of another sample; one token more it does see."""
    torch.manual_seed(0)
    pooler, x = eager(AttentivePooler(24, num_heads=2, depth=3)), random(3, 7, 24)
    close(pooler(x[:, torch.tensor([3, 1, 0, 6, 2, 5, 4])]), pooler(x))
    close(pooler(x[1:2]), pooler(x)[1:2])
    assert (pooler(x[:, :6]) - pooler(x)).abs().max() > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "12.*5 heads"),
        ({"num_heads": 2, "depth": 0}, "depth.*at least 1"),
    ],
)
def test_poolers_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentivePooler(12, **options)

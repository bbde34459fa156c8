"""One transformer: on one to three axes, with padding, attention masks, a class token, pre- and post-norm."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, eager
from torch import Tensor, nn

from jepa_lightning.networks import AttentivePooler, Block, PatchEmbed, Predictor, Transformer, VideoTransformer
from jepa_lightning.networks.positions import rotation, sincos_positions

GRIDS = {1: (6,), 2: (3, 4), 3: (2, 3, 2)}
PATCHES = {1: (4,), 2: (2, 3), 3: (2, 2, 3)}


def observations(axes: int, batch: int = 3) -> Tensor:
    size = [cells * side for cells, side in zip(GRIDS[axes], PATCHES[axes], strict=True)]
    shape = (batch, *size, 2) if axes == 1 else (batch, 2, *size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(axes))


def transformer(axes: int, **options: Any) -> Transformer:
    torch.manual_seed(0)
    tokenizer = PatchEmbed(PATCHES[axes], 2, 24)
    return eager(Transformer(tokenizer, GRIDS[axes], 2, 2, **options)).eval()  # type: ignore[return-value]


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_tokens_are_linear_maps_of_patches(axes: int) -> None:
    """Patch by patch, in raster order."""
    tokenizer, x = PatchEmbed(PATCHES[axes], 2, 5), observations(axes)
    assert tokenizer.grid_of(x) == GRIDS[axes]
    channels_first = x.mT if axes == 1 else x
    tokens, weight = tokenizer(x), tokenizer.proj.weight.flatten(1)
    for number, place in enumerate(torch.cartesian_prod(*map(torch.arange, GRIDS[axes])).view(-1, axes).tolist()):
        part = channels_first
        for axis, (start, side) in enumerate(zip(place, PATCHES[axes], strict=True)):
            part = part.narrow(2 + axis, start * side, side)
        torch.testing.assert_close(tokens[:, number], part.flatten(1) @ weight.T + tokenizer.proj.bias)


@pytest.mark.parametrize(
    ("axes", "shape"),
    [(1, (3, 23, 2)), (1, (3, 24)), (2, (3, 3, 6, 9)), (3, (3, 2, 3, 4, 6))],
)
def test_observations_that_patches_do_not_fit(axes: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"multiple of.*\[{', '.join(map(str, shape))}\]"):
        PatchEmbed(PATCHES[axes], 2, 5)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("axes", "positions", "norm_first", "class_token"),
    [
        (2, "sincos", True, False),
        (2, "sincos", False, True),
        (1, "sincos", True, True),
        (3, "sincos", True, False),
        (2, "learned", True, True),
        (1, "rope", True, True),
        (2, "rope", False, False),
        (3, "rope", True, False),
        (3, "tiled_rope", True, True),
    ],
)
def test_every_kind(axes: int, positions: Any, norm_first: bool, class_token: bool) -> None:
    """What is hidden is not seen; order does not matter; padding changes nothing; places do."""
    encoder = transformer(axes, positions=positions, norm_first=norm_first, class_token=class_token)
    x = observations(axes)
    tokens, count = encoder.tokens(x), math.prod(GRIDS[axes])
    order = torch.stack([torch.randperm(count, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    whole = encoder(x)
    assert whole.shape == (3, count, 24)
    pick = order.unsqueeze(-1).expand(-1, -1, 24)
    assert_close(encoder(x, order), whole.gather(1, pick), "in another order")
    some = order[:, :4]
    hidden = torch.ones(3, count, dtype=torch.bool).scatter(1, some, False)
    changed = torch.where(hidden.unsqueeze(-1), torch.randn_like(tokens), tokens)
    assert torch.equal(encoder.encode(changed, some).values, encoder.encode(tokens, some).values)
    # Tokens that are not valid might as well not be there.
    valid = torch.zeros(3, count, dtype=torch.bool).scatter(1, some, True)
    masked = encoder.encode(changed, valid=valid)
    assert_close(masked.values.gather(1, some.unsqueeze(-1).expand(-1, -1, 24)), encoder(x, some), "valid tokens")
    if class_token:
        summary = encoder.encode(tokens, some).summary
        assert summary is not None
        assert masked.summary is not None
        assert_close(masked.summary, summary, "summary")
        assert not torch.allclose(summary, encoder.encode(tokens).summary)  # type: ignore[arg-type]
    else:
        assert masked.summary is None
    # The same tokens at other places are embedded otherwise.
    moved = encoder.encode(tokens.roll(1, 1)).values.roll(-1, 1)
    assert not torch.allclose(moved, whole, atol=1e-2)
    assert encoder(x, valid=torch.zeros(3, count, dtype=torch.bool)).isfinite().all()


@pytest.mark.parametrize("class_token", [False, True])
def test_attention_masks(class_token: bool) -> None:
    """Causal: what comes later changes nothing before; padding and mask together hide what either does."""
    torch.manual_seed(0)
    # Of a single block, as in a second one all would know from the class token what is later.
    encoder = eager(Transformer(PatchEmbed((4,), 2, 24), (6,), 1, 2, class_token=class_token)).eval()
    tokens, causal = encoder.tokens(observations(1)), torch.ones(6, 6, dtype=torch.bool).tril()
    later = tokens.clone()
    later[:, 4:] = later[:, 4:].flip(-1)
    first, second = (encoder.encode(each, mask=causal) for each in (tokens, later))
    torch.testing.assert_close(first.values[:, :4], second.values[:, :4])
    assert not torch.allclose(first.values[:, 4:], second.values[:, 4:], atol=1e-2)
    if class_token:  # which sees all
        assert not torch.allclose(first.summary, second.summary, atol=1e-2)
    of_each = causal.expand(3, -1, -1)
    assert torch.equal(encoder.encode(tokens, mask=of_each).values, first.values)
    both = encoder.encode(tokens, valid=torch.arange(6).expand(3, -1) > 0, mask=causal).values
    without_first = encoder.encode(tokens, torch.arange(1, 6).expand(3, -1), mask=causal[1:, 1:]).values
    assert_close(both[:, 1:], without_first, "padding and mask")


def test_layers_are_what_the_blocks_give() -> None:
    for options in ({}, {"norm_first": False, "class_token": True}):
        encoder, found = transformer(2, **options), dict[nn.Module, Tensor]()
        for block in encoder.blocks:
            block.register_forward_hook(lambda block, _, tokens, found=found: found.setdefault(block, tokens))
        x = observations(2)
        end = encoder(x)
        expected = [found[block][:, 1:] if options else found[block] for block in encoder.blocks]
        layers = encoder.layers(encoder.tokens(x), [1, 0, -1])
        for layer, number in zip(layers, (1, 0, 1), strict=True):
            assert torch.equal(layer, expected[number])
        assert torch.equal(end, expected[1] if options else encoder.norm(expected[1]))
        with pytest.raises(IndexError):
            encoder.layers(encoder.tokens(x), [2])


def test_post_norm_is_torchs() -> None:
    """A block with norms after the sums, against `nn.TransformerEncoderLayer`."""
    block = eager(Block(24, 2, norm_first=False)).eval()
    layer = nn.TransformerEncoderLayer(24, 2, 96, 0.0, "gelu", 1e-6, batch_first=True, norm_first=False).eval()
    names = {"self_attn.in_proj_weight": "attn.qkv.weight", "self_attn.in_proj_bias": "attn.qkv.bias"}
    names |= {f"self_attn.out_proj.{kind}": f"attn.proj.{kind}" for kind in ("weight", "bias")}
    names |= {f"linear{n}.{kind}": f"mlp.fc{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}
    state = block.state_dict()
    layer.load_state_dict({theirs: state[names.get(theirs, theirs)] for theirs in layer.state_dict()})
    x, padding = torch.randn(3, 7, 24), torch.arange(7).expand(3, -1) >= torch.tensor([[7], [4], [2]])
    expected = layer(x, src_key_padding_mask=padding)
    found = block(x, mask=~padding[:, None, None])
    assert_close(found[~padding], expected[~padding], "post-norm")
    causal = torch.ones(7, 7, dtype=torch.bool).tril()
    assert_close(block(x, mask=causal), layer(x, src_mask=~causal), "causal")
    additive = torch.randn(7, 7)
    assert_close(block(x, mask=additive, last=3), layer(x, src_mask=additive)[:, -3:], "a bias, and the last tokens")


def test_positions_on_one_axis_by_hand() -> None:
    """Sines, then cosines, at frequencies from 1 down to 1/10000; rotations by place times frequency."""
    expected = [f(5 / 10000 ** (k / 4)) for f in (math.sin, math.cos) for k in range(4)]
    assert sincos_positions((7,), 8)[0, 5].tolist() == pytest.approx(expected, abs=1e-6)
    by = rotation(torch.tensor([[0, 5]]), (7,), 8)
    angles = [5 * 10000 ** (-2 * i / 8) for i in range(4)]
    assert by.cos[0, 0, 1].tolist() == pytest.approx([math.cos(a) for a in angles for _ in range(2)], abs=1e-6)
    assert by.sin[0, 0, 1].tolist() == pytest.approx([s * math.sin(a) for a in angles for s in (-1, 1)], abs=1e-6)
    with pytest.raises(ValueError, match="1-D sine-cosine"):
        sincos_positions((7,), 7)
    with pytest.raises(ValueError, match=r"1 axes.* 3"):
        rotation(torch.tensor([[0]]), (7,), 3)


def test_learned_positions_are_trained_and_of_one_grid() -> None:
    encoder = transformer(1, positions="learned")
    encoder(observations(1)).square().sum().backward()
    assert encoder.pos_embed.requires_grad
    assert encoder.pos_embed.grad is not None
    with pytest.raises(ValueError, match=r"\(6,\).*\(5,\)"):
        encoder(observations(1)[:, :20])
    assert transformer(1)(observations(1)[:, :20]).shape == (3, 5, 24)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_sizes_in_any_precision(dtype: torch.dtype) -> None:
    encoder = VideoTransformer((4, 6), 4, (2, 3), 2, 2, 24, 1, 2).to(dtype)
    assert encoder(torch.zeros(1, 2, 2, 8, 6, dtype=dtype)).dtype == dtype
    predictor = Predictor((2, 2, 2), 24, 12, 1, 2, num_mask_tokens=1).to(dtype)
    places = torch.tensor([[0, 1]])
    assert predictor(torch.zeros(1, 2, 24, dtype=dtype), places, places, grid=(1, 4, 2)).dtype == dtype


def test_a_pooler_does_not_read_padding() -> None:
    pooler = eager(AttentivePooler(12, 3, depth=2)).eval()
    x, valid = torch.randn(3, 6, 12), torch.arange(6) < torch.tensor([[6], [4], [2]])
    alone = torch.cat([pooler(x[i : i + 1, : int(valid[i].sum())]) for i in range(3)])
    assert_close(pooler(x, valid), alone, "pooled")
    assert_close(pooler(x, torch.ones_like(valid)), pooler(x), "all valid")
    assert F.cosine_similarity(pooler(x), pooler(x, valid)).min() < 0.999

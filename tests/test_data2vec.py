"""data2vec and data2vec 2.0: masks, networks and losses by hand, unequal lengths, clones, and the monitor's rule."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    CLONES,
    OF_WAVES,
    OF_WORDS,
    TINY_DATA2VEC,
    assert_close,
    eager,
    loader,
    made,
    plain,
    quiet_trainer,
    random_images,
    waves,
    words,
)
from test_data2vec_parity import trace
from torch import Tensor, nn

from jepa_lightning import Data2Vec, Data2Vec2, Prediction
from jepa_lightning.callbacks import CollapseMonitor
from jepa_lightning.callbacks.collapse import CollapseError
from jepa_lightning.callbacks.readings import deviations
from jepa_lightning.draws import Rng
from jepa_lightning.masking import BlockwiseMasking, InverseBlockMasking, Masks
from jepa_lightning.masking.masks import skipping_gaps
from jepa_lightning.networks import (
    Alibi,
    BeitTransformer,
    ConvDecoder,
    ConvPositions,
    RelativePositionBias,
    WaveEmbed,
    WaveTransformer,
    WordTransformer,
)
from jepa_lightning.networks.norms import instance_norm

OF_WORDS_1 = {"encoder": {**OF_WORDS["encoder"], "init_args": OF_WORDS["encoder"]["init_args"] | {"mask_word": 63}}}
OF_WORDS_1 |= {"num_layers": 2, "mlp_targets": True, "layer_norm": "layer", "mask_ratio": 0.5, "mask_length": 2}
OF_WAVES_2 = OF_WORDS | OF_WAVES | {"mask_length": 3}
OF_WAVES_2["encoder"] = {**OF_WAVES["encoder"], "init_args": OF_WAVES["encoder"]["init_args"] | {"mask_token": False}}
OF_WAVES_2["encoder"]["init_args"] |= {"alibi": True}
OF_WORDS_2 = {"encoder": OF_WORDS["encoder"]}

# --- Masks -----------------------------------------------------------------------------------------------------------


def as_maps(indices: Tensor, grid: tuple[int, int]) -> Tensor:
    """How often each token is listed, `[B, rows, columns]`."""
    zeros = torch.zeros(len(indices), math.prod(grid))
    return zeros.scatter_add(1, indices.flatten(1), torch.ones(indices.flatten(1).shape)).view(-1, *grid)


@pytest.mark.parametrize(
    "masking", [BlockwiseMasking(0.6, 16), InverseBlockMasking(0.8, 3), BlockwiseMasking(0.3, 500)]
)
@pytest.mark.parametrize("grid", [(14, 14), (5, 9), (1, 2)])
def test_masks_of_images(masking: Any, grid: tuple[int, int]) -> None:
    """Every token is hidden or seen, the share is hidden of all images, and images differ."""
    masks = masking(50, grid, rng=Rng(0, 50))
    assert torch.equal(as_maps(masks.context, grid) + as_maps(masks.targets, grid), torch.ones(50, *grid))
    assert masks.targets.shape[2] == min(max(1, round(masking.ratio * math.prod(grid))), math.prod(grid) - 1)
    if math.prod(grid) > 2:
        assert len({tuple(row.sort()[0].tolist()) for row in masks.context}) > 25


def neighbours(maps: Tensor) -> float:
    """How often two tokens side by side are both hidden or both seen."""
    return float((maps[:, 1:] == maps[:, :-1]).float().mean() + (maps[:, :, 1:] == maps[:, :, :-1]).float().mean()) / 2


def beits(rng: random.Random, number: int, side: int = 14, least: int = 16) -> Tensor:
    """One mask of BEiT's algorithm: block after block, each of which hides no more than is left to hide."""
    hidden, left = torch.zeros(side, side), number
    while left > 0:
        for _ in range(10):
            area, aspect = rng.uniform(least, max(left, least)), math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
            height, width = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if height >= side or width >= side:
                continue
            top, start = rng.randint(0, side - height), rng.randint(0, side - width)
            block = hidden[top : top + height, start : start + width]
            new = block.numel() - int(block.sum())
            if 0 < new <= left:
                block.fill_(1.0)
                left -= new
                break
        else:
            break
    return hidden


def test_blocks_are_beits() -> None:
    """As connected as the published masks, and every place is hidden about as often, the corners least."""
    rng = random.Random(0)
    theirs = torch.stack([beits(rng, 118) for _ in range(400)])
    ours = as_maps(BlockwiseMasking(118 / 196, 16)(400, (14, 14), rng=Rng(1, 400)).targets, (14, 14))
    assert ours.sum((1, 2)).unique().tolist() == [118]
    assert float(theirs.sum((1, 2)).mean()) == pytest.approx(115, abs=4)
    assert neighbours(ours) == pytest.approx(neighbours(theirs), abs=0.03)
    assert (ours.mean(0) - theirs.mean(0)).abs().max() < 0.2
    assert (ours.mean(0) - theirs.mean(0)).abs().mean() < 0.07


def test_inverse_blocks_by_hand() -> None:
    """Of one block of an odd side that is kept: the tokens around its middle, and others where the border cuts it."""
    masks = InverseBlockMasking(1 - 9 / 49, 3, adjust=0.0)(400, (7, 7), rng=Rng(2, 400))
    kept = as_maps(masks.context, (7, 7))
    whole = F.conv2d(kept.unsqueeze(1), torch.ones(1, 1, 3, 3)).flatten(1).amax(1) == 9
    assert float(whole.float().mean()) == pytest.approx(25 / 49, abs=0.08)  # the middles that are not at the border
    published = as_maps(InverseBlockMasking()(400, (14, 14), rng=Rng(3, 400)).targets, (14, 14))
    assert (published.mean(0) - 157 / 196).abs().max() < 0.14  # most at the corners
    assert neighbours(published) > 0.5 * (1 + 0.8**2 + 0.2**2) - 0.07


def test_masks_of_sequences_with_gaps() -> None:
    valid = torch.tensor([[True, False, True, True, False, True]])
    masks = skipping_gaps(Masks(torch.tensor([[0, 4, 5]]), torch.tensor([[[1, 2, 3]]])), valid)
    assert masks.targets.tolist() == [[[2, 3, 5]]]
    assert masks.context.tolist() == [[0, 1, 4]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: BlockwiseMasking(1.0), r"ratio.*1\.0"),
        (lambda: BlockwiseMasking(0.5, 0), "got 0"),
        (lambda: BlockwiseMasking(0.5, 4, (2.0, 1.0)), "aspect"),
        (lambda: InverseBlockMasking(0.5, 3, -0.1), "adjust"),
        (lambda: InverseBlockMasking()(2, (6,)), r"\(6,\)"),
        (lambda: BlockwiseMasking()(2, (1, 1)), r"\(1, 1\)"),
        (lambda: Data2Vec(**TINY_DATA2VEC | {"layer_norm": "batch"}), "layer_norm.*batch"),
        (lambda: Data2Vec(**TINY_DATA2VEC | {"num_layers": 3}), "2 blocks.*3"),
        (lambda: Data2Vec(**TINY_DATA2VEC | {"head_layers": 3}), "head_layers=3"),
        (lambda: Data2Vec(**TINY_DATA2VEC | {"beta": -1.0}), "beta"),
        (lambda: Data2Vec(**TINY_DATA2VEC | {"hold": 1.0}), "hold"),
        (lambda: Data2Vec(**TINY_DATA2VEC | {"betas": (0.9, 1.0)}), "betas"),
        (lambda: Data2Vec(**TINY_DATA2VEC | {"momentum_steps": 0}), "momentum_steps"),
        (lambda: Data2Vec2(**TINY_DATA2VEC | CLONES | {"num_masks": 0}), "num_masks"),
        (lambda: Data2Vec2(**TINY_DATA2VEC | CLONES | {"ema_tokenizer": False}), "ema_tokenizer=True"),
        (lambda: Data2Vec2(**OF_WORDS | {"cls_weight": 0.1}), "cls_weight=0"),
        (lambda: Data2Vec2(**TINY_DATA2VEC | CLONES | {"predictor_groups": 3}), "3 groups"),
        (lambda: Data2Vec(**OF_WORDS_1 | OF_WORDS_2), "WordTransformer has no mask token"),
        (lambda: Data2Vec2(**OF_WAVES_2 | {"encoder": OF_WAVES["encoder"]}), "mask_token=False"),
        (lambda: Data2Vec(encoder={"class_path": "toys.Dropping"}), "no encoder for Data2Vec"),
    ],
)
def test_what_does_not_fit(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()


# --- Networks --------------------------------------------------------------------------------------------------------


def test_relative_positions_by_hand() -> None:
    """Two tokens of one offset have one bias; the class token as query, as key and as both has others."""
    torch.manual_seed(0)
    bias = RelativePositionBias((3, 4), num_heads=2)
    nn.init.normal_(bias.table)
    places = torch.tensor([[0, 5, 11, 2], [3, 3, 8, 1]])
    found = bias(places, (3, 4))
    for i, row in enumerate(places.tolist()):
        for a, query in enumerate(row):
            for b, key in enumerate(row):
                down, right = query // 4 - key // 4, query % 4 - key % 4
                assert torch.equal(found[i, :, a + 1, b + 1], bias.table[(down + 2) * 7 + right + 3])
        assert torch.equal(found[i, :, 0, 1:], bias.table[35].unsqueeze(-1).expand(-1, 4))
        assert torch.equal(found[i, :, 1:, 0], bias.table[36].unsqueeze(-1).expand(-1, 4))
        assert torch.equal(found[i, :, 0, 0], bias.table[37])
    assert torch.equal(bias(torch.arange(4).unsqueeze(0), (2, 2))[0, :, 1, 4], bias.table[(2 - 1) * 7 + 3 - 1])
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(4, 4\)"):
        bias(places, (4, 4))


def test_alibi_by_hand() -> None:
    alibi = Alibi(3)
    with torch.no_grad():
        alibi.scale.copy_(torch.tensor([2.0, -1.0, 0.5]))
    found = alibi(torch.tensor([[0, 3, 7]]), (8,))
    # The slopes of two heads, 2^-4 and 2^-8, and one from between; what is negative counts as zero.
    for head, slope in enumerate((2 * 2**-4, 0.0, 0.5 * 2**-2)):
        for a, first in enumerate((0, 3, 7)):
            for b, second in enumerate((0, 3, 7)):
                assert float(found[0, head, a, b]) == pytest.approx(-slope * abs(first - second))


def test_words_by_their_distances_alone() -> None:
    """With `alibi` a text has the same features wherever it stands, and hidden words are all the same token."""
    torch.manual_seed(0)
    encoder = WordTransformer(20, 12, 16, 2, 2, mask_word=3, pad_word=1, alibi=True).eval()
    text, rest = torch.randint(4, 20, (2, 7)), torch.ones(2, 5, dtype=torch.long)
    before, after = torch.cat([rest, text], 1), torch.cat([text, rest], 1)
    late = encoder.encode(encoder.tokens(before), None, before != 1).values[:, 5:]
    assert_close(encoder.encode(encoder.tokens(after), None, after != 1).values[:, :7], late, "elsewhere")
    hidden = encoder.masked(encoder.tokens(text), torch.ones(2, 7, dtype=torch.bool))
    assert_close(hidden, hidden[:1, :1].expand_as(hidden), "hidden words")
    assert not [name for name, _ in encoder.named_parameters() if "places" in name]


def test_a_bias_reaches_what_is_seen() -> None:
    """Of some tokens the bias is that of their places; padding is still not seen."""
    torch.manual_seed(0)
    encoder = eager(WaveTransformer(**OF_WAVES["encoder"]["init_args"] | {"alibi": True})).eval()
    tokens = torch.randn(2, 39, 16)
    some = torch.tensor([[4, 9, 30, 2], [1, 2, 3, 38]])
    valid = torch.ones(2, 39, dtype=torch.bool)
    valid[1, 38] = False
    found = encoder.encode(tokens, some, valid, (39,)).values
    order = torch.tensor([2, 0, 3, 1])
    assert_close(encoder.encode(tokens, some[:, order], valid, (39,)).values, found[:, order], "in another order")
    fewer = encoder.encode(tokens[1:], some[1:, :3], valid[1:], (39,)).values
    assert_close(found[1:, :3], fewer, "without what is not there")
    with torch.no_grad():
        encoder.bias.scale.zero_()
    assert not torch.allclose(encoder.encode(tokens, some, valid, (39,)).values, found, atol=1e-3)


def test_frames_of_waves() -> None:
    """Each sees its stretch of the wave alone; one of which a step is missing is none."""
    torch.manual_seed(0)
    embed = WaveEmbed(8, [(4, 10, 5), (4, 3, 2), (4, 2, 2)])
    embed.init_weights()
    wave = torch.randn(1, 207, 1)
    assert embed.receptive_field == 10 + 5 * (3 - 1 + 2 * (2 - 1))
    (frames,) = embed.grid_of(wave)
    tokens = embed(wave)
    assert tokens.shape == (1, frames, 8)
    for frame in (0, 4, frames - 1):
        start = 20 * frame
        alone = embed(wave[:, start : start + embed.receptive_field])
        assert_close(tokens[:, frame : frame + 1], alone, "a frame")
    valid = torch.ones(1, 207, dtype=torch.bool)
    valid[0, 100] = False
    missing = (~embed.valid(valid)[0]).nonzero().flatten().tolist()
    assert missing == [frame for frame in range(frames) if 20 * frame <= 100 < 20 * frame + embed.receptive_field]
    with pytest.raises(ValueError, match=r"30 steps.*\[1, 29, 1\]"):
        embed(wave[:, :29])
    with pytest.raises(ValueError, match=r"\[1, 207, 2\]"):
        embed.grid_of(torch.zeros(1, 207, 2))


@pytest.mark.parametrize("kernel", [3, 4])
def test_positions_by_convolution(kernel: int) -> None:
    """By hand, layer by layer: the kernel reaches as far to the left as an odd one, or one further if it is even."""
    torch.manual_seed(0)
    positions = ConvPositions(6, kernel, groups=2, depth=2)
    tokens = torch.randn(1, 7, 6)
    x = tokens
    for layer in positions:
        rows = []
        for place in range(7):
            sums = layer.bias.clone()
            for k in range(kernel):
                source = place + k - kernel // 2
                if 0 <= source < 7:
                    for group in range(2):
                        part = slice(3 * group, 3 * group + 3)
                        sums[part] = sums[part] + layer.weight[part, :, k] @ x[0, source, part]
            rows.append(F.gelu((sums - sums.mean()) / (sums.var(correction=0) + 1e-5).sqrt()))
        x = torch.stack(rows).unsqueeze(0)
    torch.testing.assert_close(positions(tokens), x, rtol=1e-4, atol=1e-5)


def test_the_decoder_sees_context_and_noise() -> None:
    """On two axes, by torch's own convolution: tokens at their places, noise at the others, zero where nothing is."""
    torch.manual_seed(0)
    decoder = ConvDecoder(2, 4, predictor_embed_dim=4, depth=1, groups=2, residual=False)
    context, noise = torch.randn(1, 3, 4), torch.randn(1, 2, 4)
    seen, hidden = torch.tensor([[5, 0, 2]]), torch.tensor([[1, 3]])
    valid = torch.tensor([[True, True, True, True, False, True]])
    laid = torch.zeros(1, 6, 4)
    for places, values in ((seen, context), (hidden, noise)):
        for number, place in enumerate(places[0].tolist()):
            laid[0, place] = values[0, number]
    found = decoder(
        torch.cat([context, torch.ones(1, 1, 4)], 1), torch.tensor([[5, 0, 2, 4]]), hidden, noise, (2, 3), valid
    )
    convolved = decoder.blocks[0](laid.mT.unflatten(2, (2, 3)))
    tokens = F.gelu(F.layer_norm(convolved.flatten(2).mT, (4,)))
    torch.testing.assert_close(found, decoder.proj[0](tokens)[:, [1, 3]])
    other = ConvDecoder(2, 4, predictor_embed_dim=4, depth=1, groups=2)
    other.load_state_dict(decoder.state_dict())
    torch.testing.assert_close(
        other(context, seen, hidden, noise, (2, 3)), decoder.proj[0](tokens + laid)[:, [1, 3]], rtol=1e-4, atol=1e-5
    )


# --- Methods ---------------------------------------------------------------------------------------------------------


def test_targets_and_loss_by_hand() -> None:
    """The mean of the last two blocks of the teacher, layer-normed; smooth L1 of beta two, over the root of D."""
    module, images = plain("data2vec").eval(), random_images(3)
    masks = module.draw(images, module.rng(3, 0))
    latents = module.latents(images, masks)
    teacher = module.target_encoder
    layers = teacher.layers(teacher.tokens(images), [-2, -1])
    whole = F.layer_norm((layers[0] + layers[1]) / 2, (16,))
    for i in range(3):
        assert_close(latents.target[i, 0], whole[i, masks.targets[i, 0]], "target")
    tokens = module.context_encoder.tokens(images)
    for i in range(3):
        tokens[i, masks.targets[i, 0]] = module.context_encoder.patch_embed.mask_token[0]
    expected = module.predictor(module.context_encoder.encode(tokens).values)
    for i in range(3):
        assert_close(latents.prediction[i, 0], expected[i, masks.targets[i, 0]], "prediction")
    apart = (latents.prediction - latents.target).abs()
    huber = torch.where(apart <= 2, apart**2 / 4, apart - 1).sum(-1) / 4
    assert_close(module.loss(latents)["loss"], huber.mean(), "loss")


def test_clones_see_their_own_context() -> None:
    """Each as if it were alone, and all against one teacher; the class token's distance is weighted."""
    module, images = plain("data2vec 2.0").eval(), random_images(3)
    clones = module.draw(images, module.rng(3, 0))
    assert not torch.equal(clones.context[:, 0], clones.context[:, 1])
    latents = module.latents(images, clones)
    for number in range(2):
        alone = module.latents(images, type(clones)(*(part[:, number : number + 1] for part in clones)))
        for name in ("", "cls"):
            for mine, its in zip(latents.predictions[name][:2], alone.predictions[name][:2], strict=True):
                assert_close(mine[:, number : number + 1], its, name)
        seen = torch.zeros(3, 16).scatter(1, clones.context[:, number], 1.0).view(3, 1, 4, 4)
        hidden = torch.where(F.interpolate(seen, (16, 16)).bool(), images, 9.0)
        other = module.latents(hidden, clones)
        assert_close(
            other.predictions[""].prediction[:, number], latents.predictions[""].prediction[:, number], "prediction"
        )
        assert not torch.allclose(other.predictions[""].target, latents.predictions[""].target)
    prediction, target, _ = latents.predictions[""]
    tokens = (prediction - target).square().sum(-1) / 4
    summary, mean, _ = latents.predictions["cls"]
    cls = (summary - mean).square().sum(-1) / 4
    assert_close(module.loss(latents)["loss"], tokens.mean() + 0.5 * cls.mean(), "loss")
    assert_close(module.energy(latents), tokens.mean((1, 2)) + 0.5 * cls.mean(1), "energy")
    outputs = module.target_encoder.outputs(module.target_encoder.tokens(images))[1]
    whole = F.layer_norm(sum(instance_norm(each.added) for each in outputs) / 2, (16,))
    assert_close(mean[:, 0], whole.mean(1), "mean target")


def test_noise_is_normal() -> None:
    module = made("data2vec 2.0", noise_std=0.25, num_masks=16)
    noise = module.draw(random_images(64), Rng(3, 64)).noise
    assert noise.shape[:2] == (64, 16)
    assert float(noise.mean()) == pytest.approx(0.0, abs=2e-3)
    assert float(noise.std()) == pytest.approx(0.25, rel=0.01)
    kurtosis = (noise / noise.std()).pow(4).mean()
    assert float(kurtosis) == pytest.approx(3.0, abs=0.05)


KINDS: dict[str, tuple[type[Data2Vec], dict[str, Any], Any]] = {
    "waves": (Data2Vec, OF_WAVES, waves),
    "2.0 waves": (Data2Vec2, OF_WAVES_2, waves),
    "words": (Data2Vec, OF_WORDS_1 | {"warmup": 0.0}, words),
    "2.0 words": (Data2Vec2, OF_WORDS, words),
}


@pytest.mark.parametrize("name", KINDS)
def test_padding_is_never_seen(name: str) -> None:
    """Whatever stands there, and however much of it; all of a sample's own tokens are hidden or seen."""
    method, options, data = KINDS[name]
    torch.manual_seed(0)
    module = eager(method(**options)).eval()
    observation = data(4)[0]
    length = observation.shape[1]
    valid = torch.arange(length) < torch.tensor([[length], [length * 2 // 3], [length // 2], [length]])
    there = valid.view(*valid.shape, *[1] * (observation.ndim - 2))
    batch = {"observation": observation, "valid": valid}
    drawn = module.draw(batch, module.rng(4, 0))
    latents = module.latents(batch, drawn)
    other = module.latents(batch | {"observation": torch.where(there, observation, 7)}, drawn)
    assert torch.equal(module.loss(latents)["loss"], module.loss(other)["loss"])
    assert torch.equal(module.energy(latents), module.energy(other))
    assert torch.equal(latents.features.pooled(), other.features.pooled())
    tokens = module.valid(batch)
    weight = latents.predictions[""].weight
    targets = drawn.targets
    assert torch.equal(weight > 0, tokens.gather(1, targets.flatten(1)).view(targets.shape))
    ratio = module.hparams.mask_ratio
    for i, count in enumerate(tokens.sum(1).tolist()):
        assert weight[i].sum(-1).tolist() == [round(ratio * count)] * targets.shape[1]
    if "waves" in name:  # whose positions tell how much follows
        return
    second = module.features({"observation": observation[1:2, : length * 2 // 3]}).pooled()
    assert_close(module.features(batch).pooled()[1:2], second, "features")


@pytest.mark.parametrize("name", ["waves", "2.0 words"])
def test_official_padding_counts(name: str) -> None:
    method, options, data = KINDS[name]
    torch.manual_seed(0)
    module = eager(method(**options | {"official": True, "layer_norm": "instance"})).eval()
    observation = data(4)[0]
    valid = torch.arange(observation.shape[1]) < observation.shape[1] // 2
    batch = {"observation": observation, "valid": valid.expand(4, -1)}
    drawn = module.draw(batch, module.rng(4, 0))
    targets = module.latents(batch, drawn).target
    module.hparams.official = False
    assert not torch.allclose(module.latents(batch, drawn).target, targets)


def test_gaps_are_neither_seen_nor_predicted() -> None:
    """Of words that are missing in the middle."""
    module = plain("data2vec 2.0 of words").eval()
    valid = torch.ones(3, 12, dtype=torch.bool)
    valid[:, 3:6] = False
    batch = {"words": words(3)[0], "valid": valid}
    drawn = module.draw(batch, module.rng(3, 0))
    assert drawn.targets.shape[2] == 6
    weight = module.latents(batch, drawn).predictions[""].weight
    assert weight.sum(-1).tolist() == [[4.0, 4.0]] * 3  # half of nine, rounded to even


def test_what_a_mask_token_hides_of_waves() -> None:
    """Masked frames are the mask token's and nothing else: samples that only these see change no prediction."""
    torch.manual_seed(0)
    module = eager(Data2Vec(**OF_WAVES)).eval()
    wave = waves(2)[0]
    hidden = torch.arange(10, 20)
    masks = Masks(torch.cat([torch.arange(10), torch.arange(20, 39)]).expand(2, -1), hidden.expand(2, 1, -1))
    # A frame sees 20 steps and moves by 10: frames 10 to 19 alone see the steps 110 to 199.
    changed = wave.clone()
    changed[:, 110:200] = 5.0
    first, second = module.latents(wave, masks), module.latents(changed, masks)
    assert torch.equal(first.prediction, second.prediction)
    assert not torch.allclose(first.target, second.target)
    torch.manual_seed(0)
    clones = eager(Data2Vec2(**OF_WAVES_2 | {"num_masks": 1})).eval()
    drawn = clones.draw(wave, clones.rng(2, 0))._replace(context=masks.context.unsqueeze(1), targets=masks.targets)
    drawn = drawn._replace(noise=torch.zeros(2, 1, 10, 16))
    assert torch.equal(clones.latents(wave, drawn).prediction, clones.latents(changed, drawn).prediction)


def test_momenta_and_rates() -> None:
    """The teacher's momentum rises for so many steps, counted from one; what makes tokens is copied."""
    module = made("data2vec", momentum=(0.9, 1.0), momentum_steps=10)
    teachers = {each.teacher: each.momentum for each in module.teachers()}
    assert set(teachers) == {f"target_encoder.{part}" for part in ("patch_embed", "blocks", "norm", "bias")}
    assert teachers["target_encoder.patch_embed"](3, 100) == 0.0
    assert [teachers["target_encoder.blocks"](step, 100) for step in (0, 4, 9, 50)] == pytest.approx([0.91, 0.95, 1, 1])
    assert made("data2vec", momentum=(0.9, 1.0)).momentum(49, 100) == pytest.approx(0.95)
    (whole,) = made("data2vec 2.0").teachers()
    assert whole[:2] == ("context_encoder", "target_encoder")
    module = made("data2vec", warmup=0.1, hold=0.5, start_lr=0.0, lr=1.0, final_lr=0.01)
    rates = [module.learning_rate(step, 100) for step in (5, 10, 60, 80, 100)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.1, 0.01])


def test_betas(tmp_path: Path) -> None:
    module = made("data2vec", betas=(0.8, 0.95))
    trainer = quiet_trainer(tmp_path, max_steps=1, precision="bf16-mixed", gradient_clip_val=1.0)
    trainer.fit(module, loader(random_images(8)))
    assert {tuple(group["betas"]) for group in trainer.optimizers[0].param_groups} == {(0.8, 0.95)}


# --- The monitor -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vision", "audio", "v2_image", "v2_audio", "v2_text"])
def test_deviations_are_the_official_ones(name: str) -> None:
    """Of the targets and predictions of a trace, with what does not count beside them."""
    given = trace(name)
    prediction, target = (
        torch.cat([given[of], torch.full((3, 24), 7.0)]).unsqueeze(0) for of in ("prediction", "target")
    )
    weight = torch.ones(prediction.shape[:2])
    weight[:, -3:] = 0.0
    found = deviations(Prediction(prediction, target, weight), quiet_trainer())
    assert float(found[0]) == pytest.approx(float(given["pred_var"]), rel=1e-4)
    assert float(found[1]) == pytest.approx(float(given["target_var"]), rel=1e-4)


class Still(Data2Vec):
    """Whose predictions are all the same."""

    def build_predictor(self) -> nn.Module:
        head = nn.Linear(16, 16)
        nn.init.zeros_(head.weight)
        return head.requires_grad_(False)


def test_the_rule_of_data2vec(tmp_path: Path) -> None:
    """Predictions that deviate by less than a hundredth collapse; without the rule nobody minds."""

    def fit(**options: Any) -> dict[str, Any]:
        torch.manual_seed(0)
        monitor = CollapseMonitor(1, on_collapse="raise", min_rank=0.0, max_cosine=1.1, **options)
        trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[monitor])
        trainer.fit(Still(**TINY_DATA2VEC), loader(random_images(32)))
        return trainer.callback_metrics

    read = fit()
    assert float(read["collapse/prediction/deviation"]) == pytest.approx(1e-3, rel=0.01)
    assert float(read["collapse/prediction/target_deviation"]) > 0.1
    with pytest.raises(CollapseError, match=r"deviation of the predictions of prediction 0\.001"):
        fit(min_deviations=(0.1, 0.01))
    with pytest.raises(CollapseError, match="deviation of the targets"):
        fit(min_deviations=(100.0, 0.0))


def test_an_image_smaller_than_the_encoders() -> None:
    encoder = BeitTransformer((16, 16), (4, 4), 3, 16, 1, 2).eval()
    assert encoder(random_images(2, 8)).shape == (2, 4, 16)

"""TS-JEPA: a training step against a trace of the official code, masks by hand, and unequal lengths."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    GOLDEN_SERIES,
    TINY_SERIES,
    Data,
    assert_close,
    assert_golden_step,
    eager,
    logged_images,
    quiet_trainer,
    random_series,
)
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from jepa_lightning import TSJEPA, load_encoder
from jepa_lightning.batches import Series, labels
from jepa_lightning.callbacks import LatentPictures, SeriesPictures
from jepa_lightning.callbacks.pictures import draw_series
from jepa_lightning.callbacks.pictures.series import BARS, HEIGHT, WIDTH
from jepa_lightning.draws import Rng
from jepa_lightning.evaluation import evaluate
from jepa_lightning.evaluation.series import SeriesEncoder
from jepa_lightning.masking import Masks, SpanMasking
from jepa_lightning.networks import SeriesConvolutions, SeriesPatchEmbed

CHECKPOINT = str(GOLDEN_SERIES / "checkpoint.pt")


def tiny(**options: Any) -> Any:
    torch.manual_seed(0)
    return eager(TSJEPA(**TINY_SERIES | options))


# --- Against the official code ---------------------------------------------------------------------------------------


@cache
def trace() -> dict[str, Tensor]:
    """That of `batch4_intended`, by our names: the official code's, which has every series gathered from itself."""
    renamed = {}
    for name, value in load_file(GOLDEN_SERIES / "trace.safetensors").items():
        if name.startswith(("grad/", "after_step/")):
            if "/predictor/" in name:
                name = name.replace("/pos_embed", "/predictor_pos_embed")
            else:
                name = name.replace("tokenizer.", "patch_embed.").replace("predictor_blocks.", "blocks.")
                name = name.replace("encoder_norm.", "norm.")
        renamed[name] = value
    return renamed


def golden_series() -> Tensor:
    """The patches `[B, N, P]` as series `[B, N * P, 1]`."""
    return trace()["patches"].flatten(1).unsqueeze(-1)


def golden_masks() -> Masks:
    return Masks(trace()["context_indices"], trace()["target_indices"].unsqueeze(1))


class GoldenStep(TSJEPA):
    """With the masks of the trace."""

    def draw(self, batch: Any, rng: Rng) -> Masks:
        return golden_masks()


def test_forward() -> None:
    module = TSJEPA.from_official(CHECKPOINT)
    latents = module.latents(golden_series(), golden_masks())
    assert_close(latents.embeddings["context"].values, trace()["context_features"], "context")
    assert_close(latents.features.values, trace()["target_encoder_features"], "features")
    assert_close(latents.target[:, 0], trace()["target"], "target")
    assert_close(latents.prediction[:, 0], trace()["prediction"], "prediction")
    assert_close(module.loss(latents)["loss"], trace()["loss"][0], "loss")


def test_training_step() -> None:
    """Gradients, and the weights after the library's own AdamW, which decays all of them, and EMA step in a Trainer."""
    config = json.loads((GOLDEN_SERIES / "config.json").read_text())
    lr, decay, momentum = config["optimizer"]["lr"], config["optimizer"]["weight_decay"], config["momentum"]
    module = GoldenStep.from_official(
        CHECKPOINT, lr=lr, start_lr=lr, final_lr=lr, warmup=0.0, weight_decay=(decay, decay),
        momentum=(momentum, momentum),
    )  # fmt: skip
    quiet_trainer(max_steps=1).fit(module, DataLoader(golden_series(), batch_size=4))
    assert_golden_step(module, trace())


def test_sizes_that_the_kernel_does_not_divide(tmp_path: Path) -> None:
    """The official code does not see the last steps of such a patch; here they count once they are trained."""
    state = torch.load(CHECKPOINT, weights_only=True)
    path = tmp_path / "official.pt"
    torch.save(state, path)
    module = TSJEPA.from_official(str(path), patch_size=14)
    series = random_series(4, 140, 1)
    seen = series.view(4, 10, 14, 1)[:, :, :12].flatten(1, 2)
    expected = TSJEPA.from_official(CHECKPOINT).features(seen).values
    torch.testing.assert_close(module.features(series).values, expected)
    with pytest.raises(ValueError, match="patch_size=20"):
        TSJEPA.from_official(CHECKPOINT, patch_size=20)
    del state["predictor"]
    torch.save(state, path)
    assert_close(
        load_encoder(path)(golden_series()),
        trace()["target_encoder_features"],
        "the encoder of a file without the rest",
    )


def test_tokenizer_by_hand() -> None:
    """A convolution on each patch alone, and a linear map of what it gives, the channels of a place apart."""
    torch.manual_seed(0)
    embed = SeriesPatchEmbed(8, in_channels=3, embed_dim=4, kernel_size=3)
    series = random_series(2, 16, 3)
    found = embed(series)
    for i, j in ((0, 0), (1, 1)):
        patch = torch.cat([series[i, 8 * j : 8 * j + 8], torch.zeros(1, 3)])  # 9 steps
        outputs = [
            sum(embed.proj.weight[d, c, k] * patch[3 * place + k, c] for c in range(3) for k in range(3))
            + embed.proj.bias[d]
            for d in range(4)
            for place in range(3)
        ]
        torch.testing.assert_close(found[i, j], embed.fc.weight @ torch.stack(outputs) + embed.fc.bias)


def test_sizes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"num_steps=8.*patch_size"):
        TSJEPA(num_steps=8, patch_size=8)
    with pytest.raises(ValueError, match="kernel_size=9"):
        TSJEPA(num_steps=32, patch_size=8, kernel_size=9)


# --- Unequal lengths and gaps ----------------------------------------------------------------------------------------


def ragged(count: int = 6, steps: int = 40) -> Series:
    """Series of 5 to 40 steps, one with a gap of several patches, one with a single step missing."""
    lengths = torch.tensor([40, 5, 17, 33, 8, 26])
    valid = torch.arange(steps) < lengths.unsqueeze(1)
    valid[0, 10:22] = False
    valid[3, 7] = False
    series = random_series(6, steps).masked_fill(~valid.unsqueeze(-1), float("nan"))
    return Series(series[:count], valid[:count], torch.arange(count) % 2)


@pytest.mark.parametrize("span", [1, 3])
def test_a_series_is_the_same_whatever_it_is_padded_with(span: int) -> None:
    """Nothing that is not there is seen, predicted or counted: features and loss are those of each series alone."""
    module, batch = tiny(span_length=span).eval(), ragged()
    masks = module.draw(batch, Rng(1, 6))
    latents = module.latents(batch, masks)
    losses, weights = [], []
    for i in range(6):
        there = module.valid(batch)[i]
        context = torch.tensor([token for token in masks.context[i].tolist() if there[token]])
        targets = torch.tensor([token for token in masks.targets[i, 0].tolist() if there[token]])
        assert len(context) + len(targets) == int(there.sum())
        assert len(targets) == max(1, round(0.7 * int(there.sum())))
        # The patches that are there, one by one, through the blocks alone.
        series = batch.series[i : i + 1].nan_to_num(0.0)
        tokens = module.context_encoder(series, context.unsqueeze(0))
        predicted = module.predictor(tokens, context.unsqueeze(0), targets.unsqueeze(0), grid=(10,))
        whole = module.target_encoder(series, there.nonzero().view(1, -1))
        features = torch.zeros(1, 10, 16).index_copy(1, there.nonzero().view(-1), whole)
        aimed = F.layer_norm(features[:, targets], (16,))
        losses.append((predicted - aimed).abs().mean(-1).sum())
        weights.append(len(targets))
        torch.testing.assert_close(latents.features.pooled()[i], whole[0].mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(module.energy(latents)[i], losses[-1] / weights[-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module.loss(latents)["loss"], sum(losses) / sum(weights), rtol=1e-4, atol=1e-5)


def test_gaps_do_not_shift_what_is_hidden() -> None:
    """A series with a gap has the masks of the same without it, at the places where its tokens are."""
    module, batch = tiny(), ragged(1)
    gap = module.valid(batch)[0]
    assert gap.tolist() == [True, True, True, False, False, True, True, True, True, True]
    masks = module.draw(batch, Rng(1, 1))
    without = SpanMasking()(1, (10,), torch.tensor([8]), Rng(1, 1))
    place = torch.cat([gap.nonzero(), (~gap).nonzero()]).view(-1)
    assert torch.equal(masks.context, place[without.context])
    assert torch.equal(masks.targets, place[without.targets])


def test_lengths_and_channels() -> None:
    """What lacks for whole patches is zero; other lengths are fine, other numbers of channels are not."""
    module = tiny().eval()
    series = random_series(3, 33)
    filled = F.pad(series, (0, 0, 0, 3))
    assert torch.equal(module.features(series).values, module.features(filled).values)
    assert module.latents(series).prediction.shape == (3, 1, 6, 16)
    assert module.latents(random_series(3, 200)).prediction.shape == (3, 1, 35, 16)
    assert TSJEPA(**TINY_SERIES | {"num_steps": 37}).grid == (10,)
    with pytest.raises(ValueError, match=r"\[B, L, 2\].*\[3, 40, 3\]"):
        module.latents(random_series(3, 40, 3))
    with pytest.raises(ValueError, match="valid"):
        module.latents({"series": series, "valid": torch.ones(3, 33)})
    for channel in range(2):  # each is seen
        other = series.index_fill(2, torch.tensor(channel), 0.0)
        assert not torch.allclose(module.features(other).values, module.features(series).values)


def test_valid_is_no_label(tmp_path: Path) -> None:
    batch = ragged()
    assert labels(batch).keys() == {"label"}
    module = tiny(lr=1e-3)
    rows = [Series(*(field[i] for field in batch)) for i in range(6)] * 4
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, DataLoader(rows, 6), DataLoader(rows, 6))
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    assert trainer.predict(module, DataLoader(rows, 6))[0].keys() == {"features", "label"}
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    encoder = load_encoder(tmp_path / "it.ckpt")
    series = random_series(2)
    assert torch.equal(encoder(series), module.eval().target_encoder(series))
    with pytest.raises(ValueError, match="TSJEPA"):
        evaluate(str(tmp_path / "it.ckpt"), Data("TS-JEPA"), steps=1, accelerator="cpu")


class Convolution(nn.Module):
    """An encoder of one's own; `leaks` lets patches overlap."""

    def __init__(self, leaks: bool = False) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = 8, 2
        self.patches = nn.Conv1d(2, 8, 9 if leaks else 5, 5, padding=2 if leaks else 0)

    def grid_of(self, x: Tensor) -> tuple[int, ...]:
        return (x.shape[1] // 5,)

    def forward(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        tokens = self.patches(x.mT).mT
        return tokens if indices is None else tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, 8))


def test_an_encoder_of_ones_own() -> None:
    """It is tried whether it hides what is hidden."""
    options = {"num_steps": 40, "in_channels": 2, "predictor_embed_dim": 8, "warmup": 0.0}
    for leaks in (False, True):
        encoder = {"class_path": "test_tsjepa.Convolution", "init_args": {"leaks": leaks}}
        module = TSJEPA(**options, encoder=encoder)
        assert module.grid == (8,)
        trainer, data = quiet_trainer(max_steps=1), DataLoader(random_series(4), 4)
        if leaks:
            with pytest.raises(ValueError, match="Convolution"):
                trainer.fit(module, data)
        else:
            trainer.fit(module, data)
            assert trainer.global_step == 1


def test_convolutions_by_hand() -> None:
    """Of each stretch and kernel the share of steps above zero, where hidden steps are zero."""
    torch.manual_seed(0)
    encoder = SeriesConvolutions(40, patch_size=5, in_channels=2, num_kernels=3)
    assert encoder.dilations == [1, 2, 4]
    series, kept = random_series(1), torch.tensor([[1, 4]])
    steps = torch.zeros(40, 2)
    for token in (1, 4):
        steps[5 * token : 5 * token + 5] = series[0, 5 * token : 5 * token + 5]
    found = encoder(series, kept)[0]
    for place, token in enumerate((1, 4)):
        for number, dilation in enumerate(encoder.dilations):
            convolution: Any = encoder.convolutions[number]
            shares = []
            for step in range(5 * token, 5 * token + 5):
                places = [(k, step + dilation * (k - 4)) for k in range(9)]
                values = [convolution.weight[:, :, k] @ steps[at] for k, at in places if 0 <= at < 40]
                shares.append(torch.sigmoid(4 * (convolution.bias + sum(values))))
            torch.testing.assert_close(found[place, 3 * number : 3 * number + 3], torch.stack(shares).mean(0))
    for wrong, named in (({"kernel_size": 4}, "kernel_size=4"), ({"kernel_size": 41}, "41"), ({"patch_size": 0}, "0")):
        with pytest.raises(ValueError, match=named):
            SeriesConvolutions(40, **wrong)
    with pytest.raises(ValueError, match=r"39, 2"):
        encoder(series[:, :39])


def test_convolutions_train(tmp_path: Path) -> None:
    """In a module, on ragged series, and read by `SeriesEncoder`, whose mean is that of what is there."""
    sizes = {"num_steps": 40, "patch_size": 4, "in_channels": 2, "num_kernels": 2}
    network = {"class_path": "jepa_lightning.networks.SeriesConvolutions", "init_args": sizes}
    module = TSJEPA(num_steps=40, in_channels=2, encoder=network, predictor_embed_dim=8, predictor_num_heads=2)
    assert module.hparams.patch_size == 4
    rows = [Series(*(field[i] for field in ragged())) for i in range(6)]
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, DataLoader(rows, 6))
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    encoder, series = SeriesEncoder(tmp_path / "it.ckpt"), random_series(1)[0].numpy()
    found = encoder.transform([series, series[:12]])
    alone = module.eval().target_encoder(torch.tensor(series)[None]).mean(1)[0]
    torch.testing.assert_close(torch.tensor(found[0]), alone, rtol=1e-4, atol=1e-5)
    assert not (encoder.untrained(1).transform([series]) == found[:1]).all()


# --- Pictures --------------------------------------------------------------------------------------------------------


def test_series_pictures(tmp_path: Path) -> None:
    """Hidden stretches and no others are shaded, with bars as high as their energies; images are refused."""
    masks = Masks(torch.tensor([[0, 3]]), torch.tensor([[[1, 2]]]))
    picture = draw_series(torch.zeros(1, 40, 1), masks, torch.tensor([[[1.0, 2.0]]]), 4)
    assert picture.shape == (3, HEIGHT + BARS, WIDTH)
    shaded = (picture[2, 40] < 0.99).float()  # a row above the line, in blue
    assert shaded.view(4, -1).mean(1).tolist() == pytest.approx([0, 1, 1, 0], abs=0.02)
    bars = (picture[2, HEIGHT + 1 :] < 0.5).float().sum(0).view(4, -1).median(1).values
    assert bars[0] == bars[3] == 0
    assert bars[2] == pytest.approx(2 * bars[1], abs=2)
    module = tiny()
    trainer = quiet_trainer(
        tmp_path, max_epochs=1, logger=TensorBoardLogger(tmp_path), callbacks=[SeriesPictures(num_images=2)]
    )
    trainer.fit(module, DataLoader([Series(*(field[i] for field in ragged())) for i in range(6)], 6))
    (shown,) = logged_images(trainer.logger, "pictures/series").values()
    assert shown.shape[1] > 2 * (HEIGHT + BARS)
    assert shown.std() > 0.05
    with pytest.raises(ValueError, match=r"LatentPictures draws images.*\[6, 40, 2\]"):
        LatentPictures(num_images=6)._show(trainer, module, None, random_series(6))

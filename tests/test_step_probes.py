"""Probes of a class for each step, of series, sounds and words; raw input; and pictures of sounds and texts."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from helpers import logged_images, quiet_trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from jepa_lightning import TSJEPA, MaskedJEPA, SentencesDataModule, TonesDataModule
from jepa_lightning.batches import Series, classes
from jepa_lightning.callbacks import AttentiveProbe, CollapseMonitor, KNNProbe, LinearProbe, WavePictures, WordPictures
from jepa_lightning.callbacks.pictures import draw_waves, draw_words
from jepa_lightning.callbacks.pictures.drawing import BLOCK_COLOURS
from jepa_lightning.callbacks.probes.raw import BUCKETS, classes_of_tokens, raw_samples, raw_tokens
from jepa_lightning.evaluation import evaluate
from jepa_lightning.evaluation.encode import encode, features_of_module
from jepa_lightning.masking import Masks, SpanMasking
from jepa_lightning.networks import Predictor
from jepa_lightning.step import Tokens


class Mean(nn.Module):
    """Steps of words or waves as tokens: embeddings, or a convolution; and a layer that mixes with the mean of all."""

    embed_dim = 16

    def __init__(self, words: int | None, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.embed: Any = nn.Embedding(words, 16) if words else nn.Conv1d(1, 16, stride, stride)
        self.mix = nn.Linear(32, 16)

    def grid_of(self, x: Tensor) -> tuple[int, ...]:
        return (x.shape[1] // self.stride,)

    def forward(self, x: Tensor, indices: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        tokens = self.embed(x) if x.ndim == 2 else self.embed(x[:, : x.shape[1] // self.stride * self.stride].mT).mT
        if indices is not None:
            tokens = tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, 16))
        if valid is not None:
            there = valid if indices is None else valid.gather(1, indices)
            weight = there.unsqueeze(-1).float()
            mean = (tokens * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
        else:
            mean = tokens.mean(1, keepdim=True)
        return self.mix(torch.cat([tokens, mean.expand_as(tokens)], -1).tanh())


class StepsJEPA(MaskedJEPA):
    """A small method for waves `[B, L, 1]` or words `[B, L]` of unequal lengths."""

    any_size = True

    def __init__(self, words: int | None = None, steps: int = 4000, stride: int = 80, **options: Any) -> None:
        super().__init__(**options)

    def example(self) -> Tensor:
        return torch.zeros(1, self.hparams.steps, dtype=torch.long) if self.hparams.words else torch.zeros(1, 4000, 1)

    def build_encoder(self) -> nn.Module:
        return Mean(self.hparams.words, self.hparams.stride)

    def build_predictor(self) -> nn.Module:
        return Predictor(self.grid, 16, 16, 1, 2)

    def build_masking(self) -> SpanMasking:
        return SpanMasking(0.4, 3)

    def valid(self, batch: Any) -> Tensor | None:
        stride, valid = self.hparams.stride, batch.valid
        return valid[:, : valid.shape[1] // stride * stride].unflatten(1, (-1, stride)).all(-1)


def waves(**options: Any) -> TonesDataModule:
    return TonesDataModule(0.5, num_workers=0, **{"num_train": 64, "num_val": 16, "batch_size": 16} | options)


def words(**options: Any) -> SentencesDataModule:
    return SentencesDataModule(64, num_workers=0, **{"num_train": 64, "num_val": 16, "batch_size": 16} | options)


def module(kind: str) -> StepsJEPA:
    torch.manual_seed(0)
    return StepsJEPA(lr=1e-3) if kind == "waves" else StepsJEPA(260, 64, 1, lr=1e-3)


# --- A class for each token ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "tokens"), [(12, 12), (12, 4), (100, 49), (50, 7), (5, 10), (7, 5), (1, 3)])
def test_the_class_of_a_token(steps: int, tokens: int) -> None:
    """The most frequent one of so many steps around its middle as a token has, by hand."""
    labels = torch.randint(-1, 3, (6, steps), generator=torch.Generator().manual_seed(steps))
    found, width = classes_of_tokens(labels, tokens), max(1, steps // tokens)
    assert found.shape == (6, tokens)
    for row, own in zip(labels.tolist(), found.tolist(), strict=True):
        for token in range(tokens):
            middle = (token + 0.5) * steps / tokens
            first = min(max(round(middle - width / 2), 0), steps - width)
            share = row[first : first + width]
            counts = {label: share.count(label) for label in share}
            assert counts[own[token]] == max(counts.values())
            assert abs(first + width / 2 - middle) <= 1  # where the token is


def test_labels_of_steps() -> None:
    steps = torch.tensor([[0, 2, -100], [1, 1, 1]])
    assert classes(steps, 3, maps=True).tolist() == [[0, 2, -1], [1, 1, 1]]
    with pytest.raises(ValueError, match=r"integers \[B\], got"):
        classes(steps, 3)
    assert classes(torch.tensor([[1], [2]]), 3, maps=True).tolist() == [1, 2]


class Marked(NamedTuple):
    series: Tensor
    valid: Tensor
    state: Tensor


def marked(count: int, seed: int, noise: float = 0.3) -> Marked:
    """Series of 40 steps, of which one in four is high; a state for each step, and some that lack."""
    generator = torch.Generator().manual_seed(seed)
    state = torch.randint(0, 2, (count, 10), generator=generator).repeat_interleave(4, 1)
    series = (2.0 * state + noise * torch.randn(count, 40, generator=generator)).unsqueeze(-1)
    valid = torch.arange(40) < 4 * torch.randint(3, 11, (count, 1), generator=generator)
    return Marked(series, valid, state.masked_fill(~valid, -1))


class Batches(pl.LightningDataModule):
    def __init__(self, train: list[Any], val: list[Any]) -> None:
        super().__init__()
        self.train, self.val = train, val

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=None)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, batch_size=None)


def test_probes_read_tokens_of_series(tmp_path: Path) -> None:
    """Only those that are there; linear and by neighbours they name what is plain to see, and nothing that is not."""
    train, val = [marked(32, seed) for seed in range(8)], [marked(32, 99)]
    shuffled = [each._replace(state=each.state.flatten()[torch.randperm(1280)].view(32, 40)) for each in train]
    reached = {}
    for name, batches in (("plain", train), ("shuffled", shuffled)):
        torch.manual_seed(0)
        jepa = TSJEPA(40, 4, embed_dim=16, kernel_size=4, predictor_embed_dim=16, lr=1e-3, warmup=0.0)
        probes = [
            LinearProbe(2, label="state", lr=0.03),
            LinearProbe(2, "raw", label="state", source="observation", lr=0.03),
            KNNProbe(label="state", bank_size=500),
        ]
        trainer = quiet_trainer(tmp_path, max_epochs=3, callbacks=probes)
        trainer.fit(jepa, datamodule=Batches(batches, val))
        reached[name] = {key: float(value) for key, value in trainer.callback_metrics.items() if "probe/" in key}
    assert {key for key in reached["plain"]} >= {"probe/linear/accuracy", "probe/linear/miou", "probe/knn/accuracy"}
    for probe in ("linear", "raw", "knn"):
        assert reached["plain"][f"probe/{probe}/accuracy"] > 0.9
        assert reached["shuffled"][f"probe/{probe}/accuracy"] < 0.8


def test_what_a_probe_reads_of_steps() -> None:
    batch = marked(3, 5)
    jepa = TSJEPA(40, 4, embed_dim=16, kernel_size=4, predictor_embed_dim=16)
    latents = jepa.latents(batch)
    inputs, labels = LinearProbe(2, label="state")._read(jepa, {"latents": latents}, batch)
    there = latents.features.valid
    assert torch.equal(inputs, latents.features.values[there])
    assert torch.equal(labels, torch.cat([batch.state[i, ::4][there[i]] for i in range(3)]))
    raw, _ = LinearProbe(2, label="state", source="observation")._read(jepa, {"latents": latents}, batch)
    assert torch.equal(raw, torch.cat([batch.series[i, :, 0].view(10, 4)[there[i]] for i in range(3)]))
    with pytest.raises(ValueError, match=r"'context' has 3 tokens of a grid of \(10,\)"):
        LinearProbe(2, label="state", source="context")._read(jepa, {"latents": latents}, batch)
    with pytest.raises(ValueError, match="one class a sample"):
        AttentiveProbe(2, label="state")._read(jepa, {"latents": latents}, batch)


# --- Raw input -------------------------------------------------------------------------------------------------------


READER = SimpleNamespace(reads=())


def test_raw_words() -> None:
    batch = {"words": torch.tensor([[5, 7, 5, 0], [BUCKETS + 5, 5, 5, 5]]), "valid": torch.ones(2, 4, dtype=torch.bool)}
    batch["valid"][0, 3] = False
    counts = raw_samples(READER, batch)
    assert counts[0, 5] == pytest.approx(2 / 3)
    assert counts[0, 7] == pytest.approx(1 / 3)
    assert counts[1, 5] == 1.0
    assert counts.sum(1).tolist() == pytest.approx([1, 1])
    assert raw_tokens(READER, batch, 4).argmax(-1).tolist() == [[5, 7, 5, 0], [5] * 4]


def test_raw_sounds() -> None:
    """The band of a sine is the loudest; padding changes nothing; other lengths have the same width."""
    time = torch.arange(8000) / 8000
    low, high = (torch.sin(2 * torch.pi * hertz * time) for hertz in (530, 2780))
    wave = torch.stack([low, torch.cat([low[:4000], high[4000:]])]).unsqueeze(-1)
    batch = {"wave": wave, "valid": torch.ones(2, 8000, dtype=torch.bool)}
    bands = raw_tokens(READER, batch, 10).argmax(-1)
    assert bands[0].tolist() == [8] * 10
    assert bands[1, :4].tolist() == [8] * 4
    assert bands[1, 6:].tolist() == [44] * 4
    whole = raw_samples(READER, batch)
    assert whole.shape == (2, 128)
    padded = {"wave": torch.cat([wave, torch.zeros(2, 8192, 1)], 1)}
    padded["valid"] = torch.arange(16192) < torch.tensor([[8000], [8000]])
    torch.testing.assert_close(raw_samples(READER, padded), whole)
    assert raw_samples(READER, {"wave": wave[:, :100]}).isfinite().all()
    series = Series(wave, batch["valid"], torch.zeros(2))
    assert torch.equal(raw_samples(READER, series), wave.flatten(1))  # a series is read as it is


# --- Together, and seen ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["waves", "words"])
def test_monitor_probes_and_pictures(kind: str, tmp_path: Path) -> None:
    """Of sounds and texts of unequal lengths all of them read something."""
    data, labels = (waves(), ("instrument", "note")) if kind == "waves" else (words(), ("topic", "part"))
    seen = [
        CollapseMonitor(every_n_steps=2),
        LinearProbe(12, "sample", label=labels[0]),
        LinearProbe(12, "step", label=labels[1]),
        KNNProbe(label=labels[0], bank_size=32, baselines=True),
        KNNProbe("knn_step", label=labels[1], bank_size=200, baselines=True),
        WavePictures(2) if kind == "waves" else WordPictures(2),
    ]
    logger = TensorBoardLogger(tmp_path)
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=seen, logger=logger, log_every_n_steps=1)
    trainer.fit(module(kind), data)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for name in ("sample/accuracy", "step/accuracy", "step/miou", "knn/accuracy", "knn/raw", "knn_step/untrained"):
        assert 0 <= metrics[f"probe/{name}"] <= 1
    assert metrics["collapse/target/rankme"] > 1
    (picture,) = logged_images(logger, f"pictures/{kind}").values()
    assert picture.shape[-1] == 600
    predicted = trainer.predict(module(kind), data)
    assert {len(batch["features"]) for batch in predicted} == {16}


def random_masks(tokens: int, hidden: list[list[int]]) -> Masks:
    targets = torch.tensor(hidden)
    context = torch.stack([torch.tensor([each for each in range(tokens) if each not in row]) for row in hidden])
    return Masks(context, targets.unsqueeze(1))


def test_pictures_of_sounds() -> None:
    """A sine is a bright line where its frequency is, hidden frames are orange, and padding has no colours."""
    wave = torch.sin(2 * torch.pi * 0.125 * torch.arange(8000)).expand(2, -1).unsqueeze(-1).clone()
    valid = torch.ones(2, 20, dtype=torch.bool)
    valid[1, 10:], wave[1, 4000:] = False, 0
    features = Tokens(torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(0)), valid)
    picture = draw_waves(wave, random_masks(20, [[0, 1], [3, 15]]), features)
    assert picture.shape[0] == 3
    rows = picture.unflatten(1, (2, -1))
    assert 0 <= picture.min() <= picture.max() <= 1
    column = rows[:, 0, :96, 300].mean(0)
    assert int(column.argmax()) == pytest.approx(96 * 0.75, abs=2)  # a quarter of half the rate, from below
    assert torch.allclose(rows[:, 0, 10, 20], 0.5 * BLOCK_COLOURS[0], atol=0.05)
    assert rows[:, 0, 10, 200].max() < 0.1
    assert torch.allclose(rows[:, 1, 10, 105], 0.5 * BLOCK_COLOURS[0], atol=0.05)
    assert rows[:, 1, 10, 465].max() < 0.1  # hidden, but not there
    assert (rows[:, 1, 100, 310:] == 1).all()
    assert len({tuple(rows[:, 0, 100, place].tolist()) for place in range(15, 600, 30)}) > 15


def test_pictures_of_texts() -> None:
    pieces = [["the ", "old ", "drum "], ["a ", "b ", "c "]]
    valid = torch.tensor([[True, True, True], [True, True, False]])
    features = Tokens(torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)), valid)
    picture = draw_words(pieces, random_masks(3, [[1], [2]]), features)
    first, second = picture.split(24, 1)
    orange = (255 * BLOCK_COLOURS[0]).long().view(3, 1, 1)
    marked = ((255 * first).round().long() == orange).all(0)
    columns = marked.any(0).nonzero().flatten()
    assert 20 < int(columns.min()) < int(columns.max()) < 70  # where the second word stands
    assert not ((255 * second).round().long() == orange).all(0).any()  # the hidden one is not there
    many = draw_words([["word "] * 500], random_masks(500, [[0]]), Tokens(torch.randn(1, 500, 8)))
    assert many.shape == (3, 84, 600)


# --- After the training ----------------------------------------------------------------------------------------------


class Same(pl.LightningModule):
    """Its features are what it sees, in stretches of four steps."""

    reads = ()

    def features(self, batch: Any) -> Tokens:
        return Tokens(batch.series.squeeze(-1).unflatten(1, (-1, 4)), batch.valid[:, ::4])


def test_an_evaluation_reads_steps() -> None:
    """Tokens are samples; those that are not there, or have no class, do not count."""
    batches, device = [marked(8, 1), marked(8, 2)], torch.device("cpu")
    batches[1] = batches[1]._replace(state=batches[1].state.masked_fill(torch.arange(8).unsqueeze(1) == 3, -1))
    (found,) = encode([lambda batch: features_of_module(Same(), batch)], batches, (), device)
    expected = [
        (batch.series[row, 4 * token : 4 * token + 4, 0], batch.state[row, 4 * token])
        for batch in batches
        for row in range(8)
        for token in range(10)
        if batch.valid[row, 4 * token] and batch.state[row, 4 * token] >= 0
    ]
    steps = found.of("state")
    assert torch.equal(steps.pooled[:, 0], torch.stack([series for series, _ in expected]))
    assert torch.equal(steps.labels["state"], torch.stack([state for _, state in expected]))
    (few,) = encode([lambda batch: features_of_module(Same(), batch)], batches, (), device, limit=5)
    assert torch.equal(few.of("state").pooled, steps.pooled[:5])


def test_an_evaluation_of_sounds() -> None:
    data = waves(num_train=100, num_val=40)
    readings = evaluate(module("waves"), data, steps=5, accelerator="cpu")
    found = {(each.label, each.probe): each for each in readings}
    assert {label for label, _ in found} == {"instrument", "octave", "contour", "note"}
    assert found["note", "linear"].num_labels > 1000
    assert 0 < found["note", "kNN"].value <= 1

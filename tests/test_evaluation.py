"""Frozen encoders and their probes, what is held out, and fine-tuning; and probes in two processes."""

import copy
import math
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fake_data import write_images, write_shard, write_video
from helpers import (
    TINY,
    TINY_VIDEO,
    LabelledImages,
    difference,
    eager,
    in_two_processes,
    loader,
    quiet_trainer,
    random_clips,
    random_images,
)
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from jepa_lightning import (
    IJEPA,
    VJEPA,
    ImageDataModule,
    MovingShapesDataModule,
    ShapesDataModule,
    VideoDataModule,
    load_encoder,
)
from jepa_lightning.checkpoints import save_for_transformers
from jepa_lightning.evaluation import (
    AttentiveEvaluation,
    Features,
    FineTuning,
    FrozenEncoder,
    FrozenProbe,
    HeldOut,
    KNNEvaluation,
    LinearEvaluation,
    RegressionEvaluation,
    SegmentationEvaluation,
)
from jepa_lightning.evaluation.linear import LinearHead
from jepa_lightning.evaluation.splits import choose

DIM = TINY["embed_dim"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoders of four blocks of images, as our checkpoint and as a folder of the hub, and of two blocks of clips."""
    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    modules = {"images": IJEPA(**TINY | {"depth": 4}), "clips": VJEPA(**TINY_VIDEO)}
    for name, module in modules.items():
        eager(module.target_encoder.requires_grad_(True))
        trainer = quiet_trainer(folder)
        trainer.strategy.connect(module)
        trainer.save_checkpoint(folder / f"{name}.ckpt")
    save_for_transformers(load_encoder(folder / "images.ckpt"), folder / "hub")
    return folder


@pytest.fixture(scope="module")
def images(folder: Path) -> str:
    return str(folder / "images.ckpt")


def tokens_by_hand(path: Path | str, x: Tensor, layers: int) -> Tensor:
    """The tokens of the last blocks, block by block."""
    encoder = load_encoder(path)
    tokens, given = encoder.patch_embed(x) + encoder.pos_embed, []
    for block in encoder.blocks:
        tokens = block(tokens) if x.ndim == 4 else block(tokens, None)
        given.append(encoder.norm(tokens))
    return torch.stack(given[-layers:], 1)


def pooled(path: str, x: Tensor, layers: int = 1) -> Tensor:
    return tokens_by_hand(path, x, layers).mean(2)


def of(*parts: tuple[Tensor, Tensor], batch_size: int = 256) -> list[DataLoader[Any]]:
    """Loaders of features and labels, for training, validation and test, in a fixed order."""
    split = [
        [Features(*pair) for pair in zip(features.split(batch_size), labels.split(batch_size), strict=True)]
        for features, labels in parts
    ]
    return [DataLoader(batches, batch_size=None) for batches in split]


class Seen(pl.Callback):
    """Keeps the batches that steps see."""

    def __init__(self) -> None:
        self.train: list[Any] = []
        self.val: list[Any] = []
        self.test: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.train.append(batch)

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        self.val.append(batch)

    def on_test_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        self.test.append(batch)


# --- The frozen encoder ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layers"), [("images.ckpt", 1), ("images.ckpt", 4), ("hub", 3), ("clips.ckpt", 1), ("clips.ckpt", 2)]
)
def test_tokens_of_the_last_blocks(folder: Path, name: str, layers: int) -> None:
    x = random_clips(3) if name == "clips.ckpt" else random_images(3)
    frozen = FrozenEncoder(str(folder / name), layers)
    for inputs in (x, x.flip(0)):  # nothing is left over from the first
        tokens = frozen(inputs)
        assert tokens.shape == (3, layers, math.prod(frozen.grid), frozen.embed_dim)
        torch.testing.assert_close(tokens, tokens_by_hand(folder / name, inputs, layers))
        torch.testing.assert_close(tokens[:, -1], load_encoder(folder / name)(inputs))
    assert len({float(part.sum()) for part in tokens.unbind(1)}) == layers


def test_the_encoder_stays_frozen(images: str) -> None:
    frozen = FrozenEncoder(images)
    nn.Sequential(frozen).train()
    assert not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not frozen(random_images(2).requires_grad_()).requires_grad
    larger = FrozenEncoder(images, 2, {"image_size": [16, 32], "network": "context_encoder"})
    assert larger.grid == (4, 8)
    context = load_encoder(images, "context_encoder", [16, 32])
    torch.testing.assert_close(larger(random_images(2, (16, 32)))[:, -1], context(random_images(2, (16, 32))))


@pytest.mark.parametrize("layers", [0, 5])
def test_layers_that_the_encoder_does_not_have(images: str, layers: int) -> None:
    with pytest.raises(ValueError, match=f"4 blocks.* {layers} "):
        FrozenEncoder(images, layers)


# --- Heads -----------------------------------------------------------------------------------------------------------


def test_published_sweeps(images: str) -> None:
    linear = LinearEvaluation(images, 5)
    rates, decays = (0.001, 0.01, 0.05), (0.0, 0.0005)
    expected = Counter(
        (layers, norm, rate, decay) for layers in (1, 4) for norm in (False, True) for rate in rates for decay in decays
    )
    assert len(linear.heads) == 24
    assert expected == Counter(
        (head.layers, isinstance(head.norm, nn.BatchNorm1d), *setting)
        for head, setting in zip(linear.heads, linear.settings, strict=True)
    )
    assert len(set(linear.names)) == 24
    assert linear.names[0] == "last layer, lr 0.001, wd 0"
    assert linear.names[-1] == "last 4 layers, standardised, lr 0.05, wd 0.0005"

    attentive = AttentiveEvaluation(images, 5)
    rates, decays = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4), (0.01, 0.1, 0.4, 0.8)
    assert attentive.settings == [(rate, decay) for rate in rates for decay in decays]
    assert all(len(head[0].blocks) == 3 and head[1].weight.shape == (5, DIM) for head in attentive.heads)


def train_alone(
    name: str, start: LinearHead, setting: tuple[float, float], batches: list[tuple[Tensor, Tensor]], lars: bool
) -> LinearHead:
    """A head trained by itself, by steps written out."""
    (lr, decay), steps, head = setting, len(batches), copy.deepcopy(start)
    layers = 3 if "last 3 layers" in name else 1
    weight, bias = head.linear.weight, head.linear.bias
    adamw = torch.optim.AdamW([weight, bias], weight_decay=decay)
    speeds = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for step, (features, label) in enumerate(batches):
        x = features[:, -layers:].flatten(1)
        if "standardised" in name:
            mean, var = x.mean(0), x.var(0, correction=0)
            head.norm.running_mean = 0.9 * head.norm.running_mean + 0.1 * mean
            head.norm.running_var = 0.9 * head.norm.running_var + 0.1 * x.var(0)
            x = (x - mean) / (var + 1e-5).sqrt()
        logits = x @ weight.T + bias
        loss = -logits.log_softmax(1)[torch.arange(len(x)), label].mean()
        head.zero_grad()
        loss.backward()
        if not lars:
            adamw.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
            adamw.step()
            continue
        rate = lr * 0.1 ** ((10 * step >= 3 * steps) + (10 * step >= 6 * steps) + (10 * step >= 9 * steps))
        with torch.no_grad():
            size, slope = weight.norm(), weight.grad.norm()
            trust = 0.001 * size / (slope + decay * size + 1e-8)
            for speed, change in zip(speeds, (trust * (weight.grad + decay * weight), bias.grad), strict=True):
                speed.mul_(0.9).add_(change)
            weight -= rate * speeds[0]
            bias -= rate * speeds[1]
    return head


@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
def test_heads_trained_at_once_are_those_trained_alone(images: str, optimizer: str) -> None:
    torch.manual_seed(0)
    rates = [1.0, 10.0] if optimizer == "lars" else [0.001, 0.1]
    probe = LinearEvaluation(images, 4, layers=[1, 3], optimizer=optimizer, lrs=rates, weight_decays=[0.0, 0.1])
    starts = copy.deepcopy(probe.heads)
    data = loader(LabelledImages(40), 8)
    quiet_trainer(max_epochs=2).fit(probe, data)
    batches = [(pooled(images, image, 3), label) for image, label, _ in list(data) * 2]
    assert len(probe.heads) == 16
    for name, start, head, setting in zip(probe.names, starts, probe.heads, probe.settings, strict=True):
        assert name.endswith(f"lr {setting[0]:g}, wd {setting[1]:g}")
        alone = train_alone(name, start, setting, batches, optimizer == "lars")
        assert not torch.allclose(head.linear.weight, start.linear.weight, rtol=1e-3), name
        for theirs, ours in zip(alone.state_dict().items(), head.state_dict().items(), strict=True):
            if not ours[0].endswith("num_batches_tracked"):
                torch.testing.assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-5, msg=f"{name}: {ours[0]}")


def test_attentive_heads_trained_at_once_are_those_trained_alone(images: str) -> None:
    torch.manual_seed(0)
    probe = AttentiveEvaluation(images, 4, depth=2, lrs=[0.001, 0.01], weight_decays=[0.0, 0.5])
    starts = copy.deepcopy(probe.heads)
    data = loader(LabelledImages(24), 8)
    quiet_trainer(max_epochs=1).fit(probe, data)
    for start, head, (lr, decay) in zip(starts, probe.heads, probe.settings, strict=True):
        optimizer = torch.optim.AdamW(start.parameters(), weight_decay=decay)
        for step, (image, label, _) in enumerate(data):
            optimizer.param_groups[0]["lr"] = lr * (1, 0.75, 0.25)[step]
            optimizer.zero_grad()
            F.cross_entropy(start(load_encoder(images)(image)), label).backward()
            optimizer.step()
        for theirs, ours in zip(start.parameters(), head.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_a_batch_of_one_sample_has_no_statistics(images: str) -> None:
    """The last batch of an epoch may be that small; the running statistics take its place."""
    probe = LinearEvaluation(images, 4, layers=[1], optimizer="adamw")
    features = torch.randn(5, 1, DIM)
    quiet_trainer(max_epochs=1).fit(probe, *of((features, torch.arange(5) % 4), batch_size=4))
    standardised = next(head for head in probe.heads if isinstance(head.norm, nn.BatchNorm1d))
    assert int(standardised.norm.num_batches_tracked) == 1
    assert all(parameter.isfinite().all() for parameter in probe.heads.parameters())


# --- The choice ------------------------------------------------------------------------------------------------------


def accuracies(probe: LinearEvaluation, features: Tensor, labels: Tensor) -> list[float]:
    """Of every head, in evaluation mode."""
    hits = []
    for name, head in zip(probe.names, probe.heads, strict=True):
        x = features[:, -head.layers :].flatten(1)
        if "standardised" in name:
            x = (x - head.norm.running_mean) / (head.norm.running_var + 1e-5).sqrt()
        right = (x @ head.linear.weight.T + head.linear.bias).argmax(1)[labels != -1] == labels[labels != -1]
        hits.append(float(right.float().mean()))
    return hits


def test_the_chosen_head_is_the_best_on_the_validation_data(images: str, tmp_path: Path) -> None:
    """And is tested, before and after a checkpoint, which does not hold the encoder."""
    torch.manual_seed(0)
    generator = Generator().manual_seed(1)
    probe = LinearEvaluation(images, 4, layers=[1, 2], optimizer="adamw", lrs=[1e-4, 1e-2, 1.0], weight_decays=[0.0])
    before = copy.deepcopy(probe.encoder.state_dict())
    parts = []
    for number in (96, 50, 70):
        labels = torch.randint(4, (number,), generator=generator)
        means = F.one_hot(labels, DIM)[:, None].float()
        parts.append((means + torch.randn(number, 2, DIM, generator=generator), labels))
    parts[1][1][::7] = -1
    train, val, test = of(*parts, batch_size=16)
    trainer = quiet_trainer(max_epochs=3)
    trainer.fit(probe, train, val)
    found = accuracies(probe, *parts[1])
    assert len(set(found)) > 3, "the heads must differ, or any choice is right"
    assert probe.name_of_chosen == probe.names[int(np.argmax(found))]
    assert float(trainer.callback_metrics["val/accuracy"]) == pytest.approx(max(found))

    expected = accuracies(probe, *parts[2])
    assert expected.count(expected[int(probe.chosen)]) < len(expected)
    (logged,) = trainer.test(probe, test, verbose=False)
    assert logged == {"test/accuracy": pytest.approx(expected[int(np.argmax(found))])}

    path = tmp_path / "probe.ckpt"
    trainer.save_checkpoint(path)
    state = torch.load(path, weights_only=True)["state_dict"]
    assert not any(name.startswith("encoder.") for name in state)
    assert len([name for name in state if name.endswith("linear.weight")]) == len(probe.heads)
    again = LinearEvaluation.load_from_checkpoint(path)
    assert again.name_of_chosen == probe.name_of_chosen
    for module in (probe, again):
        after = module.encoder.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert quiet_trainer().test(again, test, verbose=False) == [logged]
    resumed = LinearEvaluation(images, 4, layers=[1, 2], optimizer="adamw", lrs=[1e-4, 1e-2, 1.0], weight_decays=[0.0])
    assert quiet_trainer().test(resumed, test, ckpt_path=str(path), verbose=False) == [logged]


def test_a_head_that_diverged_is_not_chosen(images: str) -> None:
    probe = RegressionEvaluation(images, layers=[1], lrs=[1e-2, 1e-1], weight_decays=[0.0])
    probe.heads[0].linear.weight.data.fill_(torch.nan)
    (data,) = of((torch.randn(20, 1, DIM), torch.randn(20)))
    trainer = quiet_trainer()
    trainer.validate(probe, data, verbose=False)
    assert int(probe.chosen) == 1
    assert math.isfinite(trainer.callback_metrics["val/r2"])


def test_training_from_images_and_by_the_name_of_a_label(images: str) -> None:
    """The batch's second item is the label, unless another is named."""
    torch.manual_seed(0)
    options = {"layers": [1], "optimizer": "adamw", "lrs": [0.01], "weight_decays": [0.0]}
    for label, classes in ((None, 4), ("other", 3)):
        seen = Seen()
        probe = LinearEvaluation(images, classes, label, **options)
        trainer = quiet_trainer(max_epochs=3, callbacks=[seen])
        trainer.fit(probe, loader(LabelledImages(64), 16), loader(LabelledImages(32), 16))
        (logged,) = trainer.test(probe, loader(LabelledImages(80), 40), verbose=False)
        features = pooled(images, torch.cat([batch.image for batch in seen.test]))
        labels = torch.cat([batch.label if label is None else batch.other for batch in seen.test])
        assert logged["test/accuracy"] == pytest.approx(accuracies(probe, features, labels)[int(probe.chosen)])


# --- What labels count, and which do not fit -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "attentive", "segmentation"])
def test_unlabelled_samples_do_not_count(images: str, kind: str) -> None:
    """A step with them is the step without them, and one with none but them breaks nothing."""
    probe: FrozenProbe
    kept = torch.tensor([0, 2, 3, 6])
    if kind == "linear":
        probe, features = (
            LinearEvaluation(images, 4, layers=[1], lrs=[0.1], weight_decays=[0.0]),
            torch.randn(8, 1, DIM),
        )
    else:
        one: dict[str, Any] = {"lrs": [0.1], "weight_decays": [0.0]}
        build = AttentiveEvaluation if kind == "attentive" else SegmentationEvaluation
        probe, features = build(images, 4, **one), torch.randn(8, 16, DIM)
    shape = (8, 16, 16) if kind == "segmentation" else (8,)
    labels = torch.randint(4, shape, generator=Generator().manual_seed(0))
    some = torch.full_like(labels, -1)
    some[kept] = labels[kept]
    probe.heads[0].eval()  # without statistics of the batch, which are of all samples
    whole = probe.loss(probe.answer(0, features, some), some)
    part = probe.loss(probe.answer(0, features[kept], labels[kept]), labels[kept])
    torch.testing.assert_close(whole, part)
    score = probe.build_score()
    score.update(probe.answer(0, features, some), some)
    alone = probe.build_score()
    alone.update(probe.answer(0, features[kept], labels[kept]), labels[kept])
    assert float(score.compute()) == pytest.approx(float(alone.compute()))

    quiet_trainer(max_epochs=2).fit(probe, *of((features, torch.full_like(labels, -1))))
    assert all(parameter.isfinite().all() for parameter in probe.heads.parameters())


X, MAP = torch.zeros(4, 3, 16, 16), torch.zeros(4, 16, 16, dtype=torch.long)


@pytest.mark.parametrize(
    ("build", "label", "message"),
    [
        (LinearEvaluation, torch.zeros(4), r"integers.* torch.float32 \[4\]"),
        (LinearEvaluation, MAP, r"torch.int64 \[4, 16, 16\]"),
        (LinearEvaluation, torch.tensor([0, 1, 2, 3]), "0 to 3 .* 3 classes"),
        (LinearEvaluation, torch.tensor([0, 1, 2, -2]), "-2 to 2 .* 3 classes"),
        (AttentiveEvaluation, torch.zeros(4, 1), "integers.* torch.float32"),
        (KNNEvaluation, torch.tensor([0, 1, 2, 3]), "0 to 3 .* 3 classes"),
        (FineTuning, torch.zeros(4), r"integers.* torch.float32 \[4\]"),
        (SegmentationEvaluation, MAP[:, 0, 0], r"maps.* \[4\]"),
        (SegmentationEvaluation, MAP.float(), r"integers.* torch.float32 \[4, 16, 16\]"),
        (SegmentationEvaluation, MAP + 3, "3 to 3 .* 3 classes"),
        (RegressionEvaluation, torch.zeros(4, 2), r"3 .*numbers.* torch.float32 \[4, 2\]"),
        (RegressionEvaluation, torch.full((4, 3), torch.nan), r"finite.* torch.float32 \[4, 3\]"),
    ],
)
def test_labels_that_do_not_fit(images: str, build: Any, label: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(images, 3).training_step((X, label), 0)


def test_batches_without_the_label(images: str) -> None:
    with pytest.raises(ValueError, match="none"):
        LinearEvaluation(images, 3).training_step(X, 0)
    with pytest.raises(ValueError, match=r"'kind'.* label, other"):
        KNNEvaluation(images, 3, "kind").training_step(next(iter(loader(LabelledImages(4)))), 0)


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (LinearEvaluation, {"lrs": []}, "rates.*above zero"),
        (LinearEvaluation, {"lrs": [0.0]}, r"above zero.* \[0.0\]"),
        (LinearEvaluation, {"weight_decays": [-1.0]}, r"decays.* \[-1.0\]"),
        (LinearEvaluation, {"optimizer": "sgd"}, "'lars'.* 'adamw'.* 'sgd'"),
        (LinearEvaluation, {"layers": [1, 6]}, "4 blocks.* 6 "),
        (AttentiveEvaluation, {"num_heads": 3}, "16 .* 3 heads"),
        (KNNEvaluation, {"k": [0]}, r"\bk\b"),
        (KNNEvaluation, {"temperature": 0.0}, "temperature"),
        (FineTuning, {"layer_decay": 0.0}, "layer_decay"),
        (FineTuning, {"warmup": 1.0}, "warmup"),
    ],
)
def test_options_that_do_not_fit(images: str, build: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(images, 3, **options)


# --- Regression and segmentation -------------------------------------------------------------------------------------


def test_regression_against_least_squares(images: str) -> None:
    """Of the first two of six numbers, of which others may be missing, on two layers side by side."""
    torch.manual_seed(0)
    truth, parts = torch.randn(2 * DIM, 2), []
    for number in (256, 60, 200):
        features = 3 * torch.randn(number, 2, DIM) + 1
        labels = torch.full((number, 3, 2), torch.nan)
        labels[:, 0] = features.flatten(1) @ truth + 4 * torch.randn(number, 2) + torch.tensor([5.0, -40.0])
        parts.append((features, labels))
    probe = RegressionEvaluation(images, 2, layers=[1, 2], lrs=[0.01, 0.3], weight_decays=[0.0])
    train, val, test = of(*parts)
    trainer = quiet_trainer(max_epochs=100, check_val_every_n_epoch=100)
    trainer.fit(probe, train, val)
    (logged,) = trainer.test(probe, test, verbose=False)
    assert probe.name_of_chosen.startswith("last 2 layers, standardised")

    inputs, wanted = zip(*((x.flatten(1).double().numpy(), y[:, 0].double().numpy()) for x, y in parts), strict=True)
    inputs = [np.concatenate([x, np.ones((len(x), 1))], 1) for x in inputs]
    solution, *_ = np.linalg.lstsq(inputs[0], wanted[0], rcond=None)
    errors = ((inputs[2] @ solution - wanted[2]) ** 2).sum(0)
    r2 = (1 - errors / ((wanted[2] - wanted[2].mean(0)) ** 2).sum(0)).mean()
    assert 0.7 < r2 < 0.97
    assert logged["test/r2"] == pytest.approx(r2, abs=0.01)

    # The head's answers are in standard deviations of the training labels from their mean.
    head, mean, std = probe.heads[int(probe.chosen)], wanted[0].mean(0), wanted[0].std(0)
    x = (parts[2][0].flatten(1) - head.norm.running_mean) / (head.norm.running_var + 1e-5).sqrt()
    answers = (x @ head.linear.weight.T + head.linear.bias).detach().numpy() * std + mean
    errors = ((answers - wanted[2]) ** 2).sum(0)
    assert logged["test/r2"] == pytest.approx((1 - errors / ((wanted[2] - wanted[2].mean(0)) ** 2).sum(0)).mean(), 1e-4)


def scaled_up(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """A map `[rows, columns, ...]` between whose centres is interpolated, and beyond which the border goes on."""
    rows, columns = values.shape[:2]
    result = np.empty((height, width, *values.shape[2:]))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * rows / height - 0.5, 0), rows - 1)
            x = min(max((j + 0.5) * columns / width - 0.5, 0), columns - 1)
            top, left = min(int(y), rows - 2), min(int(x), columns - 2)
            dy, dx = y - top, x - left
            near = values[top : top + 2, left : left + 2]
            result[i, j] = (1 - dy) * ((1 - dx) * near[0, 0] + dx * near[0, 1]) + dy * (
                (1 - dx) * near[1, 0] + dx * near[1, 1]
            )
    return result


def miou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Averaged over the classes that are there or were predicted."""
    counted = truth != -1
    found = []
    for label in range(3):
        mine, theirs = (predicted == label) & counted, (truth == label) & counted
        if (mine | theirs).any():
            found.append((mine & theirs).sum() / (mine | theirs).sum())
    return float(np.mean(found))


def test_segmentation_against_brute_force(images: str) -> None:
    """On a grid that is not square, from images: what is left is of class 0, and so on."""
    torch.manual_seed(0)
    x = random_images(30, (16, 24))
    label = torch.where(torch.arange(24) < 9, 0, torch.where(torch.arange(24) < 17, 1, 2)).expand(30, 16, 24).clone()
    label[:, :5][torch.rand(30, 5, 24) < 0.4] = -1
    options = {"image_size": [16, 24]}
    probe = SegmentationEvaluation(images, 3, lrs=[0.01, 0.1], weight_decays=[0.0], encoder_options=options)
    data = [loader(TensorDataset(x[part], label[part]), 5) for part in (slice(20), slice(20, 25), slice(25, 30))]
    trainer = quiet_trainer(max_epochs=20)
    trainer.fit(probe, data[0], data[1])
    (logged,) = trainer.test(probe, data[2], verbose=False)

    tokens = load_encoder(images, image_size=[16, 24])(x[20:]).numpy()
    scores = []
    for number, head in enumerate(probe.heads.eval()):
        mean, var = (getattr(head[0], name).numpy() for name in ("running_mean", "running_var"))
        weight, bias = head[1].weight.detach().numpy(), head[1].bias.detach().numpy()
        logits = ((tokens - mean) / np.sqrt(var + 1e-5)) @ weight.T + bias
        maps = np.stack([scaled_up(one.reshape(4, 6, 3), 16, 24) for one in logits])
        ours = probe.answer(number, torch.tensor(tokens), label[20:])
        np.testing.assert_allclose(ours.detach().permute(0, 2, 3, 1).numpy(), maps, rtol=1e-3, atol=1e-4)
        scores.append([miou(maps.argmax(3)[part], label[20:].numpy()[part]) for part in (slice(5), slice(5, 10))])
    best = int(np.argmax([val for val, _ in scores]))
    assert int(probe.chosen) == best
    assert logged["test/miou"] == pytest.approx(scores[best][1], abs=1e-5)
    assert len({val for val, _ in scores}) == len({test for _, test in scores}) == 2


def test_clips_are_not_segmented(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"clips\.ckpt .*images"):
        SegmentationEvaluation(str(folder / "clips.ckpt"), 3)


# --- Nearest neighbours ----------------------------------------------------------------------------------------------


def votes(bank: Tensor, labels: Tensor, queries: Tensor, k: int, temperature: float = 0.07) -> np.ndarray:
    """The class that the nearest k vote for, one query at a time."""
    bank, queries = bank.double().numpy(), queries.double().numpy()
    mean, std = bank.mean(0), bank.std(0) + 1e-6
    unit = [(x - mean) / std for x in (bank, queries)]
    bank, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in unit)
    found = []
    for query in queries:
        similarity = bank @ query
        classes = Counter[int]()
        for index in np.argsort(-similarity)[:k]:
            classes[int(labels[index])] += np.exp(similarity[index] / temperature)
        found.append(max(classes, key=classes.__getitem__))
    return np.array(found)


def test_neighbours_against_a_vote_by_hand(images: str, tmp_path: Path) -> None:
    """The best k on the validation data is tested; the bank, without the unlabelled, is in the checkpoint."""
    generator = Generator().manual_seed(2)
    parts = []
    for number in (90, 60, 70):
        labels = torch.randint(4, (number,), generator=generator)
        noise = torch.randn(number, 1, DIM, generator=generator)
        parts.append((7 + 2 * F.one_hot(labels, DIM)[:, None].float() + noise, labels))
    parts[0][1][::5] = -1
    parts[2][1][::6] = -1
    train, val, test = of(*parts, batch_size=16)
    probe = KNNEvaluation(images, 4, k=[1, 5, 20, 500], temperature=0.4)
    trainer = quiet_trainer(max_epochs=2, num_sanity_val_steps=2)
    trainer.fit(probe, train, val)
    known = parts[0][1] != -1
    bank, labels = parts[0][0][known, 0], parts[0][1][known]
    torch.testing.assert_close(probe.bank, bank)  # of one epoch, not two
    found = []
    for features, truth in parts[1:]:
        counted = (truth != -1).numpy()
        hits = [votes(bank, labels, features[:, 0], k, 0.4) == truth.numpy() for k in (1, 5, 20, 500)]
        found.append([float(each[counted].mean()) for each in hits])
    assert len(set(found[0])) > 2, found
    assert float(trainer.callback_metrics["val/accuracy"]) == pytest.approx(max(found[0]))
    best = int(np.argmax(found[0]))
    assert probe.name_of_chosen == f"k {(1, 5, 20, 500)[best]}"
    assert found[1].count(found[1][best]) == 1
    (logged,) = trainer.test(probe, test, verbose=False)
    assert logged == {"test/accuracy": pytest.approx(found[1][best])}

    trainer.save_checkpoint(tmp_path / "knn.ckpt")
    state = torch.load(tmp_path / "knn.ckpt", weights_only=True)["state_dict"]
    assert not any(name.startswith("encoder.") for name in state)
    again = KNNEvaluation.load_from_checkpoint(tmp_path / "knn.ckpt")
    assert torch.equal(again.bank, probe.bank)
    assert quiet_trainer().test(again, test, verbose=False) == [logged]
    resumed = KNNEvaluation(images, 4, k=[1, 5, 20, 500], temperature=0.4)
    assert quiet_trainer().test(resumed, test, ckpt_path=str(tmp_path / "knn.ckpt"), verbose=False) == [logged]


def test_neighbours_of_images(images: str) -> None:
    probe = KNNEvaluation(images, 4, k=[3])
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(probe, loader(LabelledImages(40)), loader(LabelledImages(16)))
    train, test = (next(iter(loader(LabelledImages(number), number))) for number in (40, 60))
    (logged,) = trainer.test(probe, loader(LabelledImages(60)), verbose=False)
    hits = votes(pooled(images, train.image)[:, 0], train.label, pooled(images, test.image)[:, 0], 3)
    assert logged["test/accuracy"] == pytest.approx(float((hits == test.label.numpy()).mean()))


def test_neighbours_of_no_one(images: str) -> None:
    with pytest.raises(RuntimeError, match="no bank"):
        quiet_trainer().test(KNNEvaluation(images, 4), loader(LabelledImages(8)), verbose=False)


# --- What is held out ------------------------------------------------------------------------------------------------


def drawn(labels: Tensor, seed: int = 3, **options: Any) -> tuple[list[int], list[int]]:
    kept, held = choose(labels, Generator().manual_seed(seed), **options)
    return kept.tolist(), held.tolist()


def test_choose() -> None:
    labels = torch.arange(200) % 7
    labels[::9] = -1
    known = {index for index in range(200) if labels[index] != -1}
    kept, held = drawn(labels, held_out=0.25)
    assert len(held) == round(0.25 * len(known))
    assert len(kept) + len(held) == len(known)
    assert set(kept) | set(held) == known
    assert held != sorted(held)
    assert drawn(labels, held_out=0.25) == (kept, held)
    assert set(drawn(labels, seed=4, held_out=0.25)[1]) != set(held)

    previous: set[int] = set()
    for fraction in (0.001, 0.1, 0.3, 1.0):
        few, same = drawn(labels, held_out=0.25, fraction=fraction)
        assert same == held
        assert len(few) == max(1, round(fraction * len(kept)))
        assert previous < set(few) <= set(kept)
        previous = set(few)

    for shots in (1, 10, 1000):
        few, same = drawn(labels, held_out=0.25, shots=shots)
        assert same == held
        available = Counter(labels[kept].tolist())
        assert Counter(labels[few].tolist()) == {kind: min(shots, available[kind]) for kind in range(7)}
        assert set(few) <= set(kept)


class Everything(pl.LightningDataModule):
    """The same images for all, of which the first seven have no label."""

    def __init__(self, number: int = 40) -> None:
        super().__init__()
        self.images = LabelledImages(number)

    def train_dataloader(self) -> Any:
        image, label, _ = next(iter(loader(self.images, len(self.images))))
        label[:7] = -1
        return DataLoader(TensorDataset(image, label), 4, shuffle=True)

    def test_dataloader(self) -> Any:
        return loader(TensorDataset(*next(iter(loader(self.images, len(self.images))))[:2]), 4)


def shapes(root: Path, **options: Any) -> ShapesDataModule:
    return ShapesDataModule(16, num_train=40, num_val=12, batch_size=8, **options)


def moving(root: Path, **options: Any) -> MovingShapesDataModule:
    return MovingShapesDataModule(16, 4, num_train=40, num_val=12, batch_size=8, **options)


def image_folder(root: Path, **options: Any) -> ImageDataModule:
    if not (root / "train").exists():
        write_images(root, *(f"{part}/{kind}/{i}.jpg" for part in ("train", "val") for kind in "ab" for i in range(10)))
    return ImageDataModule("folder", str(root), 16, 8, crop_scale=None, **options)


def video_folder(root: Path, **options: Any) -> VideoDataModule:
    """Each of its own grey."""
    for number in range(22):
        grey, part = np.full((32, 48, 3), 10 * number + 10), "train" if number < 12 else "val"
        write_video(root / part / "ab"[number % 2] / f"{number}.mp4", 6, paint=lambda _, grey=grey: grey)
    return VideoDataModule(str(root), num_frames=2, frame_stride=1, image_size=16, batch_size=4, **options)


def prints(batches: Any) -> Counter[Any]:
    """How often each observation comes."""
    return Counter(one.numpy().tobytes() for batch in batches for one in batch[0])


@pytest.mark.parametrize(
    ("data", "length", "num_workers"),
    [(shapes, 40, 0), (moving, 40, 0), (image_folder, 20, 0), (image_folder, 20, 2), (video_folder, 12, 0)],
)
def test_held_out_of_any_data(data: Callable[..., Any], length: int, num_workers: int, tmp_path: Path) -> None:
    """What is left and what is held out are the training set, each sample once; tests are on the data's own."""
    split = HeldOut(data(tmp_path, num_workers=num_workers), 0.25, seed=1)
    split.prepare_data()
    split.setup("fit")
    split.setup("test")
    train, val = split.train_dataloader(), split.val_dataloader()
    first, held = prints(train), prints(val)
    plain = data(tmp_path, num_workers=0)
    plain.setup(None) if hasattr(plain, "setup") else None
    everything = plain.train_dataloader()
    one_by_one = type(everything)(everything.dataset, batch_size=1, collate_fn=everything.collate_fn)
    whole = prints(one_by_one) if data is not video_folder else None  # its clips are drawn anew each time
    assert len(held) == length // 4
    assert len(first) == length - length // 4
    assert set((first + held).values()) == {1}
    assert whole is None or whole == first + held
    assert prints(train) == first
    assert [batch[1].tolist() for batch in val] == [batch[1].tolist() for batch in val]
    tests = [prints(loader) for loader in (split.test_dataloader(), plain.test_dataloader())]
    assert tests[0] == tests[1]
    assert not set(tests[0]) & set(first + held)
    assert type(train) is type(plain.train_dataloader())
    again = HeldOut(data(tmp_path, num_workers=num_workers), 0.25, fraction=0.5, seed=1)
    again.setup("fit")
    assert prints(again.val_dataloader()) == held
    assert set(prints(again.train_dataloader())) < set(first)


def test_order_of_training_batches() -> None:
    """Another in each epoch, and a function of the seed alone: so all processes have the same before they share it."""
    orders = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(orders))
        split = HeldOut(shapes(Path(), num_workers=0), seed=seed)
        split.setup("fit")
        train = split.train_dataloader()
        orders.append([torch.cat([batch.image.mean((1, 2, 3)) for batch in train]).tolist() for _ in range(2)])
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][0] != orders[0][1]
    assert sorted(orders[0][0]) == sorted(orders[0][1])


def test_held_out_shots(tmp_path: Path) -> None:
    split = HeldOut(shapes(tmp_path, num_workers=0), 0.25, shots=2, label="kind")
    split.setup("fit")
    counts = Counter(torch.cat([batch.kind for batch in split.train_dataloader()]).tolist())
    assert counts == dict.fromkeys(range(6), 2)
    split = HeldOut(shapes(tmp_path, num_workers=0), 0.25, shots=1, label="count")
    split.setup("fit")
    assert sorted(torch.cat([batch.count for batch in split.train_dataloader()]).tolist()) == [1, 2, 3]
    assert sum(len(batch.kind) for batch in split.val_dataloader()) == 10
    unlabelled = HeldOut(Everything(), 0.25, shots=100)
    unlabelled.setup("fit")
    labels = torch.cat([batch[1] for batch in (*unlabelled.train_dataloader(), *unlabelled.val_dataloader())])
    assert len(labels) == 33
    assert -1 not in labels


def test_held_out_in_a_trainer(images: str) -> None:
    """`fit` sees no test image, and `validate` what `fit` validated on."""
    seen = Seen()
    probe = LinearEvaluation(images, 6, "kind", layers=[1], optimizer="adamw")
    trainer = quiet_trainer(max_epochs=2, callbacks=[seen])
    split = HeldOut(shapes(Path(), num_workers=1), 0.25)
    trainer.fit(probe, split)
    train, val = prints(seen.train), prints(seen.val)
    assert set(train.values()) == set(val.values()) == {2}
    assert (len(train), len(val)) == (30, 10)
    assert not set(train) & set(val)
    trainer.test(probe, split, verbose=False)
    assert prints(seen.test) == prints(shapes(Path(), num_workers=0).test_dataloader())
    assert not set(prints(seen.test)) & set(train + val)
    seen.val = []
    quiet_trainer(callbacks=[seen]).validate(probe, HeldOut(shapes(Path(), num_workers=0), 0.25), verbose=False)
    assert set(prints(seen.val)) == set(val)


def test_held_out_videos_that_cannot_be_read(tmp_path: Path) -> None:
    data = video_folder(tmp_path, num_workers=2, max_faulty=0.5)
    bad = tmp_path / "train/a/4.mp4"
    bad.write_bytes(b"")
    split = HeldOut(data, 0.25)
    split.setup("fit")
    with pytest.warns(UserWarning, match=r"1 of 10 videos .*4\.mp4") as caught:
        batches = [*split.train_dataloader(), *split.val_dataloader()]
    assert sum("cannot be read" in str(warning.message) for warning in caught) == 1
    assert sum(len(batch.video) for batch in batches) == 12
    assert data.faulty.keys() == {str(bad)}


class Stream(torch.utils.data.IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        return iter(random_images(8))


class StreamDataModule(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(Stream(), 4)


def test_streams_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Stream .*length"):
        HeldOut(StreamDataModule()).setup("fit")
    content = write_video(tmp_path / "one.mp4", 6).read_bytes()
    write_shard(tmp_path / "train/0.tar", {f"{i}.mp4": content for i in range(4)})
    shards = VideoDataModule(
        str(tmp_path), "shards", 2, 1, image_size=16, batch_size=2, num_workers=0, samples_per_epoch=8
    )
    split = HeldOut(shards)
    split.setup("fit")
    with pytest.raises(TypeError, match="stream"):
        next(iter(split.train_dataloader()))


def test_splits_that_do_not_fit(tmp_path: Path) -> None:
    for name, value in (("share", 0.0), ("share", 1.0), ("fraction", 0.0), ("fraction", 1.5)):
        with pytest.raises(ValueError, match=rf"{name} .*{value}"):
            HeldOut(Everything(), **{name: value})
    with pytest.raises(ValueError, match="shots=0"):
        HeldOut(Everything(), shots=0)
    with pytest.raises(ValueError, match=r"40 .* 0 held out"):
        HeldOut(Everything(), 0.001).setup("fit")
    with pytest.raises(ValueError, match="'size'"):
        HeldOut(shapes(tmp_path, num_workers=0), shots=1, label="size").setup("fit")
    several = HeldOut(video_folder(tmp_path, num_workers=0, num_clips=2), 0.25, shots=1)
    with pytest.raises(ValueError, match=r"24 labels .* 12 "):
        several.setup("fit")


# --- Two processes ---------------------------------------------------------------------------------------------------


def two_processes(rank: int, folder: Path, encoder: str) -> dict[str, Any]:
    """One of two ranks, whose generators differ; what came of the probes."""
    warnings.simplefilter("ignore")
    result = {}
    for name, probe in both(encoder).items():
        torch.manual_seed(rank)
        split, seen = HeldOut(Everything(), 0.2), Seen()
        trainer = quiet_trainer(folder, devices=2, strategy="ddp", max_epochs=2, callbacks=[seen])
        trainer.fit(probe, split)
        trained = {key: float(value) for key, value in trainer.callback_metrics.items()}
        (tested,) = trainer.test(probe, split, verbose=False)
        result[name] = {
            "state": {key: value for key, value in probe.state_dict().items() if not key.startswith("encoder.")},
            "logged": trained | tested,
            "train": [batch[0] for batch in seen.train],
        }
        trainer.save_checkpoint(folder / f"{name}.ckpt")
    return result


def both(encoder: str) -> dict[str, Any]:
    torch.manual_seed(0)
    linear = LinearEvaluation(
        encoder, 4, layers=[1, 2], optimizer="adamw", lrs=[0.001, 0.003, 0.01], weight_decays=[0.0]
    )
    return {"linear": linear, "knn": KNNEvaluation(encoder, 4, k=[1, 9, 20])}


def test_probes_in_two_processes(images: str, tmp_path: Path) -> None:
    """They share the training data, and score as in one.

    Also where the ranks' batches have different numbers of unlabelled samples.
    """
    ranks = in_two_processes(two_processes, tmp_path, images)
    split = HeldOut(Everything(), 0.2)
    split.setup("fit")
    kept = prints(split.train_dataloader())
    assert len(kept) == 32
    parts = []
    for batches in (split.train_dataloader(), split.val_dataloader(), split.test_dataloader()):
        image, label = (torch.cat(columns) for columns in zip(*batches, strict=True))
        parts.append((pooled(images, image, 2), label))
    for name in ("linear", "knn"):
        a, b = (rank[name] for rank in ranks)
        for epoch in (slice(4), slice(4, 8)):
            mine, theirs = (prints([[batch] for batch in rank["train"][epoch]]) for rank in (a, b))
            assert mine + theirs == kept
        assert not difference(a["state"], b["state"])
        for key in ("val/accuracy", "test/accuracy"):
            assert a["logged"][key] == b["logged"][key]
        probe = type(both(images)[name]).load_from_checkpoint(tmp_path / f"{name}.ckpt")
        chosen, trainer = int(probe.chosen), quiet_trainer()
        (tested,) = trainer.test(probe, split, verbose=False)
        assert a["logged"]["test/accuracy"] == pytest.approx(tested["test/accuracy"])
        (validated,) = trainer.validate(probe, split, verbose=False)
        assert a["logged"]["val/accuracy"] == pytest.approx(validated["val/accuracy"])
        assert int(probe.chosen) == chosen
        if name == "linear":
            found = [accuracies(probe, *part) for part in parts[1:]]
        else:
            known = parts[0][1] != -1
            bank, labels = parts[0][0][known, -1], parts[0][1][known]
            assert sorted(probe.bank[:, 0].tolist()) == pytest.approx(sorted(bank[:, 0].tolist()), abs=1e-5)
            found = [
                [float((votes(bank, labels, x[:, -1], k) == y.numpy())[y.numpy() != -1].mean()) for k in (1, 9, 20)]
                for x, y in parts[1:]
            ]
        assert a["logged"]["val/accuracy"] == pytest.approx(max(found[0]))
        assert a["logged"]["test/accuracy"] == pytest.approx(found[1][chosen])


# --- Fine-tuning -----------------------------------------------------------------------------------------------------


class Labelled(Dataset[tuple[Tensor, int]]):
    """Clips, or images, of noise with labels."""

    def __init__(self, observations: Tensor, classes: int = 3) -> None:
        self.observations, self.classes = observations, classes

    def __len__(self) -> int:
        return len(self.observations)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.observations[index], index % self.classes


class Rates(pl.Callback):
    """The learning rates of each step over those of the start."""

    def __init__(self) -> None:
        self.factors: list[float] = []

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        (factor,) = {round(group["lr"] / group["initial_lr"], 9) for group in trainer.optimizers[0].param_groups}
        self.factors.append(factor)


@pytest.mark.parametrize(("name", "depth"), [("images.ckpt", 4), ("hub", 4), ("clips.ckpt", 2)])
def test_rates_of_fine_tuning(folder: Path, name: str, depth: int) -> None:
    """The nearer to the input, the smaller; and a step moves all but the fixed positions."""
    data = Labelled(random_clips(8) if "clips" in name else random_images(8))
    module = FineTuning(str(folder / name), 3, lr=0.01, layer_decay=0.5, weight_decay=0.2, warmup=0.25)
    before = {key: value.clone() for key, value in module.classifier.named_parameters()}
    rates = Rates()
    trainer = quiet_trainer(max_epochs=4, callbacks=[rates])
    trainer.fit(module, loader(data, 4))
    names = {id(value): key for key, value in module.classifier.named_parameters()}
    seen = set()
    for group in trainer.optimizers[0].param_groups:
        for parameter in group["params"]:
            key = names[id(parameter)]
            seen.add(key)
            if key.startswith(("head.", "encoder.norm.")):
                distance = 0
            elif key.startswith("encoder.blocks."):
                distance = depth - int(key.split(".")[2])
            else:
                assert key.startswith("encoder.patch_embed.")
                distance = depth + 1
            assert group["initial_lr"] == pytest.approx(0.01 * 0.5**distance), key
            is_matrix = key.endswith("weight") and "norm" not in key
            assert group["weight_decay"] == (0.2 if is_matrix else 0.0), key
    assert seen == set(names.values()) - {"encoder.pos_embed"}
    expected = [0.5, 1.0] + [0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(1, 7)]
    assert rates.factors == pytest.approx(expected, abs=1e-6)
    for key, value in module.classifier.named_parameters():
        assert torch.equal(value, before[key]) == (key == "encoder.pos_embed"), key


def test_loss_and_accuracy_of_fine_tuning(images: str, tmp_path: Path) -> None:
    """Of smoothed labels; samples without one do not count; the checkpoint has the encoder's own weights."""
    torch.manual_seed(0)
    label = torch.tensor([0, 1, -1, 3, 2, -1, 3, 0])
    data = loader(TensorDataset(random_images(8), label), 8)
    module = FineTuning(images, 4, lr=1e-3, label_smoothing=0.3)
    with torch.no_grad():
        module.classifier.head.weight.normal_()
    start = load_encoder(images)(random_images(8)).mean(1)
    logs = (start @ module.classifier.head.weight.T + module.classifier.head.bias).log_softmax(1)
    known = label != -1
    right = logs[known, label[known]]
    loss = -(0.7 * right + 0.3 * logs[known].mean(1)).mean()
    trainer = quiet_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(module, data)
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(float(loss), rel=1e-4)

    module = FineTuning(images, 4, lr=1e-2, warmup=0.0)
    trainer = quiet_trainer(max_epochs=3)
    trainer.fit(module, data, data)
    predicted = module.eval().classifier(random_images(8)).argmax(1)
    hits = float((predicted == label)[known].float().mean())
    assert float(trainer.callback_metrics["val/accuracy"]) == pytest.approx(hits)
    (logged,) = trainer.test(module, loader(TensorDataset(random_images(8), label), 3), verbose=False)
    assert logged["test/accuracy"] == pytest.approx(hits)
    trainer.save_checkpoint(tmp_path / "tuned.ckpt")
    again = FineTuning.load_from_checkpoint(tmp_path / "tuned.ckpt").eval()
    torch.testing.assert_close(again.classifier(random_images(8)), module.classifier(random_images(8)))


def test_fine_tuning_learns(images: str) -> None:
    """The encoder of small random weights, trained on, tells the squares' places."""
    torch.manual_seed(0)
    module = FineTuning(images, 4, lr=1e-2, encoder_options={"network": "context_encoder"})
    trainer = quiet_trainer(max_epochs=6)
    trainer.fit(module, loader(LabelledImages(64)))
    (logged,) = trainer.test(module, loader(LabelledImages(96), 32), verbose=False)
    assert logged["test/accuracy"] > 0.9

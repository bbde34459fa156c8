"""V-JEPA and V-JEPA 2: parity, step, trainings of clips and images of many sizes, schedules, and what watches them."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import (
    GOLDEN_VIDEO,
    TINY_VIDEO,
    assert_close,
    assert_golden_step,
    eager,
    loader,
    logged_images,
    quiet_trainer,
    random_clips,
    random_images,
)
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors.torch import load_file
from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, TensorDataset

from jepa_lightning import VJEPA, VJEPA2
from jepa_lightning.callbacks import AttentiveProbe, CollapseMonitor, EMATargetEncoder, LatentPictures, LinearProbe
from jepa_lightning.callbacks.pictures import draw_clips
from jepa_lightning.callbacks.pictures.drawing import BLOCK_COLOURS, TITLE_HEIGHT
from jepa_lightning.cli import main
from jepa_lightning.draws import Rng
from jepa_lightning.losses import SIGReg
from jepa_lightning.masking import Masks
from jepa_lightning.metrics import FeatureStd, feature_std, moments
from jepa_lightning.networks import linear

METHODS: dict[str, type[VJEPA]] = {"vjepa": VJEPA, "vjepa2": VJEPA2}
KINDS = ("short", "long")


def tiny(method: type[VJEPA] = VJEPA, **options: Any) -> Any:
    torch.manual_seed(0)
    return method(**TINY_VIDEO | options)


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


# --- Parity ----------------------------------------------------------------------------------------------------------


@cache
def trace(method: str) -> dict[str, Tensor]:
    return load_file(GOLDEN_VIDEO[method] / "trace.safetensors")


def golden_masks(method: str) -> list[Masks]:
    return [
        Masks(trace(method)[f"context_indices/{kind}"], trace(method)[f"target_indices/{kind}"].unsqueeze(1))
        for kind in range(2)
    ]


class GoldenVJEPA(VJEPA):
    """With the masks of the trace."""

    def draw(self, batch: Any, rng: Rng) -> list[Masks]:
        return golden_masks("vjepa")


class GoldenVJEPA2(VJEPA2):
    """With the masks of the trace."""

    def draw(self, batch: Any, rng: Rng) -> list[Masks]:
        return golden_masks("vjepa2")


GOLDEN: dict[str, type[VJEPA]] = {"vjepa": GoldenVJEPA, "vjepa2": GoldenVJEPA2}


def golden(method: str, **options: Any) -> VJEPA:
    path = str(GOLDEN_VIDEO[method] / "checkpoint.pt")
    return GOLDEN[method].from_official(path, 32, 4, num_heads=3, predictor_num_heads=3, **options)


@pytest.mark.parametrize("method", METHODS)
def test_forward(method: str) -> None:
    module, theirs, masks = golden(method), trace(method), golden_masks(method)
    several = module.latents(theirs["clips"], masks)
    assert_close(several.features.values, theirs["target_encoder_features"], "features")
    assert_close(several.embeddings["target"].values, theirs["target_encoder_features"], "target embeddings")
    assert tuple(several.predictions) == KINDS
    for kind, (name, latents) in enumerate(several.predictions.items()):
        assert_close(several.embeddings[f"context/{name}"].values, theirs[f"context_features/{kind}"], "context")
        assert_close(latents.target, theirs[f"target/{kind}"].unsqueeze(1), "target")
        assert_close(latents.prediction, theirs[f"prediction/{kind}"].unsqueeze(1), "prediction")
        # The networks alone, the predictor with one set of tokens that is not called a set.
        context = module.context_encoder(theirs["clips"], masks[kind].context)
        assert_close(context, theirs[f"context_features/{kind}"], "context encoder")
        token = kind if method == "vjepa" else 0
        predicted = module.predictor(context, masks[kind].context, masks[kind].targets[:, 0], condition=token)
        assert_close(predicted, theirs[f"prediction/{kind}"], "predictor")
    assert_close(module.loss(several)["loss"], theirs["loss"][0], "loss")
    written = json.loads((GOLDEN_VIDEO[method] / "config.json").read_text())["loss"]
    assert module.loss(several)["loss"].item() == pytest.approx(written, rel=1e-6)


@pytest.mark.parametrize(
    ("method", "least"),
    [("vjepa", linear.LEAST), ("vjepa", 0), ("vjepa2", 0)],
    ids=["vjepa, torch", "vjepa, oneDNN", "vjepa2, oneDNN"],
)
def test_training_step(method: str, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients, and the weights after the library's own AdamW and EMA step in a Trainer."""
    monkeypatch.setattr(linear, "LEAST", least)
    config = json.loads((GOLDEN_VIDEO[method] / "config.json").read_text())
    lr, decay, momentum = config["optimizer"]["lr"], config["optimizer"]["weight_decay"], config["momentum"]
    module = golden(
        method, lr=lr, start_lr=lr, final_lr=lr, warmup=0.0, weight_decay=(decay, decay), momentum=(momentum, momentum)
    )
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(module, DataLoader(trace(method)["clips"], batch_size=2))
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(config["loss"], rel=1e-6)
    assert_golden_step(module, trace(method))


# --- Step ------------------------------------------------------------------------------------------------------------


def test_defaults_are_the_published_ones() -> None:
    with torch.device("meta"):
        first, second = VJEPA(), VJEPA2()
    for module, grid, heads in ((first, (8, 14, 14), 16), (second, (8, 16, 16), 12)):
        encoder = module.context_encoder
        assert (encoder.grid, encoder.embed_dim, len(encoder.blocks), encoder.num_heads) == (grid, 1024, 24, 16)
        predictor = module.predictor
        assert (predictor.grid, len(predictor.predictor_blocks), 384 // predictor.head_dim) == (grid, 12, heads)
        assert len(predictor.mask_tokens) == 2
        tokens = grid[0] * grid[1] * grid[2]
        short, long = module.masking(2, grid)
        assert (short.context.shape[1], short.targets.shape[2]) == (round(0.24 * tokens), round(0.475 * tokens))
        assert (long.context.shape[1], long.targets.shape[2]) == (round(0.07 * tokens), round(0.7 * tokens))
        assert [masking.num_blocks for masking in module.masking] == [8, 2]
    assert VJEPA2(**TINY_VIDEO | {"official": True}).positions == "tiled_rope"


ODD = {"image_size": [12, 40], "patch_size": [3, 5], "num_frames": 9, "tubelet_size": 3}


@pytest.mark.parametrize(
    ("method", "options", "shape", "grid"),
    [
        (VJEPA, {"image_size": [16, 24], "in_channels": 1}, (1, 4, 16, 24), (2, 4, 6)),
        (VJEPA, ODD, (3, 9, 12, 40), (3, 4, 8)),
        (VJEPA2, ODD, (3, 9, 12, 40), (3, 4, 8)),
        (VJEPA, {}, (3, 10, 8, 24), (5, 2, 6)),
        (VJEPA2, {}, (3, 24, 8), (1, 6, 2)),
    ],
)
def test_sizes(
    method: type[VJEPA], options: dict[str, Any], shape: tuple[int, ...], grid: tuple[int, int, int]
) -> None:
    """Those the module was built for, and others."""
    module = tiny(method, **options)
    observation = torch.randn(3, *shape, generator=seeded(0))
    assert module.grid_of(observation) == grid
    several = module.latents(observation)
    tokens = grid[0] * grid[1] * grid[2]
    assert tuple(several.predictions) == KINDS
    assert several.features.values.shape == (3, tokens, 24)
    for (name, latents), masking in zip(several.predictions.items(), module.masking, strict=True):
        context, target = masking.token_counts(grid)
        assert several.embeddings[f"context/{name}"].values.shape == (3, context, 24)
        assert latents.prediction.shape == latents.target.shape == (3, 1, target, 24)
    module.loss(several)["loss"].backward()


@pytest.mark.parametrize(("distance", "reference"), [("l2", F.mse_loss), (None, F.l1_loss)])
def test_energy_and_loss(distance: Any, reference: Callable[..., Tensor]) -> None:
    """The mean over kinds of masks of what is the mean over tokens and features."""
    module = tiny(**{"distance": distance} if distance else {})
    latents = module.latents(random_clips(5))
    several = latents.predictions.values()
    parts, terms = [reference(each.prediction, each.target) for each in several], module.loss(latents)
    torch.testing.assert_close(terms["loss"], torch.stack(parts).mean())
    torch.testing.assert_close([terms[f"energy_{kind}"] for kind in KINDS], parts)
    assert parts[0] != parts[1]
    by_clip = [[reference(p, t) for p, t in zip(each.prediction, each.target, strict=True)] for each in several]
    torch.testing.assert_close(module.energy(latents), torch.tensor(by_clip).mean(0))
    short = latents._replace(predictions={"short": latents.predictions["short"]})
    torch.testing.assert_close(module.energy(short), torch.tensor(by_clip[0]))
    for each in several:  # the target is normalised token by token
        torch.testing.assert_close(each.target, F.layer_norm(each.target, (24,)), rtol=1e-3, atol=1e-4)


def test_an_image_is_a_clip_that_stands_still() -> None:
    """The same latents under the same masks, and the same gradients."""
    images, gradients = random_images(3), []
    standing = images.unsqueeze(2).expand(-1, -1, 2, -1, -1)
    for observation in (images, standing):
        module = tiny()
        masks = module.draw(observation, module.rng(3, 0))
        module.loss(module.latents(observation, masks))["loss"].backward()
        gradients.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


@pytest.mark.parametrize(
    ("method", "options", "used"),
    [(VJEPA, {}, {0, 1}), (VJEPA2, {}, {0, 1}), (VJEPA2, {"official": True}, {0}), (VJEPA, {"masks": [{}]}, {0})],
)
def test_mask_tokens_that_no_kind_uses_are_not_trained(
    method: type[VJEPA], options: dict[str, Any], used: set[int]
) -> None:
    module = tiny(method, num_mask_tokens=3, **options)
    module.loss(module.latents(random_clips(4)))["loss"].backward()
    for number, token in enumerate(module.predictor.mask_tokens):
        assert token.requires_grad == (token.grad is not None) == (number in used)


@pytest.mark.parametrize(("method", "official"), [(VJEPA, None), (VJEPA2, False), (VJEPA2, True)])
def test_each_kind_of_mask_has_its_token(method: type[VJEPA], official: bool | None) -> None:
    module = tiny(method, num_mask_tokens=2, **{} if official is None else {"official": official})
    eager(module.predictor)
    clips = random_clips(2)
    masks = module.draw(clips, module.rng(2, 0))
    before = [each.prediction for each in module.latents(clips, masks).predictions.values()]
    changed = []
    for token in module.predictor.mask_tokens:
        kept = token.detach().clone()
        with torch.no_grad():
            token.add_(1.0)
            after = [each.prediction for each in module.latents(clips, masks).predictions.values()]
            token.copy_(kept)
        changed.append([not torch.equal(a, b) for a, b in zip(before, after, strict=True)])
    assert changed == ([[True, True], [False, False]] if official else [[True, False], [False, True]])


def test_masks_of_a_users_own() -> None:
    """One kind of masks without a list, and several sets of targets a clip."""
    module, clips = tiny(), random_clips(2)
    eager(module.predictor)
    order = torch.stack([torch.randperm(32, generator=seeded(i)) for i in range(2)])
    masks = Masks(order[:, :8], order[:, 8:].view(2, 3, 8))
    latents = module.latents(clips, masks)
    assert set(latents.predictions) == {""}
    assert latents.embeddings["context"].values.shape == (2, 8, 24)
    assert latents.prediction.shape == latents.target.shape == (2, 3, 8, 24)
    for block in range(3):
        alone = module.latents(clips, [Masks(masks.context, masks.targets[:, block : block + 1])])
        torch.testing.assert_close(latents.prediction[:, block], alone.prediction[:, 0], rtol=1e-4, atol=1e-4)
        assert torch.equal(latents.target[:, block], alone.target[:, 0])


@pytest.mark.parametrize(
    ("method", "options", "error", "message"),
    [
        (VJEPA, {"distance": "l3"}, ValueError, "smooth_l1, l1, l2.*'l3'"),
        (VJEPA, {"num_frame": 4}, TypeError, "num_frame.* num_frames"),
        (VJEPA2, {"coldown": 0.5}, TypeError, "VJEPA2 .*coldown.* cooldown"),
        (VJEPA2, {"tublet_size": 2}, TypeError, "tubelet_size"),
        (VJEPA, {"cooldown": 0.5}, TypeError, "VJEPA .*cooldown"),
        (VJEPA, {"num_frames": 5}, ValueError, r"\(5, 16, 16\).*\(2, 4, 4\)"),
        (VJEPA, {"predictor_num_heads": 3}, ValueError, "predictor .*16 .*3 heads"),
        (VJEPA, {"masks": [{"num_blocks": 0}]}, ValueError, "num_blocks"),
        (VJEPA, {"masks": [{"blocks": 2}]}, TypeError, "TubeMasking .*blocks.* num_blocks"),
        (VJEPA, {"masks": []}, ValueError, "masks.*empty"),
        (VJEPA, {"masks": [{}, {"spatial_scale": [0.5, 0.2]}]}, ValueError, "spatial_scale"),
        (VJEPA, {"patch_size": 16, "num_frames": 2}, ValueError, r"\(1, 1, 1\)"),
        (VJEPA2, {"warmup": 0.5, "cooldown": 0.6}, ValueError, r"0\.5 and 0\.6"),
        (VJEPA2, {"warmup": 0.2, "cooldown": -0.1}, ValueError, r"0\.2 and -0\.1"),
        (VJEPA, {"num_mask_tokens": 1}, ValueError, "2 kinds.*num_mask_tokens=1"),
    ],
)  # fmt: skip
def test_rejected_options(method: type[VJEPA], options: dict[str, Any], error: Any, message: str) -> None:
    """When the module is built, not in the first batch."""
    with pytest.raises(error, match=message):
        tiny(method, **options)


@pytest.mark.parametrize("shape", [(2, 1, 4, 16, 16), (2, 3, 3, 16, 16), (2, 3, 4, 16, 18), (3, 16, 16)])
def test_clips_that_do_not_fit(shape: tuple[int, ...]) -> None:
    module = tiny()
    with pytest.raises(ValueError, match=r"\[B, 3, T, H, W\].*\[B, 3, H, W\]"):
        module.latents(torch.zeros(shape))


# --- Trainings -------------------------------------------------------------------------------------------------------


class Steps(pl.Callback):
    """Keeps what the steps return."""

    def __init__(self) -> None:
        self.train: list[Any] = []
        self.val: list[Any] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.train.append(outputs)

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.val.append(outputs)


MIXED = [(4, 16, 16), (2, 16, 16), (8, 8, 24), (24, 16), (4, 24, 16), (16, 16)]  # the two of two numbers are images


def batches_of(shapes: Any, number: int = 4, channels: int = 3) -> list[Tensor]:
    return [torch.randn(number, channels, *shape, generator=seeded(i)) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("method", METHODS)
def test_clips_of_many_sizes_and_images_in_one_training(method: str, tmp_path: Path) -> None:
    """A batch has masks of its own grid; every batch is learned, and validation takes all too."""
    module = tiny(METHODS[method], lr=1e-2, start_lr=1e-2, momentum=(0.99, 0.99))
    batches, steps = batches_of(MIXED), Steps()
    trainer = quiet_trainer(tmp_path, max_epochs=14, callbacks=[steps], check_val_every_n_epoch=14)
    module.eval()
    masks = [module.draw(batch, module.rng(4, index)) for index, batch in enumerate(batches)]
    latents = [module.latents(batch, drawn) for batch, drawn in zip(batches, masks, strict=True)]
    first = np.array([module.loss(several)["loss"].item() for several in latents])
    trainer.fit(module, DataLoader(batches, batch_size=None), DataLoader(batches, batch_size=None))
    grids = [(2, 4, 4), (1, 4, 4), (4, 2, 6), (1, 6, 4), (2, 6, 4), (1, 4, 4)]
    for outputs, (frames, rows, columns) in zip(steps.train, grids * 14, strict=True):
        tokens = frames * rows * columns
        assert outputs["latents"].features.values.shape == (4, tokens, 24)
        for kind, masking in zip(outputs["drawn"], module.masking, strict=True):
            counts = (kind.context.shape[1], kind.targets.shape[2])
            assert counts == masking.token_counts((frames, rows, columns))
            assert max(int(kind.context.max()), int(kind.targets.max())) < tokens
    last = np.array([outputs["loss"].item() for outputs in steps.val])
    assert (last < 0.98 * first).all(), (first, last)


def test_train_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On images, with kinds of masks of one's own; the checkpoint rebuilds the module."""
    monkeypatch.chdir(tmp_path)
    arguments = ["fit", "--model=VJEPA2", *(f"--model.{name}={value}" for name, value in TINY_VIDEO.items())]
    arguments += ["--model.masks=[{num_blocks: 3, spatial_scale: [0.2, 0.3]}, {context_ratio: 0.1}]"]
    arguments += ["--model.cooldown=1.0", "--data=ShapesDataModule", "--data.image_size=16", "--data.num_train=8"]
    arguments += ["--data.num_val=8", "--data.batch_size=4", "--data.num_workers=0", "--trainer.max_epochs=1"]
    arguments += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    main([*arguments, "--trainer.enable_model_summary=false"])
    (path,) = tmp_path.rglob("*.ckpt")
    loaded = VJEPA2.load_from_checkpoint(path)
    assert [(m.num_blocks, tuple(m.spatial_scale)) for m in loaded.masking] == [(3, (0.2, 0.3)), (8, (0.15, 0.15))]
    assert (loaded.hparams.cooldown, loaded.context_encoder.grid) == (1.0, (2, 4, 4))


# --- Schedules -------------------------------------------------------------------------------------------------------


class Recorder(pl.Callback):
    """Keeps each step's learning rate and weight decay, the student after it, and the teacher's momentum."""

    def __init__(self) -> None:
        self.lr: list[float] = []
        self.decay: list[tuple[float, ...]] = []
        self.momentum: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        nn.init.ones_(pl_module.context_encoder.norm.weight)
        nn.init.zeros_(pl_module.target_encoder.norm.weight)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        assert len({group["lr"] for group in optimizer.param_groups}) == 1
        self.lr.append(optimizer.param_groups[0]["lr"])
        self.decay.append(tuple(group["weight_decay"] for group in optimizer.param_groups))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        student, teacher = pl_module.context_encoder.norm.weight, pl_module.target_encoder.norm.weight
        ratio = (teacher / student).detach().double()
        assert float(ratio.std()) < 1e-12
        self.momentum.append(1.0 - float(ratio.mean()))


def recorded(module: VJEPA, steps: int, folder: Path) -> Recorder:
    """A run of so many steps in double precision, and what was set at each."""
    recorder = Recorder()
    # The module's own callback of the teacher comes after those of the Trainer, so it is given, and first.
    ema = EMATargetEncoder()
    trainer = quiet_trainer(folder, max_steps=steps, precision="64-true", callbacks=[ema, recorder])
    trainer.fit(module, DataLoader(random_clips(1, size=8).double().expand(40, -1, -1, -1, -1), 1))
    assert len(recorder.lr) == len(recorder.momentum) == steps
    return recorder


@pytest.mark.parametrize(("warmup", "cooldown"), [(0.25, 0.4), (0.0, 1.0), (0.05, 0.0)])
def test_learning_rate_of_vjepa2(warmup: float, cooldown: float, tmp_path: Path) -> None:
    """Up, level, down, by the paper's description; decay and momentum stay."""
    module = tiny(VJEPA2, warmup=warmup, cooldown=cooldown, lr=0.5, start_lr=0.1, final_lr=0.02)
    recorder = recorded(module, 20, tmp_path)
    expected = np.interp(range(1, 21), [0, 20 * warmup, 20 * (1 - cooldown), 20], [0.1, 0.5, 0.5, 0.02])
    if warmup == 0.0:
        expected = np.interp(range(1, 21), [0, 20 * (1 - cooldown), 20], [0.5, 0.5, 0.02])
    if cooldown == 0.0:
        expected[-1] = 0.5
    assert recorder.lr == pytest.approx(expected.tolist(), rel=1e-12)
    assert recorder.decay == [(0.04, 0.0)] * 20
    assert recorder.momentum == pytest.approx([0.99925] * 20, abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_stretched_schedules_are_those_of_a_longer_training_cut_off(method: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"lr": 0.5, "start_lr": 0.1, "final_lr": 0.02, "weight_decay": (0.04, 0.4)}
    options |= {"momentum": (0.9, 1.0)}
    short, long = {"warmup": 4 / 16, "stretch": 1.25}, {"warmup": 4 / 20}
    if method == "vjepa2":
        short["cooldown"], long["cooldown"] = 8 / 16, 8 / 20
    stretched = recorded(tiny(METHODS[method], **options | short), 16, tmp_path)
    whole = recorded(tiny(METHODS[method], **options | long), 20, tmp_path)
    assert stretched.lr == pytest.approx(whole.lr[:16], rel=1e-12)
    assert stretched.momentum == pytest.approx(whole.momentum[:16], abs=1e-12)
    for mine, theirs in zip(stretched.decay, whole.decay[:16], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-12)
    assert whole.lr[-1] == pytest.approx(0.02)
    assert stretched.lr[-1] > 0.05
    # The official V-JEPA by its formulas: 0.04 to 0.4 along half a cosine, 0.9 to 1 along a line, over 1.25 x 16 steps.
    decays = [0.4 + (0.04 - 0.4) * 0.5 * (1 + np.cos(np.pi * step / 20)) for step in range(1, 17)]
    assert [decay for decay, _ in stretched.decay] == pytest.approx(decays)
    assert stretched.momentum == pytest.approx([0.9 + 0.1 * step / 20 for step in range(16)])


def test_the_callback_a_module_brings_is_stretched() -> None:
    module = tiny(stretch=1.25, momentum=(0.998, 1.0))
    quiet_trainer(max_steps=1).fit(module, loader(random_clips(4)))
    (ema,) = (callback for callback in module.trainer.callbacks if isinstance(callback, EMATargetEncoder))
    assert (ema.momentum, ema.stretch) == (None, 1.0)  # what the module says
    (teacher,) = module.teachers()
    assert [teacher.momentum(step, 16) for step in (0, 10, 16)] == pytest.approx([0.998, 0.999, 0.9996], abs=1e-12)


class ClipWatch(VJEPA):
    """Keeps the gradients before and after they are clipped."""

    def on_train_start(self) -> None:
        self.gradients: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def configure_gradient_clipping(self, *arguments: Any, **options: Any) -> None:
        before = self.current()
        super().configure_gradient_clipping(*arguments, **options)
        self.gradients.append((before, self.current()))

    def current(self) -> dict[str, Tensor]:
        return {
            name: torch.cat([p.grad.flatten() for p in getattr(self, name).parameters() if p.grad is not None])
            for name in ("context_encoder", "predictor")
        }


@pytest.mark.parametrize(("clip", "warmup"), [(1e-3, 0.5), (1e3, 0.0), (None, 0.0)])
def test_gradients_are_clipped_after_the_warm_up(clip: float | None, warmup: float, tmp_path: Path) -> None:
    """Each network by its own norm, to that norm if it is larger."""
    module = tiny(ClipWatch, warmup=warmup)
    eager(module)
    trainer = quiet_trainer(tmp_path, max_steps=6, gradient_clip_val=clip)
    trainer.fit(module, DataLoader(random_clips(24), 4))
    assert len(module.gradients) == 6
    for step, (before, after) in enumerate(module.gradients):
        for network in ("context_encoder", "predictor"):
            norm = float(before[network].norm())
            share = 1.0 if clip is None or step < 6 * warmup else min(1.0, clip / norm)
            torch.testing.assert_close(after[network], share * before[network], rtol=1e-3, atol=1e-9)
        if clip == 1e-3:
            assert min(float(before[network].norm()) for network in before) > 2e-3


def test_gradients_are_not_clipped_by_value(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, max_steps=1, gradient_clip_val=0.1, gradient_clip_algorithm="value")
    with pytest.raises(ValueError, match="gradient_clip_algorithm"):
        trainer.fit(tiny(), loader(random_clips(4)))


# --- Regularisers ----------------------------------------------------------------------------------------------------


def test_vicreg_and_sigreg_of_both_kinds_of_masks() -> None:
    """Each term is the mean of what it is of either kind's context tokens, by hand."""
    module = tiny(regularizers={"vicreg": {"weight": 0.3}, "sigreg": {"weight": 0.1, "num_slices": 64}})
    several = module.latents(random_clips(6))
    module.eval()  # every call takes the same directions
    terms = module.loss(several)
    expected = {"vicreg_sim": 0.0, "vicreg_std": 0.0, "vicreg_cov": 0.0, "sigreg": 0.0}
    for kind in KINDS:
        tokens = several.embeddings[f"context/{kind}"].values.flatten(0, 1)
        deviation = (tokens.var(0) + 1e-4).sqrt()
        expected["vicreg_std"] += F.relu(1 - deviation).mean() / 2
        covariance = torch.cov(tokens.T)
        expected["vicreg_cov"] += 2 * (covariance.square().sum() - covariance.diag().square().sum()) / 24 / 2
        expected["sigreg"] += SIGReg(64)(tokens) / 2
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], torch.as_tensor(value), rtol=1e-4, atol=1e-6)
    energy = torch.stack([F.l1_loss(each.prediction, each.target) for each in several.predictions.values()]).mean()
    penalty = 0.3 * (25 * expected["vicreg_std"] + expected["vicreg_cov"]) + 0.1 * expected["sigreg"]
    torch.testing.assert_close(terms["energy"], energy)
    torch.testing.assert_close(terms["loss"], energy + penalty, rtol=1e-4, atol=1e-5)
    assert penalty > 0.1


def test_regularised_trainings(tmp_path: Path) -> None:
    """Of clips and images by turns; every source of embeddings is there."""
    regularizers: dict[str, Any] = {
        "vicreg": {"weight": 0.1, "source": "context_and_target", "projector": [8]},
        "sigreg": {"weight": 0.1, "source": "context", "num_slices": 16},
    }
    module, steps = tiny(regularizers=regularizers, lr=1e-2, start_lr=1e-2), Steps()
    trainer = quiet_trainer(tmp_path, max_epochs=5, callbacks=[steps])
    trainer.fit(module, DataLoader(batches_of(MIXED, 8), batch_size=None))
    penalties = [(outputs["loss"] - outputs["energy"]).item() for outputs in steps.train]
    assert np.mean(penalties[-6:]) < 0.97 * np.mean(penalties[:6])
    names = {"loss", "energy", "vicreg_sim", "vicreg_std", "vicreg_cov", "sigreg", "momentum"}
    assert {f"train/{name}" for name in names} <= set(trainer.callback_metrics)


# --- Probe -----------------------------------------------------------------------------------------------------------


class Pixels(nn.Module):
    """A token is a pixel, as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.grid = 8, 2, (2, 2, 3)
        self.scale = nn.Parameter(torch.ones(1))

    def grid_of(self, x: Tensor) -> Any:
        return x.shape[2:]

    def forward(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        tokens = x.flatten(2).mT * self.scale
        return tokens if indices is None else tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, 8))


class PixelVJEPA(VJEPA):
    def build_encoder(self) -> nn.Module:
        return Pixels()


PIXELS: dict[str, Any] = {"image_size": [2, 3], "num_frames": 2, "in_channels": 8, "warmup": 0.0}
PIXELS |= {name: value for name, value in TINY_VIDEO.items() if name.startswith("predictor")}


class Together(Dataset[tuple[Tensor, Tensor]]):
    """Clips in which a feature and another are shown once each: by one pixel (class 1), or by two (class 0)."""

    def __init__(self, number: int, seed: int = 0) -> None:
        self.number, self.seed = number, seed

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = seeded(1000 * self.seed + index)
        clip, label = torch.zeros(8, 12), index % 2
        first, second = torch.randperm(12, generator=generator)[:2].tolist()
        clip[2:] = torch.randn(6, 12, generator=generator)
        clip[0, first] = 3.0
        clip[1, first if label else second] = 3.0
        return clip.view(8, 2, 2, 3), torch.tensor(label)


def test_the_probe_reads_what_the_mean_has_lost(tmp_path: Path) -> None:
    """The mean of the tokens is the same for both classes."""
    torch.manual_seed(0)
    module = PixelVJEPA(**PIXELS)
    probes = [AttentiveProbe(2, lr=1e-2), AttentiveProbe(2, "deep", depth=2, num_heads=4, lr=1e-2), LinearProbe(2)]
    trainer = quiet_trainer(tmp_path, max_epochs=7, callbacks=probes)
    trainer.fit(module, loader(Together(192), 32), loader(Together(100, seed=1), 50))
    found = {
        name: float(trainer.callback_metrics[f"probe/{name}/accuracy"]) for name in ("attentive", "deep", "linear")
    }
    assert found["attentive"] > 0.95
    assert found["deep"] > 0.95
    assert found["linear"] < 0.7


@pytest.mark.parametrize(
    ("width", "heads", "depth", "millions"),
    [(1024, 16, 4, 49.5), (1408, 22, 1, 22.1)],
)
def test_published_sizes_of_the_probe(width: int, heads: int, depth: int, millions: float) -> None:
    """With 174 classes; and by hand: what a block has, of which the one with the query has no output projection."""
    module = nn.Module()
    module.context_encoder = nn.Module()
    module.context_encoder.num_heads = heads
    with torch.device("meta"):
        head = AttentiveProbe(174, depth=depth).build_head(module, width)
    count = sum(parameter.numel() for parameter in head.parameters())
    block = 12 * width * width + 13 * width
    assert count == depth * block - (width * width + width) + width + 174 * (width + 1)
    assert round(count / 1e6, 1) == millions
    assert head[0].cross_attention.num_heads == heads


class Headless(PixelVJEPA):
    def build_encoder(self) -> nn.Module:
        encoder = Pixels()
        del encoder.num_heads
        return encoder


@pytest.mark.parametrize(
    ("probe", "module", "label", "message"),
    [
        (AttentiveProbe(2), PixelVJEPA, torch.zeros(8, 4, 4).long(), r"\[B\].*\[8, 4, 4\]"),
        (AttentiveProbe(2), PixelVJEPA, torch.zeros(8), r"\[B\].*torch.float32 \[8\]"),
        (AttentiveProbe(2), PixelVJEPA, torch.arange(8) % 3, "'attentive'.* 2 classes"),
        (AttentiveProbe(2), Headless, torch.zeros(8).long(), "'attentive'.*num_heads"),
        (AttentiveProbe(2, num_heads=3), PixelVJEPA, torch.zeros(8).long(), "8 .*3 heads"),
        (AttentiveProbe(2, depth=0), PixelVJEPA, torch.zeros(8).long(), "depth"),
    ],
)
def test_what_the_probe_refuses(probe: Any, module: type[VJEPA], label: Tensor, message: str, tmp_path: Path) -> None:
    clips = random_clips(8, 2, (2, 3), 8)
    with pytest.raises(ValueError, match=message):
        quiet_trainer(tmp_path, max_steps=1, callbacks=[probe]).fit(
            module(**PIXELS), loader(TensorDataset(clips, label))
        )


# --- Monitor and pictures --------------------------------------------------------------------------------------------


def test_collapse_monitor(tmp_path: Path) -> None:
    """The contexts and predictions of both kinds of masks count, and the loss of the best constant of each."""
    module, steps = tiny(lr=1e-2), Steps()
    trainer = quiet_trainer(tmp_path, max_steps=2, callbacks=[steps, CollapseMonitor(2)])
    trainer.fit(module, loader(random_clips(20), 10))
    logged = trainer.callback_metrics
    seen = [outputs["latents"] for outputs in steps.train]
    branches = {
        **{f"context/{kind}": [latents.embeddings[f"context/{kind}"].values for latents in seen] for kind in KINDS},
        "target": [latents.features.values for latents in seen],
        **{f"prediction/{kind}": [latents.predictions[kind].prediction[:, 0] for latents in seen] for kind in KINDS},
    }
    for branch, tokens in branches.items():
        spread = FeatureStd(24)
        spread.update(torch.cat(tokens).mean(1))
        assert float(logged[f"collapse/{branch}/std"]) == pytest.approx(float(spread.compute()), rel=1e-4)
        of_tokens = float(feature_std(moments(tokens[-1][:8])).mean())
        assert float(logged[f"collapse/{branch}/token_std"]) == pytest.approx(of_tokens, rel=1e-4)
    errors = []
    for each in seen[-1].predictions.values():
        target = each.target.double().numpy().reshape(-1, 24)
        errors.append(np.abs(target - target.mean(0)).mean())
    assert float(logged["train/constant_loss"]) == pytest.approx(np.mean(errors), rel=1e-5)


def panels(picture: Tensor, rows: int, columns: int, size: tuple[int, int]) -> list[list[Tensor]]:
    """The pictures of a grid with two pixels of padding, by row and column."""
    assert picture.shape == (3, rows * (size[0] + 2) + 2, columns * (size[1] + 2) + 2)
    tops, lefts = (
        [2 + i * (side + 2) for i in range(count)] for side, count in zip(size, (rows, columns), strict=True)
    )
    return [[picture[:, top : top + size[0], left : left + size[1]] for left in lefts] for top in tops]


def test_drawn_clips() -> None:
    """Clip by clip: the frames, each kind of mask, the tokens; grey where nothing is, orange what is predicted."""
    grid, size = (3, 2, 2), (96, 48)
    clips = torch.rand(2, 3, 6, *size, generator=seeded(0))
    clips[..., 0, 0], clips[..., 0, 1] = 0.0, 1.0  # of unit range already
    kinds = [
        Masks(torch.tensor([[0, 5], [11, 3]]), torch.tensor([[[1, 2, 10]], [[0, 6, 7]]])),
        Masks(torch.tensor([[4], [8]]), torch.tensor([[[0], [11]], [[1], [2]]])),  # two sets a clip
    ]
    features = torch.randn(2, 12, 8, generator=seeded(1))
    picture = draw_clips(clips, kinds, features, grid)
    assert 0 <= picture.min() <= picture.max() <= 1
    table = panels(picture, 2 * 4, 3, size)
    colours = torch.zeros(2, 12, 3)
    for clip in range(2):
        for frame in range(3):
            column = [table[clip * 4 + strip][frame] for strip in range(4)]
            shown = clips[clip, :, 2 * frame]  # the first of the tubelet
            torch.testing.assert_close(column[0], shown)
            for cell in range(4):
                token = frame * 4 + cell
                rows, columns = (
                    slice(part * side // 2, (part + 1) * side // 2)
                    for part, side in zip(divmod(cell, 2), size, strict=True)
                )
                for strip, masks in enumerate(kinds, start=1):
                    expected = torch.full((3, 48, 24), 0.5)
                    if token in masks.context[clip]:
                        expected = shown[:, rows, columns]
                    if token in masks.targets[clip]:
                        expected = 0.35 * shown[:, rows, columns] + 0.65 * BLOCK_COLOURS[0].view(3, 1, 1)
                    torch.testing.assert_close(column[strip][:, rows, columns], expected)
                patch = column[3][:, rows, columns]
                assert (patch == patch[:, :1, :1]).all()
                colours[clip, token] = patch[:, 0, 0]
    # Principal components: far apart in the features, far apart in colour, in one clip and between the two.
    distances, seen = (torch.cdist(x.flatten(0, 1), x.flatten(0, 1)).flatten() for x in (features, colours))
    assert torch.corrcoef(torch.stack([distances, seen]))[0, 1] > 0.5


def test_clips_are_as_bright_as_they_are() -> None:
    """A clip is scaled as a whole, not frame by frame; and small frames are enlarged."""
    clips = torch.zeros(1, 1, 2, 24, 24)
    clips[:, :, 1] = 3.0
    clips[:, :, 1, 0, 0] = 6.0
    masks = Masks(torch.tensor([[0]]), torch.tensor([[[1]]]))
    (frames, *_) = panels(draw_clips(clips, [masks], torch.randn(1, 2, 4), (2, 1, 1)), 3, 2, (96, 96))
    assert (frames[0] == 0.0).all()
    assert (frames[1][:, :4, :4] == 1.0).all()
    assert (frames[1][:, 4:] == 0.5).all()


@pytest.mark.parametrize("shape", [(4, 16, 16), (16, 24)])
def test_pictures_in_tensorboard(shape: tuple[int, ...], tmp_path: Path) -> None:
    """Of clips, and of images, which are clips of one frame of tokens; what is read back is what was drawn."""
    module, steps, logger = tiny(VJEPA2), Steps(), TensorBoardLogger(tmp_path)
    (observation,) = batches_of([shape], 8)
    trainer = quiet_trainer(tmp_path, max_epochs=2, logger=logger, callbacks=[steps, LatentPictures(3)])
    trainer.fit(module, loader(observation), loader(observation))
    pictures = logged_images(logger, "pictures/latents")
    assert list(pictures) == [1, 2]
    clips = observation if observation.ndim == 5 else observation.unsqueeze(2)
    for read, outputs in zip(pictures.values(), steps.val, strict=True):
        features = outputs["latents"].features.values[:3]
        drawn = draw_clips(clips[:3], outputs["drawn"], features, module.grid_of(observation))
        assert (read[:, TITLE_HEIGHT:] - drawn).abs().max() < 1.5 / 255

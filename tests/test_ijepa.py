"""I-JEPA and the base of masked methods: step, teacher, schedules, and encoders of a user's own."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from helpers import TINY, copies, difference, eager, loader, quiet_trainer, random_images
from torch import Tensor, nn

from jepa_lightning import IJEPA
from jepa_lightning.masking import Masks
from jepa_lightning.networks import TimmEncoder, VisionTransformer, gather_tokens, hide_patches
from jepa_lightning.step import Latents


def tiny(**options: Any) -> IJEPA:
    torch.manual_seed(0)
    return IJEPA(**TINY | options)


def context_of(latents: Latents) -> Tensor:
    return latents.embeddings["context"].values


# --- Networks and step -----------------------------------------------------------------------------------------------


def test_defaults_are_vit_b_16() -> None:
    with torch.device("meta"):
        module = IJEPA()
    encoder = module.context_encoder
    assert (encoder.grid, encoder.embed_dim, len(encoder.blocks)) == ((14, 14), 768, 12)
    masks = module.masking(2, encoder.grid)
    assert (masks.context.shape, masks.targets.shape) == ((2, 49), (2, 4, 29))


@pytest.mark.parametrize(("given", "std"), [({}, 48**-0.5), ({"patch_std": 0.02}, 0.02)])
def test_spread_of_the_patch_embedding(given: dict[str, float], std: float) -> None:
    """That of 2,304 weights, of a truncated normal distribution cut at two."""
    module = tiny(**given, embed_dim=48, patch_size=4, predictor_embed_dim=16, num_heads=2)
    for encoder in (module.context_encoder, module.target_encoder):
        weight = encoder.patch_embed.proj.weight.detach()
        assert float(weight.std()) == pytest.approx(std, rel=0.05)
    assert module.hparams.patch_std == given.get("patch_std")
    with pytest.raises(ValueError, match="must be positive, got 0"):
        tiny(patch_std=0.0)
    another = {"class_path": "jepa_lightning.networks.TimmEncoder", "init_args": {"name": "vit_tiny_patch16_224"}}
    with pytest.raises(ValueError, match=r"patch_std=0\.02 is an option of the default encoder"):
        IJEPA(224, encoder=another, patch_std=0.02, predictor_embed_dim=96, predictor_num_heads=3)


@pytest.mark.parametrize(
    ("image_size", "patch_size", "channels"), [(16, 4, 1), ([16, 24], 4, 2), ([24, 40], [6, 4], 5), (30, [3, 5], 3)]
)
def test_sizes(image_size: Any, patch_size: Any, channels: int) -> None:
    module = tiny(image_size=image_size, patch_size=patch_size, in_channels=channels)
    rows, columns = [image_size] * 2 if isinstance(image_size, int) else image_size
    patch = [patch_size] * 2 if isinstance(patch_size, int) else patch_size
    grid = (rows // patch[0], columns // patch[1])
    images = random_images(3, (rows, columns), channels)
    assert module.context_encoder.grid == module.grid == module.context_encoder.grid_of(images) == grid
    latents = module.latents(images)
    masks = module.draw(images, module.rng(3, 0))
    assert latents.embeddings["context"].values.shape == (3, masks.context.shape[1], 16)
    assert latents.prediction.shape == latents.target.shape == (3, *masks.targets.shape[1:], 16)
    assert latents.features.values.shape == (3, grid[0] * grid[1], 16)
    torch.testing.assert_close(latents.embeddings["target"], latents.features, rtol=0, atol=0)
    module.loss(latents)["loss"].backward()


def test_encoder_without_blocks_in_closed_form() -> None:
    """Patches in raster order times the weights of the convolution, plus the position, normalised."""
    encoder = VisionTransformer((12, 20), (3, 5), in_channels=2, embed_dim=8, depth=1, num_heads=1)
    encoder.blocks = encoder.blocks[:0]
    images = random_images(2, (12, 20), 2)
    patches = F.unfold(images, (3, 5), stride=(3, 5)).mT
    tokens = patches @ encoder.patch_embed.proj.weight.flatten(1).T + encoder.pos_embed
    expected = F.layer_norm(tokens, (8,), eps=1e-6)
    torch.testing.assert_close(encoder(images), expected)
    indices = torch.tensor([[3, 0, 15], [7, 8, 1]])
    picked = torch.stack([expected[image, indices[image]] for image in range(2)])
    torch.testing.assert_close(encoder(images, indices), picked)


def test_positions_by_hand() -> None:
    """Column first, then row; each as sines, then cosines, of the place at frequencies from 1 down to 1/10000."""
    encoder = VisionTransformer((4, 6), (2, 2), embed_dim=16, depth=1, num_heads=1)
    encoder.blocks = encoder.blocks[:0]
    row, column = 1, 2
    angles = [[place / 10000 ** (k / 4) for k in range(4)] for place in (column, row)]
    expected = [f(angle) for half in angles for f in (math.sin, math.cos) for angle in half]
    assert encoder.pos_embed[0, row * 3 + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_tokens_come_in_the_order_of_their_indices() -> None:
    encoder = eager(tiny().context_encoder)
    images = random_images(2)
    order = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(i)) for i in range(2)])
    torch.testing.assert_close(encoder(images, order), gather_tokens(encoder(images), order), rtol=1e-4, atol=1e-4)
    some = order[:, :5]
    assert not torch.allclose(encoder(images, some), gather_tokens(encoder(images), some), atol=1e-2)


def test_other_resolutions() -> None:
    """The encoder takes them, as one that was built for them; the module, whose masks have a grid, does not."""
    module = tiny()
    larger = VisionTransformer((24, 32), (4, 4), embed_dim=16, depth=2, num_heads=2)
    larger.load_state_dict(module.context_encoder.state_dict() | {"pos_embed": larger.pos_embed})
    images = random_images(2, (24, 32))
    assert torch.equal(module.context_encoder(images), larger(images))
    with pytest.raises(ValueError, match=r"\[2, 3, 24, 32\].*\(6, 8\).*\(4, 4\).*image_size"):
        module.latents(images)
    for shape in ((2, 1, 16, 16), (2, 3, 18, 16), (3, 16, 16)):
        with pytest.raises(ValueError, match=r"\[B, 3, H, W\].*multiple of 4"):
            module.latents(torch.zeros(shape))


def test_blocks_are_predicted_apart() -> None:
    """A block's prediction depends on the context and its own places, not on the other blocks."""
    module = tiny()
    eager(module.predictor)
    images = random_images(3)
    masks = module.draw(images, module.rng(3, 0))
    together = module.latents(images, masks).prediction
    for block in range(4):
        alone = module.latents(images, Masks(masks.context, masks.targets[:, block : block + 1])).prediction
        torch.testing.assert_close(together[:, block : block + 1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("distance", "reference"), [("smooth_l1", F.smooth_l1_loss), ("l1", F.l1_loss), ("l2", F.mse_loss)]
)
def test_energy_and_loss(distance: Any, reference: Any) -> None:
    module = tiny(distance=distance)
    latents = module.latents(random_images(5))
    torch.testing.assert_close(module.loss(latents)["loss"], reference(latents.prediction, latents.target))
    energy = torch.stack([reference(p, t) for p, t in zip(latents.prediction, latents.target, strict=True)])
    torch.testing.assert_close(module.energy(latents), energy)
    # The target is normalised token by token.
    torch.testing.assert_close(latents.target.mean(-1), torch.zeros(latents.target.shape[:-1]), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        latents.target.var(-1, correction=0), torch.ones(latents.target.shape[:-1]), rtol=1e-3, atol=0
    )


# --- Options ---------------------------------------------------------------------------------------------------------


class TwoHeaded(IJEPA):
    """A subclass with an argument of its own, which its encoder needs."""

    def __init__(self, repeat: int = 1, **options: Any) -> None:
        super().__init__(**options)

    def build_encoder(self) -> nn.Module:
        encoder = super().build_encoder()
        encoder.blocks = nn.Sequential(*(block for block in encoder.blocks for _ in range(self.hparams.repeat)))
        return encoder


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (IJEPA, {"imagesize": 16}, "IJEPA .*imagesize.* image_size"),
        (IJEPA, {"lr": 1e-3, "batch": 3, "zzz": 1}, "batch, zzz"),
        (TwoHeaded, {"repet": 2}, "TwoHeaded .*repet.* repeat"),
        (TwoHeaded, {"patch_sise": 2}, "patch_sise.* patch_size"),
    ],
)
def test_unknown_options(module: Any, options: dict[str, Any], message: str) -> None:
    """They are named, with the nearest that there is."""
    with pytest.raises(TypeError, match=message):
        module(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup": -0.1}, r"warmup.*-0\.1"),
        ({"momentum": (0.9, 1.1)}, r"momentum.*1\.1"),
        ({"stretch": 0.8}, r"stretch=0\.8"),
        ({"patch_size": 5}, r"\(16, 16\).*\(5, 5\)"),
        ({"num_heads": 3}, "16 .*3 heads"),
        ({"predictor_num_heads": 3}, "predictor .*8 .*3 heads"),
        ({"embed_dim": 18}, "multiple of 4.* 18"),
    ],
)
def test_rejected_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IJEPA(**TINY | options)


def test_a_checkpoint_has_the_options_of_a_subclass(tmp_path: Path) -> None:
    """Those of the base, too; any can be given anew."""
    module = TwoHeaded(**TINY | {"image_size": [16, 24], "repeat": 2})
    trainer = quiet_trainer(tmp_path, max_steps=1)
    trainer.fit(module, loader(random_images(8, (16, 24))))
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    loaded = TwoHeaded.load_from_checkpoint(tmp_path / "it.ckpt", weights_only=True)
    assert dict(loaded.hparams) == dict(module.hparams)
    assert not difference(loaded.state_dict(), module.state_dict())
    assert len(loaded.context_encoder.blocks) == 4
    assert TwoHeaded.load_from_checkpoint(tmp_path / "it.ckpt", lr=0.5, weights_only=True).hparams.lr == 0.5


# --- Training --------------------------------------------------------------------------------------------------------


class ConvNet(nn.Module):
    """A token is what a small convolutional net sees around it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = 16
        self.net = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 16, 3, padding=1))

    def grid_of(self, x: Tensor) -> tuple[int, int]:
        return x.shape[-2] // 4, x.shape[-1] // 4

    def forward(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        if indices is None:
            return self.net(x).flatten(2).mT
        return gather_tokens(self.net(hide_patches(x, indices, self.grid_of(x))).flatten(2).mT, indices)


class Recurrent(nn.Module):
    """A token is the state of a GRU that has read the visible patches up to it, and their places."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = 16
        self.place = nn.Parameter(torch.randn(1, 16, 48))
        self.gru = nn.GRU(48, 16, batch_first=True)

    def grid_of(self, x: Tensor) -> tuple[int, int]:
        return x.shape[-2] // 4, x.shape[-1] // 4

    def forward(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        patches = F.unfold(x, 4, stride=4).mT + self.place
        if indices is not None:
            patches = gather_tokens(patches, indices)
        return self.gru(patches)[0]


class ConvJEPA(IJEPA):
    def build_encoder(self) -> nn.Module:
        return ConvNet()


class RecurrentJEPA(IJEPA):
    def build_encoder(self) -> nn.Module:
        return Recurrent()


class TimmJEPA(IJEPA):
    def __init__(self, name: str = "vit_tiny_patch16_224", **options: Any) -> None:
        super().__init__(**options)

    def build_encoder(self) -> nn.Module:
        return TimmEncoder(self.hparams.name, image_size=(64, 64))


@pytest.mark.parametrize(("module", "size"), [(ConvJEPA, 16), (RecurrentJEPA, 16), (TimmJEPA, 64)])
def test_encoders_of_ones_own(module: type[IJEPA], size: int, tmp_path: Path) -> None:
    """See no hidden pixels, are followed by a teacher with their buffers, and come back from a checkpoint."""
    torch.manual_seed(0)
    sizes = ("patch_size", "embed_dim", "depth", "num_heads")
    options = {name: value for name, value in TINY.items() if name not in sizes} | {"predictor_num_heads": 2}
    jepa = module(**options | {"image_size": size, "momentum": (0.9, 1.0)})
    images = random_images(8, size)
    masks = jepa.draw(images, jepa.rng(8, 0))
    visible = hide_patches(torch.ones(8, 1, size, size), masks.context, (4, 4)).bool()
    jepa.eval()
    contexts = [context_of(jepa.latents(each, masks)) for each in (images, torch.where(visible, images, 9.0))]
    assert torch.equal(*contexts)
    teacher = copies(jepa.target_encoder)
    trainer = quiet_trainer(tmp_path, max_epochs=2)
    trainer.fit(jepa.train(), loader(images))
    moved = {name for name, value in jepa.target_encoder.named_parameters() if not torch.equal(value, teacher[name])}
    trained = {name: value for name, value in jepa.context_encoder.named_parameters() if value.requires_grad}
    assert {name for name, value in trained.items() if value.ndim > 1} <= moved <= trained.keys()
    buffers = [dict(encoder.named_buffers()) for encoder in (jepa.target_encoder, jepa.context_encoder)]
    assert not difference(*buffers)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    loaded = module.load_from_checkpoint(tmp_path / "it.ckpt", weights_only=True)
    assert not difference(loaded.state_dict(), jepa.state_dict())


def test_learns(tmp_path: Path) -> None:
    """Of the images that it is trained on, the loss of the same masks falls."""
    jepa = tiny(lr=3e-3, start_lr=3e-3, momentum=(0.99, 1.0))
    images = random_images(8)
    masks = jepa.draw(images, jepa.rng(8, 0))
    losses = []
    for epochs in (0, 30):
        quiet_trainer(tmp_path, max_epochs=epochs).fit(jepa, loader(images))
        losses.append(float(jepa.loss(jepa.latents(images, masks))["loss"]))
    assert losses[1] < 0.985 * losses[0]


def test_timm_encoder_is_timms() -> None:
    import timm

    encoder = TimmEncoder("vit_tiny_patch16_224", image_size=(32, 48)).eval()
    vit = timm.create_model(
        "vit_tiny_patch16_224", class_token=False, global_pool="avg", fc_norm=False, num_classes=0, img_size=(32, 48)
    )
    vit.load_state_dict(encoder.vit.state_dict())
    images = random_images(2, (32, 48))
    torch.testing.assert_close(encoder(images), vit.eval().forward_features(images))
    order = torch.tensor([[5, 3, 0, 1, 2, 4]] * 2)
    torch.testing.assert_close(encoder(images, order), gather_tokens(encoder(images), order))
    with pytest.raises(ValueError, match="'resnet18'"):
        TimmEncoder("resnet18")


class Watch(pl.Callback):
    """Student, teacher, learning rates and number of the step after every batch (the module's EMA comes later)."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.students: list[dict[str, Tensor]] = []
        self.teachers: list[dict[str, Tensor]] = []
        self.lr: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.lr.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.teachers.append(copies(pl_module.target_encoder))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps.append(trainer.global_step)
        self.students.append(copies(pl_module.context_encoder))


@pytest.mark.parametrize(("accumulate", "precision"), [(1, "bf16-mixed"), (3, "32-true")])
def test_the_teacher_moves_once_a_step(accumulate: int, precision: Any, tmp_path: Path) -> None:
    """By hand, from the students after each step: five batches an epoch, the last step of which has what is left."""
    module = tiny(momentum=(0.5, 0.9), lr=1e-2)
    by_hand = {name: value.double() for name, value in copies(module.context_encoder).items()}
    watch, per_epoch = Watch(), math.ceil(5 / accumulate)
    quiet_trainer(
        tmp_path, max_epochs=2, accumulate_grad_batches=accumulate, callbacks=[watch], precision=precision
    ).fit(module, loader(random_images(40)))
    watch.teachers.append(copies(module.target_encoder))
    assert watch.steps[-1] == 2 * per_epoch == len(watch.lr)
    for batch, student in enumerate(watch.students):
        step = watch.steps[batch]
        if step != (watch.steps[batch - 1] if batch else 0):
            momentum = 0.5 + (step - 1) / (2 * per_epoch) * 0.4
            by_hand = {name: momentum * value + (1 - momentum) * student[name] for name, value in by_hand.items()}
        else:
            assert not difference(watch.teachers[batch], watch.teachers[batch + 1])
        for name, value in watch.teachers[batch + 1].items():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value.double(), by_hand[name], rtol=1e-5, atol=1e-7)
    assert len(set(watch.lr)) > 1


def test_half_precision_weights_are_refused(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, max_steps=1, precision="bf16-true")
    with pytest.raises(ValueError, match=r"float32.*bf16-mixed"):
        trainer.fit(tiny(), loader(random_images(8).bfloat16()))


def test_resume_with_another_learning_rate(tmp_path: Path) -> None:
    """The given rates and decays hold, at the place of the schedule where the checkpoint is."""
    first = quiet_trainer(tmp_path, max_epochs=2)
    first.fit(tiny(), loader(random_images(16)))
    first.save_checkpoint(tmp_path / "two.ckpt")
    watch = Watch()
    module = tiny(lr=0.5, final_lr=0.1, weight_decay=(0.3, 0.3))
    trainer = quiet_trainer(tmp_path, max_epochs=4, callbacks=[watch])
    trainer.fit(module, loader(random_images(16)), ckpt_path=str(tmp_path / "two.ckpt"))
    expected = [0.1 + 0.4 * 0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(5, 9)]
    assert watch.lr == pytest.approx(expected)
    assert module.hparams.lr == 0.5
    assert [group["weight_decay"] for group in trainer.optimizers[0].param_groups] == pytest.approx([0.3, 0.0])


def test_a_module_fits_twice(tmp_path: Path) -> None:
    """A second Trainer gets its own teacher callback, and starts its schedules anew."""
    module = tiny(momentum=(0.0, 0.0))
    for _ in range(2):
        quiet_trainer(tmp_path, max_steps=1).fit(module, loader(random_images(8)))
        assert not difference(module.target_encoder.state_dict(), module.context_encoder.state_dict())


class OwnOptimizer(IJEPA):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.context_encoder.parameters(), lr=0.05)


@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("bf16-mixed", True), ("16-mixed", False)])
def test_fused_optimizer(precision: str, fused: bool) -> None:
    """Not with a gradient scaler: Lightning then refuses to clip, and we would clip gradients that are still scaled."""
    module = tiny()
    ends = {"max_epochs": -1, "max_steps": 4, "global_step": 0, "optimizers": []}
    module.trainer = SimpleNamespace(**ends, lightning_module=module, precision=precision)
    optimizer = module.configure_optimizers()["optimizer"]
    assert optimizer.defaults["fused"] is fused


def test_own_optimizer(tmp_path: Path) -> None:
    module = OwnOptimizer(**TINY, momentum=(0.5, 0.5))
    before, watch = copies(module), Watch()
    quiet_trainer(tmp_path, max_steps=3, callbacks=[watch]).fit(module, loader(random_images(24)))
    assert watch.lr == [0.05] * 3
    after = module.state_dict()
    moved = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"context_encoder", "target_encoder"}

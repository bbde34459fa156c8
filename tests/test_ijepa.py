"""I-JEPA and the base module: step, teacher, schedules, checkpoints, and encoders of a user's own."""

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from helpers import TINY, LabelledImages, loader, quiet_trainer, random_images
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from jepa_lightning import IJEPA
from jepa_lightning.callbacks import EMATargetEncoder
from jepa_lightning.cli import main
from jepa_lightning.masking import Masks
from jepa_lightning.networks import TimmEncoder, VisionTransformer, gather_tokens, hide_patches
from jepa_lightning.step import Latents


def tiny(**options: Any) -> IJEPA:
    torch.manual_seed(0)
    return IJEPA(**TINY | options)


def eager(module: nn.Module) -> nn.Module:
    """With large weights: at the initial 0.02 attention hardly matters, and no test could tell who sees whom."""
    for parameter in module.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5)
    return module


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


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
    assert same(weights(tiny().context_encoder), weights(tiny().target_encoder))


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
    larger.load_state_dict(weights(module.context_encoder) | {"pos_embed": larger.pos_embed})
    images = random_images(2, (24, 32))
    assert torch.equal(module.context_encoder(images), larger(images))
    with pytest.raises(
        ValueError, match=r"\[2, 3, 24, 32\] have a grid of \(6, 8\) .* built for one of \(4, 4\): .*image_size"
    ):
        module.latents(images)
    for shape in ((2, 1, 16, 16), (2, 3, 18, 16), (3, 16, 16)):
        with pytest.raises(ValueError, match=r"expected images \[B, 3, H, W\] with H a multiple of 4"):
            module.latents(torch.zeros(shape))


def test_the_context_does_not_see_hidden_pixels() -> None:
    module = tiny()
    eager(module.context_encoder)
    eager(module.predictor)
    images = random_images(3)
    masks = module.draw(images, module.rng(3, 0))
    visible = hide_patches(torch.ones(3, 1, 16, 16), masks.context, (4, 4)).bool()
    assert visible.float().mean() == 0.25
    before = module.latents(images, masks)
    after = module.latents(torch.where(visible, images, torch.full_like(images, 9.0)), masks)
    assert torch.equal(context_of(before), context_of(after))
    assert torch.equal(before.prediction, after.prediction)
    assert not torch.allclose(before.target, after.target)
    assert not torch.allclose(context_of(before), context_of(module.latents(images + visible, masks)))


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


def test_gradients() -> None:
    module = tiny()
    latents = module.latents(random_images(4))
    assert not latents.target.requires_grad
    module.loss(latents)["loss"].backward()
    for name, parameter in module.named_parameters():
        trained = not name.startswith("target_encoder") and not name.endswith("pos_embed")
        assert parameter.requires_grad == trained, name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == trained, name


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


def test_masks_follow_seed_epoch_batch_and_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(
        batch_idx: int = 0, epoch: int = 0, rank: int = 0, seed: int = 1, ranks: int = 2, training: bool = True
    ) -> Tensor:
        module = tiny().train(training)
        alone = SimpleNamespace(broadcast=lambda seed: seed)
        module._trainer = SimpleNamespace(world_size=ranks, strategy=alone)  # type: ignore[assignment]
        torch.manual_seed(seed)
        torch.rand(3)  # how far the generator has come plays no part
        monkeypatch.setattr(IJEPA, "current_epoch", epoch)
        monkeypatch.setattr(IJEPA, "global_rank", rank)
        size = 128 // ranks
        masks = module.draw(torch.zeros(size, 3, 16, 16), module.rng(size, batch_idx))
        return torch.cat([masks.context, masks.targets.flatten(1)], dim=1)

    assert torch.equal(drawn(), drawn())
    others = (drawn(batch_idx=1), drawn(epoch=1), drawn(rank=1), drawn(seed=2))
    assert not any(torch.equal(drawn(), other) for other in others)
    # A rank draws its own samples, and one process those of two in turns.
    one = drawn(ranks=1)
    for rank in range(2):
        assert torch.equal(one[rank::2], drawn(rank=rank))
    # Validation losses of epochs compare.
    assert torch.equal(drawn(epoch=0, training=False), drawn(epoch=1, training=False))
    assert not torch.equal(drawn(training=False), drawn(batch_idx=1, training=False))
    assert not torch.equal(drawn(training=False), drawn(rank=1, training=False))


def test_processes_agree_on_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody has seeded them alike, all take the first one's."""
    monkeypatch.setattr(IJEPA, "current_epoch", 0)
    numbers = []
    for rank in range(2):
        module = tiny()
        first = SimpleNamespace(broadcast=lambda seed: 7)
        module._trainer = SimpleNamespace(world_size=2, strategy=first)  # type: ignore[assignment]
        monkeypatch.setattr(IJEPA, "global_rank", rank)
        torch.manual_seed(100 + rank)
        numbers.append(module.rng(4, 3))
    assert torch.equal(numbers[0].shared(9), numbers[1].shared(9))
    assert not torch.equal(numbers[0].sample(9), numbers[1].sample(9))


# --- Options and checkpoints -----------------------------------------------------------------------------------------


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
        (IJEPA, {"imagesize": 16}, "IJEPA has no option imagesize; did you mean image_size"),
        (IJEPA, {"momentun": (0.9, 1.0)}, "did you mean momentum"),
        (IJEPA, {"lr": 1e-3, "batch": 3, "zzz": 1}, "IJEPA has no option batch, zzz"),
        (TwoHeaded, {"repet": 2}, "TwoHeaded has no option repet; did you mean repeat"),
        (TwoHeaded, {"patch_sise": 2}, "did you mean patch_size"),
    ],
)
def test_unknown_options(module: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        module(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup": 1.0}, "warmup is the share"),
        ({"warmup": -0.1}, "warmup is the share"),
        ({"momentum": (0.9, 1.1)}, "momentum must lie in"),
        ({"patch_size": 5}, r"\(16, 16\) pixels cannot be cut into patches of \(5, 5\)"),
        ({"num_heads": 3}, "width of 16 cannot be split among 3 heads"),
        ({"predictor_num_heads": 3}, "predictor of width 8 cannot be split among 3 heads"),
        ({"embed_dim": 18}, "multiple of 4, not 18"),
    ],
)
def test_rejected_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IJEPA(**TINY | options)


@pytest.mark.parametrize("module", [tiny(image_size=[16, 24], lr=0.1), TwoHeaded(**TINY, repeat=2)])
def test_load_from_checkpoint(module: IJEPA, tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, max_steps=1)
    trainer.fit(module, loader(random_images(8, module.hparams.image_size)))
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    torch.load(tmp_path / "it.ckpt", weights_only=True)
    loaded = type(module).load_from_checkpoint(tmp_path / "it.ckpt")
    assert dict(loaded.hparams) == dict(module.hparams)
    assert same(weights(loaded), weights(module))
    assert len(loaded.context_encoder.blocks) == len(module.context_encoder.blocks)
    assert type(module).load_from_checkpoint(tmp_path / "it.ckpt", lr=0.5).hparams.lr == 0.5


def test_load_a_checkpoint_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = TINY | {"image_size": [16, 24], "momentum": [0.9, 1.0]}
    main(
        [
            "fit", "--model=IJEPA", *(f"--model.{name}={value}" for name, value in options.items()),
            "--data=ShapesDataModule", "--data.image_size=[16,24]", "--data.num_train=8", "--data.num_val=8",
            "--data.batch_size=8", "--data.num_workers=0", "--trainer.max_epochs=1", "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
        ]
    )  # fmt: skip
    (path,) = tmp_path.rglob("*.ckpt")
    loaded = IJEPA.load_from_checkpoint(path)
    assert loaded.context_encoder.grid == (4, 6)
    assert tuple(loaded.hparams.momentum) == (0.9, 1.0)
    assert loaded.hparams.lr == IJEPA(**TINY).hparams.lr


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


@pytest.mark.parametrize(("module", "size"), [(IJEPA, 16), (ConvJEPA, 16), (RecurrentJEPA, 16), (TimmJEPA, 64)])
def test_other_encoders_train(module: type[IJEPA], size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {} if module is IJEPA else dict.fromkeys(("patch_size", "embed_dim", "depth", "num_heads"))
    options = {name: value for name, value in TINY.items() if name not in sizes} | {"predictor_num_heads": 2}
    jepa = module(**options | {"image_size": size, "lr": 3e-3, "start_lr": 3e-3, "momentum": (0.99, 1.0)})
    images = random_images(8, size)
    masks = jepa.draw(images, jepa.rng(8, 0))
    visible = hide_patches(torch.ones(8, 1, size, size), masks.context, (4, 4)).bool()
    jepa.eval()
    with torch.no_grad():
        hidden_changed = torch.where(visible, images, images + 1.0)
        contexts = [context_of(jepa.latents(each, masks)) for each in (images, hidden_changed)]
        assert torch.equal(*contexts)
        before = jepa.loss(jepa.latents(images, masks))["loss"]
    teacher = weights(jepa.target_encoder)
    trainer = quiet_trainer(tmp_path, max_epochs=40)
    trainer.fit(jepa, loader(images))
    jepa.eval()
    with torch.no_grad():
        assert jepa.loss(jepa.latents(images, masks))["loss"] < 0.985 * before
    moved = {n for n, p in jepa.target_encoder.named_parameters() if not torch.equal(p, teacher[n])}
    assert moved == {n for n, p in jepa.context_encoder.named_parameters() if p.requires_grad}
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    assert same(weights(module.load_from_checkpoint(tmp_path / "it.ckpt")), weights(jepa))
    buffers = zip(jepa.target_encoder.buffers(), jepa.context_encoder.buffers(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in buffers)


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
    with pytest.raises(ValueError, match=r"'resnet18' is .*not a plain VisionTransformer"):
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
        self.teachers.append(weights(pl_module.target_encoder))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps.append(trainer.global_step)
        self.students.append(weights(pl_module.context_encoder))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_the_teacher_moves_once_a_step(accumulate: int, precision: Any, tmp_path: Path) -> None:
    """By hand, from the students after each step: five batches an epoch, the last step of which has what is left."""
    module = tiny(momentum=(0.5, 0.9), lr=1e-2)
    by_hand = {name: value.double() for name, value in weights(module.context_encoder).items()}
    watch, per_epoch = Watch(), math.ceil(5 / accumulate)
    quiet_trainer(
        tmp_path, max_epochs=2, accumulate_grad_batches=accumulate, callbacks=[watch], precision=precision
    ).fit(module, loader(random_images(40)))
    watch.teachers.append(weights(module.target_encoder))
    assert watch.steps[-1] == 2 * per_epoch == len(watch.lr)
    for batch, student in enumerate(watch.students):
        step = watch.steps[batch]
        if step != (watch.steps[batch - 1] if batch else 0):
            momentum = 0.5 + (step - 1) / (2 * per_epoch) * 0.4
            by_hand = {name: momentum * value + (1 - momentum) * student[name] for name, value in by_hand.items()}
        else:
            assert same(watch.teachers[batch], watch.teachers[batch + 1])
        for name, value in watch.teachers[batch + 1].items():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value.double(), by_hand[name], rtol=1e-5, atol=1e-7)
    assert len(set(watch.lr)) > 1


def test_half_precision_weights_are_refused(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, max_steps=1, precision="bf16-true")
    with pytest.raises(ValueError, match=r"target encoder must be kept in float32.*bf16-mixed"):
        trainer.fit(tiny(), loader(random_images(8).bfloat16()))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_is_exact(accumulate: int, tmp_path: Path) -> None:
    """Four epochs in one go, and two with two more after a restart: the same bits, teacher and optimiser included."""
    data = LabelledImages(24)

    def run(ckpt_path: str | None, seed: int) -> tuple[IJEPA, pl.Trainer, Watch]:
        torch.manual_seed(seed)
        module, watch = IJEPA(**TINY, lr=1e-2, momentum=(0.8, 1.0)), Watch()
        pl.seed_everything(7, verbose=False)
        saving = ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1)
        trainer = quiet_trainer(
            tmp_path, max_epochs=4, accumulate_grad_batches=accumulate, enable_checkpointing=True,
            callbacks=[saving, watch],
        )  # fmt: skip
        trainer.fit(module, DataLoader(data, 8), ckpt_path=ckpt_path)
        return module, trainer, watch

    whole, trainer, watch = run(None, 0)
    start = str(tmp_path / "epoch=1.ckpt")
    resumed, resumed_trainer, resumed_watch = run(start, 1)
    steps = 2 * math.ceil(3 / accumulate)
    assert len(resumed_watch.lr) == steps
    assert watch.lr[steps:] == resumed_watch.lr
    assert same(weights(whole), weights(resumed))
    a, b = (each.optimizers[0].state_dict() for each in (trainer, resumed_trainer))
    assert a["param_groups"] == b["param_groups"]
    assert all(torch.equal(a["state"][i][name], b["state"][i][name]) for i in a["state"] for name in a["state"][i])
    assert not same(weights(whole.target_encoder), weights(whole.context_encoder))


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


def test_own_teacher_callback(tmp_path: Path) -> None:
    """Given to the Trainer, it is the only one; at momentum zero the teacher is the student."""
    module = tiny(momentum=(1.0, 1.0))
    trainer = quiet_trainer(tmp_path, max_steps=2, callbacks=[EMATargetEncoder(momentum=(0.0, 0.0))])
    trainer.fit(module, loader(random_images(16)))
    assert sum(isinstance(callback, EMATargetEncoder) for callback in trainer.callbacks) == 1
    assert same(weights(module.target_encoder), weights(module.context_encoder))
    assert not same(weights(module.context_encoder), weights(tiny().context_encoder))
    with pytest.raises(ValueError, match="momentum must lie in"):
        EMATargetEncoder((0.9, 1.1))


def test_a_module_fits_twice(tmp_path: Path) -> None:
    """A second Trainer gets its own teacher callback, and starts its schedules anew."""
    module = tiny(momentum=(0.0, 0.0))
    for _ in range(2):
        quiet_trainer(tmp_path, max_steps=1).fit(module, loader(random_images(8)))
        assert same(weights(module.target_encoder), weights(module.context_encoder))


class OwnOptimizer(IJEPA):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.context_encoder.parameters(), lr=0.05)


@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("bf16-mixed", True), ("16-mixed", False)])
def test_fused_optimizer(precision: str, fused: bool) -> None:
    """Not with a gradient scaler: Lightning then refuses to clip, and we would clip gradients that are still scaled."""
    module = tiny()
    ends = {"max_epochs": -1, "max_steps": 4, "global_step": 0, "optimizers": []}
    module._trainer = SimpleNamespace(**ends, lightning_module=module, precision=precision)  # type: ignore[assignment]
    optimizer = module.configure_optimizers()["optimizer"]
    assert optimizer.defaults["fused"] is fused


def test_own_optimizer(tmp_path: Path) -> None:
    module = OwnOptimizer(**TINY, momentum=(0.5, 0.5))
    before = copy.deepcopy(module)
    watch = Watch()
    quiet_trainer(tmp_path, max_steps=3, callbacks=[watch]).fit(module, loader(random_images(24)))
    assert watch.lr == [0.05] * 3
    assert same(weights(module.predictor), weights(before.predictor))
    assert not same(weights(module.context_encoder), weights(before.context_encoder))
    assert not same(weights(module.target_encoder), weights(before.target_encoder))


class Bare(torch.utils.data.Dataset[Tensor]):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Tensor:
        return random_images(16)[index]


def test_batches_of_any_kind(tmp_path: Path) -> None:
    """A bare tensor, a list of one tensor, and a tuple with labels give the same training."""
    finals = []
    labelled = torch.utils.data.TensorDataset(random_images(16), torch.arange(16))
    for data in (Bare(), torch.utils.data.TensorDataset(random_images(16)), labelled):
        module = tiny()
        trainer = quiet_trainer(tmp_path, max_epochs=1)
        pl.seed_everything(3, verbose=False)
        trainer.fit(module, DataLoader(data, 8), DataLoader(data, 8))
        assert {"train/loss", "train/momentum", "val/loss"} <= set(trainer.callback_metrics)
        finals.append(weights(module))
    assert same(finals[0], finals[1])
    assert same(finals[0], finals[2])


def test_schedules_need_an_end(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give the Trainer max_epochs or max_steps"):
        quiet_trainer(tmp_path, max_epochs=-1).fit(tiny(), loader(random_images(8)))

"""One training step and the schedules, against traces of the official code (`golden/ijepa`)."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import GOLDEN, TINY, assert_close, assert_golden_step, quiet_trainer
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from jepa_lightning import IJEPA, load_encoder
from jepa_lightning.cli import main
from jepa_lightning.draws import Rng
from jepa_lightning.masking import Masks

CHECKPOINT = str(GOLDEN / "checkpoint.pth.tar")
QKV = "blocks.0.attn.qkv.weight"


@cache
def trace() -> dict[str, Tensor]:
    return load_file(GOLDEN / "trace.safetensors")


@cache
def config() -> dict[str, Any]:
    return json.loads((GOLDEN / "config.json").read_text())


def golden_masks() -> Masks:
    return Masks(trace()["context_indices"][0], trace()["target_indices"].transpose(0, 1))


def image_major(tokens: Tensor, num_images: int = 3) -> Tensor:
    """The official `[M * B, K, D]`, block 0 of every image first, as our `[B, M, K, D]`."""
    return tokens.unflatten(0, (-1, num_images)).transpose(0, 1)


class GoldenStep(IJEPA):
    """With the masks of the trace."""

    def draw(self, batch: Any, rng: Rng) -> Masks:
        return golden_masks()


def test_forward() -> None:
    module = IJEPA.from_official(CHECKPOINT, num_heads=3)
    images = trace()["images"]
    latents = module.latents(images, golden_masks())
    assert_close(latents.embeddings["context"].values, trace()["context_features"], "context")
    assert_close(module.context_encoder(images, golden_masks().context), trace()["context_features"], "context encoder")
    assert_close(module.target_encoder(images), trace()["target_encoder_features"], "target encoder")
    assert_close(latents.features.values, trace()["target_encoder_features"], "features")
    assert_close(latents.target, image_major(trace()["target"]), "target")
    assert_close(latents.prediction, image_major(trace()["prediction"]), "prediction")
    assert_close(module.loss(latents)["loss"], trace()["loss"][0], "loss")
    assert float(trace()["loss"]) == pytest.approx(config()["loss"], rel=1e-6)
    # The predictor alone: all blocks at once, and one at a time.
    theirs = image_major(trace()["prediction"])
    context, targets = trace()["context_features"], golden_masks().targets
    assert_close(module.predictor(context, golden_masks().context, targets), theirs, "predictor")
    assert_close(module.predictor(context, golden_masks().context, targets[:, 1]), theirs[:, 1], "second block")


def test_training_step() -> None:
    """Gradients, and the weights after the library's own AdamW and EMA step in a Trainer."""
    optimizer = config()["optimizer"]
    lr, decay, momentum = optimizer["lr"], optimizer["weight_decay"], config()["momentum"]
    module = GoldenStep.from_official(
        CHECKPOINT, num_heads=3, lr=lr, start_lr=lr, final_lr=lr, warmup=0.0,
        weight_decay=(decay, decay), momentum=(momentum, momentum),
    )  # fmt: skip
    quiet_trainer(max_steps=1).fit(module, DataLoader(trace()["images"], batch_size=3))
    assert_golden_step(module, trace())


class Recorder(IJEPA):
    """Keeps each step's learning rate, weight decay, and momentum: where the student is 1 and the teacher was 0."""

    def on_train_start(self) -> None:
        self.lr, self.decay, self.no_decay, self.momenta = [], [], [], []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch.nn.init.ones_(self.context_encoder.pos_embed)
        torch.nn.init.zeros_(self.target_encoder.pos_embed)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self.lr += [group["lr"] for group in optimizer.param_groups]
        self.decay.append(optimizer.param_groups[0]["weight_decay"])
        self.no_decay.append(optimizer.param_groups[1]["weight_decay"])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.momenta.append(1.0 - float(self.target_encoder.pos_embed[0, 0, 0]))


def test_schedules_in_training() -> None:
    """A run of the trace's total length: what the optimiser and the teacher get at each step."""
    schedules = config()["schedules"]
    setup = schedules["setup"]
    total = int(setup["ipe_scale"] * setup["epochs"] * setup["steps_per_epoch"])
    module = Recorder(
        **TINY
        | {
            "lr": setup["lr"],
            "start_lr": setup["start_lr"],
            "final_lr": setup["final_lr"],
            "warmup": setup["warmup_epochs"] * setup["steps_per_epoch"] / total,
            "weight_decay": (setup["weight_decay"], setup["final_weight_decay"]),
            "momentum": tuple(setup["ema"]),
        }
    )
    images = torch.zeros(25, 3, 16, 16)
    quiet_trainer(max_steps=total, precision="64-true").fit(module, DataLoader(images.double(), batch_size=1))
    assert len(module.momenta) == total == 125
    for ours, theirs in (
        (module.lr[0::2], "lr"),
        (module.lr[1::2], "lr"),
        (module.decay, "weight_decay"),
        (module.momenta, "momentum"),
    ):
        assert ours[:100] == pytest.approx(schedules[theirs], rel=0, abs=1e-12)
    assert module.lr[-1] == pytest.approx(setup["final_lr"], rel=1e-12)
    assert set(module.no_decay) == {0.0}


def official_state(network: str) -> dict[str, Tensor]:
    checkpoint = torch.load(CHECKPOINT, weights_only=True)
    return {name.removeprefix("module."): value for name, value in checkpoint[network].items()}


def test_train_on_from_python(tmp_path: Path) -> None:
    """`weights` is read when the fit starts; a checkpoint of the run then stands on its own, also to resume from."""
    official = Path(shutil.copy(CHECKPOINT, tmp_path))
    options = TINY | {"image_size": 32, "embed_dim": 48, "depth": 3, "num_heads": 3, "predictor_embed_dim": 24}
    options |= {"predictor_depth": 2, "weights": str(official), "lr": 0.0, "start_lr": 0.0, "final_lr": 0.0}
    module = IJEPA(**options)
    assert not torch.equal(module.context_encoder.blocks[0].attn.qkv.weight, official_state("encoder")[QKV])
    images = DataLoader(trace()["images"], batch_size=3)
    trainer = quiet_trainer(tmp_path, max_steps=1)
    trainer.fit(module, images)
    for ours, theirs in (("context_encoder", "encoder"), ("predictor", "predictor")):
        for name, value in module.get_submodule(ours).state_dict().items():
            assert torch.equal(value, official_state(theirs)[name]), name
    with torch.no_grad():
        module.predictor.mask_token.fill_(7.0)
    trainer.save_checkpoint(tmp_path / "ours.ckpt")
    official.unlink()
    resumed = IJEPA.load_from_checkpoint(tmp_path / "ours.ckpt")
    quiet_trainer(tmp_path, max_steps=2).fit(resumed, images, ckpt_path=str(tmp_path / "ours.ckpt"))
    assert (resumed.predictor.mask_token == 7.0).all()


def test_train_on_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At learning rate zero the run's checkpoint holds the official student."""
    monkeypatch.chdir(tmp_path)
    model = {"image_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 3, "predictor_embed_dim": 24}
    model |= {"predictor_depth": 2, "weights": CHECKPOINT, "lr": 0.0, "start_lr": 0.0, "final_lr": 0.0}
    arguments = ["fit", "--model", "IJEPA", *(f"--model.{name}={value}" for name, value in model.items())]
    arguments += ["--data", "ShapesDataModule", "--data.image_size=32", "--data.num_train=4", "--data.num_val=4"]
    arguments += ["--data.batch_size=4", "--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.max_steps=1"]
    arguments += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    main(arguments)
    (saved,) = tmp_path.rglob("*.ckpt")
    module = IJEPA.load_from_checkpoint(saved)
    for name, value in official_state("encoder").items():
        assert torch.equal(module.context_encoder.state_dict()[name], value), name
    images = trace()["images"]
    student = load_encoder(saved, "context_encoder")
    assert_close(student(images, golden_masks().context), trace()["context_features"], "context")

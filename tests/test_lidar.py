"""LiDAR of held-out images under masks: of views by hand, over two processes, and with no trace in the training."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import (
    TINY,
    VIEWS,
    LabelledImages,
    eager,
    in_two_processes,
    loader,
    observations,
    plain,
    quiet_trainer,
    random_images,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from jepa_lightning import IJEPA, Latents, LeJEPA, Prediction
from jepa_lightning.callbacks import LiDARMonitor
from jepa_lightning.draws import Rng
from jepa_lightning.metrics import lidar, scatter
from jepa_lightning.networks import gather_tokens

BRANCHES = ("context", "prediction")


def lidar_of(views: Tensor) -> Any:
    """The metric of views `[images, masks, D]`, within the rounding of single passes."""
    return pytest.approx(float(lidar(scatter(views))), rel=1e-3)


@torch.no_grad()
def by_hand(module: Any, images: Tensor, num_masks: int) -> dict[str, Tensor]:
    """The views `[images, num_masks, D]` of each branch, an image and a mask at a time."""
    module.eval()
    found: dict[str, list[list[Tensor]]] = {branch: [] for branch in BRANCHES}
    for image in images.split(1):
        rows: dict[str, list[Tensor]] = {branch: [] for branch in BRANCHES}
        for draw in range(num_masks):
            latents = module.latents(image, module.draw(image, Rng(draw, batch_size=1)))
            contexts = [each.values[0] for name, each in latents.embeddings.items() if name.startswith("context")]
            predictions = [each.prediction[0].flatten(0, -2) for each in latents.predictions.values()]
            rows["context"].append(torch.cat(contexts).mean(0))
            rows["prediction"].append(torch.cat(predictions).mean(0))
        for branch, row in rows.items():
            found[branch].append(torch.stack(row))
    return {branch: torch.stack(rows) for branch, rows in found.items()}


def lidars(trainer: pl.Trainer) -> dict[str, float]:
    return {branch: float(trainer.callback_metrics[f"collapse/{branch}/lidar"]) for branch in BRANCHES}


@pytest.mark.parametrize("name", ["I-JEPA", "LeJEPA", "V-JEPA"])
def test_against_views_by_hand(name: str, tmp_path: Path) -> None:
    """Of the first images, which end within a batch, in a validation on its own.

    The contexts are one for each image, several views, or one for each kind of masks.
    """
    module, images = plain(name), observations(name, 14)
    trainer = quiet_trainer(tmp_path, callbacks=[LiDARMonitor(num_images=10, num_masks=3)])
    trainer.validate(module, loader(images, 4), verbose=False)
    found = lidars(trainer)
    for branch, views in by_hand(module, images, 3).items():
        assert found[branch] == lidar_of(views[:10]), branch
        # Other images, or more of them, would be told apart from these.
        for wrong in (views, views[4:], views[:9], views[:10, :2]):
            assert found[branch] != lidar_of(wrong), branch


class SeveralLoaders(IJEPA):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        return super().validation_step(batch, batch_idx)


def test_fewer_images_than_asked_for(tmp_path: Path) -> None:
    """All of the first loader; bare tensors are a batch too."""
    torch.manual_seed(0)
    module, images = eager(SeveralLoaders(**TINY)), random_images(8)
    trainer = quiet_trainer(tmp_path, callbacks=[LiDARMonitor(num_masks=3)])
    trainer.validate(module, [DataLoader(Bare(images), 5), loader(random_images(20))], verbose=False)
    for branch, views in by_hand(module, images, 3).items():
        assert lidars(trainer)[branch] == lidar_of(views)


class Bare(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def test_mixed_precision(tmp_path: Path) -> None:
    """Single precision's readings: predictions that start out nearly alike would be told apart by their rounding."""
    seen: list[torch.dtype] = []

    class Watched(IJEPA):
        def latents(self, batch: Any, drawn: Any = None) -> Latents:
            latents = super().latents(batch, drawn)
            seen.append(latents.prediction.dtype)
            return latents

    torch.manual_seed(0)
    module, found = Watched(**TINY), []
    for precision in ("32-true", "bf16-mixed"):
        trainer = quiet_trainer(tmp_path, precision=precision, callbacks=[LiDARMonitor(16, 4)])
        trainer.validate(module, loader(random_images(16), 16), verbose=False)
        found.append(lidars(trainer))
    assert seen == [torch.float32] * 5 + [torch.bfloat16] + [torch.float32] * 4
    assert found[0] == found[1]


# --- What it says ----------------------------------------------------------------------------------------------------


class Constant(nn.Module):
    """An encoder that has collapsed: to one token, or to the places of the tokens."""

    def __init__(self, places: int) -> None:
        super().__init__()
        self.embed_dim = 16
        self.place = nn.Parameter(torch.randn(1, places, 16))

    def grid_of(self, x: Tensor) -> tuple[int, int]:
        return 4, 4

    def forward(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        tokens = self.place.expand(len(x), 16, -1) + 0.0 * x.mean()
        return tokens if indices is None else gather_tokens(tokens, indices)


class CollapsedToAPoint(IJEPA):
    def build_encoder(self) -> nn.Module:
        return Constant(1)


class CollapsedToPlaces(IJEPA):
    def build_encoder(self) -> nn.Module:
        return Constant(16)


def test_a_collapse_reads_as_one() -> None:
    """Also that to the places, where every mask gives another embedding, but the same of every image."""
    found = {}
    for module_class in (CollapsedToAPoint, CollapsedToPlaces, IJEPA):
        torch.manual_seed(0)
        trainer = quiet_trainer(callbacks=[LiDARMonitor(32, 4)])
        trainer.validate(module_class(**TINY, predictor_num_heads=2), loader(LabelledImages(32), 16), verbose=False)
        found[module_class] = lidars(trainer)
    for branch in BRANCHES:
        assert found[CollapsedToAPoint][branch] <= 1
        assert found[CollapsedToPlaces][branch] <= 1
        assert 2 < found[IJEPA][branch] <= 16


# --- What it leaves alone --------------------------------------------------------------------------------------------


class Random(IJEPA):
    """Draws from torch's own generator at every step, in evaluation too."""

    def latents(self, batch: Any, drawn: Any = None) -> Latents:
        latents = super().latents(batch, drawn)
        prediction = latents.prediction + 0.1 * torch.randn_like(latents.prediction)
        return latents._replace(predictions={"": Prediction(prediction, latents.target)})


class Modes(pl.Callback):
    """Notes at every training step which networks are in training mode."""

    def __init__(self) -> None:
        self.seen: list[dict[str, bool]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.seen.append({name: network.training for name, network in pl_module.named_modules()})


@pytest.mark.parametrize("module_class", [Random, LeJEPA])
def test_watching_changes_nothing(module_class: type[Any], tmp_path: Path) -> None:
    """With and without it: the same bits, the projector's running statistics included, and nothing in a checkpoint."""
    finals, modes = [], []
    for watched in (True, False):
        torch.manual_seed(0)
        module = module_class(**(VIEWS if module_class is LeJEPA else TINY), lr=1e-2)
        modes.append(Modes())
        pl.seed_everything(5, verbose=False)
        callbacks = [modes[-1], *([LiDARMonitor(16, 3)] if watched else [])]
        trainer = quiet_trainer(tmp_path, max_epochs=2, num_sanity_val_steps=1, callbacks=callbacks)
        trainer.fit(module, DataLoader(LabelledImages(16), 8, shuffle=True), loader(LabelledImages(24)))
        assert ("collapse/context/lidar" in trainer.callback_metrics) == watched
        finals.append(module.state_dict())
        assert all(value.grad is None or not value.grad.is_inference() for value in module.parameters())
    assert finals[0].keys() == finals[1].keys()
    assert all(
        torch.equal(*map(torch.as_tensor, pair)) for pair in zip(finals[0].values(), finals[1].values(), strict=True)
    )
    assert modes[0].seen == modes[1].seen
    assert len(modes[0].seen) == 4


def test_logged_at_every_validation(tmp_path: Path) -> None:
    """Not in a sanity check; the same weights give the same reading, and others another."""
    readings: list[float] = []

    class Read(pl.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.sanity_checking:
                assert "collapse/context/lidar" not in trainer.callback_metrics
            else:
                readings.append(float(trainer.callback_metrics["collapse/context/lidar"]))

    for lr in (0.0, 1e-2):
        trainer = quiet_trainer(tmp_path, max_epochs=2, num_sanity_val_steps=2, callbacks=[LiDARMonitor(16, 3), Read()])
        torch.manual_seed(0)
        module = IJEPA(**TINY, lr=lr, start_lr=lr, final_lr=lr)
        trainer.fit(module, loader(LabelledImages(16)), loader(LabelledImages(24)))
    assert len(readings) == 4
    assert readings[0] == readings[1]
    assert len(set(readings)) == 3


class Sizes(IJEPA):
    """Notes how many images a pass has, and whether it could be differentiated."""

    def latents(self, batch: Any, drawn: Any = None) -> Latents:
        latents = super().latents(batch, drawn)
        context = latents.embeddings["context"].values
        self.passes = [*getattr(self, "passes", []), (len(context), context.requires_grad)]
        return latents


@pytest.mark.parametrize("inference_mode", [True, False])
def test_what_it_costs(inference_mode: bool, tmp_path: Path) -> None:
    """A pass for each mask of a batch, no larger than the validation's own, and none beyond the images asked for."""
    module = Sizes(**TINY)
    trainer = quiet_trainer(tmp_path, inference_mode=inference_mode, callbacks=[LiDARMonitor(20, 3)])
    trainer.validate(module, loader(random_images(40)), verbose=False)
    own = [(8, False)]
    assert module.passes == (own + 3 * [(8, False)]) * 2 + own + 3 * [(4, False)] + own * 2


def test_rejected_options() -> None:
    for options, got in (({"num_images": 1}, "1 and 10"), ({"num_masks": 1}, "256 and 1")):
        with pytest.raises(ValueError, match=f"num_images and num_masks .* got {got}"):
            LiDARMonitor(**options)


# --- Two processes ---------------------------------------------------------------------------------------------------


def two_processes(rank: int, folder: Path) -> dict[str, Any]:
    """One of two ranks: a validation of 25 images, of which 11 are asked for, and one that has collapsed."""
    found = {}
    for name, module in (("alive", plain("I-JEPA")), ("dead", CollapsedToPlaces(**TINY, predictor_num_heads=2))):
        trainer = quiet_trainer(folder, devices=2, strategy="ddp", callbacks=[LiDARMonitor(11, 3)])
        trainer.validate(module, loader(random_images(25), 4), verbose=False)
        found[name] = lidars(trainer)
    return found


# Seven seconds if it is the first to start two processes: what they are forked from imports everything.
def test_two_processes(tmp_path: Path) -> None:
    """The images of both, six of each: the even and the odd of the first twelve, under the same masks."""
    first, second = in_two_processes(two_processes, tmp_path)
    assert first == second
    views = by_hand(plain("I-JEPA"), random_images(25)[:12], 3)
    for branch in BRANCHES:
        assert first["alive"][branch] == lidar_of(views[branch])
        assert first["dead"][branch] <= 1

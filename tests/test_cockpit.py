"""What says that a run has collapsed, and the pages of TensorBoard that show it."""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TINY, LabelledImages, loader, quiet_trainer, random_images
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch import Tensor

from jepa_lightning import IJEPA, Latents, Prediction, Tokens
from jepa_lightning.callbacks import Cockpit, CollapseError, CollapseMonitor, KNNProbe, LatentPictures
from jepa_lightning.callbacks.cockpit import LAYOUT
from jepa_lightning.callbacks.readings import across_images, draw_spectra


class Staged(IJEPA):
    """Gives the latents that a stage direction asks for, whatever has been learned."""

    def __init__(self, collapse_at: int = 10**9, branch: str = "target", **options: Any) -> None:
        super().__init__(**options)

    def latents(self, batch: Any, drawn: Any = None) -> Latents:
        latents = super().latents(batch, drawn)
        spread = torch.randn_like(latents.features.values)
        prediction = latents.prediction * 0 + torch.randn_like(latents.prediction)
        if self.global_step >= self.hparams.collapse_at:
            if self.hparams.branch == "target":
                spread = torch.ones_like(spread) + 1e-3 * spread
            else:
                prediction = prediction * 1e-3 + 1.0
        return Latents(
            {"": Prediction(prediction, latents.target)},
            latents.embeddings | {"target": Tokens(spread)},
            Tokens(spread),
        )


def run(folder: Path, monitor: CollapseMonitor, steps: int = 40, **options: Any) -> Any:
    torch.manual_seed(0)
    trainer = quiet_trainer(folder, max_steps=steps, callbacks=[monitor])
    trainer.fit(Staged(**TINY, **options), loader(random_images(8 * steps), 8))
    return trainer


@pytest.mark.parametrize("branch", ["target", "prediction"])
def test_a_collapse_stops_the_run_or_is_an_error(tmp_path: Path, branch: str) -> None:
    """With a reading every second step, the third in a row after step 20 is at 26."""
    with pytest.warns(UserWarning, match=r"collapsed, for 3 readings in a row until step 26: RankMe .* is \d"):
        trainer = run(tmp_path, CollapseMonitor(2, "stop"), collapse_at=20, branch=branch)
    assert trainer.global_step == 26
    with pytest.raises(CollapseError, match=r"until step 26.*Lower the learning rate, raise the momentum"):
        run(tmp_path, CollapseMonitor(2, "raise"), collapse_at=20, branch=branch)
    with pytest.warns(UserWarning, match="collapsed") as caught:
        trainer = run(tmp_path, CollapseMonitor(2), collapse_at=20, branch=branch)
    assert trainer.global_step == 40
    assert len([entry for entry in caught if "collapsed" in str(entry.message)]) == 1


def test_a_second_collapse_is_no_news(tmp_path: Path) -> None:
    class Twice(Staged):
        def latents(self, batch: Any, drawn: Any = None) -> Latents:
            self.hparams.collapse_at = 0 if self.global_step // 10 in (1, 3) else 10**9
            return super().latents(batch, drawn)

    trainer = quiet_trainer(tmp_path, max_steps=40, callbacks=[CollapseMonitor(1)])
    with pytest.warns(UserWarning, match="until step 13") as caught:
        trainer.fit(Twice(**TINY), loader(random_images(320), 8))
    assert len([entry for entry in caught if "collapsed" in str(entry.message)]) == 1


def test_health_is_silent(tmp_path: Path) -> None:
    """So is a first tenth that looks collapsed, a low rank from the start, and a collapse too short to count."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*collapsed.*")
        run(tmp_path, CollapseMonitor(2, "raise"))
        run(tmp_path, CollapseMonitor(1, "raise"), collapse_at=38)  # two readings
        run(tmp_path, CollapseMonitor(1, "raise", min_rank=10**6))  # lower than that, but not than at first

        class Early(Staged):
            def latents(self, batch: Any, drawn: Any = None) -> Latents:
                self.hparams.collapse_at = 0 if self.global_step < 4 else 10**9
                return super().latents(batch, drawn)

        trainer = quiet_trainer(tmp_path, max_steps=40, callbacks=[CollapseMonitor(1, "raise")])
        trainer.fit(Early(branch="prediction", **TINY), loader(random_images(320), 8))


def test_a_resumed_run_knows_its_first_reading(tmp_path: Path) -> None:
    """Resumed after its collapse, a run has nothing to compare with but what the checkpoint says."""
    trainer = run(tmp_path, CollapseMonitor(1, "warn"), steps=20, collapse_at=19)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    resumed = quiet_trainer(tmp_path, max_steps=40, callbacks=[CollapseMonitor(1, "raise")])
    with pytest.raises(CollapseError):
        resumed.fit(Staged(collapse_at=19, **TINY), loader(random_images(320), 8), ckpt_path=str(tmp_path / "run.ckpt"))
    # Collapsed long before: the checkpoint has more low readings in a row than the alarm waits for.
    trainer = run(tmp_path, CollapseMonitor(1, "warn"), steps=30, collapse_at=19)
    trainer.save_checkpoint(tmp_path / "collapsed.ckpt")
    path, images = str(tmp_path / "collapsed.ckpt"), loader(random_images(320), 8)
    resumed = quiet_trainer(tmp_path, max_steps=40, callbacks=[CollapseMonitor(1, "raise")])
    with pytest.raises(CollapseError, match="until step 31"):
        resumed.fit(Staged(collapse_at=19, **TINY), images, ckpt_path=path)
    fresh = quiet_trainer(tmp_path, max_steps=20, callbacks=[CollapseMonitor(1, "raise")])
    fresh.fit(Staged(collapse_at=0, **TINY), loader(random_images(160), 8))


def test_agreement_and_distance_by_hand(tmp_path: Path) -> None:
    seen = {}

    class Kept(IJEPA):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen["latents"] = outputs["latents"]

        def on_before_zero_grad(self, optimizer: Any) -> None:
            seen["before"] = [p.clone() for p in self.target_encoder.parameters()]

    monitor = CollapseMonitor(1)
    trainer = quiet_trainer(tmp_path, max_steps=3, callbacks=[monitor])
    module = Kept(**TINY, momentum=(0.5, 0.5))
    trainer.fit(module, loader(random_images(24), 8))
    logged, latents = trainer.callback_metrics, seen["latents"]
    p, t = latents.prediction.double().numpy(), latents.target.double().numpy()
    cosine = (p * t).sum(-1) / np.linalg.norm(p, axis=-1) / np.linalg.norm(t, axis=-1)
    assert float(logged["collapse/prediction/target_cosine"]) == pytest.approx(cosine.mean(), abs=1e-5)
    # The reading is of the teacher before it follows the step.
    students = torch.cat([p.detach().flatten() for p in module.context_encoder.parameters()])
    teachers = torch.cat([p.flatten() for p in seen["before"]])
    expected = float((students - teachers).norm() / teachers.norm())
    assert float(logged["collapse/target/student_distance"]) == pytest.approx(expected, rel=1e-4)
    assert expected > 0


def test_spectrum() -> None:
    """The curve's points, largest first, and as they are: divided by the largest, a collapse would look healthy."""
    figure = draw_spectra({"target": torch.tensor([4.0, 1.0, 0.0]), "context": torch.tensor([2.0, 1.0, 1.0])})
    lines = {line.get_label(): line.get_xydata() for line in figure.axes[0].lines}
    assert np.allclose(lines["target"], [[1, 4], [2, 1], [3, 1e-8]])
    assert np.allclose(lines["context"], [[1, 2], [2, 1], [3, 1]])
    assert figure.axes[0].get_yscale() == "log"


def test_tensorboard(tmp_path: Path) -> None:
    """The layout names tags that a run has; the projector holds the held-out embeddings and their labels."""
    kept: list[Tensor] = []

    class Kept(IJEPA):
        def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            kept.append(outputs["latents"].features.values.mean(1))

    logger = TensorBoardLogger(tmp_path)
    callbacks = [CollapseMonitor(2), Cockpit(num_embeddings=12), KNNProbe()]
    trainer = quiet_trainer(tmp_path, max_epochs=1, logger=logger, log_every_n_steps=1, callbacks=callbacks)
    trainer.fit(Kept(**TINY), loader(LabelledImages(32)), loader(LabelledImages(20)))
    events = EventAccumulator(logger.log_dir, size_guidance={"tensors": 0})
    events.Reload()
    tags = events.Tags()
    assert "collapse/spectrum" in tags["images"]
    (summary,) = [tensor.tensor_proto for tensor in events.Tensors("custom_scalars__config__")]
    written = layout_pb2.Layout.FromString(summary.string_val[0])
    assert [category.title for category in written.category] == list(LAYOUT)
    expressions = [tag for category in written.category for chart in category.chart for tag in chart.multiline.tag]
    unmatched = [tag for tag in expressions if not any(re.match(tag, scalar) for scalar in tags["scalars"])]
    assert unmatched == ["lr-[^-]*$"]  # of LearningRateMonitor, which this run does not have

    config = Path(logger.log_dir, "projector_config.pbtxt").read_text()
    folder = Path(logger.log_dir, re.search(r'tensor_path: "(.*)/tensors.tsv"', config)[1])  # type: ignore[index]
    assert np.allclose(np.loadtxt(folder / "tensors.tsv"), torch.cat(kept)[:12].numpy(), atol=1e-5)
    rows = (folder / "metadata.tsv").read_text().split()
    assert rows[:2] == ["label", "other"]
    assert [int(value) for value in rows[2:]] == [value for i in range(12) for value in (i % 4, i % 3)]
    assert Image.open(folder / "sprite.png").size == (64, 64)  # four by four places for twelve thumbnails of 16 pixels


def test_pictures_without_held_out_data(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    callbacks = [CollapseMonitor(2), LatentPictures(2)]
    trainer = quiet_trainer(tmp_path, max_epochs=2, logger=logger, callbacks=callbacks)
    trainer.fit(IJEPA(**TINY), loader(random_images(32), 8))
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0})
    events.Reload()
    assert [image.step for image in events.Images("collapse/spectrum")] == [4, 8]
    assert [image.step for image in events.Images("pictures/latents")] == [1, 5]


def test_a_first_batch_of_nan_costs_no_more() -> None:
    metrics = across_images("target", 8)
    metrics.update(torch.full((4, 8), torch.nan))
    assert len(metrics.compute_groups) == 1


def test_options() -> None:
    with pytest.raises(ValueError, match="on_collapse must be one of warn, stop, raise, got 'cry'"):
        CollapseMonitor(on_collapse="cry")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_embeddings must not be negative, got -1"):
        Cockpit(-1)

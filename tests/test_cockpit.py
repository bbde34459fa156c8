"""What says that a run has collapsed, and the pages of TensorBoard that show it."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TINY, LabelledImages, loader, logged_images, quiet_trainer, random_images
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch import Tensor, nn

from jepa_lightning import IJEPA, JEPA, Latents, Prediction, Tokens
from jepa_lightning.callbacks import Cockpit, CollapseError, CollapseMonitor, KNNProbe, LatentPictures
from jepa_lightning.callbacks.cockpit import LAYOUT
from jepa_lightning.callbacks.readings import across_images, draw_spectra


class Staged(JEPA):
    """Gives the latents that a stage direction asks for: at some steps a branch has collapsed."""

    def __init__(self, collapsed: Iterable[int] = (), branch: str = "target") -> None:
        collapsed = list(collapsed)
        super().__init__()
        self.collapsed, self.branch = collapsed, branch
        self.scale = nn.Parameter(torch.ones(()))

    def latents(self, batch: Any, drawn: Any = None) -> Latents:
        spread, prediction = torch.randn(2, len(self.observations(batch)[0]), 1, 16).unbind()
        if self.global_step in self.collapsed and self.branch == "target":
            spread = 1.0 + 1e-3 * spread
        elif self.global_step in self.collapsed:
            prediction = 1.0 + 1e-3 * prediction
        return Latents({"": Prediction(self.scale * prediction, spread)}, {"target": Tokens(spread)}, Tokens(spread))

    def features(self, batch: Any) -> Tokens:
        return self.latents(batch).features


def run(folder: Path, monitor: CollapseMonitor, module: Staged, steps: int = 20, ckpt_path: Path | None = None) -> Any:
    torch.manual_seed(0)
    trainer = quiet_trainer(folder, max_steps=steps, callbacks=[monitor])
    trainer.fit(module, loader(torch.zeros(8 * steps, 1), 8), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("branch", ["target", "prediction"])
def test_a_collapse_is_an_error(tmp_path: Path, branch: str) -> None:
    """With a reading every second step, the third in a row after step 10 is at 16."""
    with pytest.raises(CollapseError, match=r"step 16.*[Ll]earning rate"):
        run(tmp_path, CollapseMonitor(2, "raise"), Staged(range(10, 20), branch))


def test_a_collapse_stops_the_run(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"step 16.*RankMe .* is \d"):
        trainer = run(tmp_path, CollapseMonitor(2, "stop"), Staged(range(10, 20)))
    assert trainer.global_step == 16


def test_a_collapse_is_told_once(tmp_path: Path) -> None:
    """Neither its going on nor a second one is news."""
    with pytest.warns(UserWarning, match=r"collapsed.*step 7") as caught:
        trainer = run(tmp_path, CollapseMonitor(1), Staged([*range(4, 10), *range(14, 20)]))
    assert trainer.global_step == 20
    assert len([entry for entry in caught if "collapsed" in str(entry.message)]) == 1


@pytest.mark.parametrize(
    ("module", "options"),
    [
        pytest.param(Staged([10, 11, 18, 19]), {}, id="two readings"),
        pytest.param(Staged([0, 1, 2], "prediction"), {}, id="in the first tenth"),
        pytest.param(Staged(), {"min_rank": 10**6}, id="low from the start"),
    ],
)
def test_what_is_no_collapse(module: Staged, options: dict[str, Any], tmp_path: Path) -> None:
    """Nothing is told before three readings in a row, past the first tenth, that are lower than the first."""
    assert run(tmp_path, CollapseMonitor(1, "raise", **options), module).global_step == 20


@pytest.mark.filterwarnings("ignore:.*collapsed")
def test_a_resumed_run_knows_its_first_reading(tmp_path: Path) -> None:
    """Resumed after its collapse, a run has nothing to compare with but what the checkpoint says."""
    # Just collapsed; or long before, with more low readings in a row than the alarm waits for.
    for steps, told in ((10, 12), (15, 16)):
        path = tmp_path / f"{steps}.ckpt"
        run(tmp_path, CollapseMonitor(1), Staged(range(9, 20)), steps=steps).save_checkpoint(path)
        with pytest.raises(CollapseError, match=f"step {told}"):
            run(tmp_path, CollapseMonitor(1, "raise"), Staged(range(9, 20)), ckpt_path=path)


def test_agreement_and_distance_by_hand(tmp_path: Path) -> None:
    seen = {}

    class Kept(IJEPA):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen["latents"] = outputs["latents"]

        def on_before_zero_grad(self, optimizer: Any) -> None:
            seen["before"] = [p.clone() for p in self.target_encoder.parameters()]

    monitor = CollapseMonitor(1)
    trainer = quiet_trainer(tmp_path, max_steps=2, callbacks=[monitor])
    module = Kept(**TINY, momentum=(0.5, 0.5))
    trainer.fit(module, loader(random_images(16), 8))
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
    trainer.fit(Kept(**TINY), loader(LabelledImages(16)), loader(LabelledImages(20)))
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
    trainer.fit(IJEPA(**TINY), loader(random_images(16), 8))
    assert list(logged_images(logger, "collapse/spectrum")) == [2, 4]
    assert list(logged_images(logger, "pictures/latents")) == [1, 3]


def test_a_first_batch_of_nan_costs_no_more() -> None:
    metrics = across_images("target", 8)
    metrics.update(torch.full((4, 8), torch.nan))
    assert len(metrics.compute_groups) == 1


def test_options() -> None:
    with pytest.raises(ValueError, match=r"on_collapse.*warn, stop, raise.*cry"):
        CollapseMonitor(on_collapse="cry")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"num_embeddings.* -1"):
        Cockpit(-1)

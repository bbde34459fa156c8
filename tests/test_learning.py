"""Recipes learn: their probes end well above the raw input's and above those of the same encoder untrained."""

import os
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jepa_lightning.cli import main

UNTRAINED = [f"--model.{rate}=0" for rate in ("lr", "start_lr", "final_lr")]
RAW_CLIPS: dict[str, Any] = {"name": "pixels", "num_classes": 6, "label": "kind", "source": "observation"}


def fit(recipe: str, folder: Path, *arguments: str) -> Path:
    """Run a recipe as a user would."""
    quiet = ["--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={folder}"]
    main(["fit", f"--config=recipes/{recipe}.yaml", *quiet, *arguments])
    return folder


def last(run: Path, probe: str, metric: str = "accuracy") -> float:
    """The last reading of a probe in TensorBoard's files of a run."""
    (folder,) = run.glob("lightning_logs/version_*")
    events = EventAccumulator(str(folder))
    events.Reload()
    return events.Scalars(f"probe/{probe}/{metric}")[-1].value


@pytest.mark.skipif("QUICK_START" not in os.environ, reason="QUICK_START names no folder of the quick start's run")
def test_the_quick_start_learns() -> None:
    """The nearest neighbours name many more kinds than those of pixels, or before training (see test_callbacks.py)."""
    run = Path(os.environ["QUICK_START"])
    assert last(run, "knn") > 0.2 + max(last(run, "knn", "raw"), last(run, "knn", "untrained"))


@pytest.mark.slow
def test_clips_learn(tmp_path: Path) -> None:
    """Twenty minutes. A linear probe of the mean token names the pattern of what moves."""
    pixels = ["--trainer.callbacks+=LinearProbe"]
    pixels += [f"--trainer.callbacks.{name}={value}" for name, value in RAW_CLIPS.items()]
    trained = fit("vjepa/moving_shapes", tmp_path / "trained", *pixels)
    untrained = fit("vjepa/moving_shapes", tmp_path / "untrained", *UNTRAINED, "--trainer.max_epochs=1")
    assert last(trained, "kind_mean") > 0.1 + max(last(untrained, "kind_mean"), last(trained, "pixels"))


@pytest.mark.slow
def test_texts_learn(tmp_path: Path) -> None:
    """Ten minutes. A linear probe of tokens names the part of speech of more bytes than the bytes themselves tell."""
    run = fit("data2vec/sentences", tmp_path)
    assert last(run, "part") > 0.08 + last(run, "part_raw")


@pytest.mark.slow
def test_sounds_learn(tmp_path: Path) -> None:
    """A quarter of an hour. A linear probe tells of more melodies which way they go than one of their spectra."""
    run = fit("data2vec2/tones", tmp_path)
    assert last(run, "contour") > 0.03 + last(run, "contour_raw")

"""The script of recipes/vjepa2ac: every kind of encoder is trained, frozen, planned with and read, in small."""

import csv
import importlib
from pathlib import Path
from typing import Any

import pytest

from jepa_lightning import RECIPES

SMALL = ["--episodes=6", "--encoder_steps=2", "--steps=2", "--tasks=2"]
SMALL += ["--samples=4", "--iterations=2", "--horizon=2", "--execute=2"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(RECIPES / "vjepa2ac"))
    return importlib.import_module("world_models")


# Up to ten seconds: an encoder and a predictor are trained, and episodes are played.
@pytest.mark.parametrize(
    ("encoder", "environment"),
    [
        ("lejepa", "TwoRoom"),
        ("vjepa2", "TwoRoom"),
        ("untrained", "PointMass"),
        ("states", "TwoRoom"),
        ("positions", "PointMass"),
        ("untrained", "PushT"),
        ("states", "PushT"),
    ],
)
def test_rows(encoder: str, environment: str, script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row for each seed and planner; another planner trains nothing anew."""
    if environment == "PushT":
        pytest.importorskip("gym_pusht")
    given = [*SMALL, "--environment", environment, "--encoder", encoder, "--folder", str(tmp_path)]
    script.main(given)
    (path,) = tmp_path.glob("*.ckpt")
    trained = path.stat().st_mtime_ns
    script.main([*given, "--planner", "MPPI"])
    assert path.stat().st_mtime_ns == trained
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["planner"] for row in rows] == ["CEM", "MPPI"]
    for row in rows:
        assert 0 <= float(row["success"]) <= 1
        assert float(row["relative_error"]) > 0
        assert len(row["relative_errors"].split()) == 5
    if encoder in ("states", "positions"):
        assert float(rows[0]["distance_correlation"]) > 0.8  # what is seen is, among others, where it is
    script.main([*given, "--correlate"])
    assert f"{environment}: too few models, 1" in capsys.readouterr().out


def test_references(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The expert arrives, whoever acts at random does not, and neither is written beside the models."""
    for policy, success in (("expert", "1.000"), ("random", "0.000")):
        script.main(["--policy", policy, "--tasks", "4", "--folder", str(tmp_path)])
        assert f"success {success}" in capsys.readouterr().out
    assert not (tmp_path / "results.csv").exists()


def test_correlation(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the models that the same planner played, and no others."""
    options = {"planner": "CEM", "horizon": 5, "samples": 128, "iterations": 6, "execute": 3, "last": 1, "tasks": 50}
    names = ["environment", *options, "rollout_error", "relative_error", "distance_correlation", "success"]
    rows = [[*options.values(), error, -error, 0.5 + error, 1 - error] for error in (0.1, 0.3, 0.2)]
    rows.append(["MPPI", *list(options.values())[1:], 0.9, 0.9, 0.9, 1.0])
    with (tmp_path / "results.csv").open("w", newline="") as file:
        csv.writer(file).writerows([names, *(["TwoRoom", *row] for row in rows)])
    script.main(["--correlate", "--folder", str(tmp_path)])
    printed = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" ")[2] for line in printed] == ["-1.00", "1.00", "-1.00"]
    assert all(line.startswith("TwoRoom, 3 models") for line in printed)

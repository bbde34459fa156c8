"""Whatever a configuration, a masking or a checkpoint file says: it works, or an error of ours says why not.

`pytest -m slow tests/test_fuzz.py` tries a hundred times as many inputs.
"""

from __future__ import annotations

import inspect
import math
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, TINY_VIDEO, quiet_trainer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jepa_lightning
from jepa_lightning import IJEPA, callbacks
from jepa_lightning.checkpoints import read_networks
from jepa_lightning.cli import main
from jepa_lightning.draws import Rng
from jepa_lightning.masking import MultiBlockMasking, TubeMasking

QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]


def examples(number: int) -> Any:
    """The same inputs at every run."""
    return settings(max_examples=number, deadline=None, derandomize=True, database=None, suppress_health_check=QUIET)


# --- Configurations --------------------------------------------------------------------------------------------------

TRAINED_ON = {"IJEPA": "images", "CJEPA": "images", "DMTJEPA": "images", "LeJEPA": "images"}
TRAINED_ON |= {"VJEPA": "videos", "VJEPA2": "videos"}
VIEWS = {name: value for name, value in TINY.items() if not name.startswith("predictor")}
VIEWS |= {"local_size": 8, "num_slices": 8, "projector": [12, 8]}
DATA: dict[str, tuple[str, dict[str, Any]]] = {
    "images": ("ShapesDataModule", {"image_size": 16, "num_train": 32}),
    "videos": ("MovingShapesDataModule", {"image_size": 16, "num_frames": 4, "num_train": 16}),
}
CALLBACKS = ["CollapseMonitor", "EMATargetEncoder", "GradientGuard", "KNNProbe", "LatentPictures", "LiDARMonitor"]
CALLBACKS += ["LinearProbe", "RegressionProbe", "AttentiveProbe", "Throughput"]
VALUES = ["-1", "0", "1", "2", "3", "5", "7", "8", "16", "48", "0.5", "1.5", "-0.1", "1e-3", ".nan", ".inf", "null"]
VALUES += ["true", "x", "''", "[]", "[1]", "[0, 0]", "[4, 8]", "[0.2, 0.1]", "[0.1, 0.3]", "[.nan, 1]", "{a: 1}"]
FEW = [value for value in VALUES if value not in ("16", "48")]  # processes


def options(kind: type) -> list[str]:
    """What the constructor of a class of ours takes, and those of its bases."""
    ours = [base for base in kind.__mro__ if base.__module__.startswith("jepa_lightning")]
    known = [each for base in ours for each in inspect.signature(base).parameters.values()]
    return sorted({each.name for each in known if each.kind is not each.VAR_KEYWORD})


def flow(values: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{name}: {value}" for name, value in values.items()) + "}"


@st.composite
def command_lines(draw: Any) -> tuple[str, list[str]]:
    """A method, and one or two options of it, its data or a callback that may be wrong."""
    method = draw(st.sampled_from(sorted(TRAINED_ON)))
    arguments = []
    for _ in range(draw(st.integers(1, 2))):
        places = ["model", "model", "data"] if "callbacks" in " ".join(arguments) else ["model", "data", "callback"]
        place = draw(st.sampled_from(places))
        if place == "callback":
            name = draw(st.sampled_from(CALLBACKS))
            kind = getattr(callbacks, name)
        else:
            kind = getattr(jepa_lightning, method if place == "model" else DATA[TRAINED_ON[method]][0])
        option = draw(st.sampled_from(options(kind)))
        value = draw(st.sampled_from(FEW if option == "num_workers" else VALUES))
        if place == "callback":
            given = ({"num_classes": 6} if "num_classes" in options(kind) else {}) | {option: value}
            arguments.append(f"--trainer.callbacks+={{class_path: {name}, init_args: {flow(given)}}}")
        else:
            arguments.append(f"--{place}.init_args.{option}={value}")
    return method, arguments


def try_out(folder: Path, method: str, arguments: list[str]) -> None:
    """Two batches of a training; only the parser may end it, or an error that our code raises with a message."""
    tiny = {"LeJEPA": VIEWS, "VJEPA": TINY_VIDEO, "VJEPA2": TINY_VIDEO}.get(method, TINY)
    name, data = DATA[TRAINED_ON[method]]
    config = {
        "model": flow({"class_path": method, "init_args": flow(tiny)}),
        "data": flow(
            {"class_path": name, "init_args": flow(data | {"num_val": 16, "batch_size": 8, "num_workers": 0})}
        ),
        "trainer": flow(
            {"accelerator": "cpu", "fast_dev_run": 2, "enable_progress_bar": "false", "default_root_dir": folder}
        ),
    }
    (folder / "config.yaml").write_text("\n".join(f"{key}: {value}" for key, value in config.items()))
    raised: BaseException | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            main(["fit", "--config", str(folder / "config.yaml"), *arguments])
    except (Exception, SystemExit) as error:
        raised = error
    what = f"{method} with {arguments}: {type(raised).__name__}: {raised}"
    if isinstance(raised, SystemExit):
        assert raised.code == 2, what
    elif raised is not None:
        place = Path(traceback.extract_tb(raised.__traceback__)[-1].filename)
        assert Path(jepa_lightning.__file__).parent in place.parents, f"{what} (of {place})"
        assert isinstance(raised, ValueError | TypeError | FileNotFoundError), what
        assert len(str(raised)) > 20, what


# Three seconds: trainings, among what is refused sooner.
@given(command_lines())
@examples(16)
def test_configurations(tmp_path: Path, line: tuple[str, list[str]]) -> None:
    try_out(tmp_path, *line)


@pytest.mark.slow
@given(command_lines())
@examples(1200)
def test_many_configurations(tmp_path: Path, line: tuple[str, list[str]]) -> None:
    try_out(tmp_path, *line)


# --- Masks -----------------------------------------------------------------------------------------------------------

shares = st.floats(-0.1, 1.2) | st.just(math.nan)
counts = st.none() | st.integers(-1, 40)
multi_block = st.fixed_dictionaries(
    {
        "num_targets": st.integers(-1, 6),
        "target_scale": st.tuples(shares, shares),
        "target_aspect": st.tuples(st.floats(-1, 4), st.floats(0.1, 9)),
        "context_scale": st.tuples(shares, shares),
        "context_tokens": counts,
        "target_tokens": counts,
        "min_keep": st.integers(0, 12),
        "official": st.booleans(),
    }
)
tubes = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(-1, 9),
        "spatial_scale": st.tuples(shares, shares),
        "temporal_scale": st.tuples(shares, shares),
        "aspect": st.tuples(st.floats(-1, 4), st.floats(0.1, 9)),
        "context_ratio": shares,
        "target_ratio": shares,
    }
)


def try_masking(kind: Any, arguments: dict[str, Any], grid: tuple[int, ...], batch_size: int, seed: int) -> None:
    """An error that says why, or masks within the grid: no place twice in a part, nothing in context and target."""
    try:
        masking = kind(**arguments)
        if kind is MultiBlockMasking:
            masking.check(grid)
        masks = masking(batch_size, grid, rng=Rng(seed, batch_size=batch_size))
    except ValueError as error:
        message = str(error)
        masks = None
    if masks is None:
        assert len(message) > 20
        return
    for part in (masks.context.unsqueeze(1), masks.targets):
        assert len(part) == batch_size
        assert part.shape[-1] > 0
        assert 0 <= int(part.min()) <= int(part.max()) < math.prod(grid)
        ordered = part.sort(-1).values
        assert (ordered[..., 1:] > ordered[..., :-1]).all()
    if getattr(masking, "official", False):  # which lets context and targets overlap before it gives up
        return
    hidden = torch.zeros(batch_size, math.prod(grid), dtype=torch.bool).scatter_(1, masks.targets.flatten(1), True)
    assert not hidden.gather(1, masks.context).any()
    if kind is MultiBlockMasking:
        for asked, part in ((masking.context_tokens, masks.context), (masking.target_tokens, masks.targets)):
            assert asked is None or part.shape[-1] == asked


kinds = st.one_of(
    st.tuples(st.just(MultiBlockMasking), multi_block, st.tuples(st.integers(1, 16), st.integers(1, 16))),
    st.tuples(st.just(TubeMasking), tubes, st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))),
)


@given(kinds, st.integers(1, 9), st.integers(0, 1000))
@examples(100)
def test_masks(kind: Any, batch_size: int, seed: int) -> None:
    try_masking(*kind, batch_size, seed)


@pytest.mark.slow
@given(kinds, st.integers(1, 9), st.integers(0, 1000))
@examples(8000)
def test_many_masks(kind: Any, batch_size: int, seed: int) -> None:
    try_masking(*kind, batch_size, seed)


# --- Checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    trainer = quiet_trainer(folder)
    trainer.strategy.connect(IJEPA(**TINY))
    trainer.save_checkpoint(folder / "it.ckpt")
    return (folder / "it.ckpt").read_bytes()


def try_file(folder: Path, whole: bytes, spoilt: bytes) -> None:
    """Refused with a message, or, where nothing that matters was changed, read as the whole one is."""
    (folder / "whole.ckpt").write_bytes(whole)
    (folder / "spoilt.ckpt").write_bytes(spoilt)
    expected = read_networks(folder / "whole.ckpt").states
    found, message = None, ""
    try:
        found = read_networks(folder / "spoilt.ckpt").states
    except ValueError as error:
        message = str(error)
    if found is None:
        assert "spoilt.ckpt" in message
        return
    for network, state in expected.items():
        assert all(
            torch.equal(torch.as_tensor(value), torch.as_tensor(found[network][name])) for name, value in state.items()
        )


flips = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=3)


def flipped(whole: bytes, bits: list[tuple[float, int]]) -> bytes:
    spoilt = bytearray(whole)
    for place, bit in bits:
        spoilt[int(place * len(whole))] ^= 1 << bit
    return bytes(spoilt)


@given(flips)
@examples(40)
def test_flipped_bits(tmp_path: Path, checkpoint: bytes, bits: list[tuple[float, int]]) -> None:
    try_file(tmp_path, checkpoint, flipped(checkpoint, bits))


@given(st.floats(0, 1, exclude_max=True))
@examples(15)
def test_files_cut_short(tmp_path: Path, checkpoint: bytes, kept: float) -> None:
    try_file(tmp_path, checkpoint, checkpoint[: int(kept * len(checkpoint))])


@pytest.mark.slow
@given(flips)
@examples(4000)
def test_many_flipped_bits(tmp_path: Path, checkpoint: bytes, bits: list[tuple[float, int]]) -> None:
    try_file(tmp_path, checkpoint, flipped(checkpoint, bits))

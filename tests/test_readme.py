"""What README and the pages beside it promise: code runs, commands run, links lead somewhere, no recipe is left out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY_AC, loader, quiet_trainer
from torch.utils.data import TensorDataset

import jepa_lightning
from jepa_lightning import IJEPA, RECIPES, VJEPA2AC, EpisodesDataModule
from jepa_lightning.cli import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", DOCS / "at-scale.md", DOCS / "your-own-method.md", ROOT / "recipes" / "README.md"]
FAST = "--trainer.max_epochs=1 --trainer.enable_progress_bar=false --trainer.accelerator=cpu"
DATA = "--data.image_size=16 --data.batch_size=32 --data.num_train=96 --data.num_val=64 --data.num_workers=0"
# What the commands of README are given besides, so that they take seconds.
SMALLER = [
    f"{DATA} --model.image_size=16 --model.patch_size=4 {FAST}",
    f"{DATA} --steps=2",
    f"{DATA.replace('--data.', '--data.data.')} --trainer.check_val_every_n_epoch=1 {FAST}",
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The `jepa` commands of a page, without prompts, comments and line breaks."""
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    parts = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [part[1:] for part in parts if part[:1] == ["jepa"]]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    yield
    torch.compiler.reset()


def write_official(path: Path) -> None:
    """A checkpoint in the layout of facebookresearch/ijepa, of a published width but one block only."""
    module = IJEPA(224, 14, embed_dim=384, depth=1, num_heads=6, predictor_embed_dim=384, predictor_depth=1)
    names = {"encoder": "context_encoder", "predictor": "predictor", "target_encoder": "target_encoder"}
    states = {theirs: module.get_submodule(ours).state_dict() for theirs, ours in names.items()}
    torch.save({key: {f"module.{name}": value for name, value in state.items()} for key, state in states.items()}, path)


def write_world_model(path: Path) -> None:
    """A tiny one of TwoRoom that was trained for a step."""
    planner = {"class_path": "CEM", "init_args": {"horizon": 2, "samples": 4, "elites": 2, "iterations": 1}}
    module = VJEPA2AC(**TINY_AC | {"action_dim": 10, "state_dim": 0, "planner": planner})
    data = EpisodesDataModule(
        environment={"id": "jepa_lightning/TwoRoom-v0"}, observation="scene", draw=True, num_episodes=2, max_steps=20,
        steps=3, stride=5, batch_size=2, held_out=0.0,
    )  # fmt: skip
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(module, data)
    trainer.save_checkpoint(path)


def labelled(number: int, size: int = 64) -> Any:
    """Batches of images with a class."""
    return loader(TensorDataset(torch.randn(number, 3, size, size), torch.arange(number) % 10))


# Three seconds: ten epochs, and a picture of the spectrum in each.
@pytest.mark.filterwarnings("ignore:.*")
def test_code() -> None:
    """In the order of the page, each piece with what the ones before have defined."""
    write_official(Path("IN1K-vit.h.14-300e.pth.tar"))
    write_world_model(Path("two_room.ckpt"))
    names: dict[str, Any] = {"train_loader": labelled(4), "val_loader": labelled(4)}
    code = blocks(ROOT / "README.md", "python")
    assert len(code) == 4
    for piece in code:
        exec(compile(piece, "README.md", "exec"), names)
    assert names["trainer"].global_step == 10
    assert {"train/target_std", "probe/knn/accuracy", "probe/linear/accuracy"} <= set(names["trainer"].callback_metrics)
    assert names["features"].shape == (1, 384)
    assert names["frame"].shape == (64, 64, 3)
    assert type(names["module"]) is IJEPA
    assert names["module"].hparams.lr == 1e-4
    assert sorted(path.name for path in Path("my-ijepa").iterdir()) == ["config.json", "model.safetensors"]


def test_code_of_the_page_at_scale() -> None:
    """A DataModule with the loader of the page resumes where it was, and a compiled module is one still."""
    own, compiling = (
        next(piece for piece in blocks(DOCS / "at-scale.md", "python") if word in piece)
        for word in ("Order", "torch.compile")
    )
    names: dict[str, Any] = {"torch": torch, "module": IJEPA(16, 4, embed_dim=12, depth=1, num_heads=2)}
    exec(compile(own, "at-scale.md", "exec"), names)
    exec(compile(compiling, "at-scale.md", "exec"), names)

    class Data:
        train_set, batch_size, trainer = TensorDataset(torch.arange(32)), 8, None

    batches = [torch.cat(list(batch)) for batch in names["train_dataloader"](Data())]
    assert sorted(torch.cat(batches).tolist()) == list(range(32))
    assert [len(batch) for batch in batches] == [8] * 4


@pytest.mark.filterwarnings("ignore:.*")
def test_code_of_the_page_on_methods() -> None:
    """The method trains, under its monitor and probe."""
    names: dict[str, Any] = {}
    for piece in blocks(DOCS / "your-own-method.md", "python"):
        exec(compile(piece, "your-own-method.md", "exec"), names)
    assert names["trainer"].global_step == 2 * 4
    expected = {"train/loss", "train/momentum", "val/loss", "collapse/target/rankme", "probe/linear/accuracy"}
    assert expected <= set(names["trainer"].callback_metrics)


# Six seconds: one of the three commands trains and tests two dozen probes.
@pytest.mark.filterwarnings("ignore:.*")
def test_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One after the other, as a reader would give them; on less data."""
    given = commands(ROOT / "README.md")
    assert [command[0] for command in given] == ["fit", "evaluate", "fit"]
    for command, smaller in zip(given, SMALLER, strict=True):
        main([*command, *smaller.split()])
    assert Path("lightning_logs/version_0/checkpoints/last.ckpt").exists()
    assert "segmentation" in capsys.readouterr().out


def test_links() -> None:
    """Links and pictures within the repository."""
    for page in PAGES:
        targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        assert targets or page.name != "README.md"
        missing = [target for target in targets if not (page.parent / target).exists()]
        assert not missing, f"{page}: {missing}"


def test_methods_are_listed() -> None:
    """Every module of the package in README's table."""
    table = (ROOT / "README.md").read_text().split("## Methods")[1].split("##")[0]
    public = {
        name for name in dir(jepa_lightning) if name.endswith(("JEPA", "JEPA2", "JEPA2AC", "Data2Vec", "Data2Vec2"))
    } - {
        "JEPA",
        "MaskedJEPA",
    }
    assert set(re.findall(r"\| `(\w+)` \|", table)) == public


def test_recipes_are_listed() -> None:
    """Every recipe once in the catalogue, and nothing that is not there."""
    catalogue = (ROOT / "recipes" / "README.md").read_text().split("## Catalogue")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `([\w/.]+)` \|", catalogue, re.MULTILINE)
    files = {str(path.relative_to(RECIPES)) for kind in ("yaml", "sh") for path in RECIPES.rglob(f"*.{kind}")}
    assert sorted(listed) == sorted(files)

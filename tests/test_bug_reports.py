"""Kinds of fault that bug reports of other projects tell of: what is given is used or refused, and nothing is lost."""

import enum
import io
import json
import os
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers import METHODS, TINY, LabelledImages, loader, observations, quiet_trainer, random_images
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from jepa_lightning import IJEPA, ImageDataModule, ShapesDataModule, VideoDataModule, load_encoder, save_for_timm
from jepa_lightning import save_for_transformers as save_for_hub
from jepa_lightning.callbacks import (
    CollapseMonitor,
    EMATargetEncoder,
    GradientGuard,
    KNNProbe,
    LinearProbe,
    RegressionProbe,
)
from jepa_lightning.checkpoints import SafeCheckpointIO
from jepa_lightning.checkpoints.plain import plain
from jepa_lightning.cli import main
from jepa_lightning.data.faults import UnreadableError
from jepa_lightning.data.samples import Sample, read_image
from jepa_lightning.masking import MultiBlockMasking
from jepa_lightning.networks import TimmEncoder, VisionTransformer

MODEL = ["--model=IJEPA", *(f"--model.{name}={value}" for name, value in TINY.items())]
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def tiny(**options: Any) -> IJEPA:
    torch.manual_seed(0)
    return IJEPA(**TINY | options)


def picture(path: Path, grey: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (grey, grey, grey)).save(path)
    return path


def images(root: Path, dataset: str = "folder", **options: Any) -> ImageDataModule:
    chosen = {"image_size": 16, "batch_size": 2, "num_workers": 0, "crop_scale": None} | options
    return ImageDataModule(dataset, str(root), **chosen)


def videos(root: Path, dataset: str = "folder", **options: Any) -> VideoDataModule:
    chosen = {"num_frames": 1, "image_size": 16, "batch_size": 2, "num_workers": 0, "decoder": "pyav"} | options
    return VideoDataModule(str(root), dataset, **chosen)


EACH_MODULE = pytest.mark.parametrize("module", [images, videos])


def labels(data: Any) -> list[int]:
    data.setup("fit")
    return sorted(label for batch in data.train_dataloader() for label in batch.label.tolist())


# --- One reader of pixels --------------------------------------------------------------------------------------------

RAMP = np.linspace(0, 1, 256)
DEEP = {
    "16-bit PNG": ("a.png", (RAMP * 65535).astype(np.uint16)),
    "16-bit TIFF": ("a.tif", (RAMP * 65535).astype(np.uint16)),
    "big-endian TIFF": ("a.tif", (RAMP * 65535).astype(">u2")),
    "float TIFF": ("a.tif", RAMP.astype(np.float32)),
}


@pytest.mark.parametrize("kind", DEEP)
def test_deep_images_keep_their_greys(kind: str, tmp_path: Path) -> None:
    name, ramp = DEEP[kind]
    Image.fromarray(np.tile(ramp, (4, 1))).save(tmp_path / name)
    pixels = read_image(Sample(name, None, str(tmp_path / name)))
    assert pixels.shape == (3, 4, 256)
    assert (pixels.float() - torch.arange(256)).abs().max() <= 1


@pytest.mark.parametrize("ramp", [(RAMP * 700).astype(np.float32), (RAMP * 9).astype(np.int32)])
def test_numbers_of_unknown_range_are_refused(ramp: Any, tmp_path: Path) -> None:
    Image.fromarray(np.tile(ramp, (4, 1))).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableError, match="range"):
        read_image(Sample("a", None, (tmp_path / "a.tif").read_bytes()))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_the_camera_says(orientation: int, tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10).convert("RGB")
    exif = image.getexif()
    exif[0x112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    assert np.array_equal(read_image(Sample("a", None, str(tmp_path / "a.png"))).permute(1, 2, 0), expected)


# --- One walker of folders -------------------------------------------------------------------------------------------


@EACH_MODULE
def test_hidden_and_empty_folders_are_no_classes(module: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("cat/0.png", "dog/0.png", "dog/._0.png", ".ipynb_checkpoints/0.png", ".hidden.png"):
        picture(tmp_path / "train" / name)
    (tmp_path / "train/aardvark/empty").mkdir(parents=True)
    assert labels(module(tmp_path)) == [0, 1]


@EACH_MODULE
def test_links_are_followed_but_not_back_up(module: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("train/cat/0.png", "train/dog/0.png", "elsewhere/1.png"):
        picture(tmp_path / name)
    os.symlink("..", tmp_path / "train/cat/up")
    os.symlink("../..", tmp_path / "train/dog/up")
    os.symlink("../../elsewhere", tmp_path / "train/dog/more")
    assert labels(module(tmp_path, batch_size=3)) == [0, 1, 1]


@EACH_MODULE
def test_what_was_found_is_said(module: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train/cat/0.png", "train/dog/0.png"):
        picture(tmp_path / name)
    with caplog.at_level("INFO", "lightning.pytorch"):
        module(tmp_path).setup("fit")
    assert any("2 classes (cat, dog)" in message for message in caplog.messages)


# --- Shards ----------------------------------------------------------------------------------------------------------


def shard(path: Path, *names: str) -> None:
    content = io.BytesIO()
    Image.new("RGB", (16, 16)).save(content, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in names:
            data = b"1" if name.endswith("cls") else content.getvalue()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


LISTED_OR_STREAMED = pytest.mark.parametrize("stream", [{}, {"samples_per_epoch": 2}])


@EACH_MODULE
@LISTED_OR_STREAMED
def test_samples_that_a_dot_makes_one_are_refused(
    module: Callable[..., Any], stream: dict[str, int], tmp_path: Path
) -> None:
    shard(tmp_path / "train/0.tar", *(f"clip.{n}.{kind}" for n in range(3) for kind in ("png", "cls")))
    data = module(tmp_path, "shards", **stream)
    with pytest.raises(RuntimeError, match=r"clip has 3 files of one kind"):
        labels(data)


@LISTED_OR_STREAMED
def test_further_files_of_a_sample_stand_aside(stream: dict[str, int], tmp_path: Path) -> None:
    """A second picture beside the first, hidden files, and a label of an observation with a dot."""
    shard(tmp_path / "train/0.tar", "a.seg.png", "a.png", "a.cls", "._a.png", "b.left.png", "b.left.cls")
    assert labels(images(tmp_path, "shards", **stream)) == [1, 1]


@EACH_MODULE
@LISTED_OR_STREAMED
def test_samples_with_and_without_label_are_refused(
    module: Callable[..., Any], stream: dict[str, int], tmp_path: Path
) -> None:
    shard(tmp_path / "train/0.tar", "a.png", "b.png", "b.cls")
    with pytest.raises(RuntimeError, match="label"):
        labels(module(tmp_path, "shards", **stream))


def test_a_file_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    shard(tmp_path / "train/0.tar", "a.png", "a.png", "b.png")
    with pytest.raises(RuntimeError, match=r"a\.png twice"):
        images(tmp_path, "shards").setup("fit")


# --- No result, no success -------------------------------------------------------------------------------------------


@EACH_MODULE
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_held_out_data_that_are_not_there(module: Callable[..., Any], stage: str, tmp_path: Path) -> None:
    picture(tmp_path / "train/cat/0.png")
    data = module(tmp_path, batch_size=1)
    data.setup("fit")  # a fit goes without
    with pytest.raises(FileNotFoundError, match="held-out"):
        data.setup(stage)


class Empty(pl.LightningDataModule):
    """Data of a user's own, of which nothing is left."""

    def test_dataloader(self) -> Any:
        return []

    val_dataloader = predict_dataloader = test_dataloader


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_commands_without_a_batch_fail(command: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Empty gave no batch"):
        main([command, *MODEL, *QUIET, "--trainer.logger=false", f"--data={__name__}.Empty"])


# --- The last checkpoint ---------------------------------------------------------------------------------------------


def fit(folder: Path, *more: str) -> None:
    data = ["--data=ShapesDataModule", "--data.image_size=16", "--data.num_train=16", "--data.num_val=8"]
    data += ["--data.batch_size=8", "--data.num_workers=0", f"--trainer.default_root_dir={folder}"]
    main(["fit", *MODEL, *QUIET, *data, "--trainer.max_epochs=1", "--trainer.logger=false", *more])


def test_last_is_the_newest_complete_checkpoint(tmp_path: Path) -> None:
    """A run was killed while it wrote its newest checkpoint: the one before is gone on from, with a word."""
    with pytest.warns(UserWarning, match="no complete checkpoint.*anew"):
        fit(tmp_path, "--ckpt_path=last")
    (complete,) = tmp_path.glob("checkpoints/*.ckpt")
    cut = complete.with_name("last.ckpt")
    cut.write_bytes(complete.read_bytes()[:-1000])
    os.utime(cut, ns=(complete.stat().st_mtime_ns + 10**9,) * 2)
    with pytest.warns(UserWarning, match=r"last\.ckpt is not complete"):
        fit(tmp_path, "--ckpt_path=last", "--trainer.max_epochs=2")
    newest = max(tmp_path.glob("checkpoints/epoch*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    assert torch.load(newest, weights_only=True)["global_step"] == 4  # two steps an epoch


def test_last_is_an_error_where_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(
            ["predict", *MODEL, "--data=ShapesDataModule", f"--trainer.default_root_dir={tmp_path}", "--ckpt_path=last"]
        )
    assert "no complete checkpoint" in capsys.readouterr().err


# --- Objects live longer than a fit ----------------------------------------------------------------------------------


class Collapsed(IJEPA):
    def loss(self, latents: Any) -> dict[str, Tensor]:
        return {"loss": 0.0 * super().loss(latents)["loss"]}

    def latents(self, batch: Any, drawn: Any = None) -> Any:
        found = super().latents(batch, drawn)
        ((name, each),) = found.predictions.items()
        return found._replace(predictions={name: each._replace(prediction=0 * each.prediction + 1)})


def test_the_alarm_is_raised_in_a_second_training(tmp_path: Path) -> None:
    monitor, steps = CollapseMonitor(every_n_steps=1, on_collapse="stop"), []
    for _ in range(2):
        trainer = quiet_trainer(tmp_path, max_steps=20, callbacks=[monitor])
        trainer.fit(Collapsed(**TINY), loader(random_images(16)))
        steps.append(trainer.global_step)
    assert steps[0] == steps[1] < 20


@pytest.mark.parametrize("make", [KNNProbe, lambda: LinearProbe(4), lambda: RegressionProbe(label="other")])
def test_probes_know_one_training_of_one_module(make: Callable[[], Any], tmp_path: Path) -> None:
    """They start anew with a fit or another module, of another width, too; one that they know they score again."""
    probe, data, first = make(), loader(LabelledImages(32)), tiny()
    name = f"probe/{probe.name}/{'r2' if isinstance(probe, RegressionProbe) else 'accuracy'}"

    def scores(module: IJEPA) -> dict[str, Any]:
        return dict(quiet_trainer(tmp_path, callbacks=[probe]).validate(module, data, verbose=False)[0])

    def fitted(module: IJEPA, probe: Any) -> float:
        trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[probe])
        trainer.fit(module, data, data)
        return float(trainer.callback_metrics[name])

    once = fitted(first, probe)
    assert scores(first)[name] == pytest.approx(once)
    assert name not in scores(tiny())
    wide = {"embed_dim": 32}
    assert fitted(tiny(**wide), probe) == fitted(tiny(**wide), make())


def test_norms_of_one_training_are_not_usual_in_another(tmp_path: Path) -> None:
    class Steep(IJEPA):
        def loss(self, latents: Any) -> dict[str, Tensor]:
            return {"loss": 1e4 * super().loss(latents)["loss"]}

    guard = GradientGuard(spike=30.0)
    for module in (tiny(), Steep(**TINY)):
        trainer = quiet_trainer(tmp_path, max_epochs=4, callbacks=[guard])
        trainer.fit(module, loader(random_images(64)))
        assert trainer.callback_metrics["train/skipped_steps"] == 0


# --- What is saved can be read ---------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(0.5), 0.5),
        (np.array([1, 2]), [1, 2]),
        (Path("a/b"), "a/b"),
        (Colour.RED, "red"),
        ({Path("a"): (np.int64(1), [np.bool_(True)])}, {"a": (1, [True])}),
        ({"x": torch.float32, "y": None}, {"x": torch.float32, "y": None}),
    ],
)
def test_plain_values(value: Any, expected: Any, tmp_path: Path) -> None:
    made = plain(value, "it")
    assert made == expected
    torch.save(made, tmp_path / "a.pt")
    assert torch.load(tmp_path / "a.pt", weights_only=True) == expected


@pytest.mark.parametrize("options", [{"lr": np.float64(1e-3)}, {"weight_decay": (np.float32(0.04), 0.4)}])
def test_options_of_other_libraries_are_saved_as_plain_values(options: dict[str, Any], tmp_path: Path) -> None:
    picture(tmp_path / "data/train/cat/0.png")
    data = ImageDataModule("folder", tmp_path / "data", 16, batch_size=1, num_workers=0)  # type: ignore[arg-type]
    trainer = quiet_trainer(tmp_path, max_steps=1)
    trainer.fit(tiny(**options), data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = SafeCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")
    assert checkpoint["datamodule_hyper_parameters"]["root"] == str(tmp_path / "data")
    assert isinstance(IJEPA.load_from_checkpoint(tmp_path / "a.ckpt"), IJEPA)
    assert load_encoder(tmp_path / "a.ckpt").embed_dim == 16


def test_weights_may_be_a_path(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, max_steps=1)
    trainer.fit(tiny(), loader(random_images(8)))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    other = tiny(weights={"context_encoder": tmp_path / "a.ckpt"})
    trainer = quiet_trainer(tmp_path, max_steps=1)
    trainer.fit(other, loader(random_images(8)))
    trainer.save_checkpoint(tmp_path / "b.ckpt")
    assert isinstance(IJEPA.load_from_checkpoint(tmp_path / "b.ckpt"), IJEPA)


class WithObject(IJEPA):
    def __init__(self, network: Any, **options: Any) -> None:
        super().__init__(**options)


class Keeping(pl.Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"thing": object()}


@pytest.mark.parametrize(
    ("module", "callbacks", "named"),
    [
        (lambda: WithObject(nn.Linear(2, 2), **TINY), [], r"WithObject\.network is a torch\.nn.*Linear"),
        (lambda: WithObject(len, **TINY), [], r"WithObject\.network"),
        (tiny, [Keeping()], r"Keeping\.thing"),
    ],
)
def test_what_cannot_be_read_is_refused_before_training(
    module: Callable[[], IJEPA], callbacks: list[Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match=named):
        quiet_trainer(tmp_path, max_steps=1, callbacks=callbacks).fit(module(), loader(random_images(8)))


# One by default: to compile takes seconds.
SOME = ("I-JEPA",)
SOME_METHODS = pytest.mark.parametrize(
    "name", [name if name in SOME else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)


def compiled(module: Any) -> Any:
    """With networks compiled one by one, as users do."""
    for name, network in list(module.named_children()):
        if any(True for _ in network.parameters()):
            setattr(module, name, torch.compile(network, backend="eager"))
    return module


@SOME_METHODS
def test_checkpoints_of_compiled_networks(name: str, tmp_path: Path) -> None:
    """They have the names of any other: a module reads them, compiled or not, and a run goes on from them."""
    base, options = METHODS[name]
    data, steps = loader(observations(name, 8)), {"max_epochs": -1, "max_steps": 2}
    torch.manual_seed(0)
    trainer = quiet_trainer(tmp_path, max_steps=1)
    trainer.fit(compiled(base(**options)), data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert isinstance(base.load_from_checkpoint(tmp_path / "a.ckpt"), base)
    load_encoder(tmp_path / "a.ckpt", network="context_encoder")
    for module in (base(**options), compiled(base(**options))):
        resumed = quiet_trainer(tmp_path, **steps)
        resumed.fit(module, data, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
        assert resumed.global_step == 2


def test_compiled_encoders_are_exported(tmp_path: Path) -> None:
    encoder = VisionTransformer((16, 16), (4, 4), embed_dim=16, depth=1, num_heads=2).eval()
    wrapped: Any = torch.compile(encoder, backend="eager")
    save_for_timm(wrapped, tmp_path / "timm.safetensors")
    assert load_file(tmp_path / "timm.safetensors").keys() == encoder.state_dict().keys()
    save_for_hub(wrapped, tmp_path / "hub")
    x = random_images(2)
    assert torch.allclose(load_encoder(tmp_path / "hub")(x), encoder(x), atol=1e-6)


def test_a_checkpoint_is_not_full_of_raw_pixels(tmp_path: Path) -> None:
    """The bank of a probe of raw input is filled from the data again; that of features is kept."""
    probes = [KNNProbe(), KNNProbe("pixels", source="observation")]
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=probes)
    trainer.fit(tiny(), loader(LabelledImages(16)))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    states = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]
    assert "KNNProbe[knn]" in states
    assert not states.get("KNNProbe[pixels]")


# --- A property is tried, not a class --------------------------------------------------------------------------------


def test_timm_models_whose_patches_overlap_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden"):
        TimmEncoder("vit_tiny_r_s16_p8_224", image_size=(64, 64))


class Leaking(nn.Module):
    """An encoder of a user's own that looks at the whole image, whatever is hidden."""

    embed_dim = 16

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.projection = kind, nn.Conv2d(3, 16, 4, 4)

    def grid_of(self, x: Tensor) -> tuple[int, int]:
        return x.shape[-2] // 4, x.shape[-1] // 4

    def forward(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        tokens = self.projection(x).flatten(2).mT
        if self.kind == "mean":
            tokens = tokens + tokens.mean(1, keepdim=True)
        if indices is None or self.kind == "all":
            return tokens
        return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, 16))


@pytest.mark.parametrize(("kind", "message"), [("mean", "hidden"), ("all", "16 tokens .* 15 were asked"), ("none", "")])
def test_encoders_that_leak_are_refused(kind: str, message: str, tmp_path: Path) -> None:
    sizes = {name: TINY[name] for name in ("image_size", "predictor_embed_dim", "predictor_depth")}
    encoder = {"class_path": f"{__name__}.Leaking", "init_args": {"kind": kind}}
    module = IJEPA(encoder=encoder, predictor_num_heads=2, **sizes)
    trainer = quiet_trainer(tmp_path, max_steps=1)
    if not message:
        trainer.fit(module, loader(random_images(8)))
        return
    with pytest.raises(ValueError, match=message):
        trainer.fit(module, loader(random_images(8)))


@pytest.fixture
def hub(tmp_path: Path) -> tuple[VisionTransformer, Path]:
    encoder = VisionTransformer((16, 16), (4, 4), embed_dim=16, depth=1, num_heads=2).eval()
    save_for_hub(encoder, tmp_path / "hub")
    return encoder, tmp_path / "hub"


def test_weights_in_several_files(hub: tuple[VisionTransformer, Path]) -> None:
    encoder, folder = hub
    weights = load_file(folder / "model.safetensors")
    parts = {"model-1-of-2.safetensors": sorted(weights)[::2], "model-2-of-2.safetensors": sorted(weights)[1::2]}
    for file, names in parts.items():
        save_file({name: weights[name] for name in names}, folder / file)
    (folder / "model.safetensors").unlink()
    table = {name: file for file, names in parts.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    x = random_images(2)
    assert torch.allclose(load_encoder(folder)(x), encoder(x), atol=1e-6)
    (folder / "model-2-of-2.safetensors").unlink()
    with pytest.raises(ValueError, match="model-2-of-2"):
        load_encoder(folder)


def configure(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(("name", "value"), [("hidden_act", "relu"), ("qkv_bias", False)])
def test_settings_of_other_networks_are_refused(hub: tuple[VisionTransformer, Path], name: str, value: Any) -> None:
    configure(hub[1], **{name: value})
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        load_encoder(hub[1])


def test_another_epsilon_is_used(hub: tuple[VisionTransformer, Path]) -> None:
    configure(hub[1], layer_norm_eps=1e-2)
    assert load_encoder(hub[1]).norm.eps == 1e-2
    with pytest.raises(ValueError, match="epsilon of 0"):
        quiet_trainer(max_steps=1).fit(tiny(depth=1, weights={"context_encoder": hub[1]}), loader(random_images(8)))


def test_weights_that_no_network_takes_are_refused(hub: tuple[VisionTransformer, Path]) -> None:
    weights = load_file(hub[1] / "model.safetensors")
    save_file(weights | {"classifier.weight": torch.ones(2)}, hub[1] / "model.safetensors")  # a head on top
    load_encoder(hub[1])
    save_file(weights | {"encoder.layer.0.layer_scale1.lambda1": torch.ones(16)}, hub[1] / "model.safetensors")
    with pytest.raises(ValueError, match="layer_scale1"):
        load_encoder(hub[1])


# --- What goes by the class, compiles or searches --------------------------------------------------------------------


def test_linear_layers_are_found() -> None:
    encoder = VisionTransformer((16, 16), (4, 4), embed_dim=16, depth=2, num_heads=2).eval()
    quantised = torch.ao.quantization.quantize_dynamic(encoder, {nn.Linear})
    assert (
        sum("Dynamic" in type(part).__name__ or "dynamic" in type(part).__module__ for part in quantised.modules()) == 8
    )
    x = random_images(2)
    assert (quantised(x) - encoder(x)).abs().max() < 0.3
    seen: list[Any] = []
    encoder.blocks[0].mlp.fc1.register_forward_hook(lambda *_: seen.append(1))
    encoder(x)
    assert seen == [1]


@SOME_METHODS
def test_the_whole_module_compiles(name: str, tmp_path: Path) -> None:
    base, options = METHODS[name]
    trainer = quiet_trainer(tmp_path, max_steps=1)
    whole: Any = torch.compile(base(**options), backend="eager")
    trainer.fit(whole, loader(observations(name, 4), 4))
    assert trainer.global_step == 1


# Two to four seconds: a search is many short fits.
@pytest.mark.parametrize(("kind", "mode"), [("shapes", "power"), ("images", "binsearch")])
def test_a_search_for_the_batch_size_ends_with_the_data(kind: str, mode: str, tmp_path: Path) -> None:
    for number in range(6):
        picture(tmp_path / f"train/cat/{number}.png")
    shapes = ShapesDataModule(16, num_train=6, num_val=2, batch_size=2, num_workers=0)
    data = shapes if kind == "shapes" else images(tmp_path)
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Tuner(trainer).scale_batch_size(tiny(), datamodule=data, mode=mode, steps_per_trial=1)
    assert found == data.batch_size <= 6
    quiet_trainer(tmp_path, max_steps=1).fit(tiny(), data)


def test_checkpoints_of_a_run_hold_no_more_than_it_needs(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path)
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[saving], enable_checkpointing=True)
    module = tiny()
    trainer.fit(module, DataLoader(random_images(8), 8))
    numbers = sum(parameter.numel() for parameter in module.parameters())
    (file,) = tmp_path.glob("*.ckpt")
    assert file.stat().st_size < 4 * numbers * 4 + 100_000  # weights, two moments, and names


# --- What is given is used or refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: MultiBlockMasking(official=True, context_tokens=6), "context_tokens=6"),
        (lambda: MultiBlockMasking(min_keep=4), "min_keep=4"),
        (lambda: EMATargetEncoder(stretch=1.5), r"stretch=1\.5"),
    ],
)
def test_options_that_nothing_would_read(make: Callable[[], Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()


def test_a_teacher_callback_without_a_teacher(tmp_path: Path) -> None:
    base, options = METHODS["LeJEPA"]
    trainer = quiet_trainer(tmp_path, max_steps=1, callbacks=[EMATargetEncoder((0.9, 1.0))])
    with pytest.raises(ValueError, match="LeJEPA names no teachers"):
        trainer.fit(base(**options), loader(random_images(8)))


def test_a_monitor_that_would_never_read(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"every_n_steps=9 .* has 2"):
        quiet_trainer(tmp_path, max_epochs=1, callbacks=[CollapseMonitor(9)]).fit(tiny(), loader(random_images(16)))


def test_sizes_of_numpy_are_numbers() -> None:
    module = tiny(image_size=np.int64(16), depth=np.int32(1))
    assert (module.hparams.image_size, type(module.hparams.depth), module.grid) == (16, int, (4, 4))

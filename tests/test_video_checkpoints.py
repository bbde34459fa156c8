"""Checkpoints of clips: official ones, ours, and those of transformers, which computes the same features."""

import json
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers import GOLDEN, GOLDEN_VIDEO, TINY_VIDEO, assert_close, loader, quiet_trainer, random_clips
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from jepa_lightning import IJEPA, VJEPA, VJEPA2, load_encoder, save_for_transformers
from jepa_lightning.checkpoints import (
    predictor_sizes,
    read_networks,
    video_transformer_sizes,
    vision_transformer_sizes,
)
from jepa_lightning.networks import Predictor, VideoTransformer, VisionTransformer
from jepa_lightning.networks.positions import sincos_positions

OFFICIAL = {method: str(folder / "checkpoint.pt") for method, folder in GOLDEN_VIDEO.items()}
METHODS: dict[str, type[VJEPA]] = {"vjepa": VJEPA, "vjepa2": VJEPA2}
HEADS = {"num_heads": 3, "predictor_num_heads": 3}
NETWORKS = {"context_encoder": "encoder", "predictor": "predictor", "target_encoder": "target_encoder"}


@cache
def trace(method: str) -> dict[str, Tensor]:
    return load_file(GOLDEN_VIDEO[method] / "trace.safetensors")


def official(method: str) -> dict[str, dict[str, Tensor]]:
    """The networks of an official file, under the names without the wrappers'."""
    checkpoint = torch.load(OFFICIAL[method], weights_only=True)
    return {
        ours: {name.removeprefix("module.backbone."): value for name, value in checkpoint[theirs].items()}
        for ours, theirs in NETWORKS.items()
    }


def changed(folder: Path, method: str, edit: Callable[[dict[str, dict[str, Tensor]]], Any]) -> str:
    """An official file after a change of its networks."""
    checkpoint = torch.load(OFFICIAL[method], weights_only=True)
    edit(checkpoint)
    torch.save(checkpoint, folder / "changed.pt")
    return str(folder / "changed.pt")


def assert_same(network: nn.Module, state: dict[str, Tensor]) -> None:
    own = network.state_dict()
    assert own.keys() == state.keys()
    for name, value in own.items():
        assert torch.equal(value, state[name]), name


# --- Official files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_from_official(method: str) -> None:
    """Every weight is that of the file, and the positions tell the size of V-JEPA's clips."""
    module = METHODS[method].from_official(OFFICIAL[method], **HEADS, lr=0.25, masks=[{"num_blocks": 3}])
    for network, state in official(method).items():
        assert_same(module.get_submodule(network), state)
    assert module.context_encoder.grid == {"vjepa": (2, 4, 4), "vjepa2": (32, 32, 32)}[method]
    assert module.predictor.grid == module.context_encoder.grid
    assert (module.hparams.lr, len(module.masking), len(module.predictor.mask_tokens)) == (0.25, 1, 2)
    assert module.positions == {"vjepa": "sincos", "vjepa2": "tiled_rope"}[method]
    with pytest.raises(ValueError, match=r"48 .*num_heads"):
        METHODS[method].from_official(OFFICIAL[method])


@pytest.mark.parametrize("method", METHODS)
def test_another_size(method: str) -> None:
    """Positions are those of a fresh module of that size; all other weights are the file's."""
    module = METHODS[method].from_official(OFFICIAL[method], [16, 48], 8, **HEADS)
    encoder = load_encoder(OFFICIAL[method], image_size=[16, 48], num_frames=8, num_heads=3)
    assert module.context_encoder.grid == module.predictor.grid == encoder.grid == (4, 2, 6)
    state = official(method)["target_encoder"]
    if method == "vjepa":
        fresh = VideoTransformer((16, 48), 8, (8, 8), embed_dim=48, depth=1, num_heads=3)
        state["pos_embed"] = fresh.pos_embed
        positions = Predictor((4, 2, 6), 48, 24, 1, 3, num_mask_tokens=2).predictor_pos_embed
        assert torch.equal(module.predictor.predictor_pos_embed, positions)
    for network in (encoder, module.target_encoder):
        assert_same(network, state)


@pytest.mark.parametrize("network", ["target_encoder", "context_encoder"])
@pytest.mark.parametrize("method", METHODS)
def test_load_encoder_official(method: str, network: str) -> None:
    encoder = load_encoder(OFFICIAL[method], network, num_heads=3)
    assert_same(encoder, official(method)[network])
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    if network == "target_encoder":
        assert_close(encoder(trace(method)["clips"]), trace(method)["target_encoder_features"], "features")


@pytest.mark.parametrize(
    ("grid", "dim"),
    [((2, 4, 4), 48), ((4, 2, 4), 24), ((1, 4, 8), 24), ((8, 2, 2), 24), ((3, 5, 2), 16), ((6, 1, 1), 8)],
)
def test_positions_tell_the_grid(grid: tuple[int, int, int], dim: int) -> None:
    """Of any tubelets and patches; a number that is given holds, and positions of no grid are refused."""
    frames, rows, columns = grid
    size, length = [rows * 3, columns * 5], frames * 2
    state = VideoTransformer(size, length, (3, 5), 2, 1, dim, depth=1, num_heads=1, mlp_ratio=3).state_dict()
    sizes = {"patch_size": [3, 5], "tubelet_size": 2, "in_channels": 1, "embed_dim": dim, "depth": 1, "mlp_ratio": 3.0}
    found = video_transformer_sizes(state, num_heads=1)
    assert found == {"image_size": size, "num_frames": length, "num_heads": 1, **sizes}
    assert video_transformer_sizes(state, num_frames=6, num_heads=1)["num_frames"] == 6
    assert video_transformer_sizes(state, [9, 10], num_heads=1)["image_size"] == [9, 10]
    with pytest.raises(ValueError, match=rf"{rows * columns * frames} positions.*image_size"):
        video_transformer_sizes(state | {"pos_embed": state["pos_embed"] + 0.1}, num_heads=1)


def test_positions_of_a_large_grid_tell_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the published ViT-H at 384 pixels: of all tables that they could be, theirs alone is computed."""
    grids = []

    def counted(grid: tuple[int, ...], dim: int) -> Tensor:
        grids.append(grid)
        return sincos_positions(grid, dim)

    monkeypatch.setattr("jepa_lightning.checkpoints.sizes.sincos_positions", counted)
    state = {
        "pos_embed": sincos_positions((8, 24, 24), 1280),
        "patch_embed.proj.weight": torch.empty(1280, 3, 2, 16, 16),
    }
    state["blocks.0.mlp.fc1.weight"] = torch.empty(5120, 1280)
    sizes = video_transformer_sizes(state)
    assert (sizes["num_frames"], sizes["image_size"]) == (16, [384, 384])
    assert grids == [(8, 24, 24)]


@pytest.mark.parametrize(
    ("width", "mlp", "heads"), [(1024, 4096, 16), (1280, 5120, 16), (1408, 6144, 22), (384, 1536, 6), (768, 3072, 12)]
)
def test_published_sizes(width: int, mlp: int, heads: int) -> None:
    """Heads by width, of which the giant has 22 for clips and 16 for images; no shape tells the clips' size."""
    with torch.device("meta"):
        clips = VideoTransformer((32, 32), 4, embed_dim=width, depth=2, mlp_ratio=mlp / width, positions="rope")
        images = VisionTransformer((32, 32), (16, 16), embed_dim=width, depth=1, num_heads=1)
        predictor = Predictor((2, 2, 2), width, depth=12, num_heads=12, num_mask_tokens=10)
    sizes = video_transformer_sizes(clips.state_dict())
    assert sizes.pop("mlp_ratio") * width == mlp
    assert sizes == {
        "image_size": 256, "num_frames": 64, "patch_size": [16, 16], "tubelet_size": 2, "in_channels": 3,
        "embed_dim": width, "depth": 2, "num_heads": heads,
    }  # fmt: skip
    assert vision_transformer_sizes(images.state_dict())["num_heads"] == (16 if width == 1408 else heads)
    expected = {"predictor_embed_dim": 384, "predictor_depth": 12, "num_mask_tokens": 10}
    assert predictor_sizes(predictor.state_dict()) == expected


def test_images_and_clips_are_told_apart() -> None:
    for method in (VJEPA, VJEPA2):
        with pytest.raises(ValueError, match=r"images, .* IJEPA"):
            method.from_official(str(GOLDEN / "checkpoint.pth.tar"), num_heads=3)
    for path in OFFICIAL.values():  # those of V-JEPA 2 without positions
        with pytest.raises(ValueError, match=r"clips, .* VJEPA, .* VJEPA2"):
            IJEPA.from_official(path, num_heads=3)
    assert isinstance(load_encoder(GOLDEN / "checkpoint.pth.tar", num_heads=3), VisionTransformer)


def test_one_method_is_not_the_other() -> None:
    """The weights of either would load into the other but for their positions, and be wrong there."""
    with pytest.raises(ValueError, match=r"tiled_rope .* sincos, .* VJEPA2$"):
        VJEPA.from_official(OFFICIAL["vjepa2"], 32, 4, **HEADS)
    with pytest.raises(ValueError, match=r"sincos .* tiled_rope, .* VJEPA$"):
        VJEPA2.from_official(OFFICIAL["vjepa"], num_heads=3, predictor_num_heads=2)


def test_ours_of_one_method_are_not_the_others(tmp_path: Path) -> None:
    clips, options = torch.randn(2, 3, 4, 32, 32), TINY_VIDEO | {"image_size": 32, "num_frames": 4}
    for source, target in ((VJEPA, VJEPA2), (VJEPA2, VJEPA)):
        trainer = quiet_trainer(tmp_path, max_steps=1)
        trainer.fit(source(**options), loader(clips))
        trainer.save_checkpoint(tmp_path / "source.ckpt")
        module = target(**options, weights=str(tmp_path / "source.ckpt"))
        with pytest.raises(ValueError, match=rf" {source.__name__}$"):
            quiet_trainer(tmp_path, max_steps=1).fit(module, loader(clips))


@pytest.mark.parametrize("in_predictor", [False, True])
def test_positions_left_over(in_predictor: bool, tmp_path: Path) -> None:
    """V-JEPA 2's released files have them: they are named, and the features are the rotary ones."""

    def leave_over(checkpoint: dict[str, dict[str, Tensor]]) -> None:
        for network in ("encoder", "target_encoder"):
            checkpoint[network]["module.backbone.pos_embed"] = official("vjepa")["context_encoder"]["pos_embed"]
        if in_predictor:  # then it is the number of mask tokens that tells
            checkpoint["predictor"]["module.backbone.predictor_pos_embed"] = torch.zeros(1, 32, 48)
            for index in range(2, 10):
                checkpoint["predictor"][f"module.backbone.mask_tokens.{index}"] = torch.zeros(1, 1, 48)

    path = changed(tmp_path, "vjepa2", leave_over)
    with pytest.warns(UserWarning, match=r"target_encoder .*pos_embed"):
        encoder = load_encoder(path, num_heads=3)
    with pytest.warns(UserWarning, match=r"context_encoder .*pos_embed"):
        module = VJEPA2.from_official(path, **HEADS)
    assert encoder.grid == module.target_encoder.grid == (2, 4, 4)
    for network in (encoder, module.target_encoder):
        assert_close(network(trace("vjepa2")["clips"]), trace("vjepa2")["target_encoder_features"], "features")
    assert len(module.predictor.mask_tokens) == (10 if in_predictor else 2)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_every_other_key_is_an_error(method: str, network: str, tmp_path: Path) -> None:
    norm = "predictor_norm" if network == "predictor" else "norm"
    kind = METHODS[method]

    def add(checkpoint: dict[str, dict[str, Tensor]]) -> None:
        checkpoint[NETWORKS[network]]["module.backbone.extra.weight"] = torch.zeros(3)

    def drop(checkpoint: dict[str, dict[str, Tensor]]) -> None:
        del checkpoint[NETWORKS[network]][f"module.backbone.{norm}.bias"]

    def widen(checkpoint: dict[str, dict[str, Tensor]]) -> None:
        checkpoint[NETWORKS[network]][f"module.backbone.{norm}.bias"] = torch.zeros(7)

    for edit, message in (
        (add, r"extra\.weight"),
        (drop, rf"Missing.*{norm}\.bias"),
        (widen, rf"size.*{norm}\.bias"),
    ):
        with pytest.raises(ValueError, match=rf"(?s){network} .*{message}"):
            kind.from_official(changed(tmp_path, method, edit), 32, 4, **HEADS)


# --- Ours ------------------------------------------------------------------------------------------------------------

OURS = {
    "vjepa": (VJEPA, {}),
    "vjepa, three kinds of masks": (VJEPA, {"masks": [{"num_blocks": 2}, {"num_blocks": 3}, {"context_ratio": 0.1}]}),
    "vjepa, rectangular": (VJEPA, {"image_size": [16, 24], "patch_size": [8, 4], "in_channels": 1, "num_frames": 6}),
    "vjepa2": (VJEPA2, {"mlp_ratio": 3.0}),
    "vjepa2, official": (VJEPA2, {"official": True, "num_mask_tokens": 3}),
    "vjepa2, rectangular": (VJEPA2, {"image_size": [8, 16], "tubelet_size": 1, "num_frames": 3}),
}


def clips_of(module: VJEPA, number: int = 4) -> Tensor:
    size = module.hparams.image_size
    rows, columns = (size, size) if isinstance(size, int) else size
    return random_clips(number, module.hparams.num_frames, (rows, columns), module.hparams.in_channels)


def trained(method: type[VJEPA], folder: Path, **options: Any) -> tuple[VJEPA, Path]:
    """A module after a step, so that student and teacher differ, and its checkpoint."""
    torch.manual_seed(0)
    module = method(**TINY_VIDEO | {"lr": 0.05, "final_lr": 0.05} | options)
    trainer = quiet_trainer(folder, max_steps=1)
    trainer.fit(module, loader(clips_of(module)))
    trainer.save_checkpoint(folder / "ours.ckpt")
    return module.eval(), folder / "ours.ckpt"


@pytest.mark.parametrize("name", OURS)
def test_checkpoints_of_ours(name: str, tmp_path: Path) -> None:
    """They tell all sizes and the kind of positions by themselves, of the encoder alone and of the whole module."""
    method, options = OURS[name]
    module, path = trained(method, tmp_path, **options)
    clips = clips_of(module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        teacher, student = load_encoder(path), load_encoder(str(path), "context_encoder")
    assert teacher.grid == module.target_encoder.grid
    assert torch.equal(teacher(clips), module.target_encoder(clips))
    assert torch.equal(student(clips), module.context_encoder(clips))
    assert not torch.allclose(teacher(clips), student(clips), atol=1e-2)
    assert load_encoder(path, image_size=[16, 32], num_frames=12).grid[0] == 12 // module.hparams.get("tubelet_size")
    torch.load(path, weights_only=True)
    loaded = method.load_from_checkpoint(path)
    assert dict(loaded.hparams) == dict(module.hparams)
    assert_same(loaded, module.state_dict())
    masks = module.draw(clips, module.rng(4, 0))
    mine, theirs = (it.loss(it.latents(clips, masks))["loss"] for it in (module, loaded.eval()))
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("method", METHODS)
def test_phases(method: str, tmp_path: Path) -> None:
    """A training on longer and larger clips starts from the last one's checkpoint, and then stands on its own."""
    kind = METHODS[method]
    first, path = trained(kind, tmp_path, momentum=(0.5, 0.5))
    still = {"lr": 0.0, "start_lr": 0.0, "final_lr": 0.0, "momentum": (1.0, 1.0)}
    longer = {"num_frames": 8, "image_size": [24, 32]} | ({"cooldown": 1.0} if method == "vjepa2" else {})
    second = kind(**TINY_VIDEO | longer | still, weights=str(path))
    fresh = kind(**TINY_VIDEO | longer).state_dict()
    trainer = quiet_trainer(tmp_path, max_steps=2)
    trainer.fit(second, loader(random_clips(4, 8, (24, 32)), 2))
    assert second.context_encoder.grid == second.predictor.grid == (4, 6, 8)
    for name, value in second.state_dict().items():
        expected = fresh[name] if name.endswith("pos_embed") else first.state_dict()[name]
        assert torch.equal(value, expected), name
    trainer.save_checkpoint(tmp_path / "second.ckpt")
    path.unlink()
    clips = random_clips(2, 8, (24, 32))
    assert torch.equal(load_encoder(tmp_path / "second.ckpt")(clips), second.target_encoder(clips))
    assert kind.load_from_checkpoint(tmp_path / "second.ckpt").context_encoder.grid == (4, 6, 8)


def test_positions_of_another_grid_of_as_many_tokens(tmp_path: Path) -> None:
    _, path = trained(VJEPA, tmp_path, image_size=[8, 32])
    still = {"lr": 0.0, "start_lr": 0.0, "final_lr": 0.0, "image_size": [32, 8]}
    module = VJEPA(**TINY_VIDEO | still, weights=str(path))
    positions = module.context_encoder.pos_embed.clone()
    quiet_trainer(tmp_path, max_steps=1).fit(module, loader(random_clips(2, size=(32, 8))))
    assert torch.equal(module.context_encoder.pos_embed, positions)
    assert torch.equal(load_encoder(path, image_size=[32, 8]).pos_embed, positions)


def test_train_on_from_an_official_file(tmp_path: Path) -> None:
    """By `weights`, which names the file and nothing else: the sizes are the module's own."""
    sizes = {"image_size": 32, "patch_size": 8, "num_heads": 3, "embed_dim": 48, "predictor_embed_dim": 48}
    options = sizes | {"predictor_depth": 2, "predictor_num_heads": 3, "official": True, "num_mask_tokens": 2}
    module = VJEPA2(**TINY_VIDEO | options, weights=OFFICIAL["vjepa2"], lr=0.0, start_lr=0.0, momentum=(1.0, 1.0))
    quiet_trainer(tmp_path, max_steps=1).fit(module, loader(trace("vjepa2")["clips"]))
    for network, state in official("vjepa2").items():
        assert_same(module.get_submodule(network), state)
    fewer = VJEPA2(**TINY_VIDEO | options | {"num_mask_tokens": 1}, weights=OFFICIAL["vjepa2"], lr=0.0, start_lr=0.0)
    with pytest.warns(UserWarning, match=r"mask_tokens\.1.* num_mask_tokens"):
        quiet_trainer(tmp_path, max_steps=1).fit(fewer, loader(trace("vjepa2")["clips"]))
    assert torch.equal(fewer.predictor.mask_tokens[0], official("vjepa2")["predictor"]["mask_tokens.0"])
    wrong = VJEPA2(**TINY_VIDEO | options | {"num_mask_tokens": 3}, weights=OFFICIAL["vjepa2"])
    with pytest.raises(ValueError, match=r"(?s)predictor .*mask_tokens\.2"):
        quiet_trainer(tmp_path, max_steps=1).fit(wrong, loader(trace("vjepa2")["clips"]))


# --- Transformers ----------------------------------------------------------------------------------------------------

SHAPES = [  # frames, side, patch, tubelet, channels, heads of width 48: widths of 16 (4 of which are left over), 24, 6
    (4, 16, 4, 2, 3, 3),
    (6, 24, 8, 3, 1, 2),
    (2, 8, 2, 1, 2, 8),
]


def random_networks(
    frames: int, side: int, patch: int, tubelet: int, channels: int, heads: int
) -> tuple[VideoTransformer, Predictor]:
    """Networks in which no weight is zero or one, so that each has to find its place."""
    torch.manual_seed(0)
    encoder = VideoTransformer((side, side), frames, (patch, patch), tubelet, channels, 48, 2, heads, 3.0, "tiled_rope")
    predictor = Predictor(encoder.grid, 48, 32, 2, 2, num_mask_tokens=3, positions="tiled_rope")
    for parameter in [*encoder.parameters(), *predictor.parameters()]:
        nn.init.normal_(parameter, std=0.3)
    return encoder.eval(), predictor.eval()


@pytest.mark.parametrize("shape", SHAPES)
def test_to_transformers(shape: tuple[int, ...], tmp_path: Path) -> None:
    """The same features and predictions there, whose predictor takes the second mask token."""
    encoder, predictor = random_networks(*shape)
    save_for_transformers(encoder, tmp_path / "model", predictor)
    frames, side, _, _, channels, _ = shape
    clips = random_clips(2, frames, side, channels)
    theirs = transformers.VJEPA2Model.from_pretrained(tmp_path / "model").eval()
    places = torch.stack([torch.randperm(encoder(clips).shape[1]) for _ in range(2)])
    seen, hidden = places[:, :5], places[:, 5:12]
    with torch.no_grad():
        features = encoder(clips)
        output = theirs(clips.transpose(1, 2), context_mask=[seen], target_mask=[hidden])
        context = features.gather(1, seen.unsqueeze(-1).expand(-1, -1, 48))
        predicted = predictor(context, seen, hidden, condition=1)
    torch.testing.assert_close(output.last_hidden_state, features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.predictor_output.last_hidden_state, predicted, rtol=1e-4, atol=1e-4)
    # Read back, the weights are bit for bit the same; in what transformers writes too.
    theirs.save_pretrained(tmp_path / "theirs")
    for folder in ("model", "theirs"):
        ours = load_encoder(tmp_path / folder)
        assert ours.grid == encoder.grid
        assert ours.positions == "tiled_rope"
        assert_same(ours, encoder.state_dict())
        assert read_networks(tmp_path / folder).states["predictor"].keys() == predictor.state_dict().keys()
        predictor.load_state_dict(read_networks(tmp_path / folder).states["predictor"])
        assert torch.equal(predictor(context, seen, hidden, condition=1), predicted)


def test_from_transformers(tmp_path: Path) -> None:
    """A model of theirs, and one with a classifier on top."""
    config = transformers.VJEPA2Config(
        patch_size=4, crop_size=16, frames_per_clip=4, hidden_size=48, num_attention_heads=3, num_hidden_layers=2,
        mlp_ratio=3.0, pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=1, num_pooler_layers=1,
        num_labels=5, initializer_range=0.3,
    )  # fmt: skip
    clips = random_clips(2)
    for kind in (transformers.VJEPA2Model, transformers.VJEPA2ForVideoClassification):
        theirs = kind(config).eval()
        theirs.save_pretrained(tmp_path / kind.__name__)
        ours = load_encoder(tmp_path / kind.__name__)
        backbone = getattr(theirs, "vjepa2", theirs)
        with torch.no_grad():
            expected = backbone(clips.transpose(1, 2), skip_predictor=True).last_hidden_state
        torch.testing.assert_close(ours(clips), expected, rtol=1e-4, atol=1e-4)
        with pytest.raises(ValueError, match=r"target_encoder, predictor.* 'context_encoder'"):
            load_encoder(tmp_path / kind.__name__, "context_encoder")


def test_official_weights_in_transformers(tmp_path: Path) -> None:
    """From the official file by way of ours, transformers' features are those of the official code's trace."""
    module = VJEPA2.from_official(OFFICIAL["vjepa2"], 32, 4, **HEADS)
    save_for_transformers(module.target_encoder, tmp_path)
    theirs = transformers.VJEPA2Model.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        features = theirs(trace("vjepa2")["clips"].transpose(1, 2), skip_predictor=True).last_hidden_state
    assert_close(features, trace("vjepa2")["target_encoder_features"], "features")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": "rope"}, "rope"),
        ({"positions": "sincos"}, "sincos"),
        ({"image_size": (16, 8)}, r"square.*\(2, 4, 2\)"),
        ({"image_size": (8, 16), "patch_size": (2, 4)}, r"square.*\(2, 2, 4\)"),
    ],
)
def test_encoders_that_transformers_has_no_form_for(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"image_size": (16, 16), "num_frames": 4, "patch_size": (4, 4), "embed_dim": 24}
    given |= {"depth": 1, "num_heads": 2, "positions": "tiled_rope"}
    with pytest.raises(ValueError, match=message):
        save_for_transformers(VideoTransformer(**given | options), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_folders_that_are_incomplete(tmp_path: Path) -> None:
    encoder, _ = random_networks(*SHAPES[0])
    save_for_transformers(encoder, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    for missing, message in (
        ("encoder.layer.1.attention.key.bias", r"blocks\.1\.attn\.key\.bias"),
        ("encoder.layernorm.weight", r"(?s)target_encoder .*norm\.weight"),
    ):
        save_file({name: value for name, value in state.items() if name != missing}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=message):
            load_encoder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "videomae"}))
    with pytest.raises(ValueError, match=r"'videomae'.* 'ijepa' or 'vjepa2'"):
        load_encoder(tmp_path)


def test_rotations_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    """Official weights turn by other frequencies than a new training's, and load into a module that turns alike."""
    path = str(GOLDEN_VIDEO["vjepa2"] / "checkpoint.pt")
    sizes = {"image_size": 32, "patch_size": 8, "num_frames": 4, "embed_dim": 48, "depth": 2, "num_heads": 3}
    sizes |= {"predictor_embed_dim": 48, "predictor_depth": 2, "predictor_num_heads": 3, "num_mask_tokens": 2}
    clips = DataLoader(torch.randn(2, 3, 4, 32, 32), 2)
    quiet_trainer(tmp_path, max_steps=1).fit(VJEPA2(**sizes, weights=path, official=True), clips)
    with pytest.raises(ValueError, match=r"rope.* official=True"):
        quiet_trainer(tmp_path, max_steps=1).fit(VJEPA2(**sizes, weights=path), clips)


def test_positions_that_are_no_table(tmp_path: Path) -> None:
    """Left over, they need not tell a size; added, they stay as they are, and the size has to be given."""
    checkpoint = torch.load(GOLDEN_VIDEO["vjepa2"] / "checkpoint.pt", weights_only=True)
    for network in ("encoder", "target_encoder"):
        checkpoint[network]["module.backbone.pos_embed"] = torch.randn(1, 32, 48)
    torch.save(checkpoint, tmp_path / "left_over.pt")
    with pytest.warns(UserWarning, match="pos_embed"):
        VJEPA2.from_official(str(tmp_path / "left_over.pt"), num_heads=3, predictor_num_heads=3)
    checkpoint = torch.load(GOLDEN_VIDEO["vjepa"] / "checkpoint.pt", weights_only=True)
    own = torch.randn(1, 32, 48)
    for network in ("encoder", "target_encoder"):
        checkpoint[network]["module.backbone.pos_embed"] = own
    torch.save(checkpoint, tmp_path / "own.pt")
    with pytest.raises(ValueError, match=r"32 positions.*image_size and num_frames"):
        VJEPA.from_official(str(tmp_path / "own.pt"), num_heads=3)
    module = VJEPA.from_official(str(tmp_path / "own.pt"), image_size=32, num_frames=4, num_heads=3)
    assert torch.equal(module.target_encoder.pos_embed, own)

"""Reading and writing weights: official, ours, Hugging Face, timm; and files that are none of these."""

import json
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from helpers import GOLDEN, TINY, loader, quiet_trainer, random_images
from torch import Tensor, nn

from jepa_lightning import IJEPA, load_encoder, save_for_timm, save_for_transformers
from jepa_lightning.networks import Predictor, VisionTransformer

OFFICIAL = GOLDEN / "checkpoint.pth.tar"
SHAPES = [((16, 16), (4, 4), 3), ((16, 24), (8, 4), 2)]  # image, patch, channels


def random_encoder(image_size: tuple[int, int] = (16, 24), patch_size: tuple[int, int] = (8, 4), channels: int = 2):
    """An encoder in which no weight is zero or one, so that each has to find its place."""
    torch.manual_seed(0)
    encoder = VisionTransformer(image_size, patch_size, channels, embed_dim=16, depth=2, num_heads=2, mlp_ratio=3)
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.5)
    return encoder.eval()


def save_ours(folder: Path, **options: Any) -> tuple[IJEPA, Path]:
    """A module trained for a step, so that student and teacher differ, and its checkpoint."""
    module = IJEPA(**TINY | options)
    size = module.hparams.image_size
    size = size if isinstance(size, int) else tuple(size)
    trainer = quiet_trainer(folder, max_steps=1)
    trainer.fit(module, loader(random_images(8, size, module.hparams.in_channels)))
    trainer.save_checkpoint(folder / "ours.ckpt")
    return module.eval(), folder / "ours.ckpt"


def test_load_encoder_official() -> None:
    checkpoint = torch.load(OFFICIAL, weights_only=True)
    for network, theirs in (("target_encoder", "target_encoder"), ("context_encoder", "encoder")):
        encoder = load_encoder(OFFICIAL, network, num_heads=3)
        assert not encoder.training
        assert not any(parameter.requires_grad for parameter in encoder.parameters())
        for name, value in encoder.state_dict().items():
            assert torch.equal(value, checkpoint[theirs][f"module.{name}"]), name
    assert not torch.equal(
        checkpoint["encoder"]["module.norm.weight"], checkpoint["target_encoder"]["module.norm.weight"]
    )


@pytest.mark.parametrize(
    "options", [{}, {"image_size": [16, 24], "patch_size": [8, 4], "in_channels": 1}], ids=["square", "rectangular"]
)
def test_load_encoder_ours(options: dict[str, Any], tmp_path: Path) -> None:
    """A checkpoint of a Trainer tells all sizes by itself."""
    module, path = save_ours(tmp_path, **options)
    rows, columns = module.context_encoder.grid
    images = random_images(2, (rows * 4 * (1 + (columns == 6)), columns * 4), module.hparams.in_channels)
    teacher, student = load_encoder(path), load_encoder(str(path), "context_encoder")
    assert torch.equal(teacher(images), module.target_encoder(images))
    assert torch.equal(student(images), module.context_encoder(images))
    assert not torch.equal(teacher(images), student(images))


@pytest.mark.parametrize(("image_size", "patch_size", "channels"), SHAPES)
def test_transformers(image_size: tuple[int, int], patch_size: tuple[int, int], channels: int, tmp_path: Path) -> None:
    """The same features there, and the same weights when read back."""
    encoder = random_encoder(image_size, patch_size, channels)
    save_for_transformers(encoder, tmp_path / "model")
    images = random_images(3, image_size, channels)
    with torch.no_grad():
        expected = encoder(images)
        theirs = transformers.IJepaModel.from_pretrained(tmp_path / "model").eval()
        torch.testing.assert_close(theirs(images).last_hidden_state, expected, rtol=1e-4, atol=1e-5)
    ours = load_encoder(tmp_path / "model")
    assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in ours.state_dict().items())
    assert torch.equal(ours(images), expected)
    # What transformers writes, in whatever names its version keeps in files, is read too.
    theirs.save_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(load_encoder(tmp_path / "theirs")(images), expected)
    head = transformers.IJepaForImageClassification.from_pretrained(tmp_path / "model", num_labels=5)
    head.save_pretrained(tmp_path / "head")
    torch.testing.assert_close(load_encoder(tmp_path / "head")(images), expected)


@pytest.mark.parametrize(("image_size", "patch_size", "channels"), SHAPES)
def test_timm(image_size: tuple[int, int], patch_size: tuple[int, int], channels: int, tmp_path: Path) -> None:
    encoder = random_encoder(image_size, patch_size, channels)
    save_for_timm(encoder, tmp_path / "vit.safetensors")
    vit = timm.create_model(
        "vit_tiny_patch16_224", class_token=False, global_pool="avg", fc_norm=False, num_classes=0, img_size=image_size,
        patch_size=patch_size, in_chans=channels, embed_dim=16, depth=2, num_heads=2, mlp_ratio=3,
        checkpoint_path=str(tmp_path / "vit.safetensors"),
    ).eval()  # fmt: skip
    images = random_images(3, image_size, channels)
    with torch.no_grad():
        torch.testing.assert_close(vit.forward_features(images), encoder(images), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(vit(images), encoder(images).mean(1), rtol=1e-5, atol=1e-5)


def test_another_image_size(tmp_path: Path) -> None:
    """Positions are those of a fresh encoder of that size; all other weights are the file's."""
    wide = load_encoder(OFFICIAL, image_size=[32, 48], num_heads=3)
    module = IJEPA.from_official(str(OFFICIAL), image_size=[32, 48], num_heads=3)
    fresh = VisionTransformer((32, 48), (4, 4), embed_dim=48, depth=3, num_heads=3)
    square = load_encoder(OFFICIAL, num_heads=3)
    for encoder in (wide, module.target_encoder):
        assert torch.equal(encoder.pos_embed, fresh.pos_embed)
        for name, value in square.state_dict().items():
            assert name == "pos_embed" or torch.equal(encoder.state_dict()[name], value)
    fresh_predictor = Predictor((8, 12), 48, 24, depth=2, num_heads=3)
    assert torch.equal(module.predictor.predictor_pos_embed, fresh_predictor.predictor_pos_embed)
    # The positions of the file are those that we compute (float32 either way).
    positions = torch.load(OFFICIAL, weights_only=True)["encoder"]["module.pos_embed"]
    torch.testing.assert_close(VisionTransformer((32, 32), (4, 4), embed_dim=48, num_heads=3).pos_embed, positions)
    _, ours = save_ours(tmp_path)
    assert load_encoder(ours, image_size=32).grid == (8, 8)


@pytest.mark.parametrize(
    ("options", "encoder", "predictor"),
    [
        pytest.param({}, 85.8, 11.3, id="B/16"),
        pytest.param({"embed_dim": 1024, "depth": 24, "num_heads": 16, "predictor_depth": 12}, 303.3, 22.2, id="L/16"),
        pytest.param(
            {"patch_size": 14, "embed_dim": 1280, "depth": 32, "num_heads": 16, "predictor_depth": 12},
            630.8, 22.4, id="H/14",
        ),
        pytest.param(
            {"image_size": 448, "embed_dim": 1280, "depth": 32, "num_heads": 16, "predictor_depth": 12},
            None, None, id="H/16-448",
        ),
        pytest.param(
            {"embed_dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": 48 / 11, "predictor_depth": 16},
            1011, 29.6, id="g/16",
        ),
    ],
)  # fmt: skip
def test_published_sizes(options: dict[str, Any], encoder: float | None, predictor: float | None) -> None:
    """The numbers of parameters, in millions, of the official code; and by hand from the table of shapes."""
    with torch.device("meta"):
        module = IJEPA(**options)
    hparams = module.hparams
    count = {
        name: sum(p.numel() for p in getattr(module, name).parameters()) for name in ("context_encoder", "predictor")
    }
    tokens = (hparams.image_size // hparams.patch_size) ** 2

    def transformer(dim: int, depth: int, ratio: float) -> int:
        wide = int(dim * ratio)
        return depth * (4 * dim + 4 * dim * dim + 4 * dim + 2 * dim * wide + wide + dim) + 2 * dim

    dim, narrow = hparams.embed_dim, 384
    patch = 3 * hparams.patch_size**2 * dim + dim
    assert count["context_encoder"] == patch + tokens * dim + transformer(dim, hparams.depth, hparams.mlp_ratio)
    around = dim * narrow + narrow + narrow * dim + dim + narrow + tokens * narrow
    assert count["predictor"] == around + transformer(narrow, hparams.predictor_depth, 4)
    if encoder is not None:
        assert round(count["context_encoder"] / 1e6, 0 if encoder > 1000 else 1) == encoder
        assert round(count["predictor"] / 1e6, 1) == predictor


class Creates:
    """Unpickling this makes a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def test_a_file_cannot_run_code(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    torch.save({"encoder": Creates(str(proof))}, tmp_path / "zip.pt")
    torch.save({"encoder": Creates(str(proof))}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Creates(str(proof))))
    for name in ("zip.pt", "legacy.pt", "plain.pt"):
        with pytest.raises(ValueError, match=name):
            load_encoder(tmp_path / name)
        assert not proof.exists()
    pickle.loads((tmp_path / "plain.pt").read_bytes())
    assert proof.exists()  # it would have


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(OFFICIAL.read_bytes()[:100], id="start"),
        pytest.param(OFFICIAL.read_bytes()[:300_000], id="half"),
        pytest.param(OFFICIAL.read_bytes()[:-100], id="without its end"),
        pytest.param(random.Random(0).randbytes(5000), id="random"),
        pytest.param(b'{"encoder": 1}', id="json"),
        pytest.param(b"hello, this is no checkpoint\n" * 20, id="text"),
        pytest.param(b"", id="empty"),
    ],
)
def test_spoilt_files_are_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.ckpt"):
        load_encoder(path, num_heads=3)
    with pytest.raises(ValueError, match=r"bad\.ckpt"):
        IJEPA.from_official(str(path), num_heads=3)


def test_flipped_bits(tmp_path: Path) -> None:
    """Wherever in the archive's directory or pickle a byte is wrong: the same weights, or a ValueError."""
    good = OFFICIAL.read_bytes()
    with zipfile.ZipFile(OFFICIAL) as archive:
        entry = next(info for info in archive.infolist() if info.filename.endswith("data.pkl"))
        regions = [
            range(entry.header_offset, entry.header_offset + entry.file_size),
            range(archive.start_dir, len(good)),
        ]
    expected = load_encoder(OFFICIAL, num_heads=3).state_dict()
    draw, refused = random.Random(0), 0
    for place in (place for region in regions for place in draw.sample(region, 60)):
        bad = bytearray(good)
        bad[place] ^= 1 << draw.randrange(8)
        (tmp_path / "bad.ckpt").write_bytes(bad)
        try:
            encoder = load_encoder(tmp_path / "bad.ckpt", num_heads=3)
        except ValueError:
            refused += 1
            continue
        assert all(torch.equal(value, expected[name]) for name, value in encoder.state_dict().items()), place
    assert refused > 20  # the others hit what an encoder does not need: dates, other networks, the optimiser


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def test_other_layouts(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.pt"):
        load_encoder(tmp_path / "gone.pt")
    for content, message in (
        ({"model": {"w": torch.zeros(1)}, "epoch": 3}, r"other\.pt .*\['epoch', 'model'\]"),
        ({"state_dict": {"backbone.w": torch.zeros(1)}}, "backbone.* 'target_encoder'"),
        ([torch.zeros(1)], "list"),
        (torch.zeros(1), "Tensor"),
    ):
        with pytest.raises(ValueError, match=message):
            load_encoder(save(content, tmp_path / "other.pt"))
    for state in ({"conv.weight": torch.zeros(1)}, {}):
        networks = dict.fromkeys(("encoder", "predictor", "target_encoder"), state)
        with pytest.raises(ValueError, match="vision transformer"):
            load_encoder(save(networks, tmp_path / "other.pt"))


def changed(folder: Path, edit: Any) -> Path:
    """The official checkpoint after a change of its networks."""
    checkpoint = torch.load(OFFICIAL, weights_only=True)
    edit(checkpoint)
    return save(checkpoint, folder / "changed.pt")


def test_sizes_that_shapes_do_not_tell(tmp_path: Path) -> None:
    for read in (load_encoder, lambda path: IJEPA.from_official(str(path))):
        with pytest.raises(ValueError, match=r"48 .*num_heads"):
            read(OFFICIAL)

    def cut_positions(checkpoint: dict[str, dict[str, Tensor]]) -> None:
        for network in ("encoder", "target_encoder"):
            checkpoint[network]["module.pos_embed"] = checkpoint[network]["module.pos_embed"][:, :60]

    path = changed(tmp_path, cut_positions)
    with pytest.raises(ValueError, match=r"60 positions .*image_size"):
        load_encoder(path, num_heads=3)
    assert load_encoder(path, image_size=[24, 40], num_heads=3).grid == (6, 10)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    def drop_a_weight(checkpoint: dict[str, dict[str, Tensor]]) -> None:
        del checkpoint["target_encoder"]["module.norm.bias"]

    with pytest.raises(ValueError, match=r"(?s)target_encoder.*norm\.bias"):
        load_encoder(changed(tmp_path, drop_a_weight), num_heads=3)
    small = IJEPA(**TINY, weights=str(OFFICIAL))
    with pytest.raises(ValueError, match="context_encoder"):
        quiet_trainer(tmp_path, max_steps=1).fit(small, loader(random_images(8)))
    save_for_transformers(random_encoder(), tmp_path / "encoder")
    only_encoder = IJEPA(**TINY, weights=str(tmp_path / "encoder"))
    with pytest.raises(ValueError, match="context_encoder"):
        quiet_trainer(tmp_path, max_steps=1).fit(only_encoder, loader(random_images(8)))


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Hugging Face"):
        load_encoder(tmp_path)
    save_for_transformers(random_encoder(), tmp_path)
    with pytest.raises(ValueError, match="'context_encoder'"):
        load_encoder(tmp_path, "context_encoder")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    with pytest.raises(ValueError, match=r"'vit'.* 'ijepa'"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="Hugging Face"):
        load_encoder(tmp_path)

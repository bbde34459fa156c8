"""T-JEPA: a training step against a trace of the official code of 2024, masks by hand, and what is hidden."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import (
    GOLDEN_TRACKS,
    TINY_TRACKS,
    assert_close,
    assert_golden_step,
    eager,
    logged_images,
    quiet_trainer,
    random_series,
)
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from jepa_lightning import TJEPA, load_encoder
from jepa_lightning.batches import Trajectories
from jepa_lightning.callbacks import TrackPictures
from jepa_lightning.checkpoints.families.tjepa import renamed
from jepa_lightning.draws import Rng
from jepa_lightning.masking import PointMasking, PointMasks
from jepa_lightning.networks import AdjFuse

CHECKPOINT = str(GOLDEN_TRACKS / "checkpoint.pt")


def tiny(**options: Any) -> Any:
    torch.manual_seed(0)
    return eager(TJEPA(**TINY_TRACKS | options))


# --- Against the official code ---------------------------------------------------------------------------------------


@cache
def trace() -> dict[str, Tensor]:
    """By our names."""
    found = load_file(GOLDEN_TRACKS / "trace.safetensors")
    kinds = ("grad/", "after_step/")
    ours = {name: value for name, value in found.items() if not name.startswith(kinds)}
    for kind in kinds:
        state = {name.removeprefix(kind): value for name, value in found.items() if name.startswith(kind)}
        for network, values in renamed(state).items():
            ours |= {f"{kind}{network}/{name}": value for name, value in values.items()}
    return ours


class Apart(AdjFuse):
    """With a cell apart from those around it: the trace's are random numbers, not the official wrong neighbours."""

    def grid_of(self, x: Tensor) -> tuple[int, ...]:
        return (x.shape[1],)

    def forward(self, x: Tensor) -> Tensor:
        cells = x.unflatten(-1, (10, self.embed_dim))
        return self.fuse(cells[:, :, 0], cells[:, :, 1:])


class Golden(TJEPA):
    """With the masks of the trace, and its optimiser."""

    def build_encoder(self) -> nn.Module:
        encoder: Any = super().build_encoder()
        encoder.patch_embed = Apart(encoder.embed_dim)
        return encoder

    def draw(self, batch: Any, rng: Rng) -> PointMasks:
        return PointMasks(*(trace()[f"{kind}_mask"].transpose(0, 1) for kind in ("context", "target")))

    def configure_optimizers(self) -> Any:
        told = json.loads((GOLDEN_TRACKS / "config.json").read_text())["optimizer"]
        parameters = [each for each in self.parameters() if each.requires_grad]
        return torch.optim.Adam(parameters, told["lr"], weight_decay=told["weight_decay"])


def golden() -> Any:
    return Golden.from_official(CHECKPOINT, official=True, momentum=(0.996, 0.996))


def golden_batch() -> Trajectories:
    cells = torch.cat([trace()["cell_embedding"].unsqueeze(2), trace()["neighbour_embedding"]], 2).flatten(2)
    return Trajectories(cells, torch.arange(12) < trace()["num_points"].view(-1, 1), torch.zeros(3, 12, 2))


def test_forward() -> None:
    module, batch = golden(), golden_batch()
    latents = module.latents(batch, module.draw(batch, None))
    there = batch.valid.unsqueeze(-1)
    assert_close(latents.features.values * there, trace()["target_encoder_features"], "features")
    context = latents.embeddings["context"].values.unflatten(1, (4, 12)).transpose(0, 1)
    assert_close(context, trace()["context_features"], "context")
    assert_close(latents.target.transpose(0, 1), trace()["target"], "target")
    assert_close(latents.prediction.transpose(0, 1), trace()["prediction"], "prediction")
    assert_close(module.loss(latents)["loss"], trace()["loss"][0], "loss")


def test_training_step() -> None:
    """Gradients; after Adam's step, with clipped ones, and the teacher's, all weights; and the features in the end."""
    module, batch, kept = golden(), golden_batch(), {}
    rows = [Trajectories(*(field[i] for field in batch)) for i in range(3)]

    class Keep(pl.Callback):
        """The gradients before they are clipped, which the trace has."""

        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            kept.update({name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None})

    trainer = quiet_trainer(max_steps=1, gradient_clip_val=1.0, callbacks=[Keep()])
    trainer.fit(module, DataLoader(rows, batch_size=3))
    for name, parameter in module.named_parameters():
        parameter.grad = kept.get(name)
    assert float(torch.nn.utils.get_total_norm(kept.values())) == pytest.approx(float(trace()["grad_norm"]), rel=1e-5)
    assert_golden_step(module, trace())
    with torch.no_grad():
        sequence = module.context_encoder(batch.cells, None, batch.valid) * batch.valid.unsqueeze(-1)
    assert_close(sequence, trace()["interpret/sequence"], "sequence", torch.ones_like(sequence, dtype=torch.bool))


def test_official_checkpoints(tmp_path: Path) -> None:
    """Their sizes are read off; positions that the predictor does not have are left out; others do not fit."""
    module = TJEPA.from_official(CHECKPOINT)
    assert (module.hparams.num_points, module.hparams.embed_dim, module.hparams.depth) == (14, 16, 2)
    encoder = load_encoder(CHECKPOINT)
    tracks = random_series(2, 14, 9 * 16)
    assert torch.equal(encoder(tracks), module.eval().target_encoder(tracks))
    state = {f"{part}.{k}": v for part in ("context_encoder", "predictor", "target_encoder")
             for k, v in getattr(tiny(), part).state_dict().items()}  # fmt: skip
    torch.save({"state_dict": state}, tmp_path / "other.ckpt")
    other = TJEPA(**TINY_TRACKS | {"num_points": 30}, weights=str(tmp_path / "other.ckpt"))
    with pytest.raises(ValueError, match="pos_embed"):
        quiet_trainer(max_steps=1).fit(other, DataLoader(random_series(4, 12, 9 * 16), 4))


# --- Networks --------------------------------------------------------------------------------------------------------


def test_adj_fuse_by_hand() -> None:
    torch.manual_seed(0)
    fuse = eager(AdjFuse(3))
    nn.init.normal_(fuse.weights)
    nn.init.normal_(fuse.bias)
    x = torch.randn(2, 4, 27)
    cells = x.view(2, 4, 9, 3)
    shares = fuse.weights.exp() / fuse.weights.exp().sum()
    for i, j in ((0, 0), (1, 3)):
        mixed = sum(shares[k] * cells[i, j, k] for k in range(9))
        expected = cells[i, j, 0] + fuse.proj.weight @ (mixed + fuse.bias).clamp(min=0)
        torch.testing.assert_close(fuse(x)[i, j], expected)
    assert torch.equal(AdjFuse(3, adj_fuse=False)(x), cells[:, :, 0])


def test_tracks_that_do_not_fit() -> None:
    module = tiny()
    with pytest.raises(ValueError, match=r"21 points.*20 positions.*num_points"):
        module.latents(random_series(2, 21, 9 * 16))
    with pytest.raises(ValueError, match=r"\[B, L, 144\].*\[2, 12, 16\].*cell_dim"):
        module.latents(random_series(2, 12, 16))


# --- Masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("span_share", [0.0, 1.0, 0.5])
def test_masks_are_what_they_are_said_to_be(span_share: float) -> None:
    """Counts, stretches and contexts of tracks of all lengths."""
    lengths = torch.arange(31).repeat(20)
    ratios = set()
    for batch in range(6):
        rng = Rng(3, len(lengths), batch=batch)
        masks = PointMasking(span_share=span_share)(len(lengths), (30,), lengths, rng)
        hidden = masks.targets[600:, 0].sum()  # of one of 30 points
        ratios.add(round(float(hidden / lengths[600:].sum()), 1))
        ratio = next(each for each in (0.1, 0.2, 0.3) if abs(each * 30 - int(masks.targets[30, 0].sum())) < 0.5)
        stretches = 0
        for i, length in enumerate(lengths.tolist()):
            count = max(0, min(max(1, round(ratio * length + 1e-6)), length - 1))
            seen_by_any = masks.context[i].any(0)
            for seen, sought in zip(masks.context[i], masks.targets[i], strict=True):
                places = sought.nonzero().view(-1)
                assert abs(len(places) - count) <= (abs(ratio * length % 1 - 0.5) < 1e-4)
                assert not (seen & sought).any()
                assert not (seen | sought)[length:].any()
                if length > 1:
                    assert seen.any()
                    assert int((seen | sought).sum()) >= round(0.85 * length) - 1
                assert torch.equal(seen, seen_by_any & ~sought)  # one context, less what is sought
                stretches += len(places) > 1 and int(places.max() - places.min()) == len(places) - 1
                if span_share == 1 and len(places):
                    assert int(places.max() - places.min()) == len(places) - 1
        if span_share == 0 and ratio == 0.3:
            assert stretches < 0.2 * 4 * len(lengths)
    assert ratios == {0.1, 0.2, 0.3}


def test_every_point_is_sought_as_often_as_its_neighbour() -> None:
    """Random points are uniform; stretches start anywhere that they fit."""
    shares = (
        PointMasking(ratios=(0.3,), span_share=0.0)(20_000, (10,), None, Rng(0, 20_000)).targets.float().mean((0, 1))
    )
    assert float((shares - 0.3).abs().max()) < 0.01
    starts = PointMasking(ratios=(0.3,), span_share=1.0)(20_000, (10,), None, Rng(0, 20_000)).targets
    first = starts.float().argmax(-1).flatten().bincount(minlength=8) / starts[:, :, 0].numel()
    assert len(first) == 8
    assert float((first - 1 / 8).abs().max()) < 0.01


def test_masks_that_cannot_be() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"num_targets": 0}, "0"),
        ({"ratios": (0.1, 1.0)}, r"1\.0"),
        ({"span_share": 1.5}, r"1\.5"),
        ({"context_scale": (0.2, 1.0)}, r"0\.2"),
    ]
    for options, named in wrong:
        with pytest.raises(ValueError, match=named):
            PointMasking(**options)


# --- What is hidden, and what is not there ---------------------------------------------------------------------------


def test_targets_are_zero_where_nothing_is_sought() -> None:
    module, tracks = tiny().eval(), random_series(3, 12, 9 * 16)
    masks = module.draw(tracks, module.rng(3, 0))
    whole = module.latents(tracks, masks)
    assert whole.target[masks.targets].any(-1).all()
    assert not whole.target[~masks.targets].any()


def ragged() -> Trajectories:
    """Tracks of 3 to 12 points, one with points in its midst that are not there."""
    valid = torch.arange(12) < torch.tensor([12, 3, 9, 12]).unsqueeze(1)
    valid[3, 4:6] = False
    cells = random_series(4, 12, 9 * 16).masked_fill(~valid.unsqueeze(-1), 0.0)
    return Trajectories(cells, valid, torch.zeros(4, 12, 2))


def test_a_track_is_the_same_whatever_it_is_padded_with() -> None:
    module, batch = tiny().eval(), ragged()
    masks = module.draw(batch, Rng(1, 4))
    assert not ((masks.targets | masks.context) & ~batch.valid.unsqueeze(1)).any()
    assert masks.targets[3].any()
    latents = module.latents(batch, masks)
    other = module.latents(batch._replace(cells=torch.where(batch.valid.unsqueeze(-1), batch.cells, 7.0)), masks)
    assert torch.equal(module.loss(latents)["loss"], module.loss(other)["loss"])
    assert torch.equal(latents.features.pooled(), other.features.pooled())
    alone = batch.cells[1:2, :3]
    torch.testing.assert_close(module.features(alone).pooled()[0], latents.features.pooled()[1])
    short = PointMasks(*(mask[1:2, :, :3] for mask in masks))
    energy = module.energy(module.latents(alone, short))[0]
    torch.testing.assert_close(energy, module.energy(latents)[1])


def test_gaps_do_not_shift_what_is_hidden() -> None:
    """A track with a gap has the masks of the same without it, at the places where its points are."""
    module, batch = tiny(), ragged()
    one = Trajectories(*(field[3:] for field in batch))
    masks = module.draw(one, Rng(1, 1))
    without = module.masking(1, (12,), torch.tensor([10]), Rng(1, 1))
    place = one.valid[0].nonzero().view(-1)
    for mine, expected in zip(masks, without, strict=True):
        assert torch.equal(mine[0][:, place], expected[0][:, :10])


def test_pictures(tmp_path: Path) -> None:
    """Tracks on a map, with targets in colours."""
    logger = TensorBoardLogger(tmp_path, version="it")
    track = torch.stack([torch.linspace(0, 1000, 12), torch.linspace(0, 300, 12)], 1)
    batch = ragged()._replace(track=track.expand(4, -1, -1))
    rows = [Trajectories(*(field[i] for field in batch)) for i in range(4)]
    trainer = quiet_trainer(tmp_path, max_epochs=1, logger=logger, callbacks=[TrackPictures(2)])
    trainer.fit(tiny(), DataLoader(rows, 4), DataLoader(rows, 4))
    (picture,) = logged_images(logger, "pictures/tracks").values()
    assert picture.shape[0] == 3
    flat = picture.flatten(1).T
    colours = {tuple(colour) for colour in (flat[(flat.amax(1) - flat.amin(1)) > 0.3] * 10).round().int().tolist()}
    assert len(colours) > 3  # of targets and features

"""LeJEPA: the views of an image, its loss against lightly's, and a training that needs no teacher."""

import itertools
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers import LabelledImages, copies, loader, logged_images, quiet_trainer, random_images
from lightly.loss import LeJEPALoss
from lightly.loss.lejepa_loss import lejepa_invariance_loss
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from jepa_lightning import LeJEPA, load_encoder
from jepa_lightning.callbacks import EMATargetEncoder, KNNProbe, LatentPictures
from jepa_lightning.callbacks.pictures import draw_latents
from jepa_lightning.callbacks.pictures.drawing import TITLE_HEIGHT
from jepa_lightning.draws import Rng
from jepa_lightning.masking import MultiViews, Views, take_views

TINY: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "projector": (32, 8),
    "num_global": 2,
    "num_local": 3,
    "local_size": 8,
    "num_slices": 64,
    "warmup": 0.0,
}


def tiny(**options: Any) -> LeJEPA:
    torch.manual_seed(0)
    module = LeJEPA(**TINY | options)
    for parameter in module.context_encoder.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)  # at the initial 0.02 all views look the same
    return module


def drawn(views: MultiViews, batch_size: int = 500, seed: int = 0) -> Views:
    return views(batch_size, Rng(seed, batch_size))


# --- Boxes and colours -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_global", "num_local"), [(2, 6), (1, 1), (2, 0), (3, 1)])
def test_shapes_of_views(num_global: int, num_local: int) -> None:
    boxes, colours = drawn(MultiViews(num_global, num_local), 5)
    assert boxes.shape == (5, num_global + num_local, 4)
    assert colours.shape == (5, num_global + num_local, 3)


@pytest.mark.parametrize(
    "options", [{}, {"aspect": (0.2, 5.0)}, {"global_scale": (1.0, 1.0)}, {"local_scale": (0.01, 0.02)}]
)
def test_boxes_lie_in_the_image(options: Any) -> None:
    """With the share of the image and the aspect that were asked for, where the image did not cut them short."""
    masking = MultiViews(2, 4, **options)
    x, y, width, height = drawn(masking).boxes.double().unbind(-1)
    assert (x.abs() + width.abs()).max() <= 1 + 1e-6
    assert (y.abs() + height).max() <= 1 + 1e-6
    assert height.min() > 0
    width, sizes = width.abs(), (masking.global_scale, masking.local_scale)
    whole = (width < 1) & (height < 1)
    aspect = (width / height)[whole]
    assert masking.aspect[0] - 1e-5 <= aspect.min()
    assert aspect.max() <= masking.aspect[1] + 1e-5
    for part, (low, high) in zip((slice(0, 2), slice(2, 6)), sizes, strict=True):
        share, free = (width * height)[:, part], whole[:, part]
        assert share.max() <= high + 1e-6
        assert (share[free] >= low - 1e-6).all()


def test_boxes_fill_their_ranges() -> None:
    """Share and logarithm of the aspect evenly spread, the centre anywhere that leaves the box inside."""
    boxes = drawn(MultiViews(1, 4), 2000).boxes[:, 1:].double().flatten(0, 1)
    x, y, width, height = boxes.unbind(-1)
    width = width.abs()
    for values, low, high in (
        (width * height, 0.05, 0.3),
        ((width / height).log(), np.log(3 / 4), np.log(4 / 3)),
        (x / (1 - width), -1, 1),
        (y / (1 - height), -1, 1),
    ):
        quantiles = torch.quantile((values - low) / (high - low), torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).double())
        torch.testing.assert_close(quantiles, torch.linspace(0, 1, 5).double(), atol=0.03, rtol=0)
    assert abs(torch.corrcoef(boxes.T).fill_diagonal_(0)[:2]).max() < 0.05


def test_a_box_that_is_cut_short() -> None:
    """Four times as wide as high, of all of the image: the whole width and half of the height."""
    boxes = drawn(MultiViews(2, 0, global_scale=(1.0, 1.0), aspect=(4.0, 4.0))).boxes
    torch.testing.assert_close(boxes[..., 2].abs(), torch.ones(500, 2))
    torch.testing.assert_close(boxes[..., 3], torch.full((500, 2), 0.5))
    assert boxes[..., 0].abs().max() < 1e-6
    assert boxes[..., 1].std() == pytest.approx(0.5 / 3**0.5, rel=0.1)


def test_half_are_mirrored() -> None:
    """Which ones has nothing to do with their place or with another view of the image."""
    boxes = drawn(MultiViews(2, 4), 4000).boxes
    mirrored = (boxes[..., 2] < 0).double()
    assert (mirrored.mean(0) - 0.5).abs().max() < 0.04
    assert torch.corrcoef(mirrored.T).fill_diagonal_(0).abs().max() < 0.08
    assert abs(torch.corrcoef(torch.stack([mirrored.flatten(), boxes[..., 0].double().flatten()]))[0, 1]) < 0.04


@pytest.mark.parametrize("jitter", [0.0, 0.4, 1.0])
def test_colours_are_around_none(jitter: float) -> None:
    colours = drawn(MultiViews(2, 4, jitter=jitter)).colours.double().flatten(0, 1) - torch.tensor([0.0, 1.0, 1.0])
    assert colours.abs().max() <= jitter + 1e-6
    torch.testing.assert_close(colours.amax(0), torch.full((3,), jitter).double(), rtol=0.01, atol=1e-6)
    torch.testing.assert_close(colours.amin(0), torch.full((3,), -jitter).double(), rtol=0.01, atol=1e-6)
    assert colours.mean(0).abs().max() <= 0.05 * jitter


def test_views_follow_the_generator() -> None:
    masking = MultiViews()
    first, again, other = drawn(masking, 8, 1), drawn(masking, 8, 1), drawn(masking, 8, 2)
    for one, same, different in zip(first, again, other, strict=True):
        assert torch.equal(one, same)
        assert not (one[..., :1] == different[..., :1]).any()
    for rank in range(2):  # a rank draws its own, and one process those of two in turns
        for whole, half in zip(first, masking(4, Rng(1, 4, rank=rank, ranks=2)), strict=True):
            assert torch.equal(whole[rank::2], half)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    drawn(masking, 8)
    assert torch.equal(torch.get_rng_state(), state)  # given numbers are the only source
    fresh = masking(8)
    torch.manual_seed(1)
    assert torch.equal(masking(8).boxes, fresh.boxes)
    assert not torch.equal(masking(8).boxes, fresh.boxes)
    with pytest.raises(ValueError, match="draws for 4 samples"):
        masking(8, Rng(1, 4))
    assert len(set(first.boxes[..., 0].flatten().tolist())) == 8 * 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_global": 0}, "0 global, 6 local"),
        ({"num_local": -1}, "2 global, -1 local"),
        ({"num_global": 1, "num_local": 0}, "1 global, 0 local"),
        ({"global_scale": (0.0, 1.0)}, r"global_scale.*\(0\.0, 1\.0\)"),
        ({"global_scale": (0.3, 1.1)}, r"global_scale.*\(0\.3, 1\.1\)"),
        ({"local_scale": (0.3, 0.05)}, r"local_scale.*\(0\.3, 0\.05\)"),
        ({"aspect": (0.0, 1.0)}, r"aspect.*\(0\.0, 1\.0\)"),
        ({"aspect": (2.0, 1.0)}, r"aspect.*\(2\.0, 1\.0\)"),
        ({"jitter": -0.1}, r"jitter.*-0\.1"),
        ({"jitter": 1.5}, r"jitter.*1\.5"),
    ],
)
def test_rejected_views(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiViews(**options)


# --- Pixels ----------------------------------------------------------------------------------------------------------

PLAIN = (0.0, 1.0, 1.0)


def one_view(box: Any, colours: Any = PLAIN, batch_size: int = 1) -> Views:
    boxes, colours = (torch.tensor(values).view(1, 1, -1).repeat(batch_size, 1, 1) for values in (box, colours))
    return Views(boxes, colours)


def box_of(top: int, left: int, height: int, width: int, shape: tuple[int, int]) -> list[float]:
    rows, columns = shape
    return [(2 * left + width) / columns - 1, (2 * top + height) / rows - 1, width / columns, height / rows]


def crop_and_resize(image: Tensor, pixels: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    return tv.resize(tv.crop(image, *pixels), list(size), InterpolationMode.BILINEAR, antialias=False)


@pytest.mark.parametrize(
    ("pixels", "size", "mirrored"),
    [
        ((0, 0, 16, 24), (16, 24), False),
        ((0, 0, 16, 24), (16, 24), True),
        ((0, 0, 16, 24), (10, 7), False),
        ((4, 6, 8, 12), (8, 12), False),
        ((3, 1, 12, 9), (7, 8), True),
        ((0, 16, 4, 8), (4, 8), False),
        ((15, 0, 1, 24), (1, 24), True),
    ],
)
def test_views_are_crops(pixels: tuple[int, int, int, int], size: tuple[int, int], mirrored: bool) -> None:
    """Of whole pixels, at their own size or smaller: torchvision's crop and resize, and its flip."""
    images, box = random_images(3, (16, 24)), box_of(*pixels, (16, 24))
    box[2] *= -1 if mirrored else 1
    views = take_views(images, one_view(box, batch_size=3), size)
    assert views.shape == (3, 1, 3, *size)
    expected = crop_and_resize(images, pixels, size)
    torch.testing.assert_close(views[:, 0], tv.horizontal_flip(expected) if mirrored else expected, atol=1e-5, rtol=0)


def test_enlarged_views_are_crops() -> None:
    """Up to the outermost pixels, which look beyond the crop."""
    images, pixels = random_images(2, (16, 24)), (4, 6, 6, 8)
    views = take_views(images, one_view(box_of(*pixels, (16, 24)), batch_size=2), (12, 24))[:, 0]
    expected = crop_and_resize(images, pixels, (12, 24))
    torch.testing.assert_close(views[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=1e-5, rtol=0)
    wider = crop_and_resize(images, (3, 5, 8, 10), (16, 30))[..., 2:-2, 3:-3]
    torch.testing.assert_close(views, wider, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pixels", [(0, 0, 16, 24), (0, 0, 8, 12), (8, 12, 8, 12)])
def test_enlarged_views_end_with_the_image(pixels: tuple[int, int, int, int]) -> None:
    """At the border of the image there is nothing to mix in: a white image stays white."""
    views = take_views(torch.ones(1, 3, 16, 24), one_view(box_of(*pixels, (16, 24))), (32, 48))
    torch.testing.assert_close(views, torch.ones(1, 1, 3, 32, 48))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colours_by_hand(channels: int) -> None:
    """Saturation stretches a pixel from its grey, contrast from the view's mean grey; then the brightness shifts."""
    images, (shift, contrast, saturation) = random_images(2, (3, 5), channels), (0.3, 0.7, 1.4)
    views = take_views(images, one_view([0.0, 0.0, 1.0, 1.0], (shift, contrast, saturation), 2), (3, 5))[:, 0]
    for image, view in zip(images.double().tolist(), views, strict=True):
        pixels = list(itertools.product(range(3), range(5)))
        grey = {(i, j): sum(channel[i][j] for channel in image) / channels for i, j in pixels}
        mean = sum(grey.values()) / len(grey)
        for (i, j), c in itertools.product(pixels, range(channels)):
            stretched = grey[i, j] + saturation * (image[c][i][j] - grey[i, j])
            assert view[c, i, j].item() == pytest.approx(mean + contrast * (stretched - mean) + shift, abs=1e-5)


def test_views_of_an_image_are_its_own() -> None:
    """What becomes of an image depends on nothing else in the batch, and of a view on no other view."""
    images, views = random_images(4, (16, 24)), drawn(MultiViews(2, 3), 4)
    together = take_views(images, views, (8, 10))
    assert together.shape == (4, 5, 3, 8, 10)
    for image, view in itertools.product(range(4), range(5)):
        alone = Views(views.boxes[image, view].view(1, 1, 4), views.colours[image, view].view(1, 1, 3))
        taken = take_views(images[image : image + 1], alone, (8, 10))
        torch.testing.assert_close(together[image, view], taken[0, 0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[:, 0], together[:, 1], atol=0.1)


# --- Loss ------------------------------------------------------------------------------------------------------------


def projections(module: LeJEPA, images: Tensor, views: Views) -> Tensor:
    """`[V, B, P]`: view by view through the encoder, and all together through the projector and its batch norms."""
    embeddings = []
    for view in range(views.boxes.shape[1]):
        size = (16, 16) if view < module.hparams.num_global else (8, 8)
        one = Views(views.boxes[:, view : view + 1], views.colours[:, view : view + 1])
        embeddings.append(module.context_encoder(take_views(images, one, size)[:, 0]).mean(1))
    return module.predictor(torch.cat(embeddings)).unflatten(0, (len(embeddings), len(images)))


def lightlys_loss(module: LeJEPA) -> LeJEPALoss:
    """Lightly's, along the directions of the module's current step."""
    loss = LeJEPALoss(lambda_param=module.hparams.sigreg_weight, sigreg_num_vectors=64)
    directions = module.sigreg.directions(torch.zeros(1, 8))
    loss.sigreg._generate_unit_vectors = lambda device, dtype, num_features: directions  # type: ignore[method-assign]
    return loss


@pytest.mark.parametrize(
    ("num_global", "num_local", "weight", "training"), [(2, 3, 0.05, True), (1, 2, 0.4, False), (3, 1, 1.0, True)]
)
def test_loss_against_lightly(num_global: int, num_local: int, weight: float, training: bool) -> None:
    module = tiny(num_global=num_global, num_local=num_local, sigreg_weight=weight).train(training)
    images, views = random_images(6), drawn(module.views, 6)
    reference = lightlys_loss(module)
    latents = module.latents(images, views)
    terms = module.loss(latents)
    found = projections(module, images, views)
    torch.testing.assert_close(latents.prediction, found.transpose(0, 1), rtol=1e-4, atol=1e-5)
    centre = found[:num_global].mean(0)
    for view in range(num_global + num_local):
        torch.testing.assert_close(latents.target[:, view], centre, rtol=1e-4, atol=1e-5)
    invariance = lejepa_invariance_loss(all_proj=found, global_proj=found[:num_global])
    loss = reference(local_proj=found[num_global:], global_proj=found[:num_global])
    torch.testing.assert_close(terms["energy"], invariance, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(terms["sigreg"], reference.sigreg(found), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["loss"], loss, rtol=1e-4, atol=1e-5)
    per_image = [(found[:, image] - centre[image]).square().mean() for image in range(6)]
    torch.testing.assert_close(module.energy(latents), torch.stack(per_image), rtol=1e-4, atol=1e-6)
    # Which views are the global ones matters.
    assert not torch.allclose(invariance, lejepa_invariance_loss(all_proj=found, global_proj=found[-num_global:]))


def test_latents() -> None:
    """The context is the first view, the features those of the whole image, which take no gradient."""
    module = tiny().eval()
    images, views = random_images(4), drawn(module.views, 4)
    latents = module.latents(images, views)
    first = take_views(images, Views(views.boxes[:, :1], views.colours[:, :1]), (16, 16))[:, 0]
    context, features = latents.embeddings["context"].values, latents.features.values
    torch.testing.assert_close(context, module.context_encoder(first))
    torch.testing.assert_close(features, module.context_encoder(images))
    torch.testing.assert_close(latents.embeddings["target"].values, features, rtol=0, atol=0)
    assert context.shape == features.shape == (4, 16, 16)
    assert context.requires_grad
    assert not features.requires_grad


def gradients(module: LeJEPA) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.requires_grad and p.grad is not None}


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_gradients_against_lightly(weight: float) -> None:
    module = tiny(sigreg_weight=weight).train()
    images, views = random_images(6), drawn(module.views, 6)
    reference = lightlys_loss(module)
    module.loss(module.latents(images, views))["loss"].backward()
    found = projections(module, images, views)
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    expected = torch.autograd.grad(reference(local_proj=found[2:], global_proj=found[:2]), list(parameters.values()))
    assert gradients(module).keys() == parameters.keys()
    for (name, gradient), by_lightly in zip(gradients(module).items(), expected, strict=True):
        torch.testing.assert_close(gradient, by_lightly, rtol=1e-3, atol=1e-5, msg=name)


def test_the_centre_carries_gradient() -> None:
    """In closed form: of all the distances, those of the local views pull at the global ones too."""
    module = tiny(sigreg_weight=0.0).train()
    images, views = random_images(6), drawn(module.views, 6)
    module.loss(module.latents(images, views))["loss"].backward()
    found = projections(module, images, views)
    distance = (found - found[:2].mean(0)).detach()
    stopped = 2 * distance / found.numel()
    pulled = stopped.clone()
    pulled[:2] -= 2 * distance.sum(0) / 2 / found.numel()
    parameters = [p for p in module.parameters() if p.requires_grad]
    expected = torch.autograd.grad(found, parameters, pulled, retain_graph=True)
    without = torch.autograd.grad(found, parameters, stopped)
    for gradient, with_centre in zip(gradients(module).values(), expected, strict=True):
        torch.testing.assert_close(gradient, with_centre, rtol=1e-3, atol=1e-6)
    norms = [torch.cat([gradient.flatten() for gradient in each]).norm() for each in (expected, without)]
    assert abs(norms[0] / norms[1] - 1) > 0.02


# --- Module ----------------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    """Two global views of 224 pixels and six local ones of 96, projected to 16 features."""
    with torch.device("meta"):
        module = LeJEPA()
    assert (module.context_encoder.grid, module.context_encoder.embed_dim) == ((14, 14), 384)
    assert (module.views.num_global, module.views.num_local, module.hparams.local_size) == (2, 6, 96)
    assert module.predictor(torch.zeros(4, 384, device="meta")).shape == (4, 16)
    assert module.sigreg.num_slices == 1024


def test_the_encoder_is_its_own_target() -> None:
    module = tiny()
    assert module.target_encoder is module.context_encoder
    assert module.teachers() == []
    assert all(part.training for part in module.eval().train().modules())
    parameters = list(module.parameters())
    assert len(parameters) == len({id(parameter) for parameter in parameters})
    assert all(p.requires_grad for name, p in module.named_parameters() if not name.endswith("pos_embed"))


class Watch(pl.Callback):
    """SIGReg's step after each of the module's, and the outputs and batches of validations."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.val: list[tuple[Any, Any]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.steps.append(pl_module.sigreg.step)

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self.val.append((outputs, batch))


def test_learns(tmp_path: Path) -> None:
    """Without a teacher: on plain labelled images the loss falls, neighbours are of one class, and pictures show it."""
    module = tiny(lr=3e-3, start_lr=3e-3, sigreg_weight=0.3)
    images = torch.stack([LabelledImages()[index].image for index in range(64)])
    views = drawn(module.views, 64)

    def loss() -> float:
        module.sigreg.step = 0
        return module.train().loss(module.latents(images, views))["loss"].item()

    before, watch, logger = loss(), Watch(), TensorBoardLogger(tmp_path)
    callbacks = [watch, KNNProbe(k=5), LatentPictures(2)]
    trainer = quiet_trainer(tmp_path, max_epochs=6, logger=logger, callbacks=callbacks)
    trainer.fit(module, loader(LabelledImages(128), 32), loader(LabelledImages(32), 16))
    assert watch.steps == list(range(2, 26))  # one was taken above; validations take none
    assert loss() < 0.5 * before
    assert not any(isinstance(callback, EMATargetEncoder) for callback in trainer.callbacks)
    assert module.target_encoder is module.context_encoder
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    for stage in ("train", "val"):
        energy, sigreg = logged[f"{stage}/energy"], logged[f"{stage}/sigreg"]
        assert logged[f"{stage}/loss"] == pytest.approx(0.7 * energy + 0.3 * sigreg, rel=1e-4)
    assert "train/momentum" not in logged
    assert logged["probe/knn/accuracy"] > 0.85
    outputs, batch = watch.val[-2]
    expected = draw_latents(batch.image[:2], None, outputs["latents"].features.values[:2], (4, 4))
    pictures = logged_images(logger, "pictures/latents")
    assert len(pictures) == 6
    assert (pictures[max(pictures)][:, TITLE_HEIGHT:] - expected).abs().max() < 1.5 / 255


@pytest.mark.parametrize(
    "options",
    [
        {"num_local": 0},
        {"num_global": 1, "num_local": 1},
        {"image_size": [16, 24], "local_size": [8, 12]},
        {"in_channels": 1, "jitter": 0.0},
        {"sigreg_weight": 0.0},
    ],
)
def test_options_train(options: dict[str, Any], tmp_path: Path) -> None:
    module = tiny(**options, lr=1e-2, start_lr=1e-2)
    before = copies(module)
    size, channels = options.get("image_size", 16), options.get("in_channels", 3)
    data = loader(random_images(8, tuple(size) if isinstance(size, list) else size, channels))
    trainer = quiet_trainer(tmp_path, max_steps=2)
    trainer.fit(module, data, data)
    assert trainer.callback_metrics["train/loss"].isfinite()
    moved = {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}
    # Batch norms take back any bias before them.
    assert moved >= {name for name, p in module.named_parameters() if p.requires_grad and p.ndim > 1}


def test_energy_of_global_views_alone() -> None:
    """Then the centre is the mean of all, and the energy their variance."""
    module = tiny(num_global=3, num_local=0)
    latents = module.latents(random_images(5))
    assert latents.prediction.shape == (5, 3, 8)
    variance = latents.prediction.var(1, correction=0).mean(1)
    torch.testing.assert_close(module.energy(latents), variance, rtol=1e-4, atol=1e-6)


def test_load_encoder(tmp_path: Path) -> None:
    """By both of its names."""
    module = tiny()
    trainer = quiet_trainer(tmp_path, max_steps=1)
    trainer.fit(module, loader(random_images(8)))
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    images = random_images(4)
    for network in ("target_encoder", "context_encoder"):
        encoder = load_encoder(tmp_path / "it.ckpt", network, num_heads=2)
        assert torch.equal(encoder(images), module.eval().target_encoder(images))
        assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"momentum": (0.9, 1.0)}, TypeError, "momentum"),
        ({"local_size": 10}, ValueError, r"local_size.*patch_size=4.*10"),
        ({"sigreg_weight": 1.1}, ValueError, r"sigreg_weight.*1\.1"),
        ({"sigreg_weight": -0.1}, ValueError, r"sigreg_weight.*-0\.1"),
        ({"num_global": 0}, ValueError, "0 global, 3 local"),
        ({"local_scale": (0.0, 0.3)}, ValueError, "local_scale"),
        ({"jitter": 2.0}, ValueError, "jitter"),
        ({"num_slices": 0}, ValueError, "num_slices"),
    ],
)
def test_rejected_options(options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        LeJEPA(**TINY | options)

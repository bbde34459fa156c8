"""Probes, monitors and pictures; and probes in two processes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import (
    TINY,
    Labelled,
    LabelledImages,
    difference,
    in_two_processes,
    loader,
    logged_images,
    quiet_trainer,
    random_images,
)
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.linear_model import LinearRegression
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from jepa_lightning import IJEPA, ShapesDataModule
from jepa_lightning.callbacks import (
    CollapseMonitor,
    FeatureWriter,
    KNNProbe,
    LatentPictures,
    LinearProbe,
    RegressionProbe,
    Throughput,
)
from jepa_lightning.callbacks.pictures import draw_latents
from jepa_lightning.callbacks.pictures.drawing import BLOCK_COLOURS, TITLE_HEIGHT
from jepa_lightning.callbacks.readings import place_share
from jepa_lightning.draws import Rng
from jepa_lightning.masking import Masks, MultiBlockMasking
from jepa_lightning.networks import gather_tokens
from jepa_lightning.step import Latents, Tokens


def numpy_rankme(z: np.ndarray) -> float:
    sigma = np.linalg.svd(z.astype(np.float64), compute_uv=False)
    sigma = np.pad(sigma, (0, z.shape[1] - len(sigma)))  # D singular values, also of fewer samples
    p = sigma / sigma.sum() + 1e-7
    return float(np.exp(-(p * np.log(p)).sum()))


def brute_cosine(z: np.ndarray) -> float:
    pairs = [(a @ b) / np.sqrt((a @ a) * (b @ b)) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]
    return float(np.mean(pairs))


REFERENCES = {"rankme": numpy_rankme, "std": lambda z: float(z.std(0).mean()), "cosine": brute_cosine}


# --- Probes ----------------------------------------------------------------------------------------------------------


class Record(pl.Callback):
    """Keeps what the steps return, and the batches."""

    def __init__(self) -> None:
        self.train: list[tuple[Any, Any]] = []
        self.val: list[tuple[Any, Any]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.train.append((outputs, batch))

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self.val.append((outputs, batch))


def tiny(**options: Any) -> IJEPA:
    torch.manual_seed(0)
    return IJEPA(**TINY | options)


def test_watching_changes_nothing(tmp_path: Path) -> None:
    """With and without: the same bits, although the loader shuffles. Other probes: test_contracts.py."""
    finals = []
    for watched in (True, False):
        module = tiny(lr=1e-2, momentum=(0.9, 1.0))
        callbacks = [LinearProbe(4, "pixels", source="observation"), RegressionProbe(label="other")]
        callbacks += [LatentPictures(), Throughput(1)]
        pl.seed_everything(5, verbose=False)
        quiet_trainer(
            tmp_path, max_epochs=2, logger=TensorBoardLogger(tmp_path), callbacks=callbacks if watched else []
        ).fit(module, DataLoader(LabelledImages(16), 8, shuffle=True), loader(LabelledImages(8)))
        finals.append(module.state_dict())
    assert not difference(*finals)


def test_baselines(tmp_path: Path) -> None:
    """What the same probe reads off pixels and off a module that is not trained; of a run that is resumed, too."""
    raw, frozen = KNNProbe("raw", "other", "observation", k=3), KNNProbe("frozen", "other", k=3)
    still = quiet_trainer(tmp_path, max_epochs=1, callbacks=[raw, frozen])
    still.fit(tiny(lr=0.0, start_lr=0.0, final_lr=0.0), loader(LabelledImages(64)), loader(Later(80), 16))
    expected = {name: float(still.callback_metrics[f"probe/{name}/accuracy"]) for name in ("raw", "frozen")}

    probe = KNNProbe(label="other", k=3, baselines=True)
    trainer = quiet_trainer(tmp_path, max_epochs=2, callbacks=[probe])
    trainer.fit(tiny(lr=0.1), loader(LabelledImages(64)), loader(Later(80), 16))
    assert probe.readings == {"raw": expected["raw"], "untrained": expected["frozen"]}
    assert all(trainer.callback_metrics[f"probe/knn/{name}"] == value for name, value in probe.readings.items())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = KNNProbe(label="other", k=3, baselines=True)
    trainer = quiet_trainer(tmp_path, max_epochs=3, callbacks=[again])
    trainer.fit(tiny(), loader(LabelledImages(64)), loader(Later(80), 16), ckpt_path=tmp_path / "last.ckpt")
    assert again.readings == probe.readings


def test_baselines_wait_for_a_full_bank(tmp_path: Path) -> None:
    """A validation within the first epoch does not read a bank that is still filling, as the last one would not."""
    readings = []
    for every in (1.0, 0.25):  # of the epoch's eight batches, of which the bank holds four
        probe = KNNProbe(label="other", k=3, bank_size=32, baselines=True)
        trainer = quiet_trainer(tmp_path, max_epochs=1, val_check_interval=every, callbacks=[probe, record := Record()])
        trainer.fit(tiny(), loader(LabelledImages(64)), loader(Later(80), 16))
        readings.append(probe.readings)
    assert readings[0] == readings[1]
    assert len(record.val) == 4 * 5
    (bank, labels), (queries, truth) = (
        [
            torch.stack(part).numpy()
            for part in zip(*((each.image.flatten(), each.other) for each in images), strict=True)
        ]
        for images in ([LabelledImages()[i] for i in range(32)], [Later()[i] for i in range(80)])
    )
    hits = knn_hits(bank.astype(float), labels, queries.astype(float), truth, 3, 0.07)
    assert readings[0]["raw"] == pytest.approx(hits / 80)


@pytest.mark.parametrize("source", ["features", "observation"])
def test_probes_read_what_is_there(source: Any, tmp_path: Path) -> None:
    probes = [LinearProbe(4, source=source, lr=0.03), KNNProbe(source=source, k=5)]
    trainer = quiet_trainer(tmp_path, max_epochs=4, callbacks=probes)
    trainer.fit(tiny(), loader(LabelledImages(64)), loader(LabelledImages(96), 32))
    for name in ("linear", "knn"):
        assert trainer.callback_metrics[f"probe/{name}/accuracy"] > 0.8
    assert all(f"probe/{name}/accuracy" in trainer.progress_bar_metrics for name in ("linear", "knn"))
    # Labels that have nothing to do with the image stay where guessing is.
    probes = [LinearProbe(3, label="other", source=source), KNNProbe(label="other", source=source, k=5)]
    trainer = quiet_trainer(tmp_path, max_epochs=2, callbacks=probes)
    trainer.fit(tiny(), loader(LabelledImages(64)), loader(Later(), 32))
    assert all(trainer.callback_metrics[f"probe/{name}/accuracy"] < 0.6 for name in ("linear", "knn"))


class Ordered(IJEPA):
    """Features of two tokens, of which the class says which comes first."""

    def latents(self, batch: Any, drawn: Any = None) -> Latents:
        first = F.one_hot(batch.label % 2, 2).float()
        return super().latents(batch, drawn)._replace(features=Tokens(torch.stack([first, 1 - first], 1)))


def test_tokens_side_by_side(tmp_path: Path) -> None:
    """They say what the mean of the tokens cannot."""
    probes = [LinearProbe(4, "mean", lr=0.1), LinearProbe(4, "tokens", lr=0.1, pooled=False)]
    trainer = quiet_trainer(tmp_path, max_epochs=4, callbacks=probes)
    trainer.fit(Ordered(**TINY), loader(TwoKinds(64)), loader(TwoKinds(32)))
    assert trainer.callback_metrics["probe/mean/accuracy"] == 0.5
    assert trainer.callback_metrics["probe/tokens/accuracy"] == 1.0


def test_tokens_side_by_side_of_different_lengths() -> None:
    valid = torch.tensor([[True, True, True], [True, False, False]])
    with pytest.raises(ValueError, match=r"'tokens'.*\[3, 1\].*pooled"):
        LinearProbe(4, "tokens", pooled=False).pool(Tokens(torch.zeros(2, 3, 5), valid))


class TwoKinds(LabelledImages):
    """Of classes 0 and 1."""

    def __getitem__(self, index: int) -> Labelled:
        return super().__getitem__(index)._replace(label=torch.tensor(index % 2))


class Later(LabelledImages):
    """Images that are not among the first thousand."""

    def __getitem__(self, index: int) -> Labelled:
        return super().__getitem__(index + 1000)


def knn_hits(
    bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, truth: np.ndarray, k: int, temperature: float
) -> int:
    """How many queries get their class by the vote of their neighbours."""
    mean, std = bank.mean(0), bank.std(0)
    bank, queries = (bank - mean) / (std + 1e-6), (queries - mean) / (std + 1e-6)
    hits = 0
    for query, label in zip(queries, truth, strict=True):
        cosine = bank @ query / np.linalg.norm(bank, axis=1) / np.linalg.norm(query)
        votes = np.zeros(labels.max() + 1)
        for neighbour in np.argsort(-cosine)[:k]:
            votes[labels[neighbour]] += np.exp(cosine[neighbour] / temperature)
        hits += int(np.argmax(votes) == label)
    return hits


@pytest.mark.parametrize(
    ("source", "k", "bank_size", "temperature"),
    [
        ("features", 5, 1000, 0.07),
        ("features", 200, 20, 1.0),
        ("features", 1, 28, 0.07),
        ("observation", 5, 1000, 0.07),
    ],
)
def test_knn_by_brute_force(source: Any, k: int, bank_size: int, temperature: float, tmp_path: Path) -> None:
    """The vote, image by image, among the latest of the bank."""
    record = Record()
    probe = KNNProbe(label="other", source=source, k=k, temperature=temperature, bank_size=bank_size)
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[record, probe])
    trainer.fit(tiny(), loader(LabelledImages(60)), DataLoader(Later(80), 16))

    def inputs(steps: list[tuple[Any, Any]]) -> tuple[np.ndarray, np.ndarray]:
        read = [
            b.image.flatten(1) if source == "observation" else o["latents"].features.values.mean(1) for o, b in steps
        ]
        return torch.cat(read).double().numpy(), torch.cat([batch.other for _, batch in steps]).numpy()

    bank, labels = (part[-bank_size:] for part in inputs(record.train))
    hits = knn_hits(bank, labels, *inputs(record.val), k, temperature)
    assert 0 < hits < 80
    assert float(trainer.callback_metrics["probe/knn/accuracy"]) == pytest.approx(hits / 80)


def test_a_bank_of_one_image_votes_for_its_label(tmp_path: Path) -> None:
    record, probe = Record(), KNNProbe(label="other", bank_size=1)
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[record, probe])
    trainer.fit(tiny(), loader(LabelledImages(60)), DataLoader(Later(80), 16))
    only, labels = probe.state_dict()["labels"], torch.cat([batch.other for _, batch in record.val])
    assert float(trainer.callback_metrics["probe/knn/accuracy"]) == pytest.approx(
        float((labels == only).float().mean())
    )


def test_labels_by_name(tmp_path: Path) -> None:
    data = ShapesDataModule(16, 16, 16, batch_size=8, num_workers=0)
    probe = KNNProbe(label="count", bank_size=16)
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[LinearProbe(8), LinearProbe(5, "count", "count"), probe])
    pl.seed_everything(0, verbose=False)
    trainer.fit(tiny(), data)
    counts = data.sets["train"].__getitems__(list(range(16))).count
    assert sorted(probe.state_dict()["labels"].tolist()) == sorted(counts.tolist())
    assert set(probe.state_dict()["labels"].tolist()) <= {1, 2, 3}


class Half(LabelledImages):
    """Every other image has no label."""

    def __getitem__(self, index: int) -> Labelled:
        sample = super().__getitem__(index // 2)
        return sample._replace(label=torch.tensor(-1)) if index % 2 else sample


def test_images_without_label_teach_nothing(tmp_path: Path) -> None:
    """Half without label: the bank is that of the other half; a batch without any is survived."""
    half, whole, linear = KNNProbe(), KNNProbe(), LinearProbe(4, lr=0.03)
    still = {"lr": 0.0, "start_lr": 0.0, "final_lr": 0.0}
    trainer = quiet_trainer(tmp_path, max_epochs=4, callbacks=[half, linear])
    trainer.fit(tiny(**still), loader(Half(64)), loader(LabelledImages(32), 32))
    assert trainer.callback_metrics["probe/linear/accuracy"] > 0.9
    quiet_trainer(tmp_path, max_epochs=4, callbacks=[whole]).fit(tiny(**still), loader(LabelledImages(32)))
    a, b = half.state_dict(), whole.state_dict()
    assert a["next"] == b["next"] == 128
    torch.testing.assert_close(a["inputs"], b["inputs"])
    probes = [LinearProbe(4), KNNProbe()]
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=probes)
    trainer.fit(tiny(), loader(Unlabelled(8)), loader(LabelledImages(8)))
    assert probes[0].state_dict()["head"]["1.weight"].isfinite().all()
    assert "probe/knn/accuracy" not in trainer.callback_metrics


def test_a_last_batch_of_one_image(tmp_path: Path) -> None:
    """A loader that keeps it is no reason for the probe to stop a training."""
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[LinearProbe(4), KNNProbe(), CollapseMonitor(1)])
    trainer.fit(tiny(), loader(LabelledImages(9)), loader(LabelledImages(9)))
    assert trainer.global_step == 2
    assert 0 <= trainer.callback_metrics["probe/linear/accuracy"] <= 1


class Unlabelled(LabelledImages):
    def __getitem__(self, index: int) -> Labelled:
        return super().__getitem__(index)._replace(label=torch.tensor(-1))


class Bare(Dataset[Tensor]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return random_images(8)[index]


class FloatLabels(LabelledImages):
    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index).image, torch.tensor(0.5)


class Placed(LabelledImages):
    """The label is the place of the square, and a number that only some images have."""

    def __getitem__(self, index: int) -> Any:
        sample = super().__getitem__(index)
        rest = [torch.nan, torch.inf] if index % 3 else [0.0, 0.0]
        return sample.image, torch.tensor([[*divmod(int(sample.label), 2)], rest])


def test_regression_against_numpy(tmp_path: Path) -> None:
    """The first numbers of a label; r2 of the probe's own predictions, worked out by hand."""
    torch.manual_seed(0)
    probes = [RegressionProbe(2, "place", lr=0.1), RegressionProbe(1, "row", source="observation", lr=0.01)]
    trainer = quiet_trainer(tmp_path, max_epochs=6, callbacks=probes)
    module, data = tiny(), Placed(64)
    trainer.fit(module, loader(data, 16), loader(data, 32))
    images, labels = (torch.stack(column) for column in zip(*(data[i] for i in range(64)), strict=True))
    with torch.no_grad():
        inputs = (module.target_encoder(images).mean(1), images.flatten(1))
        labels = (labels - labels.mean(0)) / labels.std(0, correction=0)
        for probe, read, wanted in zip(probes, inputs, (labels[:, 0], labels[:, 0, :1]), strict=True):
            errors = (probe.predict(read) - wanted).numpy()
            r2 = (1 - (errors**2).sum(0) / ((wanted - wanted.mean(0)) ** 2).sum(0).numpy()).mean()
            assert float(trainer.callback_metrics[f"probe/{probe.name}/r2"]) == pytest.approx(r2, abs=1e-4)
            assert r2 > 0.5


class Rescaled(Placed):
    """The same in other units, from another origin."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, place = super().__getitem__(index)
        return image, 200 * place + 1000


def test_regression_in_any_unit(tmp_path: Path) -> None:
    scores = []
    for data in (Placed(64), Rescaled(64)):
        torch.manual_seed(0)
        trainer = quiet_trainer(tmp_path, max_epochs=3, callbacks=[RegressionProbe(2, lr=0.1)])
        trainer.fit(tiny(), loader(data, 16), loader(data, 32))
        scores.append(float(trainer.callback_metrics["probe/regression/r2"]))
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)
    assert scores[0] > 0.3


@pytest.mark.parametrize(
    ("probe", "data", "message"),
    [
        (LinearProbe(4), Bare(), "'linear'.* none"),
        (KNNProbe(), torch.utils.data.TensorDataset(random_images(8)), "'knn'.* none"),
        (LinearProbe(4, label="colour"), LabelledImages(8), "'colour'.* label, other"),
        (LinearProbe(4, label="colour"), Bare(), "'colour'"),
        (KNNProbe("mine"), FloatLabels(8), r"'mine'.* integers.*float32 \[8\]"),
        (LinearProbe(4, label="image"), LabelledImages(8), r"float32 \[8, 3, 16, 16\]"),
        (LinearProbe(3), LabelledImages(8), "'linear'.* 3 classes"),
        (RegressionProbe(3), Placed(8), r"'regression'.* 3 .*float32 \[8, 2, 2\]"),
        (RegressionProbe(2), LabelledImages(8), r"'regression'.* 2 .*int64 \[8\]"),
    ],
)
def test_labels_that_do_not_fit(probe: Any, data: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        quiet_trainer(tmp_path, max_epochs=1, callbacks=[probe]).fit(tiny(), loader(data))


def test_labels_are_looked_at_before_the_first_step(tmp_path: Path) -> None:
    """More classes than a probe has, which the first training batches need not show."""

    class Rare(LabelledImages):
        def __getitem__(self, index: int) -> Labelled:
            return super().__getitem__(index)._replace(label=torch.tensor(0))

    record = Record()
    trainer = quiet_trainer(tmp_path, max_epochs=1, num_sanity_val_steps=1, callbacks=[record, LinearProbe(3)])
    with pytest.raises(ValueError, match=r"'linear'.* 3 classes"):
        trainer.fit(tiny(), loader(Rare(32)), loader(LabelledImages(8)))
    assert not record.train


@pytest.mark.parametrize("probe", [LinearProbe(4, source="pixels"), KNNProbe(source="pixels")])
def test_a_source_that_there_is_not(probe: Any, tmp_path: Path) -> None:
    """Which embeddings a method has, its first step tells."""
    with pytest.raises(ValueError, match=r"'pixels'.* observation, features, context, target"):
        quiet_trainer(tmp_path, max_epochs=1, callbacks=[probe]).fit(tiny(), loader(LabelledImages(8)))


def test_rejected_options() -> None:
    for call, message in (
        (lambda: KNNProbe(k=0), r"\bk\b"),
        (lambda: CollapseMonitor(0), "every_n_steps"),
        (lambda: LatentPictures(0), "num_images"),
        (lambda: Throughput(0), "window"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_probes_go_on_after_a_test(tmp_path: Path) -> None:
    """In one process: a test of a checkpoint, then a training from another, with callbacks that were used before."""
    probes, data = [LinearProbe(4), RegressionProbe(label="other")], loader(LabelledImages(40))
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=probes)
    trainer.fit(tiny(), data, loader(Later(24)))
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    first = [{name: value.clone() for name, value in probe.state_dict()["head"].items()} for probe in probes]
    quiet_trainer(tmp_path, max_epochs=3, callbacks=probes).fit(
        tiny(), data, loader(Later(24)), ckpt_path=str(tmp_path / "first.ckpt")
    )
    fresh = quiet_trainer(tmp_path, max_epochs=2, callbacks=[LinearProbe(4), RegressionProbe(label="other")])
    for used in (quiet_trainer(tmp_path, max_epochs=2, callbacks=probes), fresh):
        used.test(tiny(), loader(Later(24)), ckpt_path=str(tmp_path / "first.ckpt"), verbose=False)
        for probe, head in zip(used.callbacks[:2], first, strict=True):
            assert all(torch.equal(probe.state_dict()["head"][name], head[name]) for name in head)
        used.fit(tiny(), data, loader(Later(24)), ckpt_path=str(tmp_path / "first.ckpt"))


def test_probes_validate_a_checkpoint(tmp_path: Path) -> None:
    """`validate` trains nothing: the probes are those of the checkpoint."""
    probes = [LinearProbe(4), KNNProbe()]
    trainer = quiet_trainer(tmp_path, max_epochs=2, callbacks=probes)
    trainer.fit(tiny(), loader(LabelledImages(40)), loader(Later(24)))
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    expected = {name: trainer.callback_metrics[f"probe/{name}/accuracy"] for name in ("linear", "knn")}
    again = quiet_trainer(tmp_path, callbacks=[LinearProbe(4), KNNProbe()])
    (found,) = again.validate(tiny(), loader(Later(24)), ckpt_path=str(tmp_path / "it.ckpt"), verbose=False)
    for name, value in expected.items():
        assert found[f"probe/{name}/accuracy"] == pytest.approx(float(value)), name


# --- Collapse monitor ------------------------------------------------------------------------------------------------

TAGS = {
    f"collapse/{branch}/{kind}{metric}"
    for branch in ("context", "target", "prediction")
    for kind in ("", "token_")
    for metric in ("std", "cosine", "rankme")
}


def test_collapse_monitor_against_numpy(tmp_path: Path) -> None:
    """Across the images of two steps, and across the tokens of eight images of the last."""
    record = Record()
    trainer = quiet_trainer(tmp_path, max_steps=4, callbacks=[record, CollapseMonitor(every_n_steps=2)])
    trainer.fit(tiny(lr=1e-2), loader(random_images(40), 10))
    logged = trainer.callback_metrics
    assert set(logged) >= TAGS | {"train/constant_loss"}
    steps = [outputs["latents"] for outputs, _ in record.train[2:]]
    branches = {
        "context": [latents.embeddings["context"].values for latents in steps],
        "target": [latents.features.values for latents in steps],
        "prediction": [latents.prediction.flatten(1, 2) for latents in steps],
    }
    for branch, tokens in branches.items():
        images = torch.cat(tokens).mean(1).double().numpy()
        for name, reference in REFERENCES.items():
            assert float(logged[f"collapse/{branch}/{name}"]) == pytest.approx(reference(images), rel=1e-3, abs=1e-5)
            per_image = [reference(z) for z in tokens[-1][:8].double().numpy()]
            found = float(logged[f"collapse/{branch}/token_{name}"])
            assert found == pytest.approx(np.mean(per_image), rel=1e-3, abs=1e-5)
    target = steps[-1].target
    constant = target.double().numpy().reshape(-1, 16).mean(0)
    error = np.abs(target.double().numpy() - constant)
    by_hand = np.where(error < 1, 0.5 * error**2, error - 0.5).mean()
    assert float(logged["train/constant_loss"]) == pytest.approx(by_hand, rel=1e-5)


class WhereNotWhat(nn.Module):
    """An encoder that has collapsed to the position."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = 16
        self.place = nn.Parameter(torch.randn(1, 16, 16))

    def grid_of(self, x: Tensor) -> tuple[int, int]:
        return 4, 4

    def forward(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        tokens = self.place.expand(len(x), -1, -1) + 0.0 * x.mean()
        return tokens if indices is None else gather_tokens(tokens, indices)


class CollapsedJEPA(IJEPA):
    def build_encoder(self) -> nn.Module:
        return WhereNotWhat()


def test_an_encoder_of_positions_is_dead_across_images(tmp_path: Path) -> None:
    monitored = {}
    for module in (CollapsedJEPA, IJEPA):
        torch.manual_seed(0)
        trainer = quiet_trainer(tmp_path, max_steps=2, callbacks=[CollapseMonitor(every_n_steps=2)])
        trainer.fit(module(**TINY, predictor_num_heads=2, lr=1e-6, start_lr=1e-6), loader(random_images(64, 16), 32))
        monitored[module] = {name: float(value) for name, value in trainer.callback_metrics.items()}
    dead, alive = monitored[CollapsedJEPA], monitored[IJEPA]
    assert dead["collapse/target/token_std"] > 0.5
    assert dead["collapse/target/token_rankme"] > 8
    assert dead["collapse/target/std"] < 1e-3
    assert dead["collapse/target/rankme"] < 1.1
    assert dead["collapse/target/cosine"] > 0.999
    assert dead["collapse/target/token_place"] > 0.999 > 0.9 > alive["collapse/target/token_place"]
    assert alive["collapse/target/std"] > 0.05
    assert alive["collapse/target/rankme"] > 2


def test_how_much_places_explain() -> None:
    """The adjusted share of variance of a linear regression on places, of those that there are; by scikit-learn."""
    alone: Any = SimpleNamespace(world_size=1)
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(30, 5, 8, generator=rng) + torch.randn(5, 8, generator=rng)
    valid = torch.rand(30, 5, generator=rng) < 0.7
    valid[:, 4] = False
    for there in (None, valid):
        kept = torch.ones(30, 5, dtype=torch.bool) if there is None else there
        rows, places = values[kept].numpy(), kept.nonzero()[:, 1]
        known = torch.nn.functional.one_hot(places).float().numpy()
        left = ((rows - LinearRegression().fit(known, rows).predict(known)) ** 2).sum()
        plain = 1 - left / ((rows - rows.mean(0)) ** 2).sum()
        number = len(places.unique())
        adjusted = 1 - (1 - plain) * (len(rows) - 1) / (len(rows) - number)
        assert float(place_share(Tokens(values, there), alone)) == pytest.approx(float(adjusted), rel=1e-4)
    chance = [float(place_share(Tokens(torch.randn(30, 5, 8, generator=rng)), alone)) for _ in range(50)]
    assert abs(np.mean(chance)) < 0.01
    assert float(place_share(Tokens(values[:1]), alone)) == 0


# --- Pictures and speed ----------------------------------------------------------------------------------------------


def panels(picture: Tensor, rows: int, side: int = 96) -> list[list[Tensor]]:
    """The pictures of a grid with two pixels of padding, by row and column."""
    starts = [2 + i * (side + 2) for i in range(max(rows, 4))]
    return [[picture[:, top : top + side, left : left + side] for left in starts[:4]] for top in starts[:rows]]


def test_drawn_pixels() -> None:
    """Grey where nothing is seen, a colour for each target block, one colour a token; all else is the image."""
    torch.manual_seed(0)
    images = torch.rand(2, 3, 96, 96)
    images[:, :, 0, 0], images[:, :, 0, 1] = 0.0, 1.0  # of unit range already
    masks = MultiBlockMasking(2)(2, (4, 4), rng=Rng(0, batch_size=2))
    masks = Masks(masks.context, masks.targets)
    features = torch.randn(2, 16, 8)
    picture = draw_latents(images, masks, features, (4, 4))
    assert picture.shape == (3, 2 * 98 + 2, 4 * 98 + 2)
    assert 0 <= picture.min() <= picture.max() <= 1
    for row, (image, context, target, tokens) in enumerate(panels(picture, 2)):
        torch.testing.assert_close(image, images[row])
        colours = []
        for token in range(16):
            place = (
                slice(None),
                slice(token // 4 * 24, token // 4 * 24 + 24),
                slice(token % 4 * 24, token % 4 * 24 + 24),
            )
            shown = images[row][place]
            seen = token in masks.context[row].tolist()
            torch.testing.assert_close(context[place], shown if seen else torch.full_like(shown, 0.5))
            blocks = [block for block in range(2) if token in masks.targets[row, block].tolist()]
            tinted = 0.35 * shown + 0.65 * BLOCK_COLOURS[blocks[-1]].view(3, 1, 1) if blocks else shown
            torch.testing.assert_close(target[place], tinted)
            assert (tokens[place] == tokens[place][:, :1, :1]).all()
            colours.append(tokens[place][:, 0, 0])
        # Principal components: far apart in the features, far apart in colour.
        distances = torch.cdist(features[row], features[row]).flatten()
        seen_distances = torch.cdist(torch.stack(colours), torch.stack(colours)).flatten()
        assert torch.corrcoef(torch.stack([distances, seen_distances]))[0, 1] > 0.5
    same = draw_latents(images, masks, features[:1].expand(2, -1, -1), (4, 4))
    (first, second) = panels(same, 2)
    assert torch.equal(first[3], second[3])


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_pictures_of_any_channels(channels: int) -> None:
    masks = MultiBlockMasking()(3, (4, 6), rng=Rng(0, batch_size=3))
    images = random_images(3, (16, 24), channels)
    picture = draw_latents(images, masks, torch.randn(3, 24, 2), (4, 6))
    assert picture.shape == (3, 3 * (64 + 2) + 2, 4 * (96 + 2) + 2)
    assert picture.isfinite().all()
    first = picture[:, 2:66, 2:98]
    assert torch.equal(first[0], first[1]) == (channels < 3)


def test_pictures_in_tensorboard(tmp_path: Path) -> None:
    """The first validation images, at every validation, under the same masks; what is read back is what was drawn."""
    record = Record()
    logger = TensorBoardLogger(tmp_path)
    trainer = quiet_trainer(tmp_path, max_epochs=2, logger=logger, callbacks=[record, LatentPictures(3)])
    trainer.fit(tiny(), loader(LabelledImages(16)), loader(LabelledImages(8)))
    pictures = logged_images(logger, "pictures/latents")
    assert [*pictures] == [2, 4]
    for picture, (outputs, batch) in zip(pictures.values(), record.val, strict=True):
        masks, features = outputs["drawn"], outputs["latents"].features.values[:3]
        drawn = draw_latents(batch.image[:3], masks, features, (4, 4))
        assert (picture[:, TITLE_HEIGHT:] - drawn).abs().max() < 1.5 / 255
    (first, _), (second, _) = record.val
    assert torch.equal(first["drawn"].context, second["drawn"].context)


def test_throughput(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which an image takes ten milliseconds to load, and nothing else takes any time."""
    now = [0.0]

    class Slow(LabelledImages):
        def __getitem__(self, index: int) -> Labelled:
            now[0] += 0.01
            return super().__getitem__(index)

    monkeypatch.setattr("jepa_lightning.callbacks.throughput.time", SimpleNamespace(perf_counter=lambda: now[0]))
    trainer = quiet_trainer(tmp_path, max_epochs=2, val_check_interval=3, callbacks=[Throughput(window=2)])
    trainer.fit(tiny(), loader(Slow(32)), loader(Slow(8)))  # a validation between the third batch and the fourth
    assert trainer.callback_metrics["train/images_per_second"] == pytest.approx(100)
    assert "train/images_per_second" in trainer.progress_bar_metrics


# --- Two processes ---------------------------------------------------------------------------------------------------


def two_processes(rank: int, folder: Path) -> dict[str, Any]:
    """One of two ranks of a training: what came of it."""
    record = Record()
    probes = [LinearProbe(4), RegressionProbe(label="other"), KNNProbe(label="other", k=3, baselines=True)]
    module = tiny()
    pl.seed_everything(11, verbose=False)
    trainer = quiet_trainer(
        folder, devices=2, strategy="ddp", max_epochs=2, callbacks=[record, *probes, CollapseMonitor(4), Throughput(2)]
    )
    trainer.fit(module, loader(LabelledImages(32), 4), loader(Later(10), 4))
    result = {
        "module": module.state_dict(),
        "features": [outputs["latents"].features.values for outputs, _ in record.train],
        "labels": [batch.other for _, batch in record.train],
        "val_features": [outputs["latents"].features.values for outputs, _ in record.val],
        "val_labels": [batch.other for _, batch in record.val],
        "heads": [probe.state_dict()["head"] for probe in probes[:2]],
        "scale": probes[1].state_dict()["scale"]["total"],
        "logged": {name: float(value) for name, value in trainer.callback_metrics.items()},
    }
    for name, data in (("places", LabelledImages(11)), ("stream", Stream(rank, 3 + rank))):
        writer = FeatureWriter(folder / f"{name}.npz")
        trainer = quiet_trainer(folder, devices=2, strategy="ddp", callbacks=[writer])
        trainer.predict(module, DataLoader(data, 2), return_predictions=False)
    return result


class Stream(IterableDataset[tuple[Tensor, int]]):
    """Images without a place, each labelled by its rank and number."""

    def __init__(self, rank: int, number: int) -> None:
        self.samples = [(random_images(1)[0], 100 * rank + index) for index in range(number)]

    def __iter__(self) -> Any:
        return iter(self.samples)


def test_two_processes(tmp_path: Path) -> None:
    """The ranks agree on probes and monitors, which are of the samples of both."""
    ranks = in_two_processes(two_processes, tmp_path)
    a, b = ranks
    assert not difference(a["module"], b["module"])
    assert not difference(a["heads"], b["heads"])
    probed = ("probe/linear/accuracy", "probe/regression/r2")
    probed += tuple(f"probe/knn/{name}" for name in ("accuracy", "raw", "untrained"))
    for name in (*probed, "val/loss", *TAGS, "train/constant_loss"):
        assert a["logged"][name] == pytest.approx(b["logged"][name], rel=1e-6), name
    # The neighbours of an image are looked for in the banks of both ranks, and the hits of both count.
    bank, queries = (
        torch.cat([tokens.mean(1) for rank in ranks for tokens in rank[name][start:]]).double().numpy()
        for name, start in (("features", 0), ("val_features", 2))
    )
    labels, truth = (
        torch.cat([values for rank in ranks for values in rank[name][start:]]).numpy()
        for name, start in (("labels", 0), ("val_labels", 2))
    )
    assert len(queries) == 10
    assert a["logged"]["probe/knn/accuracy"] == pytest.approx(knn_hits(bank, labels, queries, truth, 3, 0.07) / 10)
    mean, var, _, weight, bias = (value.double().numpy() for value in a["heads"][1].values())
    trained_on = torch.cat([values for rank in ranks for values in rank["labels"]]).double().numpy()
    outputs = ((queries - mean) / np.sqrt(var + 1e-5)) @ weight[0] + bias
    errors = outputs * trained_on.std() + trained_on.mean() - truth
    assert torch.equal(a["scale"], b["scale"])
    r2 = 1 - (errors**2).mean() / truth.var()
    assert a["logged"]["probe/regression/r2"] == pytest.approx(r2, abs=1e-4)
    features = np.concatenate([tokens.mean(1) for rank in ranks for tokens in rank["features"][4:]])
    assert a["logged"]["collapse/target/rankme"] == pytest.approx(numpy_rankme(features), rel=1e-3)

    # Features are in the order of the data; of streams, which have none, one process after the other.
    places, stream = np.load(tmp_path / "places.npz"), np.load(tmp_path / "stream.npz")
    assert places["label"].tolist() == [index % 4 for index in range(11)]
    assert stream["label"].tolist() == [0, 1, 2, 100, 101, 102, 103]
    module = tiny()
    module.load_state_dict(a["module"])
    with torch.no_grad():
        expected = module.target_encoder(torch.stack([LabelledImages(11)[i].image for i in range(11)])).mean(1)
    np.testing.assert_allclose(places["features"], expected, rtol=1e-4, atol=1e-5)
    assert stream["features"].shape == (7, TINY["embed_dim"])


def test_features_of_a_stream(tmp_path: Path) -> None:
    writer = FeatureWriter(tmp_path / "stream.csv")
    quiet_trainer(tmp_path, callbacks=[writer]).predict(tiny(), DataLoader(Stream(0, 5), 2))
    table = np.genfromtxt(tmp_path / "stream.csv", delimiter=",", names=True)
    assert table["label"].tolist() == [0, 1, 2, 3, 4]

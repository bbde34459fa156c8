"""All that a data set has labels for, read off a checkpoint's features: one table."""

from __future__ import annotations

import csv
import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities import move_data_to_device
from rich.console import Console
from rich.table import Table
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.classification import multiclass_jaccard_index

from jepa_lightning import batches
from jepa_lightning.batches import UNLABELLED
from jepa_lightning.checkpoints import read_networks
from jepa_lightning.evaluation.frozen import Features, FrozenEncoder, Width
from jepa_lightning.evaluation.held_out import HeldOut, choose
from jepa_lightning.evaluation.knn import KNNProbe
from jepa_lightning.evaluation.probes import (
    AttentiveProbe,
    LinearProbe,
    RegressionProbe,
    SegmentationProbe,
)
from jepa_lightning.networks import build_network

_BATCH_SIZE = 256


class Reading(NamedTuple):
    """A line of the table.

    Attributes:
        label: what was read off the features.
        probe: by what.
        metric: `accuracy`, `miou` or `r2`, each at most 1.
        value: on the test data.
        untrained: the same of the encoder with its weights drawn anew, what features are worth without any training.
        constant: what the best constant answer scores there.
        num_labels: labelled samples that the probe was fitted on.
        chosen: the setting that did best on the held-out part of the training data.
    """

    label: str
    probe: str
    metric: str
    value: float
    untrained: float
    constant: float
    num_labels: int
    chosen: str


class _Encoded(NamedTuple):
    """Of a data set, the means of the last L blocks' tokens, the tokens of the last block, and the labels by name."""

    pooled: Tensor  # [N, L, D]
    tokens: Tensor | None  # [N, T, D]; of a module's features None
    labels: dict[str, Tensor]  # [N, ...]


class _Samples(Dataset[Features]):
    """Features with one label, fetched a batch at a time."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> Features:
        return Features(self.features[indices], self.labels[indices])


class _Plan(NamedTuple):
    """How a probe is built, the field of `_Encoded` that it reads, and the training samples that it is fitted on."""

    name: str
    build: Callable[[], Any]
    reads: str
    kept: Tensor


def evaluate(
    encoder: str | Any,
    data: pl.LightningDataModule,
    num_train: int = 10_000,
    steps: int = 1_000,
    accelerator: str = "auto",
    encoder_options: dict[str, Any] | None = None,
) -> list[Reading]:
    """Read off the features of a frozen encoder all that a data set has labels for.

    Of a class: linear probe, also of 1 % of the labels and of ten samples a class, attentive probe, and nearest
    neighbours. Of a map of classes: linear segmentation. Of numbers that all samples have: linear regression. The
    encoder sees each sample once, as the DataModule's loaders give it. Settings are chosen on a tenth of the training
    set that no probe is fitted on, and the test data are touched once.

    Heads and batches are drawn by torch's global generator: seed it for the same numbers again.

    The tokens of the last layer, of the encoder trained and untrained, are kept in memory: 8 bytes * tokens * width for
    each sample, all test samples included.

    Args:
        encoder: the checkpoint: anything that `load_encoder` reads; or a `JEPA`, of whose `features` the pooled ones
            are read, without attentive probe and segmentation.
        data: a DataModule of labelled batches with training and test data.
        num_train: training samples that probes are fitted on, at most.
        steps: of a probe's training, on batches of 256.
        accelerator: as for the Trainer.
        encoder_options: further arguments of `load_encoder`, such as `{"network": "context_encoder"}` or, where the
            file does not tell them, `{"num_heads": 3}`.

    Returns:
        A line for each label and probe.

    Raises:
        ValueError: data without labels, or with none that a probe could read, or an encoder that does not take them.
    """
    split = HeldOut(data)
    split.prepare_data()
    split.setup("fit")
    split.setup("test")
    first, reads = next(iter(split.val_dataloader())), () if isinstance(encoder, str) else encoder.reads
    if not batches.labels(first, reads):
        raise ValueError(f"the batches of {type(data).__name__} have no labels to be read off the features")
    with _quiet():
        device = pl.Trainer(accelerator=accelerator, devices=1, logger=False).strategy.root_device
        if isinstance(encoder, str):
            readers, grid, options = _of_checkpoint(encoder, batches.observations(first)[0], device, encoder_options)
        else:
            readers = [partial(_module_features, each.to(device).eval()) for each in (encoder, built_anew(encoder))]
            grid, options = (), {}
        parts = {
            "train": _encode(readers, split.train_dataloader(), reads, device, num_train),
            "val": _encode(readers, split.val_dataloader(), reads, device, num_train),
            "test": _encode(readers, split.test_dataloader(), reads, device),
        }
        probed = encoder if isinstance(encoder, str) else Width(parts["test"][0].pooled.shape[-1])
        readings = []
        for label, answers in parts["test"][0].labels.items():
            classes = 1 + max(int(each[0].labels[label].nan_to_num().max()) for each in parts.values())
            for plan in _plans(probed, options, grid, parts["train"][0], label, classes):
                probe, baseline = plan.build(), plan.build()
                value = _score(probe, _samples(parts, 0, plan, label), steps, accelerator)
                untrained = _score(baseline, _samples(parts, 1, plan, label), steps, accelerator)
                constant, chosen = _constant(answers, probe.score), probe.name_of_chosen
                readings.append(
                    Reading(label, plan.name, probe.score, value, untrained, constant, len(plan.kept), chosen)
                )
        if not readings:
            found = ", ".join(
                f"{name} {each.dtype} {list(each.shape)}" for name, each in parts["test"][0].labels.items()
            )
            raise ValueError(
                f"no probe reads any of these labels: {found}. Classes are integers [N] of two values or more, maps of "
                "classes integers [N, H, W], and numbers floating point [N, ...], finite in all samples"
            )
        return readings


def built_anew(module: Any) -> Any:
    """A module of the same class and options, untrained."""
    known = inspect.signature(type(module)).parameters
    takes_all = any(each.kind is each.VAR_KEYWORD for each in known.values())
    # Lightning's CLI leaves a note of its own among the options, whose name begins with `_`.
    options = {name: value for name, value in module.hparams.items() if not name.startswith("_")}
    return type(module)(**{name: value for name, value in options.items() if takes_all or name in known})


# Of a batch, the pooled features [B, L, D] and, of an encoder, the tokens [B, T, D].
_Reader = Callable[[Any], tuple[Tensor, Tensor | None]]


def _of_checkpoint(
    path: str, observation: Tensor, device: torch.device, given: dict[str, Any] | None
) -> tuple[list[_Reader], tuple[int, ...], dict[str, Any]]:
    """Readers of a checkpoint's encoder and of the same untrained, their token grid, and options of `load_encoder`."""
    options, size, configuration = dict(given or {}), observation.shape[2:], read_networks(path).options.get("encoder")
    if configuration is None:  # then the sizes are those of the data
        options = {"image_size": list(size[-2:])} | ({"num_frames": size[0]} if len(size) == 3 else {}) | options
    trained, untrained = (FrozenEncoder(path, 1, options) for _ in range(2))
    if configuration is None:
        untrained.encoder.init_weights()
    else:
        untrained.encoder = build_network(configuration).eval()
    for each in (trained, untrained):
        each.layers = min(4, each.depth)
    return [partial(_encoder_features, each.to(device)) for each in (trained, untrained)], trained.grid, options


def _encoder_features(encoder: FrozenEncoder, batch: Any) -> tuple[Tensor, Tensor]:
    tokens = encoder(batches.observations(batch)[0])
    return tokens.mean(2), tokens[:, -1]


def _module_features(module: Any, batch: Any) -> tuple[Tensor, None]:
    return module.features(batch).pooled().unsqueeze(1), None


@torch.no_grad()
def _encode(
    readers: list[_Reader], loader: Any, reads: Sequence[str], device: torch.device, limit: int | None = None
) -> list[_Encoded]:
    """Encode the first samples that a loader gives, by each reader."""
    pooled: list[list[Tensor]] = [[] for _ in readers]
    last: list[list[Tensor]] = [[] for _ in readers]
    labels: dict[str, list[Tensor]] = {}
    count = 0
    for batch in loader:
        there = move_data_to_device(batch, device)
        for number, reader in enumerate(readers):
            means, tokens = reader(there)
            pooled[number].append(means.float().cpu())
            if tokens is not None:
                last[number].append(tokens.cpu())
        for name, label in batches.labels(batch, reads).items():
            if isinstance(label, Tensor):
                labels.setdefault(name, []).append(label)
        count += len(pooled[0][-1])
        if limit is not None and count >= limit:
            break
    by_name = {name: torch.cat(column)[:limit] for name, column in labels.items()}
    return [
        _Encoded(torch.cat(means)[:limit], torch.cat(tokens)[:limit] if tokens else None, by_name)
        for means, tokens in zip(pooled, last, strict=True)
    ]


def _plans(
    encoder: str | Width, options: dict[str, Any], grid: tuple[int, ...], train: _Encoded, label: str, classes: int
) -> Iterator[_Plan]:
    """The probes that suit a label: one class a sample, a map of classes, or numbers; others have none."""
    known, layers = train.labels[label], sorted({1, train.pooled.shape[1]})
    everything = torch.arange(len(known))
    if known.is_floating_point():
        # Of several objects, those that every sample has: numbers that some lack are NaN.
        count = int(known.reshape(len(known), -1).isfinite().all(0).cumprod(0).sum())
        if count:
            build = partial(RegressionProbe, encoder, count, layers=layers, encoder_options=options)
            yield _Plan("regression", build, "pooled", everything)
        return
    if known.ndim == 3 and len(grid) == 2:
        segmentation = partial(SegmentationProbe, encoder, classes, encoder_options=options)
        yield _Plan("segmentation", segmentation, "tokens", everything)
    if known.ndim != 1 or classes < 2:
        return
    labelled = everything[known != UNLABELLED]
    adamw: dict[str, Any] = {"optimizer": "adamw", "lrs": [1e-3, 1e-2]}
    linear = partial(LinearProbe, encoder, classes, layers=layers, **adamw, encoder_options=options)
    for name, few in (("linear", {}), ("linear, 1 %", {"fraction": 0.01}), ("linear, 10 shots", {"shots": 10})):
        yield _Plan(name, linear, "pooled", choose(known, Generator().manual_seed(0), **few)[0])
    rates: dict[str, Any] = {"lrs": [3e-4, 1e-3], "weight_decays": [0.01]}
    attentive = partial(AttentiveProbe, encoder, classes, depth=1, **rates, encoder_options=options)
    if train.tokens is not None:
        yield _Plan("attentive", attentive, "tokens", labelled)
    yield _Plan("kNN", partial(KNNProbe, encoder, classes, encoder_options=options), "pooled", labelled)


def _samples(parts: dict[str, list[_Encoded]], number: int, plan: _Plan, label: str) -> dict[str, _Samples]:
    """What one encoder makes of the samples that a probe is fitted, chosen and scored on."""
    sets = {part: (getattr(each[number], plan.reads), each[number].labels[label]) for part, each in parts.items()}
    sets["train"] = (sets["train"][0][plan.kept], sets["train"][1][plan.kept])
    return {part: _Samples(*columns) for part, columns in sets.items()}


def _score(probe: Any, sets: dict[str, _Samples], steps: int, accelerator: str) -> float:
    """Fit a probe, let it choose its setting, and score it."""
    once = isinstance(probe, KNNProbe)
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=1,
        max_steps=-1 if once else steps,
        max_epochs=1 if once else -1,
        check_val_every_n_epoch=1 if once else None,
        val_check_interval=1.0 if once else steps,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loaders: dict[str, Any] = {
        part: DataLoader(samples, _BATCH_SIZE, shuffle=part == "train", collate_fn=lambda batch: batch)
        for part, samples in sets.items()
    }
    trainer.fit(probe, loaders["train"], loaders["val"])
    (logged,) = trainer.test(probe, loaders["test"], verbose=False)
    return logged[f"test/{probe.score}"]


def _constant(answers: Tensor, metric: str) -> float:
    """What the best constant answer scores: the mean, or the most frequent class."""
    if metric == "r2":
        return 0.0
    counted = answers[answers != UNLABELLED]
    most = counted.mode().values.expand_as(counted)
    if metric == "accuracy":
        return float((counted == most).float().mean())
    return float(multiclass_jaccard_index(most, counted, 1 + int(counted.max())))


@contextmanager
def _quiet() -> Iterator[None]:
    """Many small Trainers have nothing to say about the machine, or about what Lightning uses of torch."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec")
            yield
    finally:
        logger.setLevel(level)


def print_table(readings: list[Reading]) -> None:
    """Print the lines as a table."""
    table = Table(*_HEADER)
    for cells in _cells(readings):
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def write_table(readings: list[Reading], path: str | Path) -> None:
    """Write the lines to a file: as Markdown if its name ends in `.md`, as CSV, with all digits, if it does in `.csv`.

    Raises:
        ValueError: another ending.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".md"):
        raise ValueError(f"expected a file that ends in .csv or .md, got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            csv.writer(file).writerows([Reading._fields, *readings])
        else:
            lines = [_HEADER, ["---"] * len(_HEADER), *_cells(readings)]
            file.writelines(f"| {' | '.join(cells)} |\n" for cells in lines)


_HEADER = ["label", "probe", "metric", "value", "untrained", "constant", "labels", "chosen"]


def _cells(readings: list[Reading]) -> list[list[str]]:
    return [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in reading] for reading in readings]

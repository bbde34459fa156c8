"""All that a data set has labels for, read off an encoder's features: one table."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.classification import multiclass_jaccard_index

from jepa_lightning import batches
from jepa_lightning.batches import UNLABELLED
from jepa_lightning.evaluation.encode import Encoded, built_anew, encode, features_of_module, readers_of_checkpoint
from jepa_lightning.evaluation.knn import KNNEvaluation
from jepa_lightning.evaluation.linear import LinearEvaluation, RegressionEvaluation
from jepa_lightning.evaluation.probe import Features, Width
from jepa_lightning.evaluation.report import Reading
from jepa_lightning.evaluation.splits import HeldOut, choose
from jepa_lightning.evaluation.tokens import AttentiveEvaluation, SegmentationEvaluation

_BATCH_SIZE = 256


class _Samples(Dataset[Features]):
    """Features with one label, fetched a batch at a time."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> Features:
        return Features(self.features[indices], self.labels[indices])


class _Plan(NamedTuple):
    """How a probe is built, the field of `Encoded` that it reads, and the training samples that it is fitted on."""

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
    neighbours. Of a class for each step of series, sounds or words, `[B, T]`: the same, each token a sample, with a
    module only. Of a map of classes: linear segmentation. Of numbers that all samples have: linear regression. The
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
    width: Width | None = None
    with _quiet():
        device = pl.Trainer(accelerator=accelerator, devices=1, logger=False).strategy.root_device
        if isinstance(encoder, str):
            example = batches.observations(first)[0]
            readers, width = readers_of_checkpoint(encoder, example, device, encoder_options)
        else:
            readers = [partial(features_of_module, each.to(device).eval()) for each in (encoder, built_anew(encoder))]
        parts = {
            "train": encode(readers, split.train_dataloader(), reads, device, num_train),
            "val": encode(readers, split.val_dataloader(), reads, device, num_train),
            "test": encode(readers, split.test_dataloader(), reads, device),
        }
        width = width or Width(parts["test"][0].pooled.shape[-1])
        readings = []
        for label in parts["test"][0].labels:
            answers = parts["test"][0].of(label).labels[label]
            classes = 1 + max(int(each[0].labels[label].nan_to_num().max()) for each in parts.values())
            for plan in _plans(width, parts["train"][0].of(label), label, classes):
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
                f"no probe reads any of these labels: {found}. Classes are integers [N] of two values or more or, with "
                "a module, of steps [N, T], maps of classes integers [N, H, W], and numbers floating point [N, ...], "
                "finite in all samples"
            )
        return readings


def _plans(encoder: Width, train: Encoded, label: str, classes: int) -> Iterator[_Plan]:
    """The probes that suit a label: one class a sample, a map of classes, or numbers; others have none."""
    known, layers = train.labels[label], sorted({1, train.pooled.shape[1]})
    everything = torch.arange(len(known))
    if known.is_floating_point():
        # Of several objects, those that every sample has: numbers that some lack are NaN.
        count = int(known.reshape(len(known), -1).isfinite().all(0).cumprod(0).sum())
        if count:
            build = partial(RegressionEvaluation, encoder, count, layers=layers)
            yield _Plan("regression", build, "pooled", everything)
        return
    if known.ndim == 3 and len(encoder.grid) == 2:
        segmentation = partial(SegmentationEvaluation, encoder, classes)
        yield _Plan("segmentation", segmentation, "tokens", everything)
    if known.ndim != 1 or classes < 2:
        return
    labelled = everything[known != UNLABELLED]
    adamw: dict[str, Any] = {"optimizer": "adamw", "lrs": [1e-3, 1e-2]}
    linear = partial(LinearEvaluation, encoder, classes, layers=layers, **adamw)
    for name, few in (("linear", {}), ("linear, 1 %", {"fraction": 0.01}), ("linear, 10 shots", {"shots": 10})):
        yield _Plan(name, linear, "pooled", choose(known, Generator().manual_seed(0), **few)[0])
    rates: dict[str, Any] = {"lrs": [3e-4, 1e-3], "weight_decays": [0.01]}
    attentive = partial(AttentiveEvaluation, encoder, classes, depth=1, **rates)
    if train.tokens is not None:
        yield _Plan("attentive", attentive, "tokens", labelled)
    yield _Plan("kNN", partial(KNNEvaluation, encoder, classes), "pooled", labelled)


def _samples(parts: dict[str, list[Encoded]], number: int, plan: _Plan, label: str) -> dict[str, _Samples]:
    """What one encoder makes of the samples that a probe is fitted, chosen and scored on."""
    read = {part: each[number].of(label) for part, each in parts.items()}
    sets = {part: (getattr(each, plan.reads), each.labels[label]) for part, each in read.items()}
    sets["train"] = (sets["train"][0][plan.kept], sets["train"][1][plan.kept])
    return {part: _Samples(*columns) for part, columns in sets.items()}


def _score(probe: Any, sets: dict[str, _Samples], steps: int, accelerator: str) -> float:
    """Fit a probe, let it choose its setting, and score it."""
    once = isinstance(probe, KNNEvaluation)
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

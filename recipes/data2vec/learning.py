"""data2vec, data2vec 2.0 and, on images, I-JEPA: what their features tell after so many processor seconds.

    apt install fluid-soundfont-gm fortunes fortunes-min dataset-fashion-mnist
    python recipes/data2vec/prepare.py notes
    python recipes/data2vec/prepare.py melodies
    python recipes/data2vec/prepare.py words
    python recipes/data2vec/learning.py sound --method Data2Vec2 --seconds 1200 --seeds 0 1 2

It trains a small encoder for each seed, reads the labels of held-out data off the frozen features (the mean tokens
after each of its four blocks, side by side) by a logistic regression and the five nearest neighbours, before and after
training, prints it, and adds a row to `results.csv`. `--method classic` reads them off what needs no training:
statistics of a log-mel spectrogram, TF-IDF of words, pixels.

One factor at a time: `--last` has the last layer as target and not the mean of several, `--teacher_sees hidden` builds
targets of hidden tokens from the hidden ones alone, and `--teacher_sees masked` from what the student sees. `--places`
gives words embeddings of their places, as published, and not attention by distance.
`--set lr=3e-3` gives the method another option. Needs the extras `audio`, `text` and `series`.
"""

from __future__ import annotations

import argparse
import copy
import csv
import itertools
import json
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from jepa_lightning import IJEPA, Data2Vec, Data2Vec2, ImageDataModule, TextDataModule, WaveformDataModule, batches
from jepa_lightning.callbacks import CollapseMonitor
from jepa_lightning.draws import Rng
from jepa_lightning.modules.jepa import JEPA
from jepa_lightning.step import Tokens

METHODS = {"Data2Vec": Data2Vec, "Data2Vec2": Data2Vec2, "IJEPA": IJEPA}
SIZES = {"embed_dim": 96, "depth": 4, "num_heads": 4}
FRONT = [[64, 40, 20], [64, 8, 4], [64, 4, 4]]  # at 16 kHz a token every 20 ms, as published
WORDS: dict[str, Any] = {"max_tokens": 64}
LABELS = {"images": ("label",), "sound": ("family", "octave", "pitch"), "text": ("label",)}

# What each method has besides, of each kind of data: the published norms and losses, and what small data need.
SEQUENCES = {"num_layers": 3, "target_norm": False, "mlp_targets": True, "momentum_steps": None}
SMALL: dict[str, dict[str, dict[str, Any]]] = {
    "Data2Vec": {
        "images": {"num_layers": 3, "mask_length": 4, "momentum": (0.99, 0.999)},
        "sound": SEQUENCES
        | {"layer_norm": "instance", "beta": 0.0, "mask_ratio": 0.49, "mask_length": 10}
        | {"momentum": (0.999, 0.9999)},
        "text": SEQUENCES
        | {"layer_norm": "layer", "beta": 4.0, "loss_scale": 1.0, "head_layers": 2}
        | {"mask_ratio": 0.3, "mask_length": 1, "momentum": (0.999, 0.9999)},
    },
    "Data2Vec2": {
        "images": {"num_masks": 4, "mask_ratio": 0.6, "mask_length": 2, "num_layers": 3}
        | {"predictor_embed_dim": 96, "predictor_depth": 3}
        | {"momentum": (0.99, 0.999), "momentum_steps": None},
        "sound": SEQUENCES
        | {"num_masks": 4, "mask_ratio": 0.39, "mask_length": 5, "cls_weight": 0.0}
        | {"ema_tokenizer": False, "predictor_embed_dim": 96, "predictor_depth": 3, "predictor_kernel_size": 7}
        | {"momentum": (0.999, 0.9999)},
        "text": SEQUENCES
        | {"num_masks": 4, "mask_ratio": 0.48, "mask_length": 1, "cls_weight": 0.0}
        | {"ema_tokenizer": False, "loss_scale": 1.0, "head_layers": 2, "predictor_residual": False}
        | {"predictor_embed_dim": 96, "predictor_depth": 3, "predictor_kernel_size": 9, "predictor_groups": 1}
        | {"momentum": (0.99, 0.999)},
    },
    "IJEPA": {
        "images": SIZES
        | {"patch_std": 0.02, "predictor_embed_dim": 48, "predictor_depth": 3}
        | {"predictor_num_heads": 1, "context_tokens": 6, "momentum": (0.98, 1.0)}
        | {
            "regularizers": {
                "decorrelation": {"weight": 0.03, "source": "context"},
                "sigreg": {"weight": 0.001, "num_slices": 64, "source": "context_tokens"},
            }
        },
    },
}

# --- Data and networks -----------------------------------------------------------------------------------------------


def open_data(options: argparse.Namespace, melodies: bool = False) -> Any:
    """The data, in the batches that training has; of sounds, notes or melodies."""
    if options.data == "images":
        root = str(options.root or "data")
        data: Any = ImageDataModule(
            "FashionMNIST", root, batch_size=options.batch_size or 64, num_workers=0, crop_scale=None
        )
    elif options.data == "sound":
        # A second of each sound at a time.
        root = str(options.melodies if melodies else options.root or "data/notes")
        size = options.batch_size or 16
        data = WaveformDataModule(root, "csv", max_seconds=1.0, batch_size=size, num_workers=0)
    else:
        root, size = str(options.root or "/usr/share/games/fortunes"), options.batch_size or 32
        data = TextDataModule(
            root, "folder", str(options.words), separator="%", topic="file", batch_size=size, num_workers=0, **WORDS
        )
    data.setup("fit")
    return data


def encoder_of(options: argparse.Namespace, data: Any) -> dict[str, Any] | None:
    """The encoder, if it is not the method's own: with a mask token for the first method, without for the second."""
    masks = options.method == "Data2Vec"
    if options.data == "sound":
        positions = {"position_kernel": 9, "position_groups": 8, "position_depth": 2}
        sizes = SIZES | {"num_steps": 16_000, "convolutions": FRONT, "mask_token": masks, "alibi": not masks}
        return {"class_path": "jepa_lightning.networks.WaveTransformer", "init_args": sizes | positions}
    if options.data == "text":
        words = data.tokenizer
        sizes = SIZES | {"vocab_size": words.vocab_size, "max_length": WORDS["max_tokens"], "pad_word": words.pad}
        sizes |= {"mask_word": words.mask if masks else None, "alibi": not options.places}
        return {"class_path": "jepa_lightning.networks.WordTransformer", "init_args": sizes}
    if masks:  # without scaled layers, which start too small for few steps
        sizes = SIZES | {"image_size": [28, 28], "patch_size": [7, 7], "in_channels": 1, "layer_scale": None}
        return {"class_path": "jepa_lightning.networks.BeitTransformer", "init_args": sizes}
    return None


class Narrowed(Data2Vec):
    """data2vec whose teacher sees `hidden` tokens only, or `masked`: what the student sees."""

    sees = "hidden"

    def latents(self, batch: Any, drawn: Any = None) -> Any:
        """As of data2vec, and its teacher is told what is hidden."""
        if drawn is None:
            observation = self.observations(batch)[0]
            drawn = self.draw(batch, Rng.fresh(len(observation), observation.device))
        self.targets = drawn.targets.to(self.device)[:, 0]
        return super().latents(batch, drawn)

    @torch.no_grad()
    def teach(
        self, observation: Tensor, tokens: Tensor, valid: Tensor | None, grid: Sequence[int]
    ) -> tuple[Tokens, Tensor]:
        """The targets at hidden places, zero elsewhere."""
        features, _ = super().teach(observation, tokens, valid, grid)
        own = tokens.detach() if observation.ndim == 3 else self.target_encoder.tokens(observation)
        if self.sees == "masked":
            hidden = torch.zeros(own.shape[:2], dtype=torch.bool, device=own.device).scatter(1, self.targets, True)
            _, outputs = self.target_encoder.outputs(self.target_encoder.masked(own, hidden), None, valid, grid)
            return features, self.average(outputs[-self.hparams.num_layers :], valid)
        _, outputs = self.target_encoder.outputs(own, self.targets, valid, grid)
        there = None if valid is None else valid.gather(1, self.targets)
        found = self.average(outputs[-self.hparams.num_layers :], there)
        places = self.targets.unsqueeze(-1).expand_as(found)
        return features, torch.zeros(own.shape, dtype=found.dtype, device=own.device).scatter(1, places, found)


def build(options: argparse.Namespace, data: Any) -> JEPA:
    """The method, untrained."""
    method: Any = METHODS[options.method]
    if options.teacher_sees != "all":
        method = type("Narrowed", (Narrowed,), {"sees": options.teacher_sees})
    given = SMALL[options.method][options.data] | {"lr": 1e-3, "weight_decay": (0.01, 0.01)}
    if (encoder := encoder_of(options, data)) is not None:
        given["encoder"] = encoder
    else:
        given |= SIZES | {"image_size": 28, "patch_size": 7, "in_channels": 1}
    if options.last:
        given["num_layers"] = 1
    module: JEPA = method(**given | options.set)
    return module


# --- Training --------------------------------------------------------------------------------------------------------


def fit(module: JEPA, data: Any, steps: int) -> dict[str, float]:
    """Train, and give back the processor seconds, and the last readings of loss and collapse."""
    monitor = CollapseMonitor(every_n_steps=max(1, min(50, steps // 4)))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor],
    )
    began = time.process_time()
    trainer.fit(module, train_dataloaders=data.train_dataloader())
    names = {"train/loss": "loss", "train/constant_loss": "constant_loss", "collapse/target/rankme": "rankme"}
    names |= {"collapse/target/token_place": "place"}
    names |= {f"collapse/prediction/{name}": name for name in ("deviation", "target_deviation")}
    readings = {name: float(trainer.callback_metrics[key]) for key, name in names.items()}
    return {"steps": steps, "seconds": round(time.process_time() - began, 1), **readings}


def steps_in(module: JEPA, data: Any, seconds: float) -> int:
    """Training steps that so many processor seconds are enough for, by a short training of a copy."""
    few = 12
    fit(copy.deepcopy(module), data, 2)
    return max(4, round(seconds / (fit(copy.deepcopy(module), data, few)["seconds"] / few + 1e-6)))


# --- What features tell ----------------------------------------------------------------------------------------------


class Part:
    """Features of a part of the data, `[n, D]`, and its labels by name."""

    def __init__(self, features: Any, labels: dict[str, NDArray[Any]]) -> None:
        self.features, self.labels = features, labels


def once(data: Any, role: str, limit: int) -> Iterator[Any]:
    """Batches of so many samples of a part, as training or validation has them."""
    loader = data.val_dataloader() if role == "val" else data.train_dataloader()
    return itertools.islice(loader, -(-limit // data.batch_size))


@torch.no_grad()
def encoded(module: JEPA, data: Any, names: Sequence[str], limit: int) -> list[Part]:
    """The mean tokens after each block, side by side, of training and held-out data, without what is filled up.

    Of data2vec they are the student's, which the papers train on with labels; of I-JEPA the target encoder's.
    """
    module.eval()
    encoder: Any = module.context_encoder if isinstance(module, Data2Vec) else module.target_encoder
    parts = []
    for role in ("train", "val"):
        features, labels = [], {name: [] for name in names}  # type: ignore[var-annotated]
        for batch in once(data, role, limit):
            (observation,), valid = module.observations(batch), module.valid(batch)
            tokens, grid = encoder.tokens(observation), encoder.grid_of(observation)
            blocks = encoder.layers(tokens, range(encoder.depth), valid=valid, grid=grid)
            features.append(torch.cat([Tokens(block, valid).pooled() for block in blocks], 1))
            for name, label in batches.labels(batch, module.reads).items():
                if name in labels:
                    labels[name].append(label)
        parts.append(
            Part(torch.cat(features).numpy(), {name: torch.cat(each).numpy() for name, each in labels.items()})
        )
    module.train()
    return parts


def probes(train: Part, val: Part, seed: int) -> dict[str, float]:
    """Accuracies on held-out data of kNN and of a logistic regression, its C chosen by a fifth of the training data."""
    found, sparse = {}, not isinstance(train.features, np.ndarray)
    scaler = StandardScaler(with_mean=not sparse).fit(train.features)
    inputs = [train.features, val.features] if sparse else [scaler.transform(part.features) for part in (train, val)]
    for name, known in train.labels.items():
        fitted, kept, of_fitted, of_kept = train_test_split(inputs[0], known, test_size=0.2, random_state=seed)
        costs = {}
        for cost in (1.0, 10.0, 100.0) if sparse else (0.001, 0.01, 0.1, 1.0):
            regression = LogisticRegression(C=cost, max_iter=300)
            costs[regression.fit(fitted, of_fitted).score(kept, of_kept)] = cost
        regression = LogisticRegression(C=costs[max(costs)], max_iter=300).fit(inputs[0], known)
        found[f"linear/{name}"] = regression.score(inputs[1], val.labels[name])
        neighbours = KNeighborsClassifier(5, metric="cosine").fit(inputs[0], known)
        found[f"knn/{name}"] = neighbours.score(inputs[1], val.labels[name])
    return found


def log_mel(wave: Tensor, rate: int, bands: int = 64) -> Tensor:
    """The log power of waves `[B, L]` in mel bands, in windows of 32 ms, one every 10 ms: `[B, bands, T]`."""
    length, hop = 32 * rate // 1000, rate // 100
    window = torch.hann_window(length)
    spectra = torch.stft(wave, length, hop, window=window, center=False, return_complex=True).abs().square()
    hertz = torch.linspace(0, rate / 2, length // 2 + 1)
    edges = 700 * (torch.expm1(torch.linspace(0, np.log1p(rate / 2 / 700), bands + 2)))
    up = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1])[:, None]
    return torch.log(torch.minimum(up, down).clamp(min=0) @ spectra + 1e-6)


def statistics(wave: Tensor, valid: Tensor) -> Tensor:
    """Mean and spread over time of the log power in 64 mel bands of waves of 16 kHz, `[B, 128]`."""
    power = log_mel(wave, 16_000)
    there = valid[:, 256 : 256 + 160 * power.shape[-1] : 160][:, : power.shape[-1]].unsqueeze(1).float()
    there[..., 0] = 1
    count = there.sum(-1)
    mean = (power * there).sum(-1) / count
    spread = (((power - mean.unsqueeze(-1)).square() * there).sum(-1) / count).sqrt()
    return torch.cat([mean, spread], 1)


def classic(options: argparse.Namespace, data: Any) -> list[Part]:
    """Features that need no training of a network."""
    names, parts, texts = LABELS[options.data], [], []
    for role in ("train", "val"):
        features, labels = [], {name: [] for name in names}  # type: ignore[var-annotated]
        for batch in once(data, role, options.samples):
            if options.data == "text":
                rows = zip(batch["words"], batch["valid"], strict=True)
                features += ["".join(data.pieces(words[there])) for words, there in rows]
            elif options.data == "sound":
                features.append(statistics(batch["wave"].squeeze(-1), batch["valid"]))
            else:
                features.append(batch[0].flatten(1))
            by_name = batch if isinstance(batch, dict) else {"label": batch[1]}
            for name in names:
                labels[name].append(by_name[name])
        known = {name: torch.cat(each).numpy() for name, each in labels.items()}
        texts.append(features)
        parts.append(Part(None if options.data == "text" else torch.cat(features).numpy(), known))
    if options.data == "text":
        words = TfidfVectorizer(sublinear_tf=True, min_df=2).fit(texts[0])
        for part, each in zip(parts, texts, strict=True):
            part.features = words.transform(each)
    return parts


# --- The runs --------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace, data: Any, seed: int) -> dict[str, Any]:
    """The row of a seed."""
    pl.seed_everything(seed, verbose=False)
    row = {name: getattr(options, name) for name in ("data", "method", "last", "teacher_sees", "places", "batch_size")}
    row |= {"melodies": options.melodies if options.data == "sound" else ""}
    row |= {"set": json.dumps(options.set) if options.set else "", "seed": seed}
    names = LABELS[options.data]
    if options.method == "classic":
        return row | probes(*classic(options, data), seed)
    module = build(options, data)
    before = probes(*encoded(module, data, names, options.samples), seed)
    learnt = open_data(options, melodies=True) if options.data == "sound" else data
    steps = options.steps or steps_in(module, learnt, options.seconds)
    row |= fit(module, learnt, steps)
    after = probes(*encoded(module, data, names, options.samples), seed)
    return row | {
        key: value for name in after for key, value in ((name, after[name]), (f"{name}, untrained", before[name]))
    }


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a table, which may have columns that this row has not, or lack some."""
    rows = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
    rows.append(row)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for each in rows for name in each)))
        writer.writeheader()
        writer.writerows(rows)


def assignment(text: str) -> tuple[str, Any]:
    """An option and its value, a number or list, from `name=value`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=value")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=list(LABELS))
    parser.add_argument("--method", choices=[*METHODS, "classic"], default="Data2Vec")
    parser.add_argument("--seconds", type=float, default=1200.0, help="of a processor, that a training takes")
    parser.add_argument("--steps", type=int, help="of a training, instead of its seconds")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--last", action="store_true", help="the last layer as target (K = 1)")
    parser.add_argument("--teacher_sees", choices=["all", "hidden", "masked"], default="all")
    parser.add_argument("--places", action="store_true", help="words have embeddings of places, as published")
    parser.add_argument("--set", nargs="+", type=assignment, default=[], help="options of the method, name=value")
    parser.add_argument("--batch_size", type=int, help="64 of images, 16 of sounds and 32 of texts without")
    parser.add_argument("--samples", type=int, default=10_000, help="of each part, that probes read at most")
    parser.add_argument("--root", type=Path, help="of notes or texts")
    parser.add_argument("--melodies", type=Path, default=Path("data/melodies"), help="that are learnt from")
    parser.add_argument("--words", type=Path, default=Path("data/words"), help="the tokenizer of texts")
    parser.add_argument("--folder", type=Path, default=Path("runs/data2vec"))
    options = parser.parse_args(arguments)
    options.set = dict(options.set)
    if options.data not in SMALL.get(options.method, LABELS):
        parser.error(f"{options.method} is for images, not for {options.data}")
    if options.places and options.data != "text":
        parser.error(f"--places is for text, not for {options.data}")
    if options.teacher_sees != "all" and options.method != "Data2Vec":
        parser.error(f"--teacher_sees {options.teacher_sees} is for Data2Vec, not for {options.method}")
    options.folder.mkdir(parents=True, exist_ok=True)
    data = open_data(options)
    for seed in options.seeds:
        row = run(options, data, seed)
        add_row(options.folder / "results.csv", row)
        shown = ", ".join(f"{key} {value:.3g}" for key, value in row.items() if isinstance(value, float))
        print(f"{options.data}, {options.method}, seed {seed}: {row.get('steps', 0)} steps, {shown}", flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    main()

"""TS-JEPA on the six UCR and UEA archives of aeon's wheel: an encoder trained on each, or one on all, and its classes.

    python recipes/tsjepa/archives.py --seeds 0 1 2
    python recipes/tsjepa/archives.py --seeds 0 1 2 --together

It prints a line for each archive and seed: the test accuracies of TS2Vec's SVM, of the same on standardised features,
of a linear probe and of the nearest neighbour, on the features of the trained and of the untrained encoder; and those
of baselines (`--baselines 1NN-DTW MiniRocket`). With `--validate` it prints instead what folds of the training part say
of the SVM on standardised features, to choose settings by. Needs the extra `series`.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score

from jepa_lightning import TSJEPA, SeriesDataModule
from jepa_lightning.callbacks import CollapseMonitor
from jepa_lightning.checkpoints import SafeCheckpointIO
from jepa_lightning.evaluation.series import SeriesEncoder, classify, fit_svm

# Of each archive the steps of a patch: about twenty patches a series, and no fewer than two steps.
ARCHIVES = {
    "GunPoint": 8,
    "ArrowHead": 12,
    "ItalyPowerDemand": 2,
    "OSULeaf": 20,
    "ACSF1": 64,
    "BasicMotions": 5,
}
TRANSFORMER = {"kernel_size": 2, "embed_dim": 96, "depth": 2, "num_heads": 4}  # instead of the convolutions


def train(data: SeriesDataModule, patch_size: int, options: argparse.Namespace, seed: int, path: Path) -> None:
    """Train on the training part of an archive, or of all, and save the checkpoint."""
    pl.seed_everything(seed, verbose=False)
    sizes = {"num_steps": -(-data.num_steps // patch_size) * patch_size, "patch_size": patch_size}
    sizes["in_channels"] = data.in_channels
    network: dict[str, Any] = {"class_path": "jepa_lightning.networks.SeriesConvolutions", "init_args": sizes}
    module = TSJEPA(
        num_steps=data.num_steps,
        in_channels=data.in_channels,
        **(TRANSFORMER | {"patch_size": patch_size} if options.transformer else {"encoder": network}),
        predictor_embed_dim=48,
        predictor_depth=1,
        predictor_num_heads=4,
        mask_ratio=0.5,
        span_length=3,
        momentum=(0.99, 1.0),
        regularizers={"decorrelation": {"weight": options.weight, "source": "context"}} if options.weight else None,
        lr=options.lr,
        start_lr=options.lr / 10,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=options.steps,
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[CollapseMonitor(every_n_steps=max(1, options.steps // 4))],
        plugins=[SafeCheckpointIO()],
    )
    trainer.fit(module, data)
    trainer.save_checkpoint(path)


def together() -> SeriesDataModule:
    """All channels of all archives' training parts as series of one channel, each scaled by itself, in windows."""
    frames = []
    for name in ARCHIVES:
        data = SeriesDataModule(name, scaling="none")
        data.setup("fit")
        frames += [pd.DataFrame({"x": channel}) for series in data.parts["train"][0] for channel in series.T]
    return SeriesDataModule(
        frames, batch_size=32, window=256, stride=64, scaling="series", split="series", val_share=0, test_share=0
    )


class Apart:
    """An encoder of one channel on each channel of some series: its features side by side."""

    def __init__(self, encoder: SeriesEncoder) -> None:
        self.encoder = encoder

    def transform(self, X: Any) -> Any:  # noqa: N803
        """The features `[n, C * D]`."""
        channels = range(X[0].shape[1])
        return np.concatenate([self.encoder.transform([each[:, [c]] for each in X]) for c in channels], 1)

    def untrained(self, seed: int) -> Apart:
        """The same with weights drawn anew."""
        return Apart(self.encoder.untrained(seed))


def validated(encoder: Any, train: Any, seed: int) -> dict[str, float]:
    """By folds of the training part: the SVM on standardised features, trained and not."""
    series, labels = train
    folds = RepeatedStratifiedKFold(n_splits=min(5, int(np.bincount(labels).min())), n_repeats=4, random_state=0)
    rows = {}
    for name, each in (("SVM, standardised", encoder), ("SVM, standardised, untrained", encoder.untrained(seed))):
        features = each.transform(series)
        svm = fit_svm(features[:49], labels[:49], standardised=True).set_params(svc__C=100.0)
        rows[name] = float(cross_val_score(svm, features, labels, cv=folds).mean())
    return rows


def main() -> None:
    """Train, evaluate, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archives", nargs="+", default=list(ARCHIVES), choices=list(ARCHIVES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--together", action="store_true", help="one encoder for all archives")
    parser.add_argument("--transformer", action="store_true", help="the published encoder, small, not convolutions")
    parser.add_argument("--steps", type=int, default=300, help="of a training, on batches of 32")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight", type=float, default=0.05, help="of the decorrelation of mean context tokens")
    parser.add_argument("--pooling", default="mean", choices=["mean", "max"])
    parser.add_argument("--baselines", nargs="*", default=[], help="1NN-DTW, MiniRocket; once an archive")
    parser.add_argument("--validate", action="store_true", help="on folds of the training part")
    parser.add_argument("--folder", type=Path, default=Path("runs/archives"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        if options.together:
            shared, path = together(), options.folder / f"all-{seed}.ckpt"
            shared.setup("fit")
            began = time.process_time()
            train(shared, 8, options, seed, path)
            print(f"all, seed {seed}: {time.process_time() - began:.0f} s", flush=True)
        for name in options.archives:
            data = SeriesDataModule(name, batch_size=32)
            data.setup("fit")
            began = time.process_time()
            if not options.together:
                path = options.folder / f"{name}-{seed}.ckpt"
                train(data, ARCHIVES[name], options, seed, path)
            encoder: Any = SeriesEncoder(path, pooling=options.pooling)
            encoder = Apart(encoder) if options.together else encoder
            row: dict[str, Any] = {"archive": name, "seed": seed, "seconds": round(time.process_time() - began, 1)}
            if options.validate:
                row |= validated(encoder, data.parts["train"], seed)
            else:
                baselines = options.baselines if seed == options.seeds[0] else ()
                for reading in classify(encoder, data.parts["train"], data.parts["test"], baselines, seed):
                    row[reading.probe] = reading.value
                    if reading.untrained == reading.untrained:  # not NaN, as those of baselines are
                        row[f"{reading.probe}, untrained"] = reading.untrained
            rows.append(row)
            shown = ", ".join(f"{key} {value:.3f}" for key, value in row.items() if isinstance(value, float))
            print(f"{name}, seed {seed}: {shown}", flush=True)
    with (options.folder / "archives.csv").open("w", newline="") as file:
        names = dict.fromkeys(key for row in rows for key in row)
        writer = csv.DictWriter(file, fieldnames=list(names))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()

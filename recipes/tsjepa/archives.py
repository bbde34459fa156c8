"""TS-JEPA on the six UCR and UEA archives of aeon's wheel: an encoder trained on each, and its classes read off.

    python recipes/tsjepa/archives.py --seeds 0 1 2 --folder runs/archives

It prints a line for each archive and seed: the test accuracies of TS2Vec's SVM, a linear probe and the nearest
neighbour on the features of the trained and of the untrained encoder, and those of 1NN-DTW and MiniRocket. Needs the
extra `series`.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from jepa_lightning import TSJEPA, SeriesDataModule
from jepa_lightning.callbacks import CollapseMonitor
from jepa_lightning.checkpoints import SafeCheckpointIO
from jepa_lightning.evaluation.series import SeriesEncoder, classify

# Of each archive the steps of a patch: about twenty patches a series, and no fewer than two steps.
ARCHIVES = {
    "GunPoint": 8,
    "ArrowHead": 12,
    "ItalyPowerDemand": 2,
    "OSULeaf": 20,
    "ACSF1": 64,
    "BasicMotions": 5,
}


def train(name: str, patch_size: int, seed: int, steps: int, path: Path) -> SeriesDataModule:
    """Train on the training part of an archive, and save the checkpoint."""
    pl.seed_everything(seed, verbose=False)
    data = SeriesDataModule(name, batch_size=32)
    data.setup("fit")
    module = TSJEPA(
        num_steps=data.num_steps,
        patch_size=patch_size,
        in_channels=data.in_channels,
        kernel_size=min(4, patch_size),
        embed_dim=96,
        depth=2,
        num_heads=4,
        predictor_embed_dim=48,
        predictor_depth=1,
        predictor_num_heads=4,
        mask_ratio=0.5,
        span_length=2,
        momentum=(0.99, 1.0),
        regularizers={"sigreg": {"weight": 0.1}},
        lr=1e-3,
        start_lr=1e-4,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[CollapseMonitor(every_n_steps=max(1, steps // 10))],
        plugins=[SafeCheckpointIO()],
    )
    trainer.fit(module, data)
    trainer.save_checkpoint(path)
    return data


def main() -> None:
    """Train, evaluate, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archives", nargs="+", default=list(ARCHIVES), choices=list(ARCHIVES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=500, help="of a training, on batches of 32")
    parser.add_argument("--pooling", default="max", choices=["mean", "max"])
    parser.add_argument("--baselines", nargs="*", default=["1NN-DTW", "MiniRocket"], help="once an archive")
    parser.add_argument("--folder", type=Path, default=Path("runs/archives"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in options.archives:
        for seed in options.seeds:
            path = options.folder / f"{name}-{seed}.ckpt"
            data = train(name, ARCHIVES[name], seed, options.steps, path)
            encoder = SeriesEncoder(path, pooling=options.pooling)
            baselines = options.baselines if seed == options.seeds[0] else ()
            row: dict[str, Any] = {"archive": name, "seed": seed}
            for reading in classify(encoder, data.parts["train"], data.parts["test"], baselines, seed):
                row[reading.probe] = reading.value
                if reading.untrained == reading.untrained:  # not NaN, as those of baselines are
                    row[f"{reading.probe}, untrained"] = reading.untrained
            rows.append(row)
            shown = ", ".join(f"{key} {value:.3f}" for key, value in row.items() if isinstance(value, float))
            print(f"{name}, seed {seed}: {shown}", flush=True)
    with (options.folder / "archives.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()

"""TS-JEPA on a stream: anomalies of a pressure in a heart (UCR's anomaly archive, 135, in aeon's wheel), and forecasts.

    python recipes/tsjepa/streams.py --seeds 0 1 2

An encoder is trained on the part of which the archive says that it has no anomaly. Its forecasts of the test part stand
beside an untrained encoder's, a linear model's and the last season again. Scores are those of a stream, and right where
the highest lies within 100 steps of the anomaly. Needs the extra `series`.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pandas as pd

from jepa_lightning import TSJEPA, SeriesDataModule
from jepa_lightning.checkpoints import SafeCheckpointIO
from jepa_lightning.evaluation.series import AnomalyDetector, SeriesEncoder, forecast

NEAR = 100  # steps, as the archive counts it


def main() -> None:
    """Train, forecast, score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=400, help="of a training, on batches of 32")
    parser.add_argument("--season", type=int, default=184, help="steps of a heartbeat, about")
    parser.add_argument("--folder", type=Path, default=Path("runs/streams"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    found = importlib.util.find_spec("aeon")
    if found is None or found.origin is None:
        raise ImportError("the series are in aeon's wheel: pip install 'jepa-lightning[series]'")
    (path,) = (Path(found.origin).parent / "datasets" / "data" / "KDD-TSAD_135").glob("*_TRAIN.csv")
    train, test = (pd.read_csv(each) for each in (path, path.with_name(path.name.replace("TRAIN", "TEST"))))
    values, labels = train.iloc[:, -2].to_numpy(float), test.iloc[:, -1].to_numpy(int)
    stream = test.iloc[:, -2].to_numpy(float)
    for seed in options.seeds:
        pl.seed_everything(seed, verbose=False)
        data = SeriesDataModule(
            pd.DataFrame({"pressure": values}), window=192, stride=4, batch_size=32, val_share=0, test_share=0
        )
        module = TSJEPA(
            num_steps=192, patch_size=16, kernel_size=4, embed_dim=64, depth=2, num_heads=4, predictor_embed_dim=48,
            predictor_num_heads=4, mask_ratio=0.4, span_length=2, momentum=(0.99, 1.0), lr=1e-3, start_lr=1e-4,
            regularizers={"decorrelation": {"weight": 0.02, "source": "context"}},
        )  # fmt: skip
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=options.steps, max_epochs=-1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, plugins=[SafeCheckpointIO()],
        )  # fmt: skip
        trainer.fit(module, data)
        checkpoint = options.folder / f"{seed}.ckpt"
        trainer.save_checkpoint(checkpoint)
        encoder = SeriesEncoder(checkpoint, pooling="mean and last")
        for row in forecast(encoder, [values], [stream[:2000]], 192, 16, season=options.season, stride=8):
            print(f"seed {seed}: {row.model}, {row.steps}: MAE {row.mae:.3f}, MASE {row.mase:.3f}", flush=True)
        scores = AnomalyDetector(module, data.scaling).score(stream)
        highest, places = int(np.nanargmax(scores)), np.flatnonzero(labels)
        near = places[0] - NEAR <= highest <= places[-1] + NEAR
        around = np.nanmax(scores[places[0] : places[-1] + 16])
        print(
            f"seed {seed}: highest score at {highest}, anomaly at {places[0]} to {places[-1]}, "
            f"{'right' if near else 'wrong'}; {np.nanmean(scores < around):.1%} of the steps score lower than there",
            flush=True,
        )


if __name__ == "__main__":
    main()

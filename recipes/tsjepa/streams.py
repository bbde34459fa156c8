"""TS-JEPA on a stream: anomalies of a pressure in a heart (UCR's anomaly archive, 135, in aeon's wheel), and forecasts.

    python recipes/tsjepa/streams.py --seeds 0 1 2

An encoder is trained on the part of which the archive says that it has no anomaly. Its forecasts of the test part stand
beside an untrained encoder's, a linear model's and the last season again. The stream has an anomaly, noise, and is
given four more for the scores: beats that are late, missing, backwards and early. It prints how high scores are at an
anomaly over the highest of other new steps, so that above 1 it is found. They stand beside those of the untrained
module, of the energy as it is, and of distances to what is nearest in the training part, by tokens and by the numbers
themselves. Needs the extra `series`.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors

from jepa_lightning import TSJEPA, SeriesDataModule
from jepa_lightning.checkpoints import SafeCheckpointIO
from jepa_lightning.evaluation.series import AnomalyDetector, SeriesEncoder, forecast, nearest_window

WINDOW, PATCH = 192, 16


def nearest_features(encoder: SeriesEncoder, known: Any, series: Any) -> Any:
    """How far the last token of the window that ends with each step is from the nearest of known series, `[L]`."""
    rows = [
        encoder.tokens(np.lib.stride_tricks.sliding_window_view(each, WINDOW)).values[:, -1] for each in (known, series)
    ]
    found, _ = NearestNeighbors(n_neighbors=1).fit(rows[0]).kneighbors(rows[1])
    return np.concatenate([np.full(WINDOW - 1, np.nan), found[:, 0]])


def with_anomalies(stream: Any, noise: tuple[int, int]) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The stream with four beats that are not as they should be, and the steps of all anomalies, known noise included.

    Beats begin at the steps 5022, 5579, 6308 and 7038 of the stream. Before a late one the pressure falls for 60 steps
    at half the speed; before an early one 70 steps are cut out.
    """
    missing = np.linspace(stream[5579], stream[5760], 5760 - 5579)
    late = np.interp(np.arange(120) / 2, np.arange(60), stream[4962:5022])
    parts = {
        "": stream[:4962], "late beat": late, " ": stream[5022:5579], "missing beat": missing,
        "  ": stream[5760:6308], "backwards": stream[6308:6494][::-1], "   ": stream[6494:6968],
    }  # fmt: skip
    ends = np.cumsum([len(part) for part in parts.values()]).tolist()
    found = {"noise": noise}
    found |= {
        name: (end - len(part), end) for (name, part), end in zip(parts.items(), ends, strict=True) if name.strip()
    }
    return np.concatenate([*parts.values(), stream[7038:]]), found | {"early beat": (ends[-1], ends[-1] + 1)}


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
    stream, places = test.iloc[:, -2].to_numpy(float), np.flatnonzero(labels)
    changed, anomalies = with_anomalies(stream, (int(places[0]), int(places[-1]) + 1))
    # Windows that end later have an anomaly in them for as long again.
    steps = np.arange(len(changed))
    near = {name: (steps >= start) & (steps < end + WINDOW) for name, (start, end) in anomalies.items()}
    others = (steps >= len(values)) & ~np.any(list(near.values()), axis=0)
    for seed in options.seeds:
        pl.seed_everything(seed, verbose=False)
        data = SeriesDataModule(
            pd.DataFrame({"pressure": values}), window=WINDOW, stride=4, batch_size=32, val_share=0, test_share=0
        )
        module = TSJEPA(
            num_steps=WINDOW, patch_size=PATCH, kernel_size=4, embed_dim=64, depth=2, num_heads=4,
            predictor_embed_dim=48, predictor_num_heads=4, mask_ratio=0.4, span_length=2, momentum=(0.99, 1.0),
            lr=1e-3, start_lr=1e-4, regularizers={"decorrelation": {"weight": 0.02, "source": "context"}},
        )  # fmt: skip
        untrained = copy.deepcopy(module)
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=options.steps, max_epochs=-1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, plugins=[SafeCheckpointIO()],
        )  # fmt: skip
        trainer.fit(module, data)
        checkpoint = options.folder / f"{seed}.ckpt"
        trainer.save_checkpoint(checkpoint)
        encoder = SeriesEncoder(checkpoint, pooling="mean and last")
        for row in forecast(encoder, [values], [stream[:2000]], WINDOW, 16, season=options.season, stride=8):
            print(f"seed {seed}: {row.model}, {row.steps}: MAE {row.mae:.3f}, MASE {row.mase:.3f}", flush=True)
        detectors = {
            "by residuals": AnomalyDetector(module, data.scaling),
            "by residuals, untrained": AnomalyDetector(untrained, data.scaling),
            "by the energy as it is": AnomalyDetector(module, data.scaling, standardised=False),
        }
        scored = {name: each.fit([values]).score(changed) for name, each in detectors.items()}
        scored["by the nearest token"] = nearest_features(encoder, values, changed)
        if seed == options.seeds[0]:
            for length in (PATCH, WINDOW):
                scored[f"by the nearest window of {length} steps"] = nearest_window([values], changed, length)
        for name, scores in scored.items():
            ratios = {kind: np.nanmax(scores[place]) / np.nanmax(scores[others]) for kind, place in near.items()}
            print(f"seed {seed}: {name}: " + ", ".join(f"{kind} {ratio:.2f}" for kind, ratio in ratios.items()))
        alarms = detectors["by residuals"].predict(changed)
        print(f"seed {seed}: alarms by residuals: {alarms[others].mean():.2%} of other new steps", flush=True)


if __name__ == "__main__":
    main()

"""Which number tells, while a model trains, what its linear probe will say?

    python tests/benchmarks/correlations.py lightning_logs/version_*

Of every run of `jepa fit` with a probe named `linear` and a `last.ckpt` it takes the probe's last accuracy and the last
loss from the event file, computes the metrics of `jepa_lightning.metrics` on held-out images from the checkpoint, and
prints the rank correlation (Spearman's) of each with the accuracy, over all runs of a data set, over those that have
not collapsed, and within each method.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

import jepa_lightning
from jepa_lightning import load_encoder
from jepa_lightning.callbacks import CollapseMonitor
from jepa_lightning.draws import Rng
from jepa_lightning.masking import MultiBlockMasking
from jepa_lightning.metrics import (
    dead_features,
    feature_std,
    lidar,
    mean_correlation,
    mean_cosine,
    moments,
    rankme,
    scatter,
)


def logged(run: Path) -> dict[str, float]:
    """The last value of each scalar of a run."""
    events = EventAccumulator(str(run), {"scalars": 0})
    events.Reload()
    return {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}


def held_out(data: dict[str, Any], number: int) -> Tensor:
    """Held-out images `[number, C, H, W]` of a recipe's data."""
    options = data.get("init_args", {}) | {"num_workers": 0}
    module = getattr(jepa_lightning, data["class_path"].rpartition(".")[2])(**options)
    module.prepare_data()
    module.setup("validate")
    images = []
    for batch in module.val_dataloader():
        images.append(batch[0])
        if sum(map(len, images)) >= number:
            break
    return torch.cat(images)[:number]


@torch.no_grad()
def measured(checkpoint: Path, images: Tensor) -> dict[str, float]:
    """The metrics of the mean tokens of the target encoder, and LiDAR of the context encoder's under eight masks."""
    encoder = load_encoder(checkpoint)
    embeddings = torch.cat([encoder(part).mean(1) for part in images.split(256)])
    sums = moments(embeddings)
    student, few = load_encoder(checkpoint, "context_encoder"), images[:500]
    # The same masks for all images, as LiDARMonitor has it: masks of their own would tell images apart.
    masks = [MultiBlockMasking()(1, student.grid, rng=Rng(i, batch_size=1)) for i in range(8)]
    views = torch.stack([student(few, drawn.context.expand(len(few), -1)).mean(1) for drawn in masks], 1)
    values = {
        "RankMe": rankme(sums),
        "RankMe, centred": rankme(sums, centred=True),
        "std": feature_std(sums),
        "dead features": dead_features(sums),
        "mean correlation": mean_correlation(sums),
        "mean cosine": mean_cosine(sums),
        "LiDAR": lidar(scatter(views)),
    }
    return {name: float(value) for name, value in values.items()}


def table(runs: list[dict[str, Any]], groups: dict[str, list[dict[str, Any]]]) -> Iterable[str]:
    """Markdown: a line for each number, a column for each group of runs."""
    yield f"| | {' | '.join(f'{name}, {len(group)} runs' for name, group in groups.items())} |"
    yield "|---" * (len(groups) + 1) + "|"
    for name in runs[0]["numbers"]:
        cells = []
        for group in groups.values():
            pairs = torch.tensor([[run["numbers"].get(name, torch.nan), run["accuracy"]] for run in group])
            pairs = pairs[pairs.isfinite().all(1)]
            known = len(pairs) == len(group) and pairs[:, 0].unique().numel() > 1
            cells.append(f"{spearman_corrcoef(*pairs.T):+.2f}" if known else "–")
        yield f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Read the runs, and print a table for each data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders with config.yaml, an event file and checkpoints")
    parser.add_argument("--images", type=int, default=2000, help="held-out images that the metrics are computed on")
    arguments = parser.parse_args()
    sets: dict[str, list[dict[str, Any]]] = defaultdict(list)
    images: dict[str, Tensor] = {}
    thresholds = CollapseMonitor()
    for folder in arguments.runs:
        config, scalars = yaml.safe_load((folder / "config.yaml").read_text()), logged(folder)
        data = config["data"]
        name = data["class_path"].rpartition(".")[2]
        if name not in images:
            images[name] = held_out(data, arguments.images)
        loss = scalars.get("train/energy", scalars["train/loss"])
        numbers = {"kNN probe": scalars["probe/knn/accuracy"], "loss": scalars["train/loss"]}
        numbers |= {"distance of prediction and target": loss}
        numbers["the same over the constant predictor's"] = loss / scalars.get("train/constant_loss", torch.nan)
        numbers["cosine of the predictions"] = scalars.get("collapse/prediction/cosine", torch.nan)
        numbers |= measured(folder / "checkpoints" / "last.ckpt", images[name])
        dead = scalars["collapse/target/rankme"] < thresholds.min_rank
        dead |= numbers["cosine of the predictions"] > thresholds.max_cosine
        method = config["model"]["class_path"].rpartition(".")[2]
        sets[name].append(
            {"method": method, "collapsed": dead, "accuracy": scalars["probe/linear/accuracy"], "numbers": numbers}
        )
    for name, runs in sets.items():
        groups = {"all": runs, "not collapsed": [run for run in runs if not run["collapsed"]]}
        for method in sorted({run["method"] for run in runs}):
            of_method = [run for run in groups["not collapsed"] if run["method"] == method]
            if len(of_method) >= 8:
                groups[method] = of_method
        print(f"\n{name}: rank correlation with the linear probe\n")
        print("\n".join(table(runs, groups)))


if __name__ == "__main__":
    main()

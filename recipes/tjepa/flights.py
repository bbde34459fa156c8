"""T-JEPA on the flights over Switzerland in the wheel `traffic`: search and distances, and another area's flights.

    pip install --no-deps traffic
    python recipes/tjepa/flights.py --seeds 0 1 2 --folder runs/flights

It trains an encoder with and one without AdjFuse for each seed, and writes `flights.csv`, a line for each number: mean
ranks of twins (`rank/…`), how well a head on frozen features finds the neighbours by a distance (`HR@5/…`), the ranks
among the flights of `quickstart` around Paris (`transfer/…`), and how long a search takes. Needs the extra
`trajectories`.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray

from jepa_lightning import TJEPA, TrajectoriesDataModule
from jepa_lightning.callbacks import CollapseMonitor
from jepa_lightning.checkpoints import SafeCheckpointIO
from jepa_lightning.data.trajectories import Cells
from jepa_lightning.data.trajectories.dataset import Tracks as TrackSet
from jepa_lightning.evaluation.trajectories import (
    DistanceHead,
    TrajectoryEncoder,
    by_features,
    hits,
    pairwise,
    twin_search,
    twins,
)

CELL, DIM = 10_000.0, 64  # metres, and numbers of a cell's embedding
EVERY = 30  # seconds from a point to the next
RATES = (0.1, 0.3, 0.5)
MOVED = 2500.0  # metres
EPSILON = 5000.0  # metres, within which points are the same for EDR and LCSS
MEASURES = ("hausdorff", "frechet", "edr", "lcss")
Tracks = Sequence[NDArray[Any]]


def flights(source: str, every: int = 1, **options: Any) -> TrajectoriesDataModule:
    """The trips of a collection, of which every so manyth point is taken."""
    data = TrajectoriesDataModule(
        source, batch_size=32, cell_size=CELL, cell_dim=DIM, max_speed=400.0, min_points=20 * every, **options
    )
    data.setup("fit")
    data.parts = {role: [each[::every] for each in places] for role, places in data.parts.items()}
    data.sets = {role: TrackSet(places, data.cells) for role, places in data.parts.items()}
    return data


def train(data: TrajectoriesDataModule, seed: int, steps: int, path: Path, **options: Any) -> None:
    """Train on the training part, and save the checkpoint."""
    pl.seed_everything(seed, verbose=False)
    module = TJEPA(
        num_points=200,
        momentum=(0.97, 1.0),
        embed_dim=DIM,
        depth=2,
        num_heads=4,
        predictor_depth=1,
        predictor_num_heads=4,
        predictor_head_dim=16,
        lr=1e-3,
        start_lr=1e-4,
        **options,
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
        gradient_clip_val=1.0,
        callbacks=[CollapseMonitor(every_n_steps=max(1, steps // 5))],
        plugins=[SafeCheckpointIO()],
    )
    trainer.fit(module, data)
    trainer.save_checkpoint(path)
    print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items()}, flush=True)


class Cellwise:
    """The mean of the embeddings of a track's cells, without any encoder."""

    def __init__(self, cells: Cells) -> None:
        self.cells = cells

    def transform(self, tracks: Tracks) -> NDArray[Any]:
        """`[n, D]`."""
        return np.stack([self.cells.embedded(self.cells.metres(each))[:, :DIM].mean(0).numpy() for each in tracks])


class By:
    """A distance of the tracks themselves."""

    def __init__(self, measure: Any, cells: Cells) -> None:
        self.measure, self.cells = measure, cells

    def __call__(self, queries: Tracks, database: Tracks) -> NDArray[Any]:
        """`[n, m]`."""
        return pairwise(self.measure, *([self.cells.metres(each) for each in part] for part in (queries, database)))


class Judge:
    """All that is asked of features, on one set of flights."""

    def __init__(self, data: TrajectoriesDataModule, queries: int) -> None:
        parts, self.cells = data.parts, data.cells
        self.queries = parts["test"][:queries]
        self.others = [*parts["train"], *parts["val"], *parts["test"][queries:]]
        self.heads = parts["train"][:300], parts["val"][:100], parts["test"][:200]
        self.true: dict[str, list[NDArray[Any]]] = {}

    def search(self, distances: Any, prefix: str = "rank") -> dict[str, float]:
        """Mean ranks."""
        found = twin_search(distances, self.queries, self.others, rates=RATES, metres=MOVED)
        return {f"{prefix}/{each.setting} {each.value:g}": each.rank for each in found}

    def distances(self) -> None:
        """Those that the heads learn."""
        metres = [[self.cells.metres(each) for each in part] for part in self.heads]
        self.true = {name: [pairwise(name, each, epsilon=EPSILON) for each in metres] for name in MEASURES}
        self.true["dtw"] = [pairwise("dtw", metres[2])]

    def regression(self, encoder: Any, seed: int) -> dict[str, float]:
        """How well heads on features find the neighbours by each distance."""
        features, found = [encoder.transform(part) for part in self.heads], {}
        for name in MEASURES:
            true = self.true[name]
            head = DistanceHead(seed=seed).fit((features[0], true[0]), (features[1], true[1]))
            for key, value in hits(head.predict(features[2]), true[2]).items():
                found[f"{key}/{name}"] = value
        return found

    def directly(self, measure: str) -> dict[str, float]:
        """The same for a distance that stands in for the others."""
        pairs = [(name, hits(self.true[measure][-1], self.true[name][2])) for name in MEASURES]
        return {f"{key}/{name}": value for name, found in pairs for key, value in found.items()}


def speed(judge: Judge, encoder: Any) -> dict[str, float]:
    """Milliseconds for a query among all tracks; those of the data base are encoded before."""
    from sklearn.neighbors import NearestNeighbors

    odd, even = twins(judge.queries)
    database = even + twins(judge.others)[1]
    index = NearestNeighbors(n_neighbors=5, metric="manhattan").fit(encoder.transform(database))
    start = time.perf_counter()
    index.kneighbors(encoder.transform(odd))
    found = {"ms/features": time.perf_counter() - start}
    for measure in ("dtw", "hausdorff"):
        by = By(measure, judge.cells)
        by(odd[:2], database[:2])  # which compiles it
        start = time.perf_counter()
        np.argsort(by(odd, database), 1)[:, :5]
        found[f"ms/{measure}"] = time.perf_counter() - start
    return {name: 1000 * value / len(odd) for name, value in found.items()}


def main() -> None:
    """Train, evaluate, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200, help="of a training, on batches of 32 flights")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="no regression, no transfer, no distances of tracks")
    parser.add_argument("--folder", type=Path, default=Path("runs/flights"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []

    def note(what: str, seed: int | str, found: dict[str, float]) -> None:
        rows.extend({"what": what, "seed": seed, "number": name, "value": value} for name, value in found.items())
        print(f"{what}, {seed}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()), flush=True)
        with (options.folder / "flights.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    data = flights("switzerland", EVERY // 10)
    here = Judge(data, options.queries)
    note("cells alone", "", here.search(by_features(Cellwise(here.cells))))
    if not options.quick:
        there = Judge(flights("quickstart", EVERY, max_points=4000), options.queries)
        # The same table of embeddings, laid around the middle of the other flights.
        moved = Cells(**here.cells.state() | {"centre": list(there.cells.centre)})
        here.distances()
        note("cells alone", "", here.regression(Cellwise(here.cells), 0))
        for each in ("own", "moved"):
            cells = there.cells if each == "own" else moved
            note("cells alone", "", there.search(by_features(Cellwise(cells)), f"transfer, {each} cells"))
        for measure in ("dtw", "hausdorff"):
            note(measure, "", here.search(By(measure, here.cells)) | here.directly(measure))
            note(measure, "", there.search(By(measure, there.cells), "transfer"))
    for seed in options.seeds:
        for name, chosen in {"T-JEPA": {}, "without AdjFuse": {"adj_fuse": False}}.items():
            path, start = options.folder / f"{name}-{seed}.ckpt", time.perf_counter()
            train(data, seed, options.steps, path, **chosen)
            print(f"{name}, seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
            encoder = TrajectoryEncoder(path)
            kinds = {name: encoder}
            if not chosen:
                kinds["untrained"] = encoder.untrained(seed)
            for kind, each in kinds.items():
                note(kind, seed, here.search(by_features(each)))
                if options.quick:
                    continue
                note(kind, seed, here.regression(each, seed))
                for cells, word in ((there.cells, "own"), (moved, "moved")):
                    elsewhere = TrajectoryEncoder(path, cells=cells)
                    elsewhere = elsewhere if kind == name else elsewhere.untrained(seed)
                    note(kind, seed, there.search(by_features(elsewhere), f"transfer, {word} cells"))
    if not options.quick:
        note("T-JEPA", "", speed(here, TrajectoryEncoder(options.folder / f"T-JEPA-{options.seeds[0]}.ckpt")))


if __name__ == "__main__":
    main()

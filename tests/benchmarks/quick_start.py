"""What README's first command costs and learns, by seed, beside the rate of this core's matrix products.

    python tests/benchmarks/quick_start.py --seeds 0 1 2

Counted is the processor time of the whole command, data workers and start included. The last column is that time on a
core of 33 GFLOP/s if all of it were matrix products, which is an upper bound.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from step import matmul_rate
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SLOW = 33e9  # FLOP a second


def seconds() -> float:
    """Processor seconds of the processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="recipes/ijepa/shapes.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rate = matmul_rate(argparse.Namespace(device="cpu", precision="32"))
    print(f"torch {torch.__version__}, matrix products {rate / 1e9:.0f} GFLOP/s on one core\n")
    print("| seed | kNN, after each validation | untrained | raw input | processor seconds | at 33 GFLOP/s, at most |")
    print("|---|---|---|---|---|---|")
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            before = seconds()
            code = "from jepa_lightning.cli import main; main()"
            options = [f"--config={arguments.recipe}", f"--seed_everything={seed}"]
            subprocess.run(
                [sys.executable, "-c", code, "fit", *options, f"--trainer.default_root_dir={folder}"],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=True,
            )
            used = seconds() - before
            (run,) = Path(folder).glob("lightning_logs/version_*")
            events = EventAccumulator(str(run))
            events.Reload()
            values = {
                name: [100 * each.value for each in events.Scalars(f"probe/knn/{name}")]
                for name in ("accuracy", "untrained", "raw")
            }
        read = ", ".join(f"{value:.1f}" for value in values["accuracy"])
        untrained, raw = (f"{values[name][-1]:.1f}" for name in ("untrained", "raw"))
        print(f"| {seed} | {read} | {untrained} | {raw} | {used:.0f} | {used * rate / SLOW:.0f} |", flush=True)


if __name__ == "__main__":
    main()

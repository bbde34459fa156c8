"""What `CollapseMonitor` costs of a training step, at its default interval: `python tests/benchmarks/monitor.py`.

A Trainer trains on one batch over and over, in blocks of steps of which every other one is watched, by a monitor that
takes a reading at the end of the block. What it costs is what passes between the end of a step and the start of the
next, logging included, beyond what does in the block beside it: in processor time of one thread, since wall time would
count what else the machine does. Where a step takes seconds the blocks are short; an interval is always reckoned as one
reading and 49 steps without. Printed are the median over the pairs of blocks, and the quartiles.
"""

import argparse
import tempfile
import time
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from jepa_lightning import IJEPA, VJEPA
from jepa_lightning.callbacks import CollapseMonitor

SMALL: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "embed_dim": 96,
    "depth": 4,
    "num_heads": 3,
    "predictor_embed_dim": 48,
    "predictor_depth": 3,
    "predictor_num_heads": 1,
}
# Method, options, the shape of a batch, and the steps of a block.
CASES: dict[str, tuple[type[Any], dict[str, Any], tuple[int, ...], int]] = {
    "I-JEPA, recipes/ijepa/shapes.yaml": (IJEPA, SMALL | {"context_tokens": 6}, (64, 3, 32, 32), 50),
    "V-JEPA, recipes/vjepa/moving_shapes.yaml": (VJEPA, SMALL | {"num_frames": 8}, (64, 3, 8, 32, 32), 50),
    "I-JEPA, ViT-S/16 at 224, batch of 16": (IJEPA, {"embed_dim": 384, "num_heads": 6}, (16, 3, 224, 224), 4),
}


class EveryOtherBlock(CollapseMonitor):
    """Watches the second block of each pair, and keeps the processor time at the start and at the end of every step."""

    def __init__(self, steps: int) -> None:
        super().__init__(steps, min_rank=0.0, max_cosine=2.0)  # one batch over and over may well collapse
        self.starts: list[float] = []
        self.ends: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.starts.append(time.process_time())

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.ends.append(time.process_time())
        if batch_idx // self.every_n_steps % 2:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class Costs(NamedTuple):
    """Processor time in seconds.

    Attributes:
        step: of a step on its own.
        watching: what one more costs that is watched, `[pairs]`.
        reading: what one more costs that ends in a reading, `[pairs]`.
    """

    step: float
    watching: Tensor
    reading: Tensor


def measure(module: pl.LightningModule, batch: Tensor, steps: int, pairs: int) -> Costs:
    """Train in pairs of blocks of a number of steps."""
    monitor = EveryOtherBlock(steps)
    with tempfile.TemporaryDirectory() as folder:
        # One pair more to warm up, and a step more to end the last block.
        data = [batch] * (2 * steps * (pairs + 1) + 1)
        pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=TensorBoardLogger(folder),
            log_every_n_steps=steps,
            callbacks=[monitor],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, DataLoader(data, batch_size=None))  # type: ignore[arg-type]
    starts, ends = (torch.tensor(times, dtype=torch.float64) for times in (monitor.starts, monitor.ends))
    between = (starts[1:] - ends[:-1]).view(-1, 2, steps)[1:]
    more = between[:, 1] - between[:, 0]
    step = (starts[1:] - starts[:-1]).view(-1, 2, steps)[1:, 0].median()
    return Costs(float(step), more[:, :-1].mean(1), more[:, -1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20, help="pairs of blocks, one of them watched")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    interval = CollapseMonitor().every_n_steps
    for name, (module_class, options, shape, steps) in CASES.items():
        pl.seed_everything(0, verbose=False)
        costs = measure(module_class(**options), torch.randn(shape), steps, arguments.pairs)
        shares = ((interval - 1) * costs.watching + costs.reading) / (interval * costs.step)
        low, middle, high = shares.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=shares.dtype)).tolist()
        print(
            f"{name}: {middle:.2%} of a step ({low:.2%} to {high:.2%}): a step {1e3 * costs.step:.0f} ms, watching it "
            f"{1e3 * costs.watching.median():.2f} ms, a reading {1e3 * costs.reading.median():.0f} ms",
            flush=True,
        )


if __name__ == "__main__":
    main()

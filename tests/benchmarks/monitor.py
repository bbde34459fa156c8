"""What `CollapseMonitor` costs of a training step, at its default interval: `python tests/benchmarks/monitor.py`.

A Trainer trains on one batch over and over, in blocks of a few steps, of which every other one is watched, by a monitor
that takes a reading at the end of the block. In processor time of one thread, since wall time would count what else the
machine does, a watched step before the reading costs what the callback itself takes, and a reading what a watched block
takes longer than the block beside it, beyond that: with all that logging takes. A default interval has 49 of the former
and one of the latter. Printed are the median over the pairs of blocks, and the quartiles.
"""

import argparse
import statistics
import tempfile
import time
from typing import Any

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
    "I-JEPA, recipes/ijepa/shapes.yaml": (IJEPA, SMALL | {"context_tokens": 6}, (64, 3, 32, 32), 10),
    "V-JEPA, recipes/vjepa/moving_shapes.yaml": (VJEPA, SMALL | {"num_frames": 8}, (64, 3, 8, 32, 32), 10),
    "I-JEPA, ViT-S/16 at 224, batch of 16": (IJEPA, {"embed_dim": 384, "num_heads": 6}, (16, 3, 224, 224), 2),
}


class EveryOtherBlock(CollapseMonitor):
    """Watches the second block of each pair, and keeps the processor time of all blocks and of its own steps."""

    def __init__(self, steps: int) -> None:
        super().__init__(every_n_steps=steps)
        self.starts: list[float] = []
        self.updates: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % self.every_n_steps == 0:  # what the last step of a block has logged is behind us
            self.starts.append(time.process_time())

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        block, step = divmod(batch_idx, self.every_n_steps)
        if block % 2:
            start = time.process_time()
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            if step < self.every_n_steps - 1:
                self.updates.append(time.process_time() - start)


def measure(module: pl.LightningModule, batch: Tensor, steps: int, pairs: int) -> tuple[float, float, list[float]]:
    """Processor seconds of a step and of a watched step before a reading (medians), and of the reading of each pair."""
    monitor = EveryOtherBlock(steps)
    with tempfile.TemporaryDirectory() as folder:
        # One pair more to warm up, and a last step that ends the last block.
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
    blocks = [end - start for start, end in zip(monitor.starts, monitor.starts[1:], strict=False)][2:]
    update = statistics.median(monitor.updates[steps - 1 :])
    readings = [
        watched - alone - (steps - 1) * update for alone, watched in zip(blocks[::2], blocks[1::2], strict=True)
    ]
    return statistics.median(blocks[::2]) / steps, update, readings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20, help="pairs of blocks, one of them watched")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    interval = CollapseMonitor().every_n_steps
    for name, (module_class, options, shape, steps) in CASES.items():
        pl.seed_everything(0, verbose=False)
        step, update, readings = measure(module_class(**options), torch.randn(shape), steps, arguments.pairs)
        shares = [((interval - 1) * update + reading) / (interval * step) for reading in readings]
        low, middle, high = statistics.quantiles(shares, n=4)
        print(
            f"{name}: {middle:.2%} of a step ({low:.2%} to {high:.2%}): a step {1e3 * step:.0f} ms, watching it "
            f"{1e3 * update:.2f} ms, a reading {1e3 * statistics.median(readings):.0f} ms",
            flush=True,
        )


if __name__ == "__main__":
    main()

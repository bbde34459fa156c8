"""Updates a second of TDJEPA in a Trainer, beside a plain transcription of the official update; steps drawn a second.

    OMP_NUM_THREADS=1 python tests/benchmarks/td_jepa.py --sizes small published
    OMP_NUM_THREADS=1 python tests/benchmarks/td_jepa.py --sampling

The transcription does what the official code does, in its order, on the same networks with torch's own tanh: an Adam
for each of five networks, orthonormality by all pairs of a batch, whole backward passes, a loop over parameters for
the targets, and no Trainer. Both are measured in turns, in this process's own time. The median of `--rounds` is
printed, with the operations in matrix products of an update.

At commit 898d41e, on a core of an AMD EPYC (Zen 4), small networks made 37 updates a second and the transcription 32,
1.17 times as many; published ones were 1.20 times as fast. Of the published ones' update, products are 127 GFLOP
(transcription: 142), which the core does at 48 to 90 GFLOP a second, the large ones at 82 or more, be they batched or
not. By an estimate, with all else free it would be about 1.3 times: TDJEPA leaves out the products of all pairs of a
batch and gradients of networks that a step leaves alone, and could leave out 2 or 3 % more, of the gradients that
lead to an action. Of small networks products are a quarter of the time; most of the rest are tanh, norms and hundreds
of other small operations, which both do alike.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from jepa_lightning import TDJEPA
from jepa_lightning.batches import Transitions
from jepa_lightning.data.transitions import Steps, TransitionSet, WithReplacement
from jepa_lightning.networks.policies import Tanh, to_sphere

SIZES: dict[str, dict[str, Any]] = {
    "small": {"phi_dim": 32, "psi_dim": 32, "encoder_dim": 128, "predictor_dim": 128, "actor_dim": 128},
    "published": {},
}
BATCH = {"small": 256, "published": 1024}


class Transcription:
    """The official update, by PyTorch alone."""

    def __init__(self, module: TDJEPA) -> None:
        self.m = module
        for part in list(module.modules()):
            for name, child in part.named_children():
                if isinstance(child, Tanh):  # which is faster than torch's
                    setattr(part, name, torch.nn.Tanh())
        self.names = ("phi_predictor", "psi_predictor", "phi", "psi")
        self.optimizers = {
            name: torch.optim.Adam(module.get_submodule(name).parameters(), lr=1e-4) for name in (*self.names, "actor")
        }

    def act(self, sees: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
        given = self.m.hparams
        mean = self.m.actor(sees, task)
        noise = (torch.randn_like(mean) * given.actor_std).clamp(-given.actor_clip, given.actor_clip)
        action = mean + noise
        return action - action.detach() + action.clamp(-1 + 1e-6, 1 - 1e-6).detach()

    def update(self, batch: Transitions) -> None:
        m, given, size = self.m, self.m.hparams, len(batch.action)
        with torch.no_grad():
            task = to_sphere(torch.randn(size, m.task_dim))
            goals = to_sphere(m.psi(batch.next_observation[torch.randperm(size)]))
            task = torch.where(torch.rand(size, 1) < given.goal_share, goals, task)
            phi_next, psi_next = m.target_phi(batch.next_observation), m.target_psi(batch.next_observation)
            action = self.act(phi_next, task)
            left = given.discount * (1.0 - batch.terminated.float().unsqueeze(1))
            phi_target = psi_next + left * m.get_submodule("target_phi_predictor")(phi_next, action, task).mean(0)
            psi_target = phi_next + left * m.get_submodule("target_psi_predictor")(psi_next, action, task).mean(0)
        phi, psi = m.phi(batch.observation), m.psi(batch.observation)
        loss = (m.phi_predictor(phi, batch.action, task) - phi_target).square().sum(-1).mean()
        loss = loss + (m.psi_predictor(psi, batch.action, task) - psi_target).square().sum(-1).mean()
        others = ~torch.eye(size, dtype=torch.bool)
        for embedding, weight in ((phi, given.phi_ortho), (psi, given.psi_ortho)):
            products = embedding @ embedding.T
            loss = loss + weight * (0.5 * products[others].square().mean() - products.diagonal().mean())
        for name in self.names:
            self.optimizers[name].zero_grad()
        loss.backward()
        for name in self.names:
            self.optimizers[name].step()
        with torch.no_grad():
            m.task_moment.copy_(0.995 * m.task_moment + 0.005 * psi.T @ psi / size)
            phi = m.phi(batch.observation)
        action = self.act(phi, task)
        value = (m.phi_predictor(phi, action, task) * task).sum(-1).mean()
        self.optimizers["actor"].zero_grad()
        (-value).backward()
        self.optimizers["actor"].step()
        with torch.no_grad():
            for teacher in m.teachers():
                momentum = teacher.momentum(0, 1)
                students = m.get_submodule(teacher.student).parameters()
                for slow, fast in zip(m.get_submodule(teacher.teacher).parameters(), students, strict=True):
                    slow.copy_(momentum * slow + (1 - momentum) * fast)


class Timed(pl.Callback):
    """This process's own time of the steps after the first ones."""

    def __init__(self, skipped: int) -> None:
        self.skipped = skipped

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.skipped:
            self.start = time.process_time()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.seconds = time.process_time() - self.start


def steps(number: int, observation: int = 24, action: int = 6) -> Steps:
    rng = np.random.default_rng(0)
    seen = rng.standard_normal((number + 1, observation), np.float32)
    actions = rng.uniform(-1, 1, (number, action)).astype(np.float32)
    nothing = np.zeros(number, np.float32)
    return Steps(seen, np.arange(number), np.zeros(number, np.int64), actions, nothing, nothing.astype(bool))


def ours(options: dict[str, Any], batches: list[Transitions]) -> float:
    """Updates a second."""
    timed = Timed(skipped=2)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[timed],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(TDJEPA(24, 6, **options), DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return (len(batches) - 2) / timed.seconds


def theirs(options: dict[str, Any], batches: list[Transitions]) -> float:
    """Updates a second."""
    agent = Transcription(TDJEPA(24, 6, **options))
    for batch in batches[:2]:
        agent.update(batch)
    start = time.process_time()
    for batch in batches[2:]:
        agent.update(batch)
    return (len(batches) - 2) / (time.process_time() - start)


def products(update: Callable[..., float], options: dict[str, Any], batches: list[Transitions]) -> float:
    """GFLOP of an update's matrix products."""
    with FlopCounterMode(display=False) as counted:
        update(options, batches[:3])
    return counted.get_total_flops() / 3e9


def sampling() -> None:
    """Steps a second of a million, from the loader's sampler to the batch, and forward by one worker's hands."""
    samples = TransitionSet(steps(1_000_000))
    order = WithReplacement(samples, 1024, batches=300, seed=0)
    start, indices = time.process_time(), list(order)
    drawn = 0
    for first in range(0, len(indices), 1024):
        drawn += len(samples.__getitems__(indices[first : first + 1024]).action)
    print(f"{drawn / (time.process_time() - start):,.0f} steps a second, of {len(samples):,} steps of 24 numbers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["small", "published"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--updates", type=int, default=0, help="a round; 200 of small networks and 10 of published ones"
    )
    parser.add_argument("--sampling", action="store_true", help="measure how fast steps are drawn instead")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if given.sampling:
        sampling()
        return
    for name in given.sizes:
        samples, size = TransitionSet(steps(20_000)), BATCH[name]
        number = given.updates or {"small": 200, "published": 10}[name]
        order = list(WithReplacement(samples, size, number + 2, seed=0))
        batches = [samples.__getitems__(order[first : first + size]) for first in range(0, len(order), size)]
        rates = [(ours(SIZES[name], batches), theirs(SIZES[name], batches)) for _ in range(given.rounds)]
        mine, plain = (statistics.median(each) for each in zip(*rates, strict=True))
        counted = (products(update, SIZES[name], batches) for update in (ours, theirs))
        flop = ", transcription ".join(f"{number:.3g}" for number in counted)
        print(
            f"{name}: {mine:.1f} updates a second, transcription {plain:.1f}, {mine / plain:.2f} times; GFLOP: {flop}"
        )


if __name__ == "__main__":
    main()

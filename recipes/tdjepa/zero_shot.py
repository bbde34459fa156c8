"""Rewards that no training has seen, on dm_control's point_mass: TD-JEPA beside what it is made of.

    OMP_NUM_THREADS=1 python recipes/tdjepa/zero_shot.py --rows main --seeds 0 1 2 3 4
    OMP_NUM_THREADS=1 python recipes/tdjepa/zero_shot.py --rows random_psi symmetric no_ortho gamma_0 states

The data are recorded without rewards: in half of the episodes somebody heads for one random place after another
(`Wanderer`), in the others for nothing, by noise that lasts for some steps (`Drifter`). Each row is trained for
`--minutes` of a core's time and then plays seven rewards that it has never seen, four corners and three others. The
task of each is inferred from 10,000 labelled states of the data. Returns are normalised: 0 is random actions, 1 a
scripted controller that knows the reward. A line is printed for each run and added to results.csv, and a table of all
of them is printed at the end, with the interval of 95 % over seeds. Needs the extra `control`.

Rows: `main`; `random_psi`, whose task encoder is not trained; `symmetric`, where ψ is φ; `no_ortho`, without the
orthonormality of both; `gamma_0`, which predicts one step only; `states`, successor features of the states themselves.
"""

from __future__ import annotations

import argparse
import csv
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from jepa_lightning import TDJEPA, Teacher, TransitionsDataModule
from jepa_lightning.callbacks import CollapseMonitor
from jepa_lightning.data.episodes.record import make_environment, record, write
from jepa_lightning.evaluation.zero_shot import interval, zero_shot
from jepa_lightning.planning import Agent

Array = np.ndarray[Any, Any]
WORLD = {"id": "jepa_lightning/DMControl-v0", "domain": "point_mass", "task": "easy"}
CORNERS = {"top_left": (-0.2, 0.2), "top_right": (0.2, 0.2), "bottom_left": (-0.2, -0.2), "bottom_right": (0.2, -0.2)}
RING, SPEED = 0.15, 0.2  # metres, metres a second
OPTIONS: dict[str, Any] = {
    "observation_dim": 4,
    "action_dim": 2,
    "phi_dim": 32,
    "psi_dim": 32,
    "phi_layers": 1,
    "encoder_dim": 128,
    "predictor_dim": 128,
    "actor_dim": 128,
    "discount": 0.98,
    "phi_ortho": 1.0,
    "psi_ortho": 1.0,
    "encoder_tau": 0.01,
    "predictor_tau": 0.01,
    "lr": 1e-3,
}
ROWS: dict[str, dict[str, Any]] = {
    "main": {},
    "random_psi": {"lr_psi": 0.0, "psi_ortho": 0.0},
    "symmetric": {"symmetric": True},
    "no_ortho": {"phi_ortho": 0.0, "psi_ortho": 0.0},
    "gamma_0": {"discount": 0.0},
    "states": {"symmetric": True, "phi_dim": 4, "phi_ortho": 0.0},
}


# --- Rewards and who knows them --------------------------------------------------------------------------------------


def falls(distance: Array, margin: float = 0.1) -> Array:
    """1 at no distance, and 0.1 at the margin, as dm_control's `tolerance` has it."""
    return np.exp(-np.log(10) * np.square(distance / margin))


def near(place: tuple[float, float]) -> Callable[[Array], Array]:
    """To be in a place."""
    return lambda seen: falls(np.hypot(seen[:, 0] - place[0], seen[:, 1] - place[1]))


def ring(seen: Array) -> Array:
    """To be on a circle around the middle."""
    return falls(np.hypot(seen[:, 0], seen[:, 1]) - RING)


def line(seen: Array) -> Array:
    """To be on the vertical through the middle."""
    return falls(seen[:, 0])


def loop(seen: Array) -> Array:
    """To go round on the circle, to the left."""
    x, y, vx, vy = seen[:, :4].T
    along = (x * vy - y * vx) / np.maximum(np.hypot(x, y), 1e-6)
    return ring(seen) * np.clip(along / SPEED, 0, 1)


REWARDS: dict[str, Callable[[Array], Array]] = {
    **{name: near(place) for name, place in CORNERS.items()},
    "ring": ring,
    "line": line,
    "loop": loop,
}


class Controller:
    """Knows a reward: heads for the nearest place, or velocity, that it is for.

    Args:
        name: of the reward.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, observations: Array, envs: Sequence[Any]) -> Array:
        """The actions `[N, 2]`."""
        place, velocity = observations[:, :2], observations[:, 2:4]
        outward = place / np.maximum(np.hypot(*place.T), 1e-6)[:, None]
        wanted = np.zeros_like(velocity)
        if self.name in CORNERS:
            target = np.broadcast_to(CORNERS[self.name], place.shape)
        elif self.name == "line":
            target = place * [0.0, 1.0]
        else:
            target = RING * outward
            if self.name == "loop":
                wanted = 1.2 * SPEED * np.stack([-outward[:, 1], outward[:, 0]], 1)
        return np.clip(30.0 * (target - place) + 6.0 * (wanted - velocity), -1, 1)


# --- Data ------------------------------------------------------------------------------------------------------------


class Wanderer:
    """Heads for one random place after another."""

    def begin(self, env: Any, rng: np.random.Generator) -> None:
        """Choose the first place."""
        self.target, self.firmness = rng.uniform(-0.28, 0.28, 2), rng.uniform(3, 30)

    def act(self, observation: Array, env: Any, rng: np.random.Generator) -> Array:
        """Towards it, with noise; at times another place is chosen."""
        if rng.random() < 0.02:
            self.begin(env, rng)
        wanted = self.firmness * (self.target - observation[:2]) - 0.2 * self.firmness * observation[2:4]
        return np.clip(wanted + rng.normal(0, 0.3, 2), -1, 1).astype(np.float32)


class Drifter:
    """Pushed around by noise that lasts for some steps."""

    def begin(self, env: Any, rng: np.random.Generator) -> None:
        """No push yet."""
        self.push = rng.normal(0, 0.5, 2)

    def act(self, observation: Array, env: Any, rng: np.random.Generator) -> Array:
        """The push, slowly another one."""
        self.push = 0.9 * self.push + rng.normal(0, 0.3, 2)
        return np.clip(self.push, -1, 1).astype(np.float32)


def recorded(options: argparse.Namespace) -> TransitionsDataModule:
    """The steps, recorded once and kept in the folder."""
    path = options.folder / f"point_mass_{options.episodes}.npz"
    if not path.exists():
        here = "jepa_lightning.recipes.tdjepa.zero_shot"
        policies = {f"{here}.Wanderer": 0.5, f"{here}.Drifter": 0.5}
        environment = make_environment(WORLD["id"], **{name: WORLD[name] for name in WORLD if name != "id"})
        write(record(environment, policies, options.episodes, options.steps, seed=0), path)
    data = TransitionsDataModule(str(path), batch_size=options.batch_size)
    data.setup()
    return data


# --- Training --------------------------------------------------------------------------------------------------------


class States(nn.Module):
    """A state as it is."""

    def forward(self, state: Tensor) -> Tensor:
        """The same."""
        return state


class SuccessorFeatures(TDJEPA):
    """What is predicted are the states themselves, and nothing is encoded."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.phi, self.target_phi = States(), States()

    def teachers(self) -> list[Teacher]:
        """Of the predictor alone, once there is nothing else."""
        return [
            each
            for each in super().teachers()
            if not isinstance(getattr(self, "phi", None), States) or "_" in each.student
        ]


class ProcessorTime(pl.Callback):
    """Ends a training after so many seconds of this process's own time, however busy the machine is."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Look at the clock."""
        self.start = time.process_time()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Look again."""
        trainer.should_stop = trainer.should_stop or time.process_time() - self.start > self.seconds


def trained(row: str, seed: int, data: TransitionsDataModule, options: argparse.Namespace) -> tuple[TDJEPA, int]:
    """The module of a row, and its updates."""
    pl.seed_everything(seed, verbose=False)
    kind = SuccessorFeatures if row == "states" else TDJEPA
    module = kind(**OPTIONS | ROWS[row])
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=100_000,
        callbacks=[ProcessorTime(60 * options.minutes), CollapseMonitor(500)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, data)
    return module, trainer.fit_loop.total_batch_idx + 1


def main(arguments: list[str] | None = None) -> None:
    """Train, play, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=["main"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=20.0, help="of a core's time, for each training")
    parser.add_argument("--episodes", type=int, default=1000, help="that are recorded")
    parser.add_argument("--steps", type=int, default=200, help="of a recorded episode")
    parser.add_argument("--samples", type=int, default=10_000, help="states that are labelled")
    parser.add_argument("--num_episodes", type=int, default=10, help="that are played for each reward")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--folder", type=Path, default=Path("zero_shot"))
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    options.folder.mkdir(parents=True, exist_ok=True)
    data, found = recorded(options), dict[str, list[dict[str, float]]]()
    for row in options.rows:
        for seed in options.seeds:
            module, updates = trained(row, seed, data, options)
            outcome = zero_shot(
                [Agent(module, data.units)],
                data,
                WORLD,
                REWARDS,
                experts={"all": Controller},
                num_samples=options.samples,
                num_episodes=options.num_episodes,
            )
            line = {each.name: each.normalised(each.mean) for each in outcome.scores}
            line |= {"corners": float(np.mean([line[name] for name in CORNERS])), "mean": outcome.mean()}
            found.setdefault(row, []).append(line)
            print(
                f"{row}, seed {seed}, {updates} updates: " + ", ".join(f"{k} {v:.2f}" for k, v in line.items()),
                flush=True,
            )
            path = options.folder / "results.csv"
            new = not path.exists()
            with open(path, "a", newline="") as file:
                writer = csv.writer(file)
                if new:
                    writer.writerow(["row", "seed", "minutes", "updates", *line])
                writer.writerow([row, seed, options.minutes, updates, *(f"{value:.4f}" for value in line.values())])
    columns = [*REWARDS, "corners", "mean"]
    print(f"\n| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for row, lines in found.items():
        cells = [f"{np.mean([each[name] for each in lines]):.2f}" for name in columns]
        _, low, high = interval(np.array([each["mean"] for each in lines]))
        print(f"| {row} | {' | '.join(cells)} ({low:.2f} to {high:.2f}) |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

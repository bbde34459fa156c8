"""Rewards that no training has seen, on dm_control's point_mass: TD-JEPA beside what it is made of.

    OMP_NUM_THREADS=1 python recipes/tdjepa/zero_shot.py --rows main --seeds 0 1 2 3 4
    OMP_NUM_THREADS=1 python recipes/tdjepa/zero_shot.py --rows random_psi symmetric no_ortho gamma_0 states

The data are recorded without rewards: in half of the episodes somebody heads for one random place after another
(`Wanderer`), in the others for nothing, by actions that last for some steps (`Drifter`). Each row is trained for
`--minutes` of a core's time and then plays seven rewards that it has never seen, four corners and three others; with
several `--minutes`, it plays at each of them. The task of each reward is inferred from 10,000 labelled states of the
data. Returns are normalised: 0 is random actions, 1 a scripted controller that knows the reward. `fit` is the share of
the rewards' variance that is linear in ψ, on states that were not labelled. A line is printed for each run and added
to results.csv, and a table of all of them is printed at the end, with the interval of 95 % over seeds. Needs the extra
`control`.

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
from jepa_lightning.evaluation.scores import interval
from jepa_lightning.evaluation.zero_shot import labelled_states, zero_shot
from jepa_lightning.networks.policies import SphereEncoder
from jepa_lightning.planning import Agent

Array = np.ndarray[Any, Any]
Play = Callable[[float, int], None]  # of minutes and updates
# At 0.02 seconds, dm_control's own, an action moves the mass by 2 mm, which is lost in what a small network gets wrong.
WORLD = {"id": "jepa_lightning/DMControl-v0", "domain": "point_mass", "task": "easy", "control_timestep": 0.2}
# The places of ExoRL's point_mass_maze.
CORNERS = {
    "top_left": (-0.15, 0.15),
    "top_right": (0.15, 0.15),
    "bottom_left": (-0.15, -0.15),
    "bottom_right": (0.15, -0.15),
}
RING, SPEED = 0.15, 0.08  # metres, metres a second
BATCH = 256
BIAS = 0.4  # what biases of encoders' first layers begin within
OPTIONS: dict[str, Any] = {
    "observation_dim": 4,
    "action_dim": 2,
    "phi_dim": 64,
    "psi_dim": 64,
    "phi_layers": 1,
    "encoder_dim": 128,
    "predictor_dim": 128,
    "actor_dim": 128,
    "discount": 0.95,
    "phi_ortho": 1.0,
    "psi_ortho": 1.0,
    "encoder_tau": 0.05,
    "predictor_tau": 0.05,
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
                wanted = 1.1 * SPEED * np.stack([-outward[:, 1], outward[:, 0]], 1)
        # Ten times the velocity is the push that keeps it up against the damping.
        return np.clip(30.0 * (target - place) + 6.0 * (wanted - velocity) + 10.0 * wanted, -1, 1)


# --- Data ------------------------------------------------------------------------------------------------------------


class Wanderer:
    """Heads for one random place after another, and stays there for a while."""

    def begin(self, env: Any, rng: np.random.Generator) -> None:
        """Choose the first place."""
        self.target, self.firmness = rng.uniform(-0.28, 0.28, 2), rng.uniform(3, 30)

    def act(self, observation: Array, env: Any, rng: np.random.Generator) -> Array:
        """Towards it, with noise; at times another place is chosen."""
        if rng.random() < 0.05:
            self.begin(env, rng)
        wanted = self.firmness * (self.target - observation[:2]) - 0.2 * self.firmness * observation[2:4]
        return np.clip(wanted + rng.normal(0, 0.5, 2), -1, 1).astype(np.float32)


class Drifter:
    """Does anything, which lasts for two steps on average."""

    def begin(self, env: Any, rng: np.random.Generator) -> None:
        """Any push."""
        self.push = rng.uniform(-1, 1, 2)

    def act(self, observation: Array, env: Any, rng: np.random.Generator) -> Array:
        """The push, or another one."""
        if rng.random() < 0.5:
            self.begin(env, rng)
        return np.asarray(self.push, np.float32)


def recorded(options: argparse.Namespace) -> TransitionsDataModule:
    """The steps, recorded once and kept in the folder."""
    path = options.folder / f"point_mass_{options.episodes}_{options.steps}.npz"
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
    """Lets a module play after so many minutes of this process's own time, however busy the machine is, and ends then.

    Args:
        minutes: when it plays, and after the last ones ends.
        play: called with the minutes and the updates until then; what it takes does not count.
    """

    def __init__(self, minutes: Sequence[float], play: Play) -> None:
        self.minutes, self.play = sorted(minutes), play

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Look at the clock."""
        self.start = time.process_time()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look again, now and then: asking for the time is not free."""
        if batch_idx % 20:
            return
        now = time.process_time()
        if now - self.start > 60 * self.minutes[0]:
            pl_module.eval()
            self.play(self.minutes.pop(0), trainer.fit_loop.total_batch_idx + 1)
            pl_module.train()
            self.start += time.process_time() - now
            trainer.should_stop = not self.minutes


def made(row: str, seed: int, bias: float, options: dict[str, Any]) -> TDJEPA:
    """The module of a row.

    The encoders' first layers begin with biases: without, as in the official code, their norms take away how far a
    state is from the middle, and only its direction is seen until biases have been learned.
    """
    pl.seed_everything(seed, verbose=False)
    module = (SuccessorFeatures if row == "states" else TDJEPA)(**OPTIONS | ROWS[row] | options)
    for name in ("phi", "psi"):
        encoder = getattr(module, name, None)
        if isinstance(encoder, SphereEncoder):
            nn.init.uniform_(encoder.net[0].bias, -bias, bias)
            getattr(module, f"target_{name}").load_state_dict(encoder.state_dict())
    return module


def fit(
    module: TDJEPA, data: TransitionsDataModule, minutes: Sequence[float], play: Callable[[float, int], None]
) -> None:
    """Train for the last of some minutes, and play at each of them."""
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=100_000,
        callbacks=[ProcessorTime(minutes, play), CollapseMonitor(500)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, data)


# --- Playing ---------------------------------------------------------------------------------------------------------


def played(module: TDJEPA, data: TransitionsDataModule, options: argparse.Namespace) -> dict[str, float]:
    """Normalised returns, of each reward and their means, and how much of the rewards is linear in ψ."""
    agent = Agent(module, data.units)
    outcome = zero_shot(
        [agent],
        data,
        WORLD,
        REWARDS,
        experts={"all": Controller},
        num_samples=options.samples,
        num_episodes=options.num_episodes,
    )
    line = {each.name: each.normalised(each.mean) for each in outcome.scores}
    states, _, _ = labelled_states(data, 2 * options.samples, seed=1)
    with torch.no_grad():
        psi = module.task_encoder(agent.prepared(states)).double().numpy()
    labelled, others = np.array_split(np.arange(len(states)), 2)
    explained = []
    for reward in REWARDS.values():
        values = reward(states)
        task = np.linalg.lstsq(psi[labelled], values[labelled], rcond=None)[0]
        explained.append(1 - np.square(values[others] - psi[others] @ task).mean() / values[others].var())
    return line | {
        "corners": float(np.mean([line[name] for name in CORNERS])),
        "mean": outcome.mean(),
        "fit": float(np.mean(explained)),
    }


def main(arguments: list[str] | None = None) -> None:
    """Train, play, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=["main"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", nargs="+", type=float, default=[5.0], help="of a core's time, when it plays")
    parser.add_argument("--episodes", type=int, default=1000, help="that are recorded")
    parser.add_argument("--steps", type=int, default=100, help="of a recorded episode")
    parser.add_argument("--samples", type=int, default=10_000, help="states that are labelled")
    parser.add_argument("--num_episodes", type=int, default=10, help="that are played for each reward")
    parser.add_argument("--batch_size", type=int, default=BATCH)
    parser.add_argument("--set", nargs="+", type=assignment, default=[], help="options of TDJEPA, name=number")
    parser.add_argument("--bias", type=float, default=BIAS, help="bound of encoders' first biases; 0 as published")
    parser.add_argument("--folder", type=Path, default=Path("zero_shot"))
    options = parser.parse_args(arguments)
    options.set = dict(options.set)
    options.folder.mkdir(parents=True, exist_ok=True)
    data, found = recorded(options), dict[str, list[dict[str, float]]]()
    changeable = (("bias", options.bias, BIAS), ("batch_size", options.batch_size, BATCH))
    for row in options.rows:
        for seed in options.seeds:
            module = made(row, seed, options.bias, options.set)
            others = options.set | {name: each for name, each, usual in changeable if each != usual}
            label = " ".join([row, *(f"{name}={value:g}" for name, value in others.items())])

            def play(minutes: float, updates: int, row: str = label, seed: int = seed, module: TDJEPA = module) -> None:
                line = played(module, data, options)
                found.setdefault(f"{row}, {minutes:g} min", []).append(line)
                numbers = ", ".join(f"{name} {value:.2f}" for name, value in line.items())
                print(f"{row}, seed {seed}, {minutes:g} min, {updates} updates: {numbers}", flush=True)
                keep(
                    options.folder / "results.csv",
                    {"row": row, "seed": seed, "minutes": minutes, "updates": updates, **line},
                )

            fit(module, data, options.minutes, play)
    columns = [*REWARDS, "corners", "fit", "mean"]
    print(f"\n| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for row, lines in found.items():
        cells = [f"{np.mean([each[name] for each in lines]):.2f}" for name in columns]
        _, low, high = interval(np.array([each["mean"] for each in lines]))
        print(f"| {row} | {' | '.join(cells)} ({low:.2f} to {high:.2f}) |")


def assignment(text: str) -> tuple[str, float]:
    """An option and its number, from `name=number`."""
    name, _, value = text.partition("=")
    try:
        return name, int(value) if value.isdigit() else float(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=number") from error


def keep(path: Path, line: dict[str, Any]) -> None:
    """Add a line to a table of values."""
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, list(line))
        if new:
            writer.writeheader()
        writer.writerow({name: f"{value:.4g}" if isinstance(value, float) else value for name, value in line.items()})


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    main()

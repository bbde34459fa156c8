"""World models that plan: an encoder of frames, V-JEPA 2-AC on it, and episodes played by its plans.

    OMP_NUM_THREADS=1 python recipes/vjepa2ac/world_models.py --environment TwoRoom --encoder lejepa --seeds 0 1 2

Each seed trains an encoder, freezes it, trains a predictor on it and plays 50 episodes, to goals that are 25 steps
away, within 50 steps. Checkpoints are kept in --folder and used again, so that another planner costs no training. A row
is printed for each seed and added to results.csv: the share of the goals that are reached, also of those in the other
room; the roll-out error after 1 to 5 steps of the model, over the error of predicting that nothing changes; and the
rank correlation of distances between embeddings with those between the places that they are of. Needs the extra
`control`, and for PushT gym-pusht.

`--policy expert`, `straight` or `random` plays the same episodes without a model, and `--correlate` tells from
results.csv whether roll-out error orders the models as success does, of those that were played by the same planner.
"""

from __future__ import annotations

import argparse
import csv
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from jepa_lightning import JEPA, VJEPA2, VJEPA2AC, EpisodesDataModule
from jepa_lightning.checkpoints import SafeCheckpointIO
from jepa_lightning.data.episodes.record import make_environment
from jepa_lightning.planning import load_planner
from jepa_lightning.planning.episodes import Outcome, Reference, play, wilson
from jepa_lightning.recipes.vjepa2ac.encoders import FrameEmbedding, FrameLeJEPA, TrueState

STRIDE, GOAL_STEPS, BUDGET = 5, 25, 50
VECTORS = ("states", "positions")  # what is seen is no frame: all numbers of a scene, or the position alone


class Wander:
    """Heads for one place of PushT after another, 15 of its 512 pixels a step.

    With `random` actions the agent crosses half of the plane from one frame of a window to the next, so that for
    LeJEPA's views only the block stays where it is.
    """

    def begin(self, env: Any, rng: np.random.Generator) -> None:
        """Start where the agent is."""
        self.place = self.target = np.array(env.unwrapped.agent.position)

    def act(self, observation: Any, env: Any, rng: np.random.Generator) -> Any:
        """A step ahead."""
        away = self.target - self.place
        if np.hypot(*away) < 15:
            self.target = rng.uniform(50, 462, 2)
        self.place = self.place + away * min(1.0, 15 / max(float(np.hypot(*away)), 1e-6))
        return self.place.astype(np.float32)


WANDER = f"{Wander.__module__}.Wander"


def world(options: argparse.Namespace) -> dict[str, Any]:
    """The environment, as vectors or as frames of 64 pixels."""
    vectors = options.encoder in VECTORS
    if options.environment == "PushT":
        shown = {"obs_type": "state"} if vectors else {"obs_type": "pixels_agent_pos"}
        return {"id": "gym_pusht:gym_pusht/PushT-v0", **shown, "observation_width": 64, "observation_height": 64}
    named = {"id": f"jepa_lightning/{options.environment}-v0"}
    return named | {"observation": "scene"} if vectors else named


def task(options: argparse.Namespace) -> dict[str, Any]:
    """The environment, with goals 25 steps away: of the expert's, a steady force's, or in PushT of `Wander`'s."""
    if options.environment == "PushT":
        reached = {"within": {"pos_agent": 10}, "policies": {WANDER: 1.0}}
        return {"id": "jepa_lightning/Reaching-v0", "environment": world(options), "goal_steps": GOAL_STEPS} | reached
    return {**world(options), "goal_steps": GOAL_STEPS}


def columns(options: argparse.Namespace) -> tuple[str, str]:
    """Where the recorded episodes have what is seen, and the place."""
    if options.environment != "PushT":
        return "scene", "scene"
    return ("observation",) * 2 if options.encoder in VECTORS else ("observation/pixels", "observation/agent_pos")


def episodes(options: argparse.Namespace, steps: int, stride: int, every: int, batch_size: int) -> EpisodesDataModule:
    """Recorded episodes: half of them walks and half of a noisy expert's, in PushT all of `Wander`'s."""
    own, frames = options.environment != "PushT", options.encoder not in VECTORS
    seen, place = columns(options)
    data = EpisodesDataModule(
        environment={**world(options), "endless": True} if own and not frames else world(options),
        policies={"walk": 0.5, "expert": 0.5} if own else {WANDER: 1.0},
        observation=seen,
        state=place,
        standardize=("observation", "action"),
        draw=own and frames,
        image_size=64 if frames else None,
        num_episodes=options.episodes,
        max_steps=100,
        steps=steps,
        stride=stride,
        every=every,
        batch_size=batch_size,
    )
    data.setup("fit")
    return data


def fit(module: JEPA, data: EpisodesDataModule, steps: int) -> pl.Trainer:
    """Train."""
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[SafeCheckpointIO()],
    )
    trainer.fit(module, data)
    return trainer


def encoder(options: argparse.Namespace) -> tuple[dict[str, Any], nn.Module]:
    """The class of the frozen encoder, and one that is trained."""
    if options.encoder in VECTORS:
        size = 4 if (options.environment, options.encoder) == ("PointMass", "states") else 2
        return {"class_path": f"{TrueState.__module__}.TrueState", "init_args": {"embed_dim": size}}, TrueState(size)
    if options.encoder == "vjepa2":
        sizes = {"image_size": [64, 64], "num_frames": 8, "patch_size": [16, 16], "embed_dim": 96, "depth": 4}
        video = VJEPA2(
            image_size=64,
            num_frames=8,
            patch_size=16,
            embed_dim=96,
            depth=4,
            num_heads=3,
            predictor_embed_dim=48,
            predictor_depth=3,
            predictor_num_heads=1,
            lr=1e-3,
            start_lr=2e-4,
            cooldown=0.3,
            momentum=(0.995, 0.995),
        )
        fit(video, episodes(options, 8, 1, 4, 32), options.encoder_steps)
        path = "jepa_lightning.networks.VideoTransformer"
        sizes |= {"num_heads": 3, "positions": "rope"}
        return {"class_path": path, "init_args": sizes}, video.target_encoder
    module = FrameLeJEPA(options.embed_dim, options.sigreg_weight, lr=2e-3, start_lr=2e-4, weight_decay=(0.01, 0.01))
    data = episodes(options, 2, STRIDE, 3, 64)
    if options.encoder == "lejepa":
        fit(module, data, options.encoder_steps)
    else:  # untrained, but for the statistics of its batch norms, without which nothing would vary
        for _, batch in zip(range(50), data.train_dataloader(), strict=False):
            with torch.no_grad():
                module.features(batch)
    init = {"embed_dim": options.embed_dim}
    return {"class_path": f"{FrameEmbedding.__module__}.FrameEmbedding", "init_args": init}, module.target_encoder


def world_model(options: argparse.Namespace, seed: int) -> tuple[VJEPA2AC, EpisodesDataModule, Path, float]:
    """A world model of the folder, or a new one, and what it was trained on, and in how many processor seconds."""
    kind = f"{options.environment}-{options.encoder}"
    if options.encoder in ("lejepa", "untrained"):
        kind += f"-{options.embed_dim}-{options.sigreg_weight}"
    path = options.folder / f"{kind}-rollout{options.rollout_steps}-{seed}.ckpt"
    start = time.process_time()
    if not path.exists():
        pl.seed_everything(seed, verbose=False)
        shared = options.folder / f"{kind}-encoder-{seed}.pt"
        if shared.exists():
            chosen, state = torch.load(shared, weights_only=True)
        else:
            chosen, trained = encoder(options)
            state = trained.state_dict()
            torch.save((chosen, state), shared)
        pl.seed_everything(seed, verbose=False)
        vector = options.encoder != "vjepa2"
        module = VJEPA2AC(
            encoder=chosen,
            action_dim=2 * STRIDE,
            state_dim=0,
            predictor_embed_dim=96,
            predictor_depth=3,
            predictor_num_heads=3,
            rollout_steps=options.rollout_steps,
            window=2,
            normalize=not vector,
            planner={"class_path": "CEM", "init_args": {"horizon": 5, "samples": 128, "elites": 12, "iterations": 6}},
            lr=1e-3,
            start_lr=2e-4,
            warmup=0.05,
            cooldown=0.4,
        )
        module.target_encoder.load_state_dict(state)
        fit(module, episodes(options, 6, STRIDE, 4, 64 if vector else 16), options.steps).save_checkpoint(path)
    seconds = time.process_time() - start
    module = VJEPA2AC.load_from_checkpoint(path, weights_only=True).eval()
    return module, episodes(options, 6, STRIDE, 4, 64), path, seconds


@torch.no_grad()
def readings(module: VJEPA2AC, data: EpisodesDataModule) -> dict[str, Any]:
    """Of held-out episodes: the roll-out error over that of no change, and whether near embeddings are near places."""
    rolled, still, embedded, places = [], [], [], []
    for batch in data.val_dataloader():
        frames = module.world.encode(module.observations(batch)[0])[0]
        rolled.append(module.rollout_errors(batch))
        still.append((frames[:, 1:] - frames[:, :1]).abs().mean((2, 3)))
        embedded.append(frames[:, 0].flatten(1))
        places.append(batch.state[:, 0, :2])
    error, change = torch.cat(rolled).mean(0), torch.cat(still).mean(0)
    near, far = torch.pdist(torch.cat(embedded), p=1), torch.pdist(torch.cat(places))
    return {
        "rollout_error": float(error.mean()),
        "relative_error": float(error.mean() / change.mean()),
        "relative_errors": " ".join(f"{value:.2f}" for value in error / change),
        "distance_correlation": float(spearmanr(near, far)[0]),
    }


def other_room(options: argparse.Namespace) -> np.ndarray[Any, Any]:
    """Of each task, whether its goal lies in another room than its start; `play` has the same seeds."""
    if options.environment != "TwoRoom":
        return np.zeros(options.tasks, bool)
    rooms, others = make_environment("jepa_lightning/TwoRoom-v0", goal_steps=GOAL_STEPS).unwrapped, []
    for number in range(options.tasks):
        rooms.reset(seed=1000 + number)
        others.append(rooms.layout.room(rooms.scene[:2]) != rooms.layout.room(rooms.goal_scene[:2]))
    return np.array(others)


def planner(options: argparse.Namespace) -> dict[str, Any]:
    """The planner's configuration: samples times iterations are as many imagined plans for each kind."""
    chosen: dict[str, Any] = {"horizon": options.horizon, "samples": options.samples, "iterations": options.iterations}
    if options.planner == "CEM":
        chosen["elites"] = max(2, options.samples // 10)
    elif options.planner == "MPPI":
        chosen |= {"elites": max(2, options.samples // 10), "fitted_std": (0.05, 2.0), "temperature": 0.05}
    else:
        chosen |= {"patience": None, "lr": 0.2}
    return {"class_path": options.planner, "init_args": chosen, "execute": options.execute, "last": options.last}


def show(row: dict[str, Any], outcome: Outcome, others: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Print a row, and what came of its episodes."""
    low, high = wilson(int(outcome.success.sum()), len(outcome.success))
    row |= {"success": float(outcome.success.mean()), "low": low, "high": high, "ms": 1000 * outcome.seconds}
    row |= {"other_room": float(outcome.success[others].mean()) if others.any() else "", "tasks": len(others)}
    print(", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
    return row


def correlate(options: argparse.Namespace, table: Path) -> None:
    """Print whether errors order the models, all played by the planner of the options, as success does."""
    same = ("planner", "horizon", "samples", "iterations", "execute", "last", "tasks")
    with table.open() as file:
        read = [row for row in csv.DictReader(file) if all(row[key] == str(getattr(options, key)) for key in same)]
    for environment in sorted({row["environment"] for row in read}):
        rows = [row for row in read if row["environment"] == environment]
        if len(rows) < 3:
            print(f"{environment}: too few models, {len(rows)}")
            continue
        for error in ("rollout_error", "relative_error", "distance_correlation"):
            errors, successes = ([float(row[key]) for row in rows] for key in (error, "success"))
            print(f"{environment}, {len(rows)} models, {error} and success: {spearmanr(errors, successes)[0]:.2f}")


def main(arguments: list[str] | None = None) -> None:
    """Train, plan, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", default="TwoRoom", choices=["TwoRoom", "PointMass", "PushT"])
    parser.add_argument("--encoder", default="lejepa", choices=["lejepa", "vjepa2", "untrained", *VECTORS])
    parser.add_argument("--policy", default="planner", choices=["planner", "expert", "straight", "random"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--episodes", type=int, default=400, help="that are recorded to train on, of 100 steps")
    parser.add_argument("--embed_dim", type=int, default=8, help="numbers of LeJEPA's embedding")
    parser.add_argument("--sigreg_weight", type=float, default=0.005, help="in LeJEPA's loss")
    parser.add_argument("--encoder_steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=1000, help="of the predictor's training")
    parser.add_argument("--rollout_steps", type=int, default=2, help="of the roll-out in the loss; 1 for none")
    parser.add_argument("--planner", default="CEM", choices=["CEM", "MPPI", "GradientPlanner"])
    parser.add_argument("--horizon", type=int, default=5, help="actions of the model, five steps each")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--execute", type=int, default=3, help="actions of the model until it plans again")
    parser.add_argument("--last", type=int, default=1, help="steps at the end whose distances to the goal are added up")
    parser.add_argument("--tasks", type=int, default=50)
    parser.add_argument("--folder", type=Path, default=Path("runs/world_models"), help="new for other trainings")
    parser.add_argument("--correlate", action="store_true", help="only read results.csv")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    table = options.folder / "results.csv"
    if options.correlate:
        correlate(options, table)
        return
    others = other_room(options)
    seen = "pixels" if options.environment == "PushT" and options.encoder not in VECTORS else "observation"
    for seed in options.seeds:
        row: dict[str, Any] = {"environment": options.environment, "policy": options.policy, "seed": seed}
        if options.policy == "planner":
            module, data, path, seconds = world_model(options, seed)
            row |= {"encoder": options.encoder, "rollout_steps": options.rollout_steps, "planner": options.planner}
            row |= {key: getattr(options, key) for key in ("horizon", "samples", "iterations", "execute", "last")}
            row |= {"processor_seconds": round(seconds)} | readings(module, data)
            acting: Any = load_planner(path, planner(options), seed=seed)
        else:
            acting = Reference(options.policy, seed)
        played = play(acting, task(options), options.tasks, options.tasks, BUDGET, observation=seen, seed=1000)
        show(row, played, others)
        if options.policy == "planner":
            new = not table.exists()
            with table.open("a", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=list(row))
                if new:
                    writer.writeheader()
                writer.writerow(row)


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    main()

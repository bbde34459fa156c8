"""Acting by plans: policies, episodes in environments, `jepa plan`, and planning while a model trains."""

import io
import json
import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from helpers import in_two_processes, quiet_trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from scipy.stats import binomtest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from jepa_lightning import VJEPA2AC, EmbodimentsDataModule, EpisodesDataModule
from jepa_lightning.callbacks import Episodes
from jepa_lightning.cli import main
from jepa_lightning.cli.plan import PlanningTrainer
from jepa_lightning.data.episodes import Preparation, Scale
from jepa_lightning.planning import (
    CEM,
    Box,
    FixedAxes,
    Policy,
    Reference,
    build_planner,
    load_planner,
    play,
    policy_of,
    wilson,
)

ROOM = {"id": "jepa_lightning/TwoRoom-v0"}
POINT = {"id": "jepa_lightning/PointMass-v0"}


class Straight:
    """The world of TwoRoom without walls, in scenes: a step is 5 pixels."""

    def start(self, observations: dict[str, Tensor]) -> Tensor:
        return observations["observation"][:, :2]

    def goal(self, observations: dict[str, Tensor]) -> Tensor:
        return observations["observation"][:, :2]

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        return state + 5 * action.unflatten(1, (-1, 2)).sum(1)

    def distance(self, state: Tensor, goal: Tensor) -> Tensor:
        return (state - goal).norm(dim=1)


def straight(stride: int = 1, execute: int = 1, scale: Scale | None = None, **options: Any) -> Policy:
    planner = CEM(4, 2 * stride, samples=150, elites=15, iterations=4, **options)
    preparation = Preparation(stride, scales={} if scale is None else {"action": scale})
    return Policy(_Scaled(scale, stride), planner, preparation, execute, last=None, bounds=(-1, 1))


class _Scaled(Straight):
    """Actions in the units of a scale."""

    def __init__(self, scale: Scale | None, stride: int) -> None:
        self.back = Preparation(stride, scales={} if scale is None else {"action": scale}).world_actions

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        return super().step(state, self.back(action.unsqueeze(1)).flatten(1))


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("scale", [None, Scale(torch.tensor([0.3, -0.2]), torch.tensor([0.5, 0.7]))])
def test_a_policy(stride: int, scale: Scale | None) -> None:
    """Towards the goal, in the world's units and within its bounds; a plan is followed before the next is made."""
    policy = straight(stride, execute=2, scale=scale)
    asked = []
    inner = policy.planner.__class__.__call__

    class Counting(type(policy.planner)):  # type: ignore[misc]
        def __call__(self, cost: Any, nominal: Tensor) -> Any:
            asked.append(nominal)
            return inner(self, cost, nominal)

    policy.planner.__class__ = Counting
    position, goal = np.array([20.0, 180.0, -1.0]), np.array([100.0, 60.0, -1.0])
    for step in range(60):
        action = policy(position, goal)
        assert action.shape == (2,)
        assert (np.abs(action) <= 1 + 1e-5).all()
        assert len(asked) == step // (2 * stride) + 1
        position[:2] += 5 * action
        if np.hypot(*(position - goal)[:2]) < 16:
            break
    else:
        pytest.fail(f"got to {position} only")
    # Plans are started from the rest of the one before, and from nothing where the goal is another.
    assert asked[0].abs().max() == 0
    assert asked[1][:, :2].abs().max() > 0 == asked[1][:, 2:].abs().max()
    policy(position, goal - 50)
    assert asked[-1].abs().max() == 0


def test_several_environments_at_once() -> None:
    """Those that are done are not planned for."""
    seen, goal = np.array([[20.0, 20, -1], [50, 50, -1], [80, 80, -1]]), np.full((3, 3), 150.0)
    policy = straight()
    actions = policy(seen, goal, active=np.array([True, False, True]))
    assert np.abs(actions[1]).max() == 0 < np.abs(actions[[0, 2]]).min()
    policy.reset()
    with pytest.raises(ValueError, match=r"\[3, 3\], not of \[3\]"):
        policy(seen, goal[0])


def test_play() -> None:
    """Success, steps and films are those of the episodes; planning is as good as going straight, and random is not."""
    room = ROOM | {"observation": "scene", "goal_steps": 25}
    outcomes = {kind: play(Reference(kind), room, 12, 5, 50) for kind in ("expert", "straight", "random")}
    outcomes["planned"] = play(straight(), room, 12, 5, 50, film=True)
    # One by one.
    for number in range(12):
        env = gymnasium.make(ROOM["id"], observation="scene", goal_steps=25)
        seen, info = env.reset(seed=number)
        success, steps = False, 0
        while not success and steps < 50:
            seen, *_, last = env.step(_straight(info["goal"] - seen).astype(np.float32))
            success, steps = last["success"], steps + 1
        assert (outcomes["straight"].success[number], outcomes["straight"].steps[number]) == (success, steps)
    assert outcomes["expert"].success.all()
    assert outcomes["straight"].success.mean() > 0.6
    assert outcomes["planned"].success.sum() >= outcomes["straight"].success.sum() - 1
    assert outcomes["random"].success.mean() < 0.35
    film = outcomes["planned"].film
    assert len(film) == outcomes["planned"].steps[0]
    assert film[0].shape == (64, 64, 3)
    assert not outcomes["straight"].film
    low, high = (100 * end for end in wilson(int(outcomes["planned"].success.sum()), 12))
    assert f"({low:.1f} to {high:.1f}) of 12 episodes" in str(outcomes["planned"])


def _straight(gap: Any) -> Any:
    return gap[:2] / np.hypot(*gap[:2])


def test_wilson() -> None:
    for successes, number in ((0, 10), (3, 10), (50, 50), (40, 50)):
        theirs = binomtest(successes, number).proportion_ci(method="wilson")
        assert wilson(successes, number) == pytest.approx((theirs.low, theirs.high), abs=1e-4)


def test_environments_without_goals() -> None:
    with pytest.raises(ValueError, match=r"Pendulum-v1 has no goals: .*desired_goal"):
        play(Reference("random"), {"id": "Pendulum-v1"}, 2, 2)
    with pytest.raises(ValueError, match="no expert, so"):
        play(Reference("expert"), {"id": "Pendulum-v1"}, 2, 2)
    with pytest.raises(ValueError, match="straight or random"):
        Reference("best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no 'pose' among .*: .*scene"):
        play(Reference("random"), ROOM, 2, 2, state="pose")


# --- A model of its own ----------------------------------------------------------------------------------------------


class Places(nn.Module):
    """An encoder that sees where the red dot is, as sines and cosines: what a good encoder would know."""

    embed_dim = 16

    def grid_of(self, x: Tensor) -> tuple[int, ...]:
        return (1, 1)

    def forward(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        red = (x[:, 0] - x[:, 1]).clamp(min=0)
        weight = red / red.sum((1, 2), keepdim=True).clamp(min=1e-6)
        axis = torch.linspace(0, 1, x.shape[-1], device=x.device)
        place = torch.stack([(weight.sum(1) * axis).sum(1), (weight.sum(2) * axis).sum(1)], 1)
        waves = place.unsqueeze(-1) * torch.tensor([1.0, 2.0, 3.0, 4.0], device=x.device) * math.pi / 2
        return torch.cat([waves.sin(), waves.cos()], -1).flatten(1).unsqueeze(1)


class Scenes(nn.Module):
    """An encoder of TwoRoom's scenes: one token, the position."""

    embed_dim = 2

    def grid_of(self, x: Tensor) -> tuple[int, ...]:
        return (1, 1)

    def forward(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        return x[:, None, :2]


SMALL_PLAN = {
    "class_path": "jepa_lightning.planning.CEM",
    "init_args": {"horizon": 2, "samples": 8, "elites": 2, "iterations": 1},
}
PLAN = {"class_path": "CEM", "init_args": {"horizon": 4, "samples": 64, "elites": 8, "iterations": 4}, "last": 4}
MODEL: dict[str, Any] = {
    "encoder": {"class_path": "test_plan.Places"}, "action_dim": 10, "state_dim": 0, "predictor_embed_dim": 48,
    "predictor_depth": 2, "predictor_num_heads": 2, "normalize": False, "lr": 3e-3, "start_lr": 3e-3, "warmup": 0.0,
    "planner": PLAN,
}  # fmt: skip
DATA: dict[str, Any] = {
    "environment": ROOM, "policies": {"walk": 0.5, "expert": 0.5}, "observation": "scene", "draw": True,
    "num_episodes": 60, "max_steps": 100, "steps": 4, "stride": 5, "batch_size": 32, "mean": [0.0] * 3,
    "std": [1.0] * 3,
}  # fmt: skip
GOALS = ROOM | {"goal_steps": 25}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small world model of TwoRoom that was trained for some seconds, planning at the end."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    callback = Episodes(GOALS, num_episodes=10, max_steps=50, every_n_epochs=2)
    logger = TensorBoardLogger(str(folder), name="log")
    trainer = quiet_trainer(folder, max_epochs=2, callbacks=[callback], logger=logger, limit_train_batches=70)
    trainer.fit(VJEPA2AC(**MODEL), EpisodesDataModule(**DATA))
    trainer.save_checkpoint(folder / "model.ckpt")
    return folder


def test_planning_while_it_trains(trained: Path) -> None:
    """Logged, and filmed; better than going anywhere. Trains for some seconds."""
    (folder,) = (trained / "log").iterdir()
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    (success,) = events.Scalars("plan/TwoRoom/success")
    assert success.value >= 0.6
    assert 1 <= events.Scalars("plan/TwoRoom/steps")[0].value <= 50
    assert events.Scalars("plan/TwoRoom/seconds")[0].value > 0
    assert events.Scalars("plan/rollout_error")[-1].value < events.Scalars("plan/rollout_error")[0].value
    (image,) = events.Images("plan/TwoRoom")
    film = Image.open(io.BytesIO(image.encoded_image_string))
    assert (film.format, film.size) == ("GIF", (64, 64))
    assert film.n_frames >= 2


def in_two(rank: int, folder: Path) -> dict[str, Any]:
    """A step of two processes on scenes, whose episodes are played by both; what each logs, and normalises by."""
    data = DATA | {"observation": "observation", "draw": False, "num_episodes": 6, "max_steps": 15, "batch_size": 8}
    data |= {"environment": ROOM | {"observation": "scene"}}
    room = GOALS | {"observation": "scene"}
    callback = Episodes(room, num_episodes=5, num_envs=2, max_steps=12, film=False)
    datamodule = EpisodesDataModule(**data)
    trainer = quiet_trainer(folder, devices=2, strategy="ddp", max_steps=1, callbacks=[callback])
    torch.manual_seed(0)
    module = VJEPA2AC(**MODEL | {"encoder": {"class_path": "test_plan.Scenes"}})
    trainer.fit(module, datamodule)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("plan/")}
    policy = policy_of(module, datamodule.preparation, seed=0)
    own = callback.play(policy, len(range(rank, 5, 2)), rank)
    return {
        "logged": logged,
        "prepared": datamodule.preparation.state(),
        "success": own.success.tolist(),
        "steps": own.steps.tolist(),
    }


def test_two_processes(tmp_path: Path) -> None:
    """Both normalise by the same numbers, and log what came of all episodes, which they share."""
    first, second = in_two_processes(in_two, tmp_path)
    assert first["prepared"] == second["prepared"]
    assert [len(each["success"]) for each in (first, second)] == [3, 2]
    success = first["success"] + second["success"]
    for each in (first, second):
        assert each["logged"]["plan/TwoRoom/success"] == pytest.approx(np.mean(success))
        if any(success):
            steps = np.array(first["steps"] + second["steps"])[np.array(success)].mean()
            assert each["logged"]["plan/TwoRoom/steps"] == pytest.approx(steps)
        assert each["logged"]["plan/rollout_error"] == first["logged"]["plan/rollout_error"]


def test_two_embodiments(tmp_path: Path) -> None:
    """By configuration: two environments, of blocks of two actions and of one; each plans in its own units."""
    room = {name: DATA[name] for name in ("observation", "draw", "mean", "std", "steps")} | {
        "num_episodes": 4, "max_steps": 12, "held_out": 0.25
    }  # fmt: skip
    sources = [room | {"environment": ROOM, "stride": 2}, room | {"environment": POINT, "state": "scene"}]
    model = MODEL | {"action_dim": 4, "state_dim": 4, "next_state": "keep", "num_embodiments": 2}
    episodes = {"environment": POINT, "num_episodes": 2, "max_steps": 3, "state": "scene", "embodiment": 1}
    config = {
        "model": {"class_path": "VJEPA2AC", "init_args": model | {"planner": SMALL_PLAN}},
        "data": {"class_path": "EmbodimentsDataModule", "init_args": {"sources": sources, "batch_size": 8}},
        "trainer": {
            "accelerator": "cpu", "max_steps": 2, "logger": False, "default_root_dir": str(tmp_path),
            "num_sanity_val_steps": 0, "enable_progress_bar": False,
            "callbacks": [
                {"class_path": "Episodes", "init_args": episodes},
                {"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(tmp_path), "save_last": True}},
            ],
        },
    }  # fmt: skip
    (tmp_path / "both.yaml").write_text(json.dumps(config))
    main(["fit", f"--config={tmp_path / 'both.yaml'}"])
    datamodule = EmbodimentsDataModule(sources, batch_size=8)
    datamodule.setup()
    mixed, (rooms, points) = datamodule.sets["train"], (kind.sets["train"] for kind in datamodule.kinds)
    batch = mixed.__getitems__([len(rooms) + 1, 0, len(rooms)])
    assert batch.embodiment.tolist() == [1, 0, 1]
    assert torch.equal(
        batch.action[:, :, :2], torch.stack([points[1].action, rooms[0].action[:, :2], points[0].action])
    )
    assert torch.equal(batch.action[1], rooms[0].action)
    assert batch.action[[0, 2], :, 2:].abs().max() == 0 == batch.state[1].abs().max()
    assert torch.equal(batch.observation[1], rooms[0].observation)
    path = tmp_path / "last.ckpt"
    for number, (room_of, options) in enumerate(((ROOM, {}), (POINT, {"state": np.zeros((1, 4))}))):
        policy = load_planner(path, bounds=(-1.0, 1.0), embodiment=number)
        assert policy.planner.action_dim == (4, 2)[number]
        assert policy.preparation.state() == datamodule.preparations[number].state()
        frame, info = gymnasium.make(**room_of).reset(seed=0)
        state = options.get("state", np.zeros((1, 0)))
        assert policy(frame[None], info["goal"][None], state).shape == (1, 2)
    for embodiment in (None, 2):
        with pytest.raises(ValueError, match="embodiment=0 to 1"):
            load_planner(path, embodiment=embodiment)
    for wrong, words in (
        ({"sources": []}, "give the sources"),
        ({"sources": [room | {"environment": ROOM, "batch_size": 4}]}, "of the whole"),
    ):
        with pytest.raises(ValueError, match=words):
            EmbodimentsDataModule(**wrong)
    with pytest.raises(ValueError, match="observations of the shapes"):
        EmbodimentsDataModule([sources[0], sources[1] | {"image_size": 32}]).setup()


def test_load_planner(trained: Path) -> None:
    """A checkpoint acts on its own, and the same twice."""
    policies = [load_planner(trained / "model.ckpt", bounds=(-1.0, 1.0)) for _ in range(2)]
    env = gymnasium.make(**GOALS)
    frame, info = env.reset(seed=3)
    for _ in range(12):
        actions = [policy(frame, info["goal"]) for policy in policies]
        assert np.array_equal(*actions)
        assert (np.abs(actions[0]) <= 1 + 1e-5).all()
        frame, *_ = env.step(actions[0])
    for name, options in {"MPPI": {"samples": 32}, "GradientPlanner": {"samples": 4, "iterations": 10}}.items():
        other = {"class_path": name, "init_args": {"horizon": 3, **options}, "execute": 2}
        policy = load_planner(trained / "model.ckpt", other, (-1.0, 1.0))
        actions = np.stack([policy(frame, info["goal"]) for _ in range(10)])
        assert (np.abs(actions) <= 1 + 1e-5).all()
        towards = info["goal_scene"][:2] - env.unwrapped.scene[:2]
        assert actions.sum(0) @ towards > 0
    gentle = {**PLAN, "init_args": {**PLAN["init_args"], "horizon": 2}, "last": 1}
    assert load_planner(trained / "model.ckpt", planner=gentle).planner.horizon == 2


def test_from_the_command_line(
    trained: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    """`jepa plan` prints what `play` finds."""
    monkeypatch.chdir(tmp_path)
    arguments = ["plan", "--model=VJEPA2AC", "--data=EpisodesDataModule", f"--data.environment={ROOM}"]
    arguments += [f"--model.encoder={MODEL['encoder']}", f"--ckpt_path={trained / 'model.ckpt'}", "--seed=7"]
    arguments += ["--num_episodes=2", "--max_steps=25", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    main([*arguments, f"--environment={GOALS}"])
    captured = capfd.readouterr()
    outcome = play(load_planner(trained / "model.ckpt", seed=7), GOALS, 2, 2, 25, seed=7)
    expected = str(outcome).split(";")[0]
    assert f"TwoRoom: {expected}" in captured.out
    main([*arguments, f"--environment={GOALS}", "--policy=expert"])
    assert "TwoRoom: success 100.0 % (34.2 to 100.0) of 2 episodes" in capfd.readouterr().out
    with pytest.raises(ValueError, match="give an environment"):
        PlanningTrainer(accelerator="cpu", logger=False).plan(None, None, str(trained / "model.ckpt"))


# --- Mistakes --------------------------------------------------------------------------------------------------------


def test_build_planner() -> None:
    bounds = [{"Box": {"low": -1.0, "high": 1.0}}, {"jepa_lightning.planning.FixedAxes": {"values": {0: 0.5}}}]
    planner = build_planner({"class_path": "MPPI", "init_args": {"horizon": 3, "project": bounds}}, 2)
    assert [type(each) for each in planner.projections] == [Box, FixedAxes]
    for wrong, error, words in (
        ({"class_path": "CEM", "init_args": {"horizon": 3, "sample": 5}}, TypeError, "samples"),
        ({"class_path": "CEMM"}, ValueError, "no CEMM: CEM, MPPI"),
        ({"class_path": "CEM", "init_args": {"horizon": 3, "project": [{"Boxx": {}}]}}, ValueError, "no Boxx"),
        ({"class_path": "CEM", "init_args": {"horizon": 3, "project": [Box(0.0, 1.0)]}}, ValueError, "by its name"),
        ({"class_path": "os.system"}, ValueError, "neither a planner"),
        ({"class_path": "CEM", "options": {}}, ValueError, "class_path"),
        ({"class_path": "Box", "init_args": {"low": 0.0, "high": 1.0}}, (ValueError, TypeError), "Box"),
    ):
        with pytest.raises(error, match=words):
            build_planner(wrong, 2)
    with pytest.raises(ValueError, match="horizon 4"):
        straight(execute=5)
    with pytest.raises(TypeError, match="iterations"):
        VJEPA2AC(**MODEL | {"planner": {"class_path": "CEM", "init_args": {"horizon": 3, "iteration": 5}}})


def test_checkpoints_that_cannot_plan(trained: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(trained / "model.ckpt", weights_only=True)
    for change, words in (
        ({"class_path": "os.path.join"}, "no world model"),
        ({"class_path": "jepa_lightning.IJEPA"}, "no world model"),
        ({"class_path": ""}, "names no class"),
        ({"EpisodesDataModule": {}}, "how its actions are normalised"),
    ):
        torch.save({**checkpoint, **change}, tmp_path / "changed.ckpt")
        with pytest.raises(ValueError, match=words):
            load_planner(tmp_path / "changed.ckpt")


def test_episodes_of_what_cannot_plan() -> None:
    from test_data_modules import Witness

    with pytest.raises(ValueError, match="no world model"):
        quiet_trainer(max_epochs=1, callbacks=[Episodes(ROOM)]).fit(Witness(), EpisodesDataModule(**DATA))
    with pytest.raises(ValueError, match="id"):
        Episodes({"name": "TwoRoom"})
    with pytest.raises(ValueError, match="1 or more"):
        Episodes(ROOM, num_episodes=0)

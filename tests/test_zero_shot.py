"""Agents that act without a Trainer, rewards that they have never seen, `jepa evaluate`, and dm_control's suite."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from helpers import TINY_TD, quiet_trainer
from scipy.stats import t as student
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from jepa_lightning import RECIPES, TDJEPA, EpisodesDataModule, TransitionsDataModule, load_agent
from jepa_lightning.cli import main
from jepa_lightning.cli.zero_shot import evaluate_agents
from jepa_lightning.data.episodes import make_environment, record
from jepa_lightning.environments import REWARDS, PointMass
from jepa_lightning.evaluation.scores import interval, table
from jepa_lightning.evaluation.zero_shot import Reward, play_reward, zero_shot
from jepa_lightning.planning import Agent

Array = np.ndarray[Any, Any]
POINT: dict[str, Any] = {"id": "jepa_lightning/PointMass-v0", "observation": "scene"}
SUITE: dict[str, Any] = {"id": "jepa_lightning/DMControl-v0", "domain": "point_mass", "task": "easy"}
DATA: dict[str, Any] = {"environment": POINT | {"task": "ring"}, "num_episodes": 8, "max_steps": 40, "batch_size": 32}


class Knowing(torch.nn.Module):
    """Goes where most was rewarded: a module whose task is a place."""

    device = torch.device("cpu")

    def infer_task(self, observations: Tensor, rewards: Tensor) -> Tensor:
        return observations[rewards.argmax(), :2]

    def act(self, observation: Tensor, task: Tensor) -> Tensor:
        return (4.0 * (task - observation[:, :2]) - 1.5 * observation[:, 2:]).clamp(-1, 1)


class Expert:
    """Goes to a corner."""

    def __init__(self, name: str) -> None:
        self.place = np.array([0.75 if "right" in name else -0.75, -0.75 if "top" in name else 0.75])

    def __call__(self, observations: Array, envs: Sequence[Any]) -> Array:
        return np.clip(4.0 * (self.place - observations[:, :2]) - 1.5 * observations[:, 2:], -1, 1)


def top_left(observations: Array) -> Array:
    """As the environment rewards it, but that half as much is given, of two places."""
    return 0.5 * REWARDS["top_left"](observations)


@pytest.fixture(scope="module")
def data() -> TransitionsDataModule:
    made = TransitionsDataModule(**DATA | {"num_episodes": 200, "max_steps": 15}, standardize=False)
    made.setup()
    return made


def test_scores(data: TransitionsDataModule) -> None:
    """Who knows where it is rewarded is about as good as the expert; functions are rewards, too."""
    rewards = {"top_left": {"task": "top_left"}, "bottom_right": {"task": "bottom_right"}, "half": top_left}
    experts = {"all": Expert, "half": "test_zero_shot.TopLeft"}
    agent = Agent(Knowing(), {"action": data.units["action"]})
    world = POINT | {"task": "ring"}  # which no episode ends in
    outcome = zero_shot([agent], data, world, rewards, experts, num_samples=3000, num_episodes=4)
    corner, _, half = outcome.scores
    for score in outcome.scores:
        assert score.normalised(score.mean) > 0.6
        assert score.low < score.mean < score.high
        assert score.normalised(score.random) == 0.0
        assert score.data < score.expert
        assert score.steps == 200
    assert half.mean == pytest.approx(corner.mean / 2, rel=1e-6)
    assert outcome.mean() == pytest.approx(np.mean([s.normalised(s.mean) for s in outcome.scores]))
    without = zero_shot([agent, agent], data, world, {"half": top_left}, num_samples=3000, num_episodes=4).scores[0]
    assert np.isnan(without.expert)
    assert without.normalised(without.mean) == pytest.approx(half.mean / 200)
    assert without.low == without.high  # of two agents that are one
    with pytest.warns(UserWarning, match="the expert of half returns .* random actions .* nan"):
        poor = zero_shot(
            [agent], data, world, {"half": top_left, "top_left": {"task": "top_left"}}, LOST, num_episodes=2
        )
    assert np.isnan(poor.scores[0].normalised(poor.scores[0].mean))
    assert poor.mean() == poor.scores[1].normalised(poor.scores[1].mean)
    assert [row[1] for row in table(poor.scores)[1:]] == ["nan", *[f"{poor.mean():.3f}"] * 2]
    for wrong, message in (
        ({"x": 3}, "options of the environment"),
        ({"x": "nowhere.reward"}, "no class"),
        ({"x": {"task": "goal"}}, "goals are others"),
    ):
        with pytest.raises(ValueError, match=message):
            zero_shot([agent], data, world, wrong, num_episodes=1)


class FarFrom(Expert):
    """Goes to the corner on the other side."""

    def __init__(self, name: str) -> None:
        super().__init__("bottom_right")


LOST = {"half": FarFrom, "top_left": Expert}


def test_no_films(data: TransitionsDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be drawn, that is said, and what was reached is not lost."""

    def render(self: Any) -> Any:
        raise RuntimeError("no screen")

    monkeypatch.setattr(PointMass, "render", render)
    agent, world = Agent(Knowing(), {"action": data.units["action"]}), POINT | {"task": "ring"}
    with pytest.warns(UserWarning, match="no film.*PointMass.*no screen"):
        outcome = zero_shot([agent], data, world, {"half": top_left}, num_episodes=1, film=True)
    assert outcome.films == {}
    assert outcome.scores[0].mean > outcome.scores[0].random


class TopLeft(Expert):
    """Whatever the reward is called."""

    def __init__(self, name: str) -> None:
        super().__init__("top_left")


def test_interval() -> None:
    values = np.array([0.3, 0.9, 0.2, 0.7, 0.5])
    low, high = student.interval(0.95, 4, values.mean(), values.std(ddof=1) / 5**0.5)
    assert interval(values) == pytest.approx((values.mean(), low, high), rel=1e-3)
    assert interval(values[:2])[1:] == pytest.approx(
        student.interval(0.95, 1, values[:2].mean(), values[:2].std(ddof=1) / 2**0.5), rel=1e-3
    )


def test_an_agent_of_a_checkpoint(tmp_path: Path) -> None:
    """It acts as the module does, in the world's units: of states that are normalised, and of wider actions."""
    data = TransitionsDataModule(environment={"id": "Pendulum-v1"}, num_episodes=3, max_steps=50, batch_size=16)
    data.setup()
    module = TDJEPA(**TINY_TD | {"observation_dim": 3, "action_dim": 1})
    trainer = quiet_trainer(tmp_path, max_epochs=1, limit_train_batches=3)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    agent = load_agent(tmp_path / "it.ckpt")
    states = data.steps["train"].seen[:20]
    task = agent.infer_task(states, states[:, 0])
    normalised = data.units["observation"].to(torch.from_numpy(states))
    assert torch.equal(task, module.eval().infer_task(normalised, torch.from_numpy(states[:, 0])))
    actions = agent.act(states, task)
    assert np.allclose(actions, 2.0 * module.act(normalised, task).numpy(), atol=1e-6)
    assert np.allclose(agent.act(states[3], task), actions[3], atol=1e-6)
    assert torch.allclose(agent.infer_goal(states[2]), module.infer_goal(normalised[2]))
    saved = torch.load(tmp_path / "it.ckpt", weights_only=True)
    torch.save({**saved, "TransitionsDataModule": {}}, tmp_path / "unknown.ckpt")
    with pytest.raises(ValueError, match="how its observations"):
        load_agent(tmp_path / "unknown.ckpt")
    torch.save({"state_dict": {}, "class_path": "torch.nn.Linear"}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"torch\.nn\.Linear.*no tasks"):
        load_agent(tmp_path / "other.ckpt")


# Five seconds: it trains, evaluates, and films.
def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The small recipe: trained a little, then evaluated by rewards, with table, files and films."""
    monkeypatch.chdir(tmp_path)
    small = ["--data.num_episodes=10", "--data.max_steps=30", "--data.held_out=0.2", "--data.batches_an_epoch=5"]
    small += ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    recipe = ["--config", str(RECIPES / "tdjepa" / "point_mass.yaml"), *small]
    main(["fit", *recipe])
    (path,) = tmp_path.rglob("last.ckpt")
    capsys.readouterr()
    logger = ["--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=log", "--trainer.logger.name=it"]
    played = [f"--environment={json.dumps(POINT)}", "--rewards={ring: {task: ring}, half: test_zero_shot.top_left}"]
    played += ["--num_episodes=2", "--experts={half: test_zero_shot.TopLeft}", f"--ckpt_path={path}"]
    main(["evaluate", *recipe, *logger, *played])
    assert "ring" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "evaluation.csv").open()))
    assert [row["reward"] for row in rows] == ["ring", "half", "mean"]
    assert rows[0]["expert"] == "nan"
    assert 0 <= float(rows[0]["normalised"]) <= 1
    assert (tmp_path / "evaluation.md").read_text().startswith("| reward | normalised |")
    events = EventAccumulator(str(next((tmp_path / "log" / "it").iterdir())), size_guidance={"images": 0}).Reload()
    assert {"zero_shot/ring", "zero_shot/half"} <= set(events.Tags()["images"])
    with pytest.raises(ValueError, match="give rewards"):
        main(["evaluate", *recipe, *played[:1], f"--ckpt_path={path}"])
    with pytest.raises(ValueError, match="TransitionsDataModule"):
        evaluate_agents(quiet_trainer(), EpisodesDataModule(environment=POINT), ["it.ckpt"], POINT, rewards={})
    twice = [
        *played[:1],
        "--rewards={half: test_zero_shot.top_left}",
        "--num_episodes=1",
        f"--ckpt_path=[{path},{path}]",
    ]
    main(["evaluate", *recipe, "--trainer.logger=false", *twice])
    half, _ = csv.DictReader((tmp_path / "evaluation.csv").open())
    assert (
        half["from"] == half["normalised"] == half["to"]
    )  # of two agents that are one; a single episode has no interval
    with pytest.raises(ValueError, match="agents"):
        main(["evaluate", *recipe, f"--ckpt_path=[{path},{path}]"])


# --- dm_control ------------------------------------------------------------------------------------------------------


def test_the_suite() -> None:
    """What dm_control itself says, as Gymnasium's interface has it; states can be rewarded again by any task."""
    suite = pytest.importorskip("dm_control.suite")
    env = gymnasium.make(**SUITE)
    seen, info = env.reset(seed=3)
    theirs = suite.load("point_mass", "easy", task_kwargs={"random": 3})
    first = theirs.reset()
    assert np.allclose(seen, np.concatenate([first.observation["position"], first.observation["velocity"]]))
    assert np.array_equal(info["physics"], theirs.physics.get_state())
    states, actions, rewards = [], [], []
    for step in range(1000):
        action = np.array([np.sin(step / 9), np.cos(step / 7)], np.float32)
        seen, reward, terminated, truncated, info = env.step(action)
        expected = theirs.step(action)
        assert reward == expected.reward
        assert (terminated, truncated) == (False, step == 999)
        states.append(info["physics"])
        actions.append(action)
        rewards.append(reward)
    assert np.allclose(seen[:2], expected.observation["position"])
    again = env.unwrapped.rewards(np.stack(states[::10]), np.stack(actions[::10]))
    assert np.allclose(again, rewards[::10], atol=1e-5)
    assert np.array_equal(env.unwrapped.environment.physics.get_state(), info["physics"])
    check_env(gymnasium.make(**SUITE).unwrapped, skip_render_check=True)
    walker = make_environment(SUITE["id"], domain="walker", task="run")
    assert (walker.observation_space.shape, walker.action_space.shape) == ((24,), (6,))
    table = record(gymnasium.make(**SUITE), {"random": 1.0}, 2, 10)
    assert table["physics"].shape == (22, 4)
    for options, message in (
        ({"domain": "walker", "task": "fly"}, "walker run"),
        ({"domain": "x", "task": "y"}, "walker"),
    ):
        with pytest.raises(ValueError, match=message):
            make_environment(SUITE["id"], **options)
    reward = Reward({"task": "easy"}, SUITE)
    with pytest.raises(ValueError, match="physics"):
        reward.labels(np.zeros((2, 4)), None, np.zeros((2, 2)))


def test_actions_that_last() -> None:
    """An action of ten of the simulator's steps leads where ten of one do, of a walker's where four do."""
    pytest.importorskip("dm_control")
    for options, times, limit in ((SUITE, 10, 100), ({**SUITE, "domain": "walker", "task": "run"}, 4, 250)):
        often = gymnasium.make(**options).unwrapped
        seldom = gymnasium.make(**options, control_timestep=times * often.environment.control_timestep()).unwrapped
        often.reset(seed=5)
        seldom.reset(seed=5)
        action = often.action_space.high * 0.7
        for _ in range(times):
            there, *_ = often.step(action)
        there_too, _, _, truncated, _ = seldom.step(action)
        assert np.allclose(there, there_too, atol=1e-6)
        assert not truncated
        assert [seldom.step(action)[3] for _ in range(limit - 1)] == [False] * (limit - 2) + [True]
    with pytest.raises(ValueError, match="multiple"):
        gymnasium.make(**SUITE, control_timestep=0.03)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("dm_control")
    return importlib.import_module("jepa_lightning.recipes.tdjepa.zero_shot")


# Some seconds: each row is trained for moments, and plays two rewards, in PointMass.
def test_the_script(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row, in small, in a world that is faster than dm_control's; a table at the end."""
    small = ["--minutes=0.002", "--episodes=6", "--steps=30", "--samples=100", "--num_episodes=1", "--batch_size=8"]
    monkeypatch.setattr(script, "REWARDS", {name: script.REWARDS[name] for name in ("bottom_right", "loop")})
    monkeypatch.setattr(script, "CORNERS", {"bottom_right": script.CORNERS["bottom_right"]})
    monkeypatch.setattr(script, "WORLD", POINT | {"task": "ring", "max_episode_steps": 40})
    script.main([*small, "--rows", *script.ROWS, "--seeds=0", f"--folder={tmp_path}", "--set", "lr=2e-3"])
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["row"] for row in rows] == [f"{name} lr=0.002 batch_size=8" for name in script.ROWS]
    assert all(int(row["updates"]) >= 1 and np.isfinite(float(row["mean"])) for row in rows)
    assert capsys.readouterr().out.count("\n| ") == 1 + len(script.ROWS)
    with pytest.raises(SystemExit):
        script.main([*small, "--set", "lr"])
    assert "'lr' is not of the form name=number" in capsys.readouterr().err


def test_the_controllers(script: Any) -> None:
    """Who knows a reward collects far more of it than random actions do."""
    for name in ("bottom_right", "line", "loop"):
        reward = Reward(script.REWARDS[name], script.WORLD)
        known, steps, _ = play_reward(script.Controller(name), reward, 1)
        assert float(known.mean()) / steps > (0.4 if name == "loop" else 0.7)

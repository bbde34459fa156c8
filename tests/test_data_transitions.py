"""Steps from every layout of files and from recordings, what they are normalised by, and how they are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from jepa_lightning import TransitionsDataModule
from jepa_lightning.data.episodes import make_environment, record, write
from jepa_lightning.data.transitions import WithReplacement

POINT: dict[str, Any] = {"id": "jepa_lightning/PointMass-v0", "observation": "scene", "task": "ring"}
LENGTHS = (5, 3)  # steps of two episodes
Array = np.ndarray[Any, Any]


def walks() -> list[tuple[Array, Array, Array]]:
    """States `[T + 1, 2]`, actions `[T, 1]` and rewards `[T]` of two episodes, all numbers of which are unlike."""
    found, count = [], 0.0
    for length in LENGTHS:
        states = count + np.arange(2 * (length + 1), dtype=np.float32).reshape(-1, 2)
        actions = (states[:-1, :1] + 100) / 1000
        found.append((states, actions.astype(np.float32), (10 * states[:-1, 0]).astype(np.float32)))
        count += 100
    return found


def expected(terminated: bool, lost: int = 0) -> list[tuple[Any, ...]]:
    """All steps, in order; of each episode the last ones may be lost."""
    steps = []
    for number, (states, actions, rewards) in enumerate(walks()):
        for step in range(len(actions) - lost):
            ends = terminated and number == 0 and step == len(actions) - 1
            steps.append((*states[step], *actions[step], *states[step + 1], rewards[step], ends))
    return steps


def exorl(folder: Path) -> None:
    """An episode a file, whose rows have what was done, and seen then; of the first the end is one for good."""
    for number, (states, actions, rewards) in enumerate(walks()):
        discount = np.ones((len(states), 1), np.float32)
        discount[-1] = number != 0
        nothing = np.zeros((1, 1), np.float32)
        np.savez(
            folder / f"episode_{number:06d}_{len(actions)}.npz",
            observation=states,
            action=np.concatenate([nothing, actions]),
            reward=np.concatenate([nothing, rewards[:, None]]),
            discount=discount,
            physics=states.astype(np.float64),
        )


def ogbench(folder: Path) -> None:
    """A table, whose last action of an episode leads nowhere, and whose terminals are ends of any kind."""
    states = np.concatenate([each[0] for each in walks()])
    actions = np.concatenate([np.concatenate([each[1], [[0.5]]]) for each in walks()])
    terminals = np.concatenate([np.arange(length + 1) == length for length in LENGTHS])
    np.savez(folder / "it.npz", observations=states, actions=actions.astype(np.float32), terminals=terminals)


def d4rl(folder: Path, following: bool = True) -> None:
    with h5py.File(folder / "it.hdf5", "w") as file:
        parts = {"observations": 0, "actions": 1, "rewards": 2}
        for name, field in parts.items():
            file[name] = np.concatenate([each[field][: len(each[1])] for each in walks()])
        if following:
            file["next_observations"] = np.concatenate([each[0][1:] for each in walks()])
        ends = np.concatenate([np.arange(length) == length - 1 for length in LENGTHS])
        first = np.arange(sum(LENGTHS)) < LENGTHS[0]
        file["terminals"], file["timeouts"] = ends & first, ends & ~first
        file["metadata/policy/fc0/weight"] = np.zeros((3, 3))


def minari(folder: Path) -> None:
    with h5py.File(folder / "main_data.hdf5", "w") as file:
        for number, (states, actions, rewards) in enumerate(walks()):
            ends = np.arange(len(actions)) == len(actions) - 1
            group = file.create_group(f"episode_{number}")
            group["observations"], group["actions"], group["rewards"] = states, actions, rewards
            group["terminations"], group["truncations"] = ends & (number == 0), ends & (number == 1)


def rows(batch: Any, reward: bool = True) -> list[tuple[Any, ...]]:
    fields = [batch.observation, batch.action, batch.next_observation, batch.reward[:, None]]
    table = torch.cat(fields, 1).tolist()
    return [(*row, bool(end)) for row, end in zip(table, batch.terminated, strict=True)]


@pytest.mark.parametrize(
    ("write_files", "terminated", "lost"),
    [(exorl, True, 0), (ogbench, False, 0), (d4rl, True, 0), (minari, True, 0)],
    ids=["exorl", "ogbench", "d4rl", "minari"],
)
def test_layouts(write_files: Any, terminated: bool, lost: int, tmp_path: Path) -> None:
    """The same steps out of each, by what it says of their ends; none leads from one episode to the next."""
    write_files(tmp_path)
    data = TransitionsDataModule(str(tmp_path), standardize=False, batch_size=8)
    data.setup()
    found = rows(data.sets["train"].__getitems__(list(range(8))))
    wanted = expected(terminated, lost)
    assert len(data.sets["train"]) == len(wanted) == 8
    for mine, theirs in zip(found, wanted, strict=True):
        if write_files is ogbench:  # without rewards
            assert np.isnan(mine[-2])
            mine, theirs = (*mine[:-2], mine[-1]), (*theirs[:-2], theirs[-1])
        assert mine == pytest.approx(theirs)
    if write_files is exorl:
        assert np.array_equal(data.steps["train"].physics, np.concatenate([each[0][1:] for each in walks()]))


def test_a_termination_that_leads_nowhere(tmp_path: Path) -> None:
    """D4RL's without the states that steps lead to: the last of each episode is left out, and it is said."""
    d4rl(tmp_path, following=False)
    data = TransitionsDataModule(str(tmp_path), standardize=False, batch_size=2)
    with pytest.warns(UserWarning, match="1 terminated steps"):
        data.setup()
    found = rows(data.sets["train"].__getitems__(list(range(6))))
    for mine, theirs in zip(found, expected(False, 1), strict=True):
        assert mine == pytest.approx(theirs)


def test_recordings_and_files_of_them(tmp_path: Path) -> None:
    """What an environment gives is what a table, a file and a data set of minari give again."""
    options = {"environment": POINT, "num_episodes": 3, "max_steps": 6, "batch_size": 18, "seed": 4}
    data = TransitionsDataModule(**options)
    data.setup()
    steps = data.sets["train"].__getitems__(list(range(18)))
    seen = data.units["observation"].back(steps.observation)
    env = make_environment(POINT["id"], observation="scene", task="ring")
    table = record(env, {"random": 1.0}, 3, 6, seed=4)
    assert np.allclose(seen.numpy(), np.delete(table["observation"], [6, 13, 20], 0), atol=1e-5)
    assert np.allclose(steps.reward, np.delete(table["reward"], [6, 13, 20]))
    assert torch.equal(steps.next_observation[:5], steps.observation[1:6])
    assert not steps.terminated.any()
    everything = torch.cat([steps.observation, steps.next_observation[[5, 11, 17]]])
    assert torch.allclose(everything.mean(0), torch.zeros(4), atol=1e-5)
    assert torch.allclose(everything.std(0, correction=0), torch.ones(4), atol=1e-4)
    write(table, tmp_path / "it.npz")
    again = TransitionsDataModule(str(tmp_path / "it.npz"), batch_size=18)
    again.setup()
    assert all(torch.equal(a, b) for a, b in zip(steps, again.sets["train"].__getitems__(list(range(18))), strict=True))


def test_terminations_of_an_environment() -> None:
    """An episode that ends at its goal is over for good; one that is cut off is not."""
    env = {"id": "jepa_lightning/PointMass-v0", "observation": "scene"}
    data = TransitionsDataModule(environment=env, policies={"expert": 1.0}, num_episodes=4, batch_size=1)
    data.setup()
    steps = data.steps["train"]
    last = np.append(np.flatnonzero(np.diff(steps.first)), len(steps.row) - 1)
    assert steps.terminated[last].all()
    assert steps.terminated.sum() == 4
    cut = TransitionsDataModule(environment=env, policies={"expert": 1.0}, num_episodes=4, max_steps=3, batch_size=1)
    cut.setup()
    assert not cut.steps["train"].terminated.any()


def test_actions_and_their_bounds() -> None:
    """Those of an environment become −1 and 1; those of files have to be told."""
    data = TransitionsDataModule(environment={"id": "Pendulum-v1"}, num_episodes=2, max_steps=50, batch_size=10)
    data.setup()
    action = data.sets["train"].__getitems__(list(range(100))).action
    assert 0.8 < float(action.abs().max()) <= 1
    assert torch.allclose(data.units["action"].back(action), torch.from_numpy(data.steps["train"].action), atol=1e-6)


def test_frames_are_stacked(tmp_path: Path) -> None:
    """Within an episode, whose first frame stands for those before it; and they stay bytes."""
    frames = np.arange(10 * 3 * 16 * 16, dtype=np.int64).reshape(10, 16, 16, 3) // 768
    columns = {"observation": frames.astype(np.uint8), "action": np.zeros((10, 2), np.float32)}
    np.savez(tmp_path / "it.npz", ep_len=np.array([6, 4]), **columns)
    data = TransitionsDataModule(str(tmp_path / "it.npz"), frame_stack=3, batch_size=8)
    data.setup()
    batch = data.sets["train"].__getitems__([0, 1, 4, 5])
    assert batch.observation.shape == (4, 9, 16, 16)
    assert batch.observation.dtype == torch.uint8
    shown = batch.observation[:, ::3, 0, 0]
    assert shown.tolist() == [[0, 0, 0], [0, 0, 1], [2, 3, 4], [6, 6, 6]]
    assert batch.next_observation[:, ::3, 0, 0].tolist() == [[0, 0, 1], [0, 1, 2], [3, 4, 5], [6, 6, 7]]


def test_draws_with_replacement() -> None:
    """Uniform; a function of seed and epoch; dealt out among ranks; and goes on in the middle of an epoch."""
    order = WithReplacement(range(10), batch_size=100, batches=200, seed=1)
    first = list(order)
    assert len(first) == len(order) == 20_000
    counts = np.bincount(first, minlength=10)
    assert np.abs(counts - 2000).max() < 6 * np.sqrt(2000)  # six standard deviations
    assert list(order) != first
    order.set_epoch(0)
    order.first_batch = 150
    assert list(order) == first[15_000:]


def test_trainings_resume_with_the_same_units(tmp_path: Path) -> None:
    """Workers share the memory, and a checkpoint's statistics are those of whoever loads it."""
    options = {"environment": POINT, "max_steps": 5, "batch_size": 4, "batches_an_epoch": 3}
    data = TransitionsDataModule(**options, num_episodes=4, num_workers=1)
    data.setup()
    assert data.sets["train"].seen.is_shared()
    for name in ("seen", "action"):  # in memory once
        assert np.shares_memory(getattr(data.steps["train"], name), getattr(data.sets["train"], name).numpy())
    batches = list(data.train_dataloader())
    assert len(batches) == 3
    plain = TransitionsDataModule(**options, num_episodes=4)
    plain.setup()
    for mine, theirs in zip(batches, plain.train_dataloader(), strict=True):
        assert torch.equal(mine.observation, theirs.observation)
    other = TransitionsDataModule(**options, num_episodes=2, seed=9)
    other.setup()
    before = other.sets["train"].__getitems__([0]).observation
    raw = other.units["observation"].back(before)
    other.load_state_dict(data.state_dict())
    after = other.sets["train"].__getitems__([0]).observation
    assert torch.allclose(data.units["observation"].back(after), raw, atol=1e-5)
    assert not torch.allclose(before, after)


def wrong_actions(folder: Path) -> str:
    np.savez(folder / "it.npz", observation=np.zeros((4, 2)), action=np.full((4, 1), 3.0))
    return str(folder / "it.npz")


def not_finite(folder: Path) -> str:
    seen = np.zeros((4, 2))
    seen[2, 1] = np.nan
    np.savez(folder / "it.npz", observation=seen, action=np.zeros((4, 1)))
    return str(folder / "it.npz")


def unlike(folder: Path) -> str:
    for size in (2, 3):
        np.savez(folder / f"{size}.npz", observation=np.zeros((4, size)), action=np.zeros((4, 1)))
    return str(folder)


def alone(folder: Path) -> str:
    np.savez(folder / "it.npz", observation=np.zeros((1, 2)), action=np.zeros((1, 1)))
    return str(folder / "it.npz")


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (wrong_actions, {}, r"3.*action_bounds"),
        (wrong_actions, {"action_bounds": [[-4.0, -4.0], [4.0, 4.0]]}, "actions of 1 numbers"),
        (wrong_actions, {"action_bounds": [4.0, -4.0]}, "least below the largest"),
        (wrong_actions, {"columns": {"reward": "score"}}, "no column score.*action"),
        (not_finite, {}, r"observations.*not finite at step 2"),
        (unlike, {}, r"observations \[3\].*\[2\]"),
        (alone, {}, "no step"),
    ],
)
def test_files_that_do_not_fit(files: Any, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        TransitionsDataModule(files(tmp_path), batch_size=1, **options).setup()


def test_options_that_do_not_fit() -> None:
    for options, message in (
        ({}, "root"),
        ({"root": "x", "held_out": 1.0}, "held_out=1.0"),
        ({"root": "x", "frame_stack": 0}, "frame_stack=0"),
        ({"environment": {"name": "x"}}, "id"),
        ({"root": "x", "columns": {"states": "x"}}, "states"),
    ):
        with pytest.raises(ValueError, match=message):
            TransitionsDataModule(**options)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        TransitionsDataModule("nowhere").setup()
    with pytest.raises(RuntimeError, match="setup"):
        _ = TransitionsDataModule("nowhere").units

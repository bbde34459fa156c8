"""Episodes: recorded and read back in every layout, cut into windows, normalised; and what is wrong with some."""

import gc
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import gymnasium
import h5py
import minari
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from helpers import quiet_trainer
from test_data_modules import Witness

from jepa_lightning import EpisodesDataModule
from jepa_lightning.data.episodes import Preparation, make_environment, open_episodes, record, write, write_minari
from jepa_lightning.poses import move_pose

ROOM = {"id": "jepa_lightning/TwoRoom-v0"}
LENGTHS = (6, 9, 5)


def numbers(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def table(lengths: tuple[int, ...] = LENGTHS, frames: bool = True) -> dict[str, Any]:
    """Episodes of frames (or vectors), actions, of which the last is NaN, and states that count the steps."""
    rows, ends = sum(lengths), np.cumsum(lengths)
    observation = np.random.default_rng(1).integers(0, 256, (rows, 8, 10, 3), dtype=np.uint8)
    action = numbers(rows, 2)
    action[ends - 1] = np.nan
    state = np.concatenate([np.arange(length) + 100.0 * number for number, length in enumerate(lengths)])
    return {
        "observation": observation if frames else numbers(rows, 4, seed=2),
        "action": action,
        "state": np.stack([state, -state], 1).astype(np.float32),
        "ep_len": np.array(lengths),
    }


def episodes_of(given: dict[str, Any], name: str) -> list[Any]:
    return np.split(given[name], np.cumsum(given["ep_len"])[:-1])


# --- Layouts ---------------------------------------------------------------------------------------------------------


def as_npz(folder: Path, given: dict[str, Any]) -> Path:
    write(given, folder / "episodes.npz")
    return folder / "episodes.npz"


def as_hdf5(folder: Path, given: dict[str, Any]) -> Path:
    write(given, folder / "episodes.h5")
    return folder / "episodes.h5"


def as_ogbench(folder: Path, given: dict[str, Any]) -> Path:
    """Flags at the last step of each episode."""
    terminals = np.zeros(sum(LENGTHS), np.float32)
    terminals[np.cumsum(LENGTHS) - 1] = 1
    np.savez(folder / "og.npz", **{k: v for k, v in given.items() if k != "ep_len"}, terminals=terminals)
    return folder / "og.npz"


def as_numbered(folder: Path, given: dict[str, Any]) -> Path:
    """The number of its episode in each row."""
    with h5py.File(folder / "rows.hdf5", "w") as file:
        for name, values in given.items():
            if name != "ep_len":
                file[name] = values
        file["ep_idx"] = np.repeat([4, 7, 5], LENGTHS)
    return folder / "rows.hdf5"


def as_groups(folder: Path, given: dict[str, Any]) -> Path:
    """As robomimic and minari: a group each, ten before two."""
    with h5py.File(folder / "groups.hdf5", "w") as file:
        for number, parts in enumerate(
            zip(*(episodes_of(given, n) for n in ("observation", "action", "state")), strict=True)
        ):
            group = file.create_group(f"data/demo_{number * 5}")
            for name, part in zip(("observation", "action", "state"), parts, strict=True):
                group[name] = part[:-1] if name == "action" else part
    return folder / "groups.hdf5"


def as_folder(folder: Path, given: dict[str, Any]) -> Path:
    """As DROID: a file an episode."""
    for number, parts in enumerate(
        zip(*(episodes_of(given, n) for n in ("observation", "action", "state")), strict=True)
    ):
        path = folder / "all" / f"{number:03}" / "trajectory.h5"
        path.parent.mkdir(parents=True)
        with h5py.File(path, "w") as file:
            for name, part in zip(("observation", "action", "state"), parts, strict=True):
                file[name] = part
    return folder / "all"


LAYOUTS: dict[str, Callable[[Path, dict[str, Any]], Path]] = {
    "npz": as_npz, "HDF5": as_hdf5, "ogbench": as_ogbench, "numbered": as_numbered, "groups": as_groups,
    "folder": as_folder,
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, tmp_path: Path) -> None:
    """The same episodes in any layout, whole and in stretches."""
    given = table()
    episodes = open_episodes(LAYOUTS[layout](tmp_path, given))
    assert [len(episode["observation"]) for episode in episodes] == list(LENGTHS)
    for number, episode in enumerate(episodes):
        for name in ("observation", "action", "state"):
            theirs, rows = episodes_of(given, name)[number], len(episode[name])
            assert np.array_equal(episode[name].read(0, rows), theirs[:rows], equal_nan=True)
            assert np.array_equal(episode[name].read(1, 6, 2), theirs[1:rows][:5:2], equal_nan=True)
            assert episode[name].shape == theirs.shape[1:]


def test_a_file_that_was_read_can_be_written_again(tmp_path: Path) -> None:
    """Once nobody reads it any more."""
    datamodule = EpisodesDataModule(str(as_hdf5(tmp_path, table())), steps=3, batch_size=2)
    datamodule.setup()
    assert len(datamodule.sets["train"][0].action) == 3
    del datamodule
    gc.collect()
    assert len(open_episodes(as_hdf5(tmp_path, table((4,))))) == 1


def test_minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is recorded, written to minari and read again, by minari itself and by us."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env = make_environment(**{"environment": ROOM["id"], "observation": "scene"})
    recorded = record(env, {"walk": 1.0}, num_episodes=3, max_steps=7)
    write_minari(recorded, "rooms/walk-v0", env)
    theirs = minari.load_dataset("rooms/walk-v0")
    ours = open_episodes(tmp_path / "rooms" / "walk-v0")
    for number, episode in enumerate(theirs.iterate_episodes()):
        assert np.array_equal(ours[number]["observations"].read(0, 8), episode.observations)
        assert np.array_equal(ours[number]["actions"].read(0, 8), episode.actions)
        assert np.array_equal(episodes_of(recorded, "observation")[number], episode.observations)
        assert np.array_equal(episodes_of(recorded, "action")[number][:-1], episode.actions)
    datamodule = EpisodesDataModule(
        str(tmp_path / "rooms" / "walk-v0"), "observations", "actions", steps=4, batch_size=2, held_out=0.4
    )
    datamodule.setup()
    assert next(iter(datamodule.train_dataloader())).action.shape == (2, 4, 2)


def write_video(path: Path, frames: Any) -> None:
    """Without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=10, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "rgb24"
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def frames(rows: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (rows, 32, 48, 3), dtype=np.uint8)


def test_videos_beside_tables(tmp_path: Path) -> None:
    """Of the table's name, or, as DROID's, all of a folder; frames are decoded where they are wanted."""
    for number in range(2):
        action = numbers(5, 2, seed=number)
        np.savez(tmp_path / f"{number}.npz", action=action)
        write_video(tmp_path / f"{number}.mp4", frames(6, seed=number))
    episodes = open_episodes(tmp_path)
    assert np.array_equal(episodes[1]["video"].read(1, 6, 2), frames(6, seed=1)[1:6:2])
    datamodule = EpisodesDataModule(
        str(tmp_path), "video", steps=3, batch_size=4, held_out=0.0, mean=[0.0] * 3, std=[1.0] * 3
    )
    datamodule.setup()
    window = datamodule.sets["train"][2]
    assert torch.allclose(window.observation * 255, torch.tensor(frames(6)[2:5]).permute(3, 0, 1, 2).float(), atol=1e-3)
    droid = tmp_path / "droid" / "success" / "a"
    (droid / "recordings").mkdir(parents=True)
    with h5py.File(droid / "trajectory.h5", "w") as file:
        file["action/cartesian"], file["gripper"] = numbers(6, 6), np.linspace(0, 1, 6)
    write_video(droid / "recordings" / "1234.mp4", frames(6))
    (episode,) = open_episodes(tmp_path / "droid")
    assert set(episode) == {"action/cartesian", "gripper", "video/1234"}
    (droid / "metadata_lab.json").write_text(
        json.dumps({"left_mp4_path": "lab/recordings/MP4/1234.mp4", "date": "today"})
    )
    datamodule = EpisodesDataModule(
        str(tmp_path / "droid"),
        "video/left",
        None,
        ["action/cartesian", "gripper"],
        steps=2,
        batch_size=2,
        held_out=0.0,
    )
    datamodule.setup()
    assert datamodule.sets["train"][0].action.shape == (2, 7)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobot(version: str, tmp_path: Path) -> None:
    lengths, camera = (5, 4), "observation.images.top"
    info: dict[str, Any] = {"codebase_version": version, "fps": 10, "chunks_size": 1000}
    info["features"] = {camera: {"dtype": "video"}, "action": {"dtype": "float32"}}
    both = frames(9)
    rows = {
        "observation.state": numbers(9, 3).tolist(),
        "action": numbers(9, 2, seed=1).tolist(),
        "episode_index": np.repeat([0, 1], lengths).tolist(),
        "task": ["push"] * 9,
    }
    (tmp_path / "meta").mkdir()
    if version == "v2.1":
        info["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        for number, (start, stop) in enumerate(((0, 5), (5, 9))):
            path = tmp_path / "data" / "chunk-000" / f"episode_{number:06}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            parquet.write_table(pa.table({name: values[start:stop] for name, values in rows.items()}), path)
            write_video(tmp_path / "videos/chunk-000" / camera / f"episode_{number:06}.mp4", both[start:stop])
    else:
        info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        for folder in ("data/chunk-000", "meta/episodes/chunk-000"):
            (tmp_path / folder).mkdir(parents=True)
        parquet.write_table(pa.table(rows), tmp_path / "data/chunk-000/file-000.parquet")
        columns = {"chunk_index": [0, 0], "file_index": [0, 0], "from_timestamp": [0.0, 0.5]}
        places = {"episode_index": [0, 1]} | {f"videos/{camera}/{name}": values for name, values in columns.items()}
        parquet.write_table(pa.table(places), tmp_path / "meta/episodes/chunk-000/file-000.parquet")
        write_video(tmp_path / "videos" / camera / "chunk-000" / "file-000.mp4", both)
    (tmp_path / "meta" / "info.json").write_text(json.dumps(info))
    episodes = open_episodes(tmp_path)
    assert [len(episode[camera]) for episode in episodes] == list(lengths)
    assert np.array_equal(episodes[1][camera].read(0, 4), both[5:])
    assert np.allclose(episodes[1]["action"].read(0, 4), rows["action"][5:])
    datamodule = EpisodesDataModule(
        str(tmp_path), camera, state="observation.state", steps=3, batch_size=2, held_out=0.5
    )
    datamodule.setup()
    assert next(iter(datamodule.train_dataloader())).state.shape == (2, 3, 3)


# --- Windows ---------------------------------------------------------------------------------------------------------


def opened(folder: Path, given: dict[str, Any] | None = None, **options: Any) -> EpisodesDataModule:
    path = as_npz(folder, table() if given is None else given)
    defaults: dict[str, Any] = {"state": "state", "held_out": 0.0, "batch_size": 2, "steps": 3, "standardize": []}
    datamodule = EpisodesDataModule(str(path), **defaults | options)
    datamodule.setup()
    return datamodule


@pytest.mark.parametrize(("stride", "every"), [(1, 1), (2, 1), (2, 3), (4, 2)])
def test_windows(stride: int, every: int, tmp_path: Path) -> None:
    """Every window that there is: times a stride apart, with all actions in between as one; the last one is zero."""
    given = table()
    windows = opened(tmp_path, stride=stride, every=every).sets["train"]
    expected = [
        (number, start) for number, length in enumerate(LENGTHS) for start in range(0, length - 2 * stride, every)
    ]
    assert len(windows) == len(expected)
    for index, (number, start) in enumerate(expected):
        window = windows[index]
        times = [start, start + stride, start + 2 * stride]
        assert window.state[:, 0].tolist() == [100 * number + time for time in times]
        actions = episodes_of(given, "action")[number][start : start + 2 * stride].reshape(2, stride * 2)
        assert np.array_equal(window.action[:2], actions)
        assert window.action[2].abs().max() == 0
        pixels = torch.tensor(episodes_of(given, "observation")[number][times]).permute(3, 0, 1, 2) / 255
        mean, std = (torch.tensor(each).view(3, 1, 1, 1) for each in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        assert torch.allclose(window.observation, (pixels - mean) / std, atol=1e-5)
        assert window.valid.all()


def test_windows_of_one_time(tmp_path: Path) -> None:
    """Single frames, to train an encoder on: every step of every episode, and nothing is done."""
    windows = opened(tmp_path, steps=1).sets["train"]
    assert len(windows) == sum(LENGTHS)
    last = windows[LENGTHS[0] - 1]
    assert last.observation.shape[1] == 1
    assert last.state[0, 0] == LENGTHS[0] - 1
    assert last.action.tolist() == [[0, 0]]


def test_padding(tmp_path: Path) -> None:
    """Windows go beyond the end, where the last time is repeated, nothing is done, and nothing counts."""
    windows = opened(tmp_path, steps=4, stride=2, pad=True).sets["train"]
    assert len(windows) == sum(length - 2 for length in LENGTHS)
    last = windows[LENGTHS[0] - 3]
    assert last.valid.tolist() == [True, True, False, False]
    assert last.state[:, 0].tolist() == [3, 5, 5, 5]
    assert torch.equal(last.observation[:, 1], last.observation[:, 3])
    assert last.action[1:].abs().max() == 0 < last.action[0].abs().max()
    assert windows[0].valid.tolist() == [True, True, True, False]


def test_differences_of_poses(tmp_path: Path) -> None:
    """Actions that lead from each pose to that of the next time."""
    given = table()
    given["state"] = np.random.default_rng(0).uniform(0.2, 0.8, (20, 7)).astype(np.float32)
    window = opened(tmp_path, given, action=None, stride=2).sets["train"][0]
    moved = move_pose(window.state[:2], window.action[:2])
    assert torch.allclose(moved, window.state[1:], atol=1e-5)


def test_normalised(tmp_path: Path) -> None:
    """Actions, states and vectors by the training episodes' statistics; back again; and kept with a checkpoint."""
    given = table((30, 40, 20, 10), frames=False)
    given["state"][:, 1] = 3.0  # never changes
    datamodule = opened(
        tmp_path, given, standardize=["action", "state", "observation"], steps=2, stride=2, held_out=0.25
    )
    windows = datamodule.sets["train"]
    rows = [number for number in range(4) if len(windows.episodes.lengths) and _is_in(given, windows, number)]
    assert len(rows) == 3
    for name, prepare in (
        ("state", datamodule.preparation.states),
        ("observation", datamodule.preparation.observations),
    ):
        values = prepare(np.concatenate([episodes_of(given, name)[row] for row in rows]))
        assert torch.allclose(values.mean(0)[:1], torch.zeros(1), atol=1e-5)
        assert torch.allclose(values.std(0, correction=0)[:1], torch.ones(1), atol=1e-4)
    actions = np.concatenate([episodes_of(given, "action")[row][:-1] for row in rows])[:60]
    blocks = datamodule.preparation.blocks(actions)
    assert blocks.shape == (30, 4)
    assert torch.allclose(datamodule.preparation.world_actions(blocks), torch.tensor(actions), atol=1e-6)
    assert torch.allclose(datamodule.preparation.world_actions(blocks.unsqueeze(0)), torch.tensor(actions), atol=1e-6)
    kept = pickle.loads(pickle.dumps(datamodule.state_dict()))
    # Other data of the same kind are normalised by what the checkpoint says, loaded before or after they are opened.
    given["action"] = given["action"] * 7 + 3
    (tmp_path / "other").mkdir()
    for early in (True, False):
        other = EpisodesDataModule(
            str(as_npz(tmp_path / "other", given)), state="state", steps=2, stride=2, batch_size=2, held_out=0.25
        )
        for step in ("load", "set up") if early else ("set up", "load"):
            other.load_state_dict(kept) if step == "load" else other.setup()
        assert other.preparation.state() == datamodule.preparation.state()
        assert other.sets["train"].preparation is other.preparation
    assert Preparation.from_state(kept["preparation"]).state() == kept["preparation"]


def _is_in(given: dict[str, Any], windows: Any, number: int) -> bool:
    first = float(episodes_of(given, "state")[number][0, 0])
    return any(float(episode["state"].read(0, 1)[0, 0]) == first for episode in windows.episodes.episodes)


def test_views_and_sizes(tmp_path: Path) -> None:
    given = table()
    given["other"] = given["observation"][:, ::-1].copy()
    datamodule = opened(
        tmp_path, given, observation=["observation", "other"], image_size=16, mean=[0.5] * 3, std=[0.5] * 3
    )
    window = datamodule.sets["train"][0]
    assert window.observation.shape == (2, 3, 3, 16, 16)
    assert window.observation.abs().max() <= 1.0 + 1e-5
    assert torch.allclose(window.observation[0], window.observation[1].flip(-2), atol=0.2)


def test_splits(tmp_path: Path) -> None:
    """Episodes are in one split only: by a seed, or by folders."""
    datamodule = opened(tmp_path, held_out=0.34)
    seen = {
        role: {int(window.state[0, 0]) // 100 for window in map(windows.__getitem__, range(len(windows)))}
        for role, windows in datamodule.sets.items()
    }
    assert (seen["train"] | seen["val"], seen["train"] & seen["val"]) == ({0, 1, 2}, set())
    assert seen["val"] == seen["test"]
    for role, lengths in (("train", (6, 5)), ("val", (7,))):
        (tmp_path / "split" / role).mkdir(parents=True)
        as_npz(tmp_path / "split" / role, table(lengths))
    split = EpisodesDataModule(str(tmp_path / "split"), steps=3, batch_size=2)
    split.setup()
    assert [len(split.sets[role]) for role in ("train", "val")] == [4 + 3, 5]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_trainer(num_workers: int, tmp_path: Path) -> None:
    """In another order each epoch, the same with any number of workers; the statistics are in the checkpoint."""
    path = str(as_hdf5(tmp_path, table()))
    datamodule = EpisodesDataModule(path, steps=3, batch_size=4, num_workers=num_workers, held_out=0.3, state="state")
    module, trainer = Witness(), quiet_trainer(tmp_path, max_epochs=2)
    trainer.fit(module, datamodule)
    states = [batch.state[:, 0, 0].tolist() for batch in module.seen["train"]]
    half = len(states) // 2
    assert states[:half] != states[half:]
    again = EpisodesDataModule(path, steps=3, batch_size=4, held_out=0.3, state="state")
    again.setup()
    first = [batch.state[:, 0, 0].tolist() for batch in again.train_dataloader()]
    assert first == states[:half]
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    kept = torch.load(tmp_path / "model.ckpt", weights_only=True)["EpisodesDataModule"]
    assert kept == {"preparation": datamodule.preparation.state()}


# --- Recording -------------------------------------------------------------------------------------------------------


def test_recorded_and_drawn() -> None:
    """Scenes are kept and frames drawn of them; the same again for the same seed, in any process."""
    options: dict[str, Any] = {"environment": ROOM | {"image_size": 56}, "policies": {"walk": 0.5, "expert": 0.5}}
    options |= {"observation": "scene", "state": "scene", "draw": True, "num_episodes": 6, "max_steps": 20, "steps": 4}
    datamodule = EpisodesDataModule(**options, batch_size=4, standardize=("action",), stride=2)
    datamodule.setup()
    window = pickle.loads(pickle.dumps(datamodule.sets["train"]))[5]
    assert window.observation.shape == (3, 4, 56, 56)
    env = make_environment(ROOM["id"], image_size=56).unwrapped
    for number, scene in enumerate(window.state.numpy()):
        drawn = datamodule.preparation.observations(env.draw(scene)[None])
        assert torch.allclose(window.observation[:, number], drawn[:, 0])
    again = EpisodesDataModule(**options, batch_size=4, standardize=("action",), stride=2)
    again.setup()
    assert torch.equal(again.sets["train"][5].observation, window.observation)
    # What was done leads from each scene to the next.
    actions = datamodule.preparation.world_actions(window.action[:3]).numpy()
    env.reset(options={"position": window.state[0, :2].numpy(), "goal": (200, 200)})
    for number, action in enumerate(actions, start=1):
        env.step(action)
        if number % 2 == 0:
            assert env.scene[:2] == pytest.approx(window.state[number // 2, :2].numpy(), abs=1e-3)


class Still:
    """Does the same at every step: nothing, if it is not told otherwise."""

    def __init__(self, action: tuple[float, float] = (0.0, 0.0)) -> None:
        self.action = np.array(action, np.float32)

    def begin(self, env: Any, rng: Any) -> None:
        pass

    def act(self, observation: Any, env: Any, rng: Any) -> Any:
        assert env.observation_space.contains(observation)
        return self.action


def test_policies() -> None:
    env = make_environment(ROOM["id"], observation="scene", endless=True)
    tables = {
        name: record(env, {name: 1.0}, 4, max_steps=60)
        for name in ("random", "walk", "expert", "test_data_episodes.Still")
    }
    for name, given in tables.items():
        assert given["ep_len"].tolist() == [61 if name else 0] * 4
        actions = episodes_of(given, "action")
        assert all(np.isnan(each[-1]).all() and np.isfinite(each[:-1]).all() for each in actions)
        assert np.abs(np.nan_to_num(given["action"])).max() <= 1
        assert np.array_equal(record(env, {name: 1.0}, 4, max_steps=60)["scene"], given["scene"])
    moved = {
        name: float(np.mean([np.ptp(each[:, :2], axis=0).max() for each in episodes_of(given, "scene")]))
        for name, given in tables.items()
    }
    assert moved["test_data_episodes.Still"] == 0 < moved["random"] < moved["walk"]
    # A walk is smooth: its headings change little; random ones any.
    turns = {
        name: np.median(
            [np.abs(np.diff(np.unwrap(np.arctan2(*each[:-1].T[::-1])))) for each in episodes_of(given, "action")]
        )
        for name, given in tables.items()
    }
    assert turns["walk"] < 0.1 < turns["random"]
    mixed = record(env, {"test_data_episodes.Still": 1.0, "expert": 3.0}, 40, max_steps=3)
    still = [np.nan_to_num(each).any() == np.False_ for each in episodes_of(mixed, "action")]
    assert np.mean(still) == pytest.approx(0.25, abs=0.15)
    # With options: an expert without noise, and one of one's own that goes down.
    options = {"expert": {"share": 1, "noise": 0.0, "repeat": 0.0}}
    for each in episodes_of(record(env, options, 4, max_steps=10), "action"):
        assert np.allclose(np.diff(each[:8], axis=0), 0, atol=0.2)
    down = record(env, {"test_data_episodes.Still": {"share": 1, "action": (0.0, 0.5)}}, 1, max_steps=3)
    assert down["action"][:-1].tolist() == [[0.0, 0.5]] * 3
    with pytest.raises(TypeError, match="did you mean noise"):
        record(env, {"expert": {"share": 1, "nois": 0.0}}, 1)


def test_any_environment(tmp_path: Path) -> None:
    """PushT by its id, frames and state; Pendulum's vectors."""
    import gym_pusht  # noqa: F401

    pusht = {
        "id": "gym_pusht/PushT-v0",
        "obs_type": "pixels_agent_pos",
        "observation_width": 48,
        "observation_height": 48,
    }
    datamodule = EpisodesDataModule(
        environment=pusht, observation="observation/pixels", state="observation/agent_pos", num_episodes=2, max_steps=6,
        policies={"walk": 1.0}, steps=3, batch_size=2, held_out=0.5,
    )  # fmt: skip
    datamodule.setup()
    batch = next(iter(datamodule.train_dataloader()))
    assert (batch.observation.shape, batch.state.shape) == ((2, 3, 3, 48, 48), (2, 3, 2))
    pendulum = EpisodesDataModule(environment={"id": "Pendulum-v1"}, num_episodes=2, max_steps=6, batch_size=2, steps=3)
    pendulum.setup()
    assert next(iter(pendulum.train_dataloader())).observation.shape == (2, 3, 3)


# --- What is wrong ---------------------------------------------------------------------------------------------------


def broken(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        given = table()
        change(given)
        return opened(folder, given)

    return make


def nan_action(given: dict[str, Any]) -> None:
    given["action"][8, 1] = np.nan


def nan_vector(given: dict[str, Any]) -> None:
    given["observation"] = table(frames=False)["observation"]
    given["observation"][18] = np.nan


def strange(name: str, content: bytes) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        (folder / name).write_bytes(content)
        return open_episodes(folder / name)

    return make


def objects(folder: Path) -> Any:
    np.savez(folder / "o.npz", action=np.array([{}, {}], dtype=object))
    return open_episodes(folder / "o.npz")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (broken(lambda given: given.pop("action")), "episode 0 of .*npz has no action: it has observation, state"),
        (broken(nan_action), "action of episode 1 of .* at step 2, not finite"),
        (broken(nan_vector), "observation of episode 2 of .* at step 3, not finite"),
        (broken(lambda given: given["state"].__setitem__((5, 0), np.inf)), "state of episode 0 .* at step 5"),
        (broken(lambda given: given.update(ep_len=np.array([6, 9, 9]))), "20 rows .*ep_len"),
        (broken(lambda given: given.update(action=given["action"][:-3])), "action has 17 rows, not 20"),
        (lambda folder: opened(folder, table((2, 2))), "too short: the longest has 2 steps.*takes 3"),
        (lambda folder: opened(folder, mean=[0.5], std=[0.5]).sets["train"][0], "3 channels, but mean"),
        (strange("a.npz", b"no archive"), r"a\.npz cannot be read"),
        (strange("a.h5", b"no archive"), r"a\.h5 cannot be read"),
        (objects, "pickle"),
        (lambda folder: EpisodesDataModule(str(folder), steps=0), "steps=0"),
        (lambda folder: EpisodesDataModule(str(folder), held_out=1.0), "held_out=1.0"),
        (lambda folder: EpisodesDataModule(str(folder), standardize=("actions",)), "actions"),
        (lambda folder: EpisodesDataModule(str(folder), action=None), "differences of states"),
        (lambda folder: EpisodesDataModule(), "give a root"),
        (lambda folder: EpisodesDataModule(str(folder), draw=True), "drawn by an environment"),
        (lambda folder: EpisodesDataModule(environment={"name": "x"}), "id"),
        (lambda folder: record(gymnasium.make("CartPole-v1"), {"random": 1}, 1), "vectors of numbers"),
        (lambda folder: record(gymnasium.make("Pendulum-v1"), {"walk": 1}, 1), "two numbers"),
        (lambda folder: record(gymnasium.make("Pendulum-v1"), {"expert": 1}, 1), "no expert"),
        (lambda folder: record(gymnasium.make("Pendulum-v1"), {"randm": 1}, 1), "no policy 'randm': random, walk"),
        (lambda folder: record(gymnasium.make("Pendulum-v1"), {"random": {"noise": 1}}, 1), "shares"),
        (lambda folder: record(gymnasium.make("Pendulum-v1"), {"numpy.ones": {"share": 1, "shape": 1}}, 1), "no begin"),
        (lambda folder: write(table(), folder / "x.csv"), r"\.npz, \.h5 or \.hdf5"),
    ],
)  # fmt: skip
def test_refuses(make: Callable[[Path], Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        make(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileNotFoundError, match=str(path.name)):
            open_episodes(path)

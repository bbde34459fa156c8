"""Environments: FourRoom against H-JEPA's (`golden/hjepa`), Gymnasium's checks, physics by closed forms, and speed."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from safetensors import safe_open
from safetensors.numpy import load_file

from jepa_lightning.environments import REWARDS, FourRoom, PointMass, Reaching, SceneEnv, TwoRoom
from jepa_lightning.planning import Reference, play

GOLDEN = Path(__file__).parent / "golden" / "hjepa" / "fourroom.safetensors"
KINDS: dict[str, type[Any]] = {"TwoRoom": TwoRoom, "FourRoom": FourRoom, "PointMass": PointMass}


# --- FourRoom as H-JEPA's --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trace() -> dict[str, Any]:
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def four_room() -> FourRoom:
    with safe_open(GOLDEN, "np") as file:
        config, order = (json.loads(file.metadata()[name]) for name in ("config", "door_order"))
    env = FourRoom((5, 5), radius=config["radius"], speed=config["speed"], image_size=224)
    layout = env.layout
    assert (2 * layout.half, [door.half for door in layout.doors]) == (config["wall_thickness"], config["door_size"])
    assert order == ["top", "bottom", "left", "right"]
    return env


def test_fourroom_moves(trace: dict[str, Any], four_room: FourRoom) -> None:
    for row in range(len(trace["transition/position"])):
        position, action, closed, following = (
            trace[f"transition/{name}"][row] for name in ("position", "action", "closed_door", "next")
        )
        assert four_room.layout.move(position, action.clip(-1, 1), closed) == pytest.approx(following, abs=1e-4)
        four_room.reset(seed=0, options={"position": position, "goal": (0, 0), "closed_door": closed})
        four_room.step(action)
        assert four_room.scene[:2] == pytest.approx(following, abs=1e-4)


def test_fourroom_frames(trace: dict[str, Any], four_room: FourRoom) -> None:
    for row, theirs in enumerate(trace["frame/pixels"]):
        distractors = trace["frame/distractors"][row]
        scene = np.concatenate([trace["frame/position"][row], [trace["frame/closed_door"][row]], distractors.ravel()])
        ours = four_room.draw(scene).transpose(2, 0, 1)
        assert ours.dtype == np.uint8
        assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_fourroom_paths(trace: dict[str, Any], four_room: FourRoom) -> None:
    layout = four_room.layout
    for row in range(len(trace["path/start"])):
        start, goal, closed = (trace[f"path/{name}"][row] for name in ("start", "goal", "closed_door"))
        length, doors = layout.path(start, goal, closed)
        assert length == pytest.approx(trace["path/length"][row], abs=1e-3)
        assert doors == [door for door in trace["path/doors"][row] if door >= 0]
        rooms = [column + 2 * line for column, line in (layout.room(start), layout.room(goal))]
        assert rooms == trace["path/rooms"][row].tolist()
        assert layout.waypoint(start, goal, closed) == pytest.approx(trace["path/waypoint"][row], abs=1e-4)


@pytest.mark.parametrize("number", [0, 1])
def test_fourroom_expert(trace: dict[str, Any], four_room: FourRoom, number: int) -> None:
    """Step by step in theirs, and on its own to the goal."""
    positions, actions = trace[f"expert/{number}/positions"], trace[f"expert/{number}/actions"]
    closed, goal = int(trace[f"expert/{number}/closed_door"][0]), trace[f"expert/{number}/goal"]
    options = {"position": positions[0], "goal": goal, "closed_door": closed}
    _, info = four_room.reset(seed=0, options=options)
    for step, action in enumerate(actions):
        assert not info["success"]
        assert four_room.expert() == pytest.approx(action, abs=1e-3)
        _, _, terminated, _, info = four_room.step(four_room.expert())
        assert info["position"] == pytest.approx(positions[step + 1], abs=1e-2)
    assert terminated
    assert info["success"]


def test_fourroom_distractors() -> None:
    """They keep to the rooms, move 2.5 pixels a step unless a wall stops them, and teleport every 35th step."""
    env = FourRoom((5, 5), endless=True)
    env.reset(seed=3)
    steps, jumps = 1500, 0
    for _ in range(steps):
        before = env.distractors.copy()
        env.step(np.zeros(2))
        moved = np.hypot(*(env.distractors - before).T)
        jumps += int((moved > 4).sum())
        assert (np.abs(env.distractors - 112) <= 100).all()
        assert np.array_equal(env.scene[3:], env.distractors.ravel())
    assert jumps / (5 * steps) == pytest.approx(0.028, abs=0.006)
    counts = []
    for seed in range(60):
        env = FourRoom((1, 3))
        env.reset(seed=seed)
        counts.append(int((env.scene[3::2] >= 0).sum()))
    assert set(counts) == {1, 2, 3}


def test_fourroom_tasks() -> None:
    """H-JEPA's: two doors and 75 steps of the expert apart, a stretch of a longer way; what moves is where it was."""
    env = FourRoom(goal_steps=75, crossings=2, observation="scene")
    for seed in range(12):
        env.reset(seed=seed)
        start, goal, layout = env.scene.copy(), env.goal_scene, env.layout
        assert len(layout.path(start[:2], goal[:2], env.closed_door)[1]) == 2
        assert all(a != b for a, b in zip(layout.room(start[:2]), layout.room(goal[:2]), strict=True))
        assert not np.array_equal(start[3:5], goal[3:5])
        steps = 0
        while env.distance() >= env.success_distance:
            env.step(env.expert())
            steps += 1
        # It stops 16 pixels before the goal, and heads for that, not for what lay beyond.
        assert 55 <= steps <= 80
    tasks = {"id": "jepa_lightning/FourRoom-v0", "goal_steps": 75, "crossings": 2, "observation": "scene"}
    success = {kind: play(Reference(kind), tasks, 50, 10, 210).success.mean() for kind in ("expert", "straight")}
    assert success["expert"] == 1.0
    assert success["straight"] <= 0.14  # 4 % of other tasks of the same kind


def test_crossings() -> None:
    for crossings in (0, 1):
        env = TwoRoom(crossings=crossings, observation="scene")
        for seed in range(10):
            env.reset(seed=seed)
            assert (env.layout.room(env.scene[:2]) != env.layout.room(env.goal_scene[:2])) == bool(crossings)


# --- Goals for any environment ---------------------------------------------------------------------------------------

PUSHT: dict[str, Any] = {
    "id": "jepa_lightning/Reaching-v0", "environment": {"id": "gym_pusht/PushT-v0", "obs_type": "state"},
    "goal_steps": 8, "within": {"pos_agent": 20, "block_pose": [20, 20, 0.35]},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*not within.*")
def test_reaching() -> None:
    """In PushT: what the policy did leads to what it saw; success is what `within` says. Its physics are slow."""
    import gym_pusht  # noqa: F401

    env = gymnasium.make(**PUSHT).unwrapped
    for seed in range(3):
        seen, info = env.reset(seed=seed)
        goal, first = info["goal"], seen
        assert np.linalg.norm(goal[:2] - seen[:2]) >= 20 or np.abs(goal[2:] - seen[2:]).max() > 0.35
        for _ in range(8):
            seen, _, terminated, truncated, info = env.step(env.expert())
            near = np.linalg.norm(seen[:2] - goal[:2]) < 20 and np.abs(seen[2:4] - goal[2:4]).max() < 20
            assert (
                terminated
                == info["success"]
                == (near and abs(info["block_pose"][2] - env.goal_places["block_pose"][2]) < 0.35)
            )
            assert not truncated
        assert np.allclose(seen, goal)
        assert np.array_equal(env.reset(seed=seed)[0], first)
    assert play(Reference("expert"), PUSHT, 4, 4).success.all()


def test_reaching_frames_by_name() -> None:
    """The goal is what is observed there, under the same names; an end without success cuts the episode short."""
    import gym_pusht  # noqa: F401

    sizes = {"observation_width": 32, "observation_height": 32, "obs_type": "pixels_agent_pos", "max_episode_steps": 5}
    options = {"environment": {"id": "gym_pusht/PushT-v0", **sizes}, "goal_steps": 3, "within": {"agent_pos": 20}}
    seen = []

    def policy(observation: Any, goal: Any, state: Any, active: Any) -> Any:
        seen.append((observation.shape, goal.shape, state.shape))
        return np.full((2, 2), 1.0)

    outcome = play(policy, {"id": "jepa_lightning/Reaching-v0", **options}, 2, 2, None, "pixels", "agent_pos")
    assert seen == [((2, 32, 32, 3), (2, 32, 32, 3), (2, 2))] * 5
    assert outcome.steps.tolist() == [5, 5]


class Nothing:
    """A policy that stays where it is."""

    def begin(self, env: Any, rng: Any) -> None:
        pass

    def act(self, observation: Any, env: Any, rng: Any) -> Any:
        return np.zeros(2, np.float32)


class Forgetful(TwoRoom):
    """It begins anywhere, whatever the seed."""

    def reset(self, **options: Any) -> Any:
        return super().reset(seed=np.random.randint(2**31))


gymnasium.register("tests/Forgetful-v0", Forgetful)


# --- All -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("observation", ["pixels", "scene"])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore:.*A Box observation space.*", "ignore:.*not within.*")
def test_gymnasium(name: str, observation: str) -> None:
    env = gymnasium.make(f"jepa_lightning/{name}-v0", observation=observation, render_mode="rgb_array")
    check_env(env.unwrapped, skip_render_check=True)
    env.reset(seed=0)
    assert env.render().shape == (64, 64, 3)
    limit = env.spec.max_episode_steps
    for step in range(limit):
        *_, truncated, _ = env.step(np.zeros(2, np.float32))
        assert truncated == (step == limit - 1)


@pytest.mark.parametrize("name", KINDS)
def test_vectorised(name: str) -> None:
    """Several at once, as Gymnasium does it, are the same as one by one; with the goal of each."""
    env_id = f"jepa_lightning/{name}-v0"
    together = gymnasium.make_vec(env_id, num_envs=3, vectorization_mode="sync")
    frames, info = together.reset(seed=[5, 6, 7])
    assert frames.shape == info["goal"].shape == (3, 64, 64, 3)
    actions = np.array([[0.5, 1.0], [-1.0, 0.2], [0.3, -0.7]], dtype=np.float32)
    for _ in range(4):
        frames, *_, infos = together.step(actions)
    for number in range(3):
        env = gymnasium.make(env_id)
        _, first = env.reset(seed=5 + number)
        assert np.array_equal(first["goal"], info["goal"][number])
        for _ in range(4):
            frame, *_, last = env.step(actions[number])
        assert np.array_equal(frame, frames[number])
        assert np.array_equal(last["scene"], infos["scene"][number])


@pytest.mark.parametrize("name", KINDS)
def test_what_is_seen_is_the_scene(name: str) -> None:
    """Frames can be drawn of recorded scenes; the goal's frame is that of the scene with the dot there."""
    env: SceneEnv = KINDS[name](endless=True)
    frame, info = env.reset(seed=1)
    assert np.array_equal(info["goal"], env.draw(info["goal_scene"]))
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 2)):
        assert np.array_equal(frame, env.draw(info["scene"]))
        frame, *_, info = env.step(action)
    # The red part of a frame is around the position.
    red = (frame[..., 0].astype(int) - frame[..., 1] > 100) & (frame[..., 2] < 100)
    rows, columns = np.nonzero(red)
    centre = np.array([columns.mean(), rows.mean()]) + 0.5
    position = info["position"]
    expected = (position + 1) * 32 if name == "PointMass" else (position + 0.5) / 3.5
    assert centre == pytest.approx(expected, abs=0.7)


@pytest.mark.parametrize(
    ("name", "options", "steps"),
    [
        ("TwoRoom", {}, 80),
        ("TwoRoom", {"goal_steps": 25}, 25),
        ("FourRoom", {}, 210),
        ("PointMass", {}, 120),
        ("PointMass", {"gate": True}, 400),
        ("PointMass", {"goal_steps": 25}, 120),
    ],
)
def test_experts_arrive(name: str, options: dict[str, Any], steps: int) -> None:
    env: SceneEnv = KINDS[name](observation="scene", **options)
    for seed in range(30):
        env.reset(seed=seed)
        for _ in range(steps):
            *_, terminated, _, _ = env.step(env.expert())
            if terminated:
                break
        assert terminated, f"seed {seed}: from {env.scene} to {env.goal_scene}"


@pytest.mark.parametrize("name", KINDS)
def test_endless(name: str) -> None:
    """A goal that is reached gives way to another one, and the episode goes on."""
    env: SceneEnv = KINDS[name](observation="scene", endless=True)
    env.reset(seed=0)
    reached = 0
    for _ in range(600):
        goal = env.goal_scene.copy()
        *_, terminated, _, info = env.step(env.expert())
        assert not terminated
        reached += info["success"]
        assert info["success"] == (not np.array_equal(goal, env.goal_scene))
    assert reached >= 3


def test_walls() -> None:
    """Nobody gets through TwoRoom's wall but by the door."""
    env = TwoRoom(observation="scene", endless=True)
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    crossings = 0
    for number in range(4000):
        before = env.scene[:2].copy()
        heading = number // 40 % 4 * np.pi / 2 + rng.normal()
        env.step(1.4 * np.array([np.cos(heading), np.sin(heading)]))
        after = env.scene[:2]
        if (before[0] - 112) * (after[0] - 112) < 0:
            crossings += 1
            assert abs(after[1] - 49) <= 14 + 1.75
    assert crossings > 0
    env.reset(options={"position": (100, 150), "goal": (200, 150)})
    for _ in range(10):
        env.step([1.0, 0.0])
    assert env.scene[:2].tolist() == [112 - 5 - 7 - 0.5, 150]


# --- PointMass -------------------------------------------------------------------------------------------------------


def test_point_mass_moves() -> None:
    """As the difference equation's closed form says: `vₙ = v∞ (1 − qⁿ)`, and positions are their sum."""
    env = PointMass(observation="scene", mass=0.5, damping=0.8)
    env.reset(options={"position": (-0.9, 0.3), "velocity": (0.0, 0.0), "goal": (0.9, 0.9)})
    force, rate, seconds = np.array([0.6, 0.0]), 1 - 0.8 * 0.05 / 0.5, 0.05
    speed = 0.6 / 0.8
    for step in range(1, 30):
        env.step(force)
        assert env.scene[2] == pytest.approx(speed * (1 - rate**step))
        travelled = seconds * speed * (step - rate * (1 - rate**step) / (1 - rate))
        assert env.scene[0] == pytest.approx(-0.9 + travelled)
        assert env.scene[1] == 0.3
    for _ in range(200):
        env.step([1.0, 0.0])
    assert env.scene[:4].tolist() == [1 - env.radius, 0.3, 0.0, 0.0]


def test_gate() -> None:
    """It throws to either side, half of the time each; beside the gap nobody passes."""
    env = PointMass(gate=True, observation="scene", endless=True)
    sides = []
    env.reset(seed=0)
    for _ in range(400):
        env.reset(options={"position": (0.0, 0.3), "goal": (0.9, 0.9)})
        while env.scene[1] >= 0:
            env.step([0.0, -1.0])
        assert abs(env.scene[2]) == env.throw
        sides.append(env.scene[2] > 0)
    assert np.mean(sides) == pytest.approx(0.5, abs=0.08)
    for side in (-1, 1):
        env.reset(options={"position": (0.5, 0.4 * side), "goal": (0.9, 0.9)})
        for _ in range(100):
            env.step([0.0, -side])
        assert env.scene[1] == pytest.approx(side * env.radius)
    frame = PointMass(gate=True).draw(np.array([0.0, 0.5, 0.0, 0.0]))
    assert (frame[32, :23] == 0).all()
    assert (frame[32, 24:40] == 255).all()
    # Whatever is done, the wall is passed in the gap only.
    rng = np.random.default_rng(0)
    env.reset(seed=1)
    for number in range(5000):
        before = env.scene.copy()
        force = rng.uniform(-1, 1, 2) if number % 50 else -np.sign(before[:2])
        env.step(np.clip(force - 0.8 * np.sign(before[:2]), -1, 1))
        if before[1] * env.scene[1] < 0:
            assert abs(env.scene[0]) <= env.gap / 2


@pytest.mark.parametrize("task", REWARDS)
def test_rewards(task: str) -> None:
    """Largest where the task says, for many scenes at once as for one, and never the end of an episode."""
    best = {
        "top_left": (-0.75, -0.75, 0, 0), "top_right": (0.75, -0.75, 0, 0), "bottom_left": (-0.75, 0.75, 0, 0),
        "bottom_right": (0.75, 0.75, 0, 0), "ring": (0.36, 0.48, 0, 0), "line": (0.5, 0, 0, 0),
        "speed": (0, 0, 0.6, 0.8),
    }  # fmt: skip
    scenes = np.random.default_rng(0).uniform(-0.92, 0.92, (50, 4))
    rewards = REWARDS[task](scenes)
    assert REWARDS[task](np.array(best[task])) == pytest.approx(1.0)
    assert rewards.shape == (50,)
    assert ((rewards >= 0) & (rewards <= 1)).all()
    assert rewards.min() < 0.5
    env = PointMass(task)
    env.reset(seed=0)
    env.scene = scenes[3].copy()
    _, reward, terminated, _, info = env.step([0.1, 0.1])
    assert reward == pytest.approx(float(REWARDS[task](env.scene)))
    assert not terminated
    assert not info["success"]


# --- Mistakes --------------------------------------------------------------------------------------------------------


def reaching(**options: Any) -> Reaching:
    room = {"id": "jepa_lightning/TwoRoom-v0", "observation": "scene"}
    return Reaching(**{"environment": room, "goal_steps": 20, "within": {"position": 16.0}, **options})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TwoRoom(observation="image"), "'pixels' or 'scene'"),
        (lambda: TwoRoom(image_size=32), "56 or more"),
        (lambda: TwoRoom(door=5.0), "28 to 196"),
        (lambda: TwoRoom(goal_steps=2), "never leaves"),
        (lambda: TwoRoom(render_mode="human"), "rgb_array"),
        (lambda: FourRoom((0, 6)), "0 to 5"),
        (lambda: FourRoom(closing=2.0), "probability"),
        (lambda: PointMass("reach"), "top_left"),
        (lambda: PointMass(mass=0.0), "mass > 0"),
        (lambda: TwoRoom().reset(options={"positon": (1, 2)}), "positon"),
        (lambda: TwoRoom().reset(options={"goal": (1, 2, 3)}), "two numbers"),
        (lambda: FourRoom().reset(options={"closed_door": 4}), "0 to 3"),
        (lambda: TwoRoom(crossings=2), "0 to 1 doors"),
        (lambda: TwoRoom(crossings=1, goal_steps=25, endless=True), "endless"),
        (lambda: TwoRoom(crossings=1, goal_steps=300).reset(seed=0), "300 steps"),
        (lambda: reaching(within={"pose": 1.0}).reset(), "pose, but the environment shows scene, position"),
        (lambda: reaching(within={}), "how near"),
        (lambda: reaching(goal_steps=0), "goal_steps=0"),
        (lambda: reaching(policies={"test_environments.Nothing": 1}).reset(), "still within"),
        (lambda: reaching(environment={"id": "tests/Forgetful-v0"}).reset(), "begin the same for the same seed"),
        (lambda: Reaching({"name": "x"}, 5, {"position": 1}), "id"),
    ],
)
def test_refuses(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("action", [[np.nan, 0.0], [0.0], [[0.0, 0.0]]])
def test_refuses_actions(action: Any) -> None:
    env = TwoRoom()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="two finite numbers"):
        env.step(action)

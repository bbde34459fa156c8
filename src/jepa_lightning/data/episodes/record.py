"""Episodes from an environment, into memory and into files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jepa_lightning.data.episodes.policies import Array, Mixture, RecordingPolicy


def make_environment(environment: str, **options: Any) -> Any:
    """`gymnasium.make`, with this package's environments registered.

    Raises:
        ImportError: gymnasium is not installed.
    """
    import jepa_lightning.environments  # noqa: F401 - registers them, and says what is missing

    import gymnasium  # isort: skip

    return gymnasium.make(environment, **options)


def record(
    environment: Any,
    policies: Mapping[str, Any] | RecordingPolicy,
    num_episodes: int,
    max_steps: int | None = None,
    seed: int = 0,
) -> dict[str, Array]:
    """Let somebody act, and write down what is seen and done.

    Args:
        environment: a `gymnasium.Env`; of this package's, `observation="scene"` saves drawing frames that can be drawn
            later.
        policies: the share of the episodes of each policy (see `Mixture`), or one policy.
        num_episodes: how many.
        max_steps: an episode's steps at most; as many as the environment lets it have without.
        seed: of everything.

    Returns:
        A table: `observation` `[N, ...]` (of an environment with several, `observation/<name>`), `action` `[N, A]`,
        `reward` `[N]`, `terminated` `[N]`, of this package's environments `scene` `[N, S]` or `physics` `[N, P]`, and
        `ep_len`, the rows of each episode. A row is a step, what is seen and then done, and whether that ended the
        episode for good; the last row of an episode has no action, but NaN, and no reward.

    Raises:
        ValueError: an environment whose actions are no numbers, or a policy that does not fit it (see `Mixture`).
    """
    policy = Mixture(policies) if isinstance(policies, Mapping) else policies
    if environment.action_space.shape is None or not hasattr(environment.action_space, "low"):
        raise ValueError(f"actions must be vectors of numbers (a Box), not {environment.action_space}")
    columns: dict[str, list[Any]] = {}
    lengths = []
    for number in range(num_episodes):
        rng = np.random.default_rng([seed, number])
        observation, info = environment.reset(seed=int(rng.integers(2**31)))
        policy.begin(environment, rng)
        done, steps = False, 0
        nothing = np.full(environment.action_space.shape, np.nan)
        while True:
            ends = done or steps == max_steps
            action = nothing if ends else policy.act(observation, environment, rng)
            seen = _named("observation", observation)
            seen |= {name: info[name] for name in ("scene", "physics") if name in info}
            for name, value in {**seen, "action": np.asarray(action, np.float32)}.items():
                columns.setdefault(name, []).append(value)
            steps += 1
            if ends:
                columns.setdefault("reward", []).append(np.nan)
                columns.setdefault("terminated", []).append(False)
                break
            observation, reward, terminated, truncated, info = environment.step(action)
            columns.setdefault("reward", []).append(float(reward))
            columns.setdefault("terminated", []).append(bool(terminated))
            done = terminated or truncated
        lengths.append(steps)
    table = {name: np.stack([np.asarray(value) for value in values]) for name, values in columns.items()}
    table["reward"] = table["reward"].astype(np.float32)
    return {**table, "ep_len": np.array(lengths)}


def write(table: Mapping[str, Array], path: str | Path) -> None:
    """Write a table of episodes, as `record` gives it, to a file.

    Args:
        table: columns, and `ep_len`.
        path: `.npz`, or `.h5` or `.hdf5`, whose columns are compressed in stretches of 100 rows.

    Raises:
        ValueError: another ending.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez_compressed(path, **table)  # type: ignore[arg-type]
    elif path.suffix in (".h5", ".hdf5"):
        import h5py

        with h5py.File(path, "w") as file:
            for name, values in table.items():
                chunks = (min(100, len(values)), *values.shape[1:])
                file.create_dataset(name, data=values, chunks=chunks, compression="lzf")
    else:
        raise ValueError(f"episodes are written to .npz, .h5 or .hdf5, not to {path}; to minari by `write_minari`")


def write_minari(table: Mapping[str, Array], name: str, environment: Any, **options: Any) -> Any:
    """Write a table of episodes as a data set of minari.

    Args:
        table: columns, and `ep_len`.
        name: of the data set, such as `two-room/walk-v0`.
        environment: whose spaces they are.
        **options: those of `minari.create_dataset_from_buffers`, such as `author`.

    Raises:
        ImportError: minari is not installed.
    """
    try:
        import minari
        from minari.data_collector import EpisodeBuffer
    except ImportError as error:
        raise ImportError(
            'data sets of minari need it, which is in the extra `control`: pip install "jepa-lightning[control]"'
        ) from error
    buffers, start = [], 0
    for number, length in enumerate(table["ep_len"].tolist()):
        rows, acts = slice(start, start + length), slice(start, start + length - 1)
        ends = np.arange(length - 1) == length - 2
        buffers.append(
            EpisodeBuffer(
                id=number,
                observations=table["observation"][rows],
                actions=table["action"][acts],
                rewards=table["reward"][acts].tolist(),
                terminations=np.zeros(length - 1, bool).tolist(),
                truncations=ends.tolist(),
            )
        )
        start += length
    return minari.create_dataset_from_buffers(name, buffers, env=environment, **options)


def _named(name: str, observation: Any) -> dict[str, Any]:
    if isinstance(observation, Mapping):
        return {f"{name}/{key}": value for key, value in observation.items()}
    return {name: observation}

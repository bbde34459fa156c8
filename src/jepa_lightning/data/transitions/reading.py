"""Steps out of recorded episodes, whatever their columns are called and whichever row an action stands in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from jepa_lightning.data.episodes.columns import Array, Episode

# Columns by their names in the layouts that there are; the first that an episode has counts.
_NAMES = {
    "observation": ("observation", "observations"),
    "action": ("action", "actions"),
    "reward": ("reward", "rewards"),
    "next_observation": ("next_observation", "next_observations"),
    "terminated": ("terminated", "terminations"),
}


class Steps(NamedTuple):
    """All steps of some episodes.

    Attributes:
        seen: `[R, ...]`, what was seen, episode after episode, with the last state of each; vectors in float32.
        row: `[N]`, of each step the row of `seen` that it starts from; the next row is what it leads to.
        first: `[N]`, the first row of its episode.
        action: `[N, A]`.
        reward: `[N]`; NaN where there are none.
        terminated: `[N]` bool.
        physics: `[N, P]`, the simulator's state that a step leads to, where it was recorded; None without.
    """

    seen: Array
    row: Array
    first: Array
    action: Array
    reward: Array
    terminated: Array
    physics: Array | None = None


def read_steps(episodes: Sequence[Episode], source: str, names: dict[str, str] | None = None) -> Steps:
    """The steps of episodes, as `open_episodes` gives them.

    - Rows of ogbench, minari and our own recordings have what is seen and then done: the last one, after which nothing
      is seen, is not the start of a step.
    - D4RL's files may have `next_observations`, by which that one is; `terminals` are terminations where there are
      `timeouts`, too, and ends of episodes for whatever reason, as ogbench's, without.
    - Rows of ExoRL (with a column `discount`) have what was done, and seen then: a step's action and reward are those
      of the row that it leads to. A discount of zero is a termination.

    Args:
        episodes: their columns.
        source: what they are called in errors.
        names: of the columns, `{"observation": …, "action": …, "reward": …, "terminated": …}`, where they are not
            the usual ones.

    Raises:
        ValueError: columns that are missing, of another shape, or not finite.
    """
    parts: list[tuple[Array, ...]] = []
    lost = 0
    for number, episode in enumerate(episodes):
        part, without = _of_one(episode, f"episode {number} of {source}", names or {})
        lost += without
        if parts and (part[0].shape[1:], part[1].shape[1:]) != (parts[0][0].shape[1:], parts[0][1].shape[1:]):
            shapes = [list(each.shape[1:]) for each in (*part[:2], *parts[0][:2])]
            raise ValueError(
                f"episode {number} of {source} has observations {shapes[0]} and actions {shapes[1]}, episode 0 "
                f"{shapes[2]} and {shapes[3]}"
            )
        parts.append(part)
    if lost:
        rank_zero_warn(f"{source} does not say what {lost} terminated steps led to, which are left out")
    lengths = np.array([len(part[1]) for part in parts])
    if not lengths.sum():
        raise ValueError(f"{source} has no step: an episode has two states at least")
    starts = np.cumsum([0, *(lengths[:-1] + 1)])
    seen, action, reward, terminated = (np.concatenate([part[field] for part in parts]) for field in range(4))
    if seen.ndim == 2:
        seen = np.asarray(seen, np.float32)
    row = np.concatenate([start + np.arange(length) for start, length in zip(starts, lengths, strict=True)])
    physics = None if any(len(part) < 5 for part in parts) else np.concatenate([part[4] for part in parts])
    return Steps(seen, row, np.repeat(starts, lengths), action, reward, terminated, physics)


def _of_one(episode: Episode, source: str, names: dict[str, str]) -> tuple[tuple[Array, ...], int]:
    """What one episode has, `[T + 1, ...]` observations and T of all else; how many terminations had to go."""

    def find(field: str, needed: bool = False) -> Array | None:
        chosen = names.get(field) or next((name for name in _NAMES[field] if name in episode), None)
        if chosen is None or chosen not in episode:
            if needed or field in names:
                wanted = names.get(field) or " or ".join(_NAMES[field])
                raise ValueError(f"{source} has no column {wanted}, but {', '.join(sorted(episode))}")
            return None
        return episode[chosen].read(0, len(episode[chosen]))

    seen, action = find("observation", needed=True), find("action", needed=True)
    assert seen is not None
    assert action is not None
    reward, following, terminated = find("reward"), find("next_observation"), find("terminated")
    of_dm_env = "discount" in episode and len(seen) == len(action)
    if terminated is None and "terminals" in episode and "timeouts" in episode:
        terminated = episode["terminals"].read(0, len(seen))
    if terminated is None and "discount" in episode:
        terminated = episode["discount"].read(0, len(episode["discount"])) == 0
    if following is not None:
        seen = np.concatenate([seen, following[-1:]])
    steps, skip = len(seen) - 1, int(of_dm_env)
    if len(action) - skip not in (steps, steps + 1):
        raise ValueError(f"{source} has {len(seen)} states, but {len(action)} actions")

    def cut(values: Array | None, fill: Any) -> Array:
        if values is None:
            return np.full(steps, fill)
        return np.asarray(values)[skip:].reshape(len(values) - skip)[:steps]

    lost = 0 if terminated is None else int(np.asarray(terminated).reshape(-1)[skip + steps :].sum())
    action = np.asarray(action)[skip:][:steps]
    action = np.asarray(action, np.float32).reshape(steps, int(np.prod(action.shape[1:])))
    part = (
        seen,
        action,
        np.asarray(cut(reward, np.nan), np.float32),
        np.asarray(cut(terminated, False), bool),
    )
    for name, values in {"actions": action, "observations": seen if seen.dtype.kind == "f" else action}.items():
        wrong = np.flatnonzero(~np.isfinite(values).reshape(len(values), int(np.prod(values.shape[1:]))).all(1))
        if len(wrong):
            raise ValueError(f"{name} of {source} are not finite at step {wrong[0]}: {values[wrong[0]]}")
    for name in ("physics", "scene"):
        if name in episode:
            return (*part, np.asarray(episode[name].read(1, steps + 1))), lost
    return part, lost

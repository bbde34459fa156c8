"""What an agent reaches for rewards that it has never seen: tasks by labelled states, then episodes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jepa_lightning.evaluation.scores import Score, interval, mean_normalised
from jepa_lightning.importing import imported
from jepa_lightning.planning.agent import Agent

Array = np.ndarray[Any, Any]
Actor = Callable[[Array, Sequence[Any]], Array]  # observations and environments to actions


class Outcome(NamedTuple):
    """Scores, a row a reward, and films of the first agent's first episodes by the reward's name."""

    scores: list[Score]
    films: dict[str, list[Array]]

    def mean(self) -> float:
        """The mean normalised return of all rewards that have one."""
        return mean_normalised(self.scores)


class Reward:
    """A reward, which labels states and is collected in episodes.

    Args:
        given: options of the environment that rewards so, such as `{"task": "walk"}`; or the path of a function from
            observations `[N, …]`, in the world's units, to rewards `[N]`, or such a function.
        environment: `{"id": …, …}`, the arguments of `gymnasium.make`.

    Raises:
        ValueError: something else, or an environment that cannot reward states.
    """

    def __init__(self, given: Any, environment: Mapping[str, Any]) -> None:
        self.function = imported(given) if isinstance(given, str) else given
        self.options = {**environment, **given} if isinstance(given, Mapping) else dict(environment)
        if not isinstance(given, Mapping) and not callable(self.function):
            raise ValueError(f"a reward is options of the environment, or a function of observations, not {given!r}")

    def labels(self, observations: Array, physics: Array | None, actions: Array) -> Array:
        """What being in each of some states, got into by an action, is worth, `[N]`."""
        if callable(self.function):
            return np.asarray(self.function(observations), np.float64).reshape(len(observations))
        (env,) = _made(self.options, 1, film=False, frame_stack=1)
        rewards = getattr(env.unwrapped, "rewards", None)
        if rewards is None or physics is None:
            raise ValueError(
                f"{self.options['id']} cannot reward states again"
                + (", as it has no method `rewards`" if rewards is None else ", which the data do not hold (`physics`)")
                + ": give the path of a function of observations"
            )
        found = np.asarray(rewards(physics, actions), np.float64)
        env.close()
        return found

    def of_step(self, observations: Array, rewards: Array) -> Array:
        """What a step of several environments is worth, by what was seen then, or by the environments themselves."""
        return np.asarray(self.function(observations)) if callable(self.function) else rewards


class Random:
    """Actions anywhere within their bounds."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng([seed, 5])

    def __call__(self, observations: Array, envs: Sequence[Any]) -> Array:
        """One each, uniformly."""
        space = envs[0].action_space
        return self.rng.uniform(space.low, space.high, (len(envs), *space.shape))


def zero_shot(
    agents: Sequence[Agent],
    data: Any,
    environment: Mapping[str, Any],
    rewards: Mapping[str, Any],
    experts: Mapping[str, Any] | None = None,
    num_samples: int = 10_000,
    num_episodes: int = 10,
    shift: float = 0.0,
    seed: int = 1000,
    film: bool = False,
) -> Outcome:
    """Infer the task of each reward from labelled states of the data, and play it.

    Args:
        agents: of several trainings, or one.
        data: a `TransitionsDataModule` that is set up, whose states are labelled.
        environment: `{"id": …, …}`, the arguments of `gymnasium.make`.
        rewards: by name (see `Reward`).
        experts: by a reward's name, or `all`, the class of somebody who acts, or its path: it is made with the reward's
            name, and called with observations and environments. Where there is none, no expert is known.
        num_samples: states that are labelled.
        num_episodes: of each agent for each reward, all at once.
        shift: what is added to a label, as OGBench's rewards of −1 and 0 are made 0 and 1.
        seed: of the first episode; the next ones have the next seeds.
        film: whether the first episodes are filmed.

    Raises:
        ValueError: an environment or a reward that cannot be played.
    """
    observations, physics, actions = labelled_states(data, num_samples, seed)
    stack, scores = agents[0].frame_stack, []
    films: dict[str, list[Array]] = {}
    for name, given in rewards.items():
        reward = Reward(given, environment)
        labels = reward.labels(_last_frame(observations, stack), physics, actions)
        returns = []
        for number, agent in enumerate(agents):
            filmed = film and number == 0
            actor = _Acting(agent, agent.infer_task(observations, labels + shift))
            played, steps, frames = play_reward(actor, reward, num_episodes, stack, seed, filmed)
            returns.append(played)
            if filmed:
                if frames:
                    films[name] = frames
                film = bool(frames)  # a renderer that is not there is asked for once: MuJoCo ends the process then
        at_random, _, _ = play_reward(Random(seed), reward, num_episodes, stack, seed)
        found = (experts or {}).get(name, (experts or {}).get("all"))
        expert = np.nan
        if found is not None:
            made = (imported(found) if isinstance(found, str) else found)(name)
            expert = float(play_reward(made, reward, num_episodes, stack, seed)[0].mean())
            if expert <= at_random.mean():
                warnings.warn(
                    f"the expert of {name} returns {expert:.3g}, and random actions {at_random.mean():.3g}, so that "
                    "nothing can be normalised by them: it is nan, and the mean leaves it out. Give a better expert",
                    stacklevel=2,
                )
        mean, low, high = interval(returns[0] if len(returns) == 1 else np.array([each.mean() for each in returns]))
        of_data = float(labels.mean()) * steps
        scores.append(Score(name, mean, low, high, float(at_random.mean()), of_data, expert, steps))
    return Outcome(scores, films)


class _Acting:
    """An agent with its task."""

    def __init__(self, agent: Agent, task: Any) -> None:
        self.agent, self.task = agent, task

    def __call__(self, observations: Array, envs: Sequence[Any]) -> Array:
        return self.agent.act(observations, self.task)


def labelled_states(data: Any, number: int, seed: int = 0) -> tuple[Array, Array | None, Array]:
    """States that steps of the data lead to, in the world's units, the simulator's, and the actions before."""
    steps, stack = data.steps["train"], data.hparams.frame_stack
    chosen = np.random.default_rng(seed).permutation(len(steps.row))[:number]
    rows = steps.row[chosen] + 1
    if stack > 1:
        rows = np.maximum(rows[:, None] + np.arange(1 - stack, 1), steps.first[chosen][:, None])
    physics = None if steps.physics is None else steps.physics[chosen]
    return steps.seen[rows], physics, steps.action[chosen]


def play_reward(
    actor: Actor, reward: Reward, num_episodes: int, frame_stack: int = 1, seed: int = 0, film: bool = False
) -> tuple[Array, int, list[Array]]:
    """Let somebody act in several environments at once.

    Returns:
        The returns `[N]`, the steps of the longest episode, and frames of the first, none where it cannot be drawn.
    """
    envs = _made(reward.options, num_episodes, film, frame_stack)
    seen = np.stack([np.asarray(env.reset(seed=seed + number)[0]) for number, env in enumerate(envs)])
    returns, active, frames, steps = np.zeros(num_episodes), np.ones(num_episodes, bool), list[Array](), 0
    space = envs[0].action_space
    while active.any():
        if film and active[0]:
            try:
                frames.append(np.asarray(envs[0].render()))
            except Exception as error:  # whatever an environment lacks: returns are worth more than films
                warnings.warn(f"there is no film, as {reward.options['id']} draws no frames: {error}", stacklevel=2)
                film = False
        actions = np.clip(actor(seen, envs), space.low, space.high).astype(space.dtype)
        given, steps = np.zeros(num_episodes), steps + 1
        playing = active.copy()
        for number in np.flatnonzero(playing):
            observation, given[number], terminated, truncated, _ = envs[number].step(actions[number])
            seen[number] = observation
            active[number] = not (terminated or truncated)
        returns += playing * reward.of_step(_last_frame(seen, frame_stack), given)
    for env in envs:
        env.close()
    return returns, steps, frames


def _made(options: Mapping[str, Any], number: int, film: bool, frame_stack: int) -> list[Any]:
    from jepa_lightning.data.episodes.record import make_environment

    import gymnasium  # isort: skip

    arguments = {name: value for name, value in options.items() if name != "id"}
    arguments |= {"render_mode": "rgb_array"} if film else {}
    made = [make_environment(options["id"], **arguments) for _ in range(number)]
    if frame_stack > 1:
        made = [gymnasium.wrappers.FrameStackObservation(env, frame_stack) for env in made]
    return made


def _last_frame(observations: Array, frame_stack: int) -> Array:
    return observations[:, -1] if frame_stack > 1 else observations

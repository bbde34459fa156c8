"""Planning while a world model trains: does it get to its goals yet?"""

from __future__ import annotations

import io
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from jepa_lightning.planning.episodes import Outcome, Reference, play
from jepa_lightning.planning.policy import Policy, policy_of


class Episodes(pl.Callback):
    """Plays episodes in an environment by a world model's plans, and films the first one into TensorBoard.

    Logs `plan/<environment>/success`, the share of the episodes that get to their goals, `plan/<environment>/steps`,
    how long those take that do, and `plan/<environment>/seconds`, of a decision. The episodes are always the same ones,
    and are shared among processes.

    Args:
        environment: `{"id": …, …}`, the arguments of `gymnasium.make`, such as
            `{"id": "jepa_lightning/TwoRoom-v0", "goal_steps": 25}`.
        planner: another one than the module's own, `{"class_path": …, "init_args": {…}}`.
        num_episodes: how many.
        num_envs: environments at once.
        max_steps: steps of an episode at most; as many as the environment lets it have without.
        observation: which of an environment's observations the model sees, where these have names.
        state: which one is the state, or the entry of `info` that is.
        every_n_epochs: how often.
        seed: of the first episode.
        film: whether the first episode is filmed.
        embodiment: of a model of several, which one acts.

    Raises:
        ValueError: a number that is not positive, or an environment without an id.
    """

    def __init__(
        self,
        environment: dict[str, Any],
        planner: dict[str, Any] | None = None,
        num_episodes: int = 16,
        num_envs: int = 8,
        max_steps: int | None = None,
        observation: str = "observation",
        state: str | None = None,
        every_n_epochs: int = 1,
        seed: int = 0,
        film: bool = True,
        embodiment: int | None = None,
    ) -> None:
        if "id" not in environment:
            raise ValueError(f"an environment is given as {{id: …}}, with its options, not as {environment}")
        if min(num_episodes, num_envs, every_n_epochs) < 1 or (max_steps is not None and max_steps < 1):
            raise ValueError(
                f"num_episodes, num_envs, every_n_epochs and max_steps must be 1 or more, got {num_episodes}, "
                f"{num_envs}, {every_n_epochs} and {max_steps}"
            )
        self.environment, self.planner, self.every_n_epochs, self.film = environment, planner, every_n_epochs, film
        self.num_episodes, self.num_envs, self.max_steps, self.seed = num_episodes, num_envs, max_steps, seed
        self.observation, self.state, self.embodiment = observation, state, embodiment

    @property
    def name(self) -> str:
        """Of the environment (the one within, of `Reaching`), without its version."""
        within = self.environment.get("environment", self.environment)
        return str(within["id"]).rpartition("/")[2].partition("-v")[0]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find out that something is missing before the training, and not after its first epoch.

        Raises:
            ValueError: a module that is no world model, or data that do not say how actions are normalised.
        """
        if not hasattr(type(pl_module), "world"):
            raise ValueError(f"{type(pl_module).__name__} is no world model to plan in: it has no `world`")
        several = hasattr(trainer.datamodule, "preparations")  # type: ignore[attr-defined]
        if not several and not hasattr(trainer.datamodule, "preparation"):  # type: ignore[attr-defined]
            raise ValueError("to act, one has to know how actions are normalised: train on an EpisodesDataModule")
        if several and self.embodiment is None:
            raise ValueError("the data are of several embodiments: say which one acts, Episodes(embodiment=0)")
        if self.embodiment is not None and not several:
            raise ValueError(f"the data are of one embodiment: leave embodiment={self.embodiment} out of Episodes")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Play, log, and film."""
        if (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        rank, ranks = trainer.global_rank, trainer.world_size
        own = len(range(rank, self.num_episodes, ranks))
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        preparation = data.preparation if self.embodiment is None else data.preparations[self.embodiment]
        training, outcome = pl_module.training, None
        if own:
            policy = policy_of(pl_module.eval(), preparation, self.planner, seed=self.seed, embodiment=self.embodiment)
            outcome = self.play(policy, own, rank)
        pl_module.train(training)
        numbers = torch.zeros(4, device=pl_module.device)
        if outcome is not None:
            arrived = outcome.success
            numbers += torch.tensor([arrived.sum(), outcome.steps[arrived].sum(), outcome.seconds * own, own]).to(
                numbers
            )
        if ranks > 1:
            numbers = trainer.strategy.reduce(numbers, reduce_op="sum")
        succeeded, steps, seconds, number = numbers.tolist()
        logged = {"success": succeeded / number, "seconds": seconds / number}
        if succeeded:
            logged["steps"] = steps / succeeded
        for name, value in logged.items():
            pl_module.log(f"plan/{self.name}/{name}", value, sync_dist=ranks > 1)
        if outcome is not None and outcome.film and rank == 0:
            self._show(trainer, outcome.film)

    def play(self, policy: Policy | Reference, num_episodes: int | None = None, rank: int = 0) -> Outcome:
        """Play the episodes, or so many of them, by a policy."""
        number = self.num_episodes if num_episodes is None else num_episodes
        return play(
            policy,
            self.environment,
            number,
            min(self.num_envs, number),
            self.max_steps,
            self.observation,
            self.state,
            self.seed + 10_000 * rank,
            self.film and rank == 0,
        )

    def _show(self, trainer: pl.Trainer, frames: list[Any]) -> None:
        """A GIF among TensorBoard's images, which plays."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment._get_file_writer().add_summary(gif(f"plan/{self.name}", frames), trainer.global_step)


def gif(tag: str, frames: list[Any]) -> Any:
    """A film as a summary of TensorBoard."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    pictures = [Image.fromarray(np.asarray(frame)) for frame in frames]
    file = io.BytesIO()
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=100, loop=0)
    rows, columns = np.asarray(frames[0]).shape[:2]
    image = Summary.Image(height=rows, width=columns, colorspace=3, encoded_image_string=file.getvalue())
    return Summary(value=[Summary.Value(tag=tag, image=image)])

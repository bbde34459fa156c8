"""`jepa plan`: episodes in an environment, by the plans of a trained world model."""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl

from jepa_lightning.callbacks.episodes import Episodes
from jepa_lightning.planning.episodes import Reference
from jepa_lightning.planning.policy import Policy, load_planner


class PlanningTrainer(pl.Trainer):
    """A Trainer for a subcommand more."""

    def plan(
        self,
        model: pl.LightningModule,
        datamodule: pl.LightningDataModule,
        ckpt_path: str,
        environment: dict[str, Any] | None = None,
        planner: dict[str, Any] | None = None,
        policy: Literal["planner", "expert", "straight", "random"] = "planner",
        num_episodes: int = 50,
        num_envs: int = 10,
        max_steps: int | None = None,
        seed: int = 1000,
        embodiment: int | None = None,
    ) -> None:
        """Play episodes by the plans of a trained world model; print how many get to their goals.

        Args:
            model: not used; the checkpoint says what it is.
            datamodule: not used; the checkpoint says how its numbers are normalised.
            ckpt_path: a checkpoint of a world model of ours.
            environment: `{id: …, …}`, the arguments of `gymnasium.make`; those of the recipe's `Episodes` callbacks
                without.
            planner: another one than the checkpoint's, `{class_path: …, init_args: {…}}`.
            policy: who acts; others than the planner are what it is measured against (see `Reference`).
            num_episodes: how many.
            num_envs: environments at once.
            max_steps: steps of an episode at most; as many as the environment lets it have without.
            seed: of the first episode, another than that of the episodes while it was trained.
            embodiment: of a checkpoint of several, which one acts; that of the recipe's `Episodes` without.
        """
        given = [callback for callback in self.callbacks if isinstance(callback, Episodes)]  # type: ignore[attr-defined]
        if environment is not None:
            given = [Episodes(environment, planner)]
        if not given:
            raise ValueError("give an environment to plan in, --environment '{id: jepa_lightning/TwoRoom-v0}'")
        for each in given:
            played = Episodes(
                each.environment,
                None,
                num_episodes,
                num_envs,
                each.max_steps if max_steps is None else max_steps,
                each.observation,
                each.state,
                seed=seed,
                film=False,
            )
            actor: Policy | Reference
            if policy == "planner":
                acting = each.embodiment if embodiment is None else embodiment
                device = self.strategy.root_device
                actor = load_planner(ckpt_path, planner or each.planner, device=device, seed=seed, embodiment=acting)
            else:
                actor = Reference(policy, seed)
            outcome = played.play(actor)
            if self.is_global_zero:
                print(f"{played.name}: {outcome}")

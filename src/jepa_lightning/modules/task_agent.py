"""From a reward or a goal to a task, and from a task to actions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jepa_lightning.losses.distributed import num_ranks, sum_over_ranks
from jepa_lightning.modules.jepa import JEPA
from jepa_lightning.networks.policies import to_sphere


class TaskAgent(JEPA):
    """Infers tasks from rewards and goals, and acts for them; how it learns is a subclass's.

    A task is a direction of the features ψ: the reward of a state is its ψ · z.

    Attributes:
        frames: the encoder of frames, None where observations are vectors.
        phi: φ, the encoder of states.
        psi: ψ, the encoder whose directions tasks are; there is none where a method is `symmetric`, and φ is it.
        actor: of what it sees, a task and, where it takes it, noise.
        flow: what noise flows by into the data's actions, None without.
        task_dim: numbers Z of a task.
        task_moment: the second moment of ψ, `[Z, Z]`, by which goals are scaled (`scale_goals`).

    Source: TD-JEPA (arXiv 2510.00739), section 4.3.
    """

    frames: Any
    phi: Any
    psi: Any
    actor: Any
    flow: Any
    task_dim: int
    task_moment: Tensor

    @property
    def task_encoder(self) -> Any:
        """ψ."""
        return self.phi if self.hparams.symmetric else self.psi

    @torch.no_grad()
    def infer_task(self, observations: Tensor, rewards: Tensor) -> Tensor:
        """The task `[Z]` of a reward: that of the least squares of ψ to the rewards of some states (section 4.3).

        Args:
            observations: states `[N, F]`, or frames, that were rewarded, in the model's units.
            rewards: `[N]`, theirs.

        Raises:
            ValueError: rewards that are not finite, all zero, or not one for each state.
        """
        rewards = rewards.reshape(-1).double().cpu()
        if len(rewards) != len(observations) or not rewards.isfinite().all():
            raise ValueError(
                f"expected {len(observations)} finite rewards, one for each state, got {list(rewards.shape)}"
            )
        if not rewards.any():
            raise ValueError("all rewards are zero, which makes no task: give states of which some are rewarded")
        psi = torch.cat([self.task_encoder(self._encode(part)) for part in observations.split(1024)])
        # By singular values, as features may depend on each other.
        found = torch.linalg.lstsq(psi.double().cpu(), rewards.unsqueeze(1), driver="gelsd").solution.squeeze(1)
        return to_sphere(found.to(psi))

    @torch.no_grad()
    def infer_goal(self, observation: Tensor) -> Tensor:
        """The task `[Z]`, or tasks `[B, Z]`, of being in a state `[F]`, or states `[B, F]`, or such frames."""
        one = observation.ndim == (1 if self.frames is None else 3)
        found = to_sphere(self._goal(self.task_encoder(self._encode(observation[None] if one else observation))))
        return found[0] if one else found

    @torch.no_grad()
    def act(self, observation: Tensor, task: Tensor, noise: Tensor | None = None) -> Tensor:
        """The policy's actions `[B, A]` in states `[B, F]`, or frames, for a task `[Z]` or one each, `[B, Z]`.

        A Gaussian actor does its mean; one of a flow turns noise `[B, A]` into actions, by default that of torch's
        generator.
        """
        state = self._encode(observation)
        sees = self.phi(state) if self.hparams.actor_reads_phi else state
        task = task.expand(len(state), -1)
        if self.flow is not None and noise is None:
            noise = torch.randn(len(state), self.hparams.action_dim, device=state.device)
        return self.actor(sees, task, noise)

    @torch.no_grad()
    def _remember(self, psi: Tensor) -> None:
        """ψ's second moment, slowly, by a batch `[B, Z]`; one that is not finite leaves no trace."""
        psi = psi.float()
        with torch.autocast(psi.device.type, enabled=False):
            moment = sum_over_ranks(psi.mT @ psi) / (len(psi) * num_ranks())
        moved = self.task_moment.lerp(moment, 0.005)
        self.task_moment.copy_(torch.where(moved.isfinite().all(), moved, self.task_moment))

    def _goal(self, psi: Tensor) -> Tensor:
        """Tasks of states, before they are brought to the sphere."""
        if not self.hparams.scale_goals:
            return psi
        moment = self.task_moment + 1e-6 * torch.eye(self.task_dim, device=psi.device)
        with torch.autocast(psi.device.type, enabled=False):
            return psi.float() @ torch.linalg.inv(moment)

    def _encode(self, observation: Tensor) -> Tensor:
        """States as φ, ψ and the actor see them: of frames, vectors."""
        self._check_shapes(observation)
        return observation.to(self.device).float() if self.frames is None else self.frames(observation.to(self.device))

    def _check_shapes(self, observation: Tensor, action: Tensor | None = None) -> None:
        given = self.hparams
        shape = [given.observation_dim] if self.frames is None else list(given.observation_dim)
        if list(observation.shape[1:]) != shape:
            raise ValueError(f"expected observations [B, {', '.join(map(str, shape))}], got {list(observation.shape)}")
        if action is not None and list(action.shape[1:]) != [given.action_dim]:
            raise ValueError(f"expected actions [B, {given.action_dim}], got {list(action.shape)}")

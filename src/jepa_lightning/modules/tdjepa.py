"""TD-JEPA: what follows an action if a policy goes on, and a policy for any reward (arXiv 2510.00739)."""

from __future__ import annotations

import copy
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

from jepa_lightning.checkpoints.families import tdjepa as official
from jepa_lightning.clock import is_logged
from jepa_lightning.draws import Rng
from jepa_lightning.errors import check_choice, check_numbers
from jepa_lightning.losses import orthonormality, weighted_over_ranks
from jepa_lightning.losses.distributed import check_batch, gather_samples, num_ranks, sum_over_ranks
from jepa_lightning.modules.task_agent import TaskAgent
from jepa_lightning.modules.training import Teacher
from jepa_lightning.networks.drq import DrQEncoder, shift_frames
from jepa_lightning.networks.policies import (
    SphereEncoder,
    TaskActor,
    TaskPredictor,
    VectorField,
    pessimistic,
    to_sphere,
)
from jepa_lightning.step import Latents, Prediction, Tokens


class Drawn(NamedTuple):
    """What a step draws for its B samples.

    Attributes:
        task: normal, `[B, Z]`, tasks before they are brought to the sphere.
        goal: `[B]`, for each sample, which one's next state is its goal, of the batch of all processes.
        mix: uniform, `[B, 1]`, whether the task is the goal.
        next_action: normal, `[B, A]`, of the action that the policy does next.
        action: normal, `[B, A]`, of the action whose value the actor is to raise.
        flow: normal, `[B, A]`, where the data's action has flowed from; None without a flow.
        flow_time: uniform, `[B, 1]`, when.
        shift: uniform, `[B, 4]`, of frames and of next frames; None without frames.
    """

    task: Tensor
    goal: Tensor
    mix: Tensor
    next_action: Tensor
    action: Tensor
    flow: Tensor | None = None
    flow_time: Tensor | None = None
    shift: Tensor | None = None


class Seen(NamedTuple):
    """A batch as the networks see it: states (of frames, their vectors) `[B, F]`, actions, and what follows.

    Attributes:
        state: `[B, F]`.
        action: `[B, A]`.
        next_state: `[B, F]`, without gradient.
        goes_on: `[B, 1]`, 0 where the next state is the last one.
    """

    state: Tensor
    action: Tensor
    next_state: Tensor
    goes_on: Tensor


# The least values of options, by their names.
_LEAST = {
    2: "embedding_layers",
    1: "action_dim phi_dim psi_dim encoder_dim predictor_dim heads actor_dim flow_dim flow_layers flow_steps",
    0: "phi_layers psi_layers predictor_layers actor_layers actor_std actor_clip bc_coeff phi_ortho psi_ortho "
    "predictor_pessimism actor_pessimism shift lr_phi lr_psi lr_predictor lr_actor lr_flow",
}


class TDJEPA(TaskAgent):
    """Predict the embeddings of all that follows an action if the policy of a task goes on, by temporal differences.

    Context: a state's embedding φ. Target: the next state's embedding by another encoder, ψ, and those of all later
    states, discounted. Condition: the action, and the task z whose policy acts from then on. Against collapse: the
    targets are made by slow teachers of all networks, and a term keeps the features of φ and of ψ orthonormal. As ψ is
    predicted from φ, so is φ from ψ. A task is a direction of ψ: the reward of a state is its ψ · z, the value of an
    action its prediction · z, and that is what the actor raises.

    Afterwards `infer_task` finds the z of any reward, `infer_goal` that of a state to be in, and `act` acts (see
    `load_agent`). Batches are `Transitions` (see `TransitionsDataModule`). Two Adams, of the networks that predict and
    of the actor, make a step each in every batch; a Trainer's `max_steps` counts both.

    Args:
        observation_dim: numbers F of an observation; of frames, `[channels, rows, columns]`, stacked ones as channels.
        action_dim: numbers A of an action, each in [−1, 1].
        symmetric: whether ψ is φ, so that there are one encoder and one predictor.
        phi_dim: numbers of φ.
        psi_dim: numbers of ψ, and Z of a task; symmetric, both are `phi_dim`.
        phi_layers: hidden layers of φ; 0 makes it linear.
        psi_layers: hidden layers of ψ.
        encoder_dim: width of both.
        predictor_dim: width of the predictors.
        predictor_layers: their layers between branches and output.
        embedding_layers: layers of each branch, of the actor's too.
        heads: how many each predictor has.
        actor: `gaussian`, a mean with noise around it; or `flow`, noise turned into an action in one step, kept near to
            where a flow takes it that makes the data's actions.
        actor_dim: width of the actor.
        actor_layers: its layers between branches and output.
        actor_reads_phi: whether the actor sees φ, or else what φ sees.
        actor_std: size of a Gaussian actor's noise.
        actor_clip: where the noise is clipped.
        bc_coeff: weight of how far the actor is from the data's action, or from the flow's.
        flow_dim: width of the flow's vector field.
        flow_layers: its hidden layers.
        flow_steps: Euler's steps from noise to action.
        discount: γ, in [0, 1).
        phi_ortho: weight of φ's orthonormality.
        psi_ortho: weight of ψ's.
        goal_share: share of the tasks that are goals, states of the batch; the others are anywhere on the sphere.
        scale_goals: whether goals are multiplied by the inverse of ψ's second moment, as tasks of rewards are.
        predictor_pessimism: what targets are below the mean of the heads, in units of how far two heads are apart.
        actor_pessimism: the same of the value that the actor raises.
        encoder_tau: the share of the way to their encoders that teachers go in a step, in [0, 1].
        predictor_tau: the same of the predictors' teachers.
        shift: by how many pixels frames are shifted, at most.
        lr: learning rate, which is constant.
        lr_phi: that of φ and of the encoder of frames, if it is another.
        lr_psi: that of ψ.
        lr_predictor: that of the predictors.
        lr_actor: that of the actor.
        lr_flow: that of the flow.
        weights: what the training starts from, see `TrainingModule`.

    Raises:
        ValueError: a value out of its range.

    Source: TD-JEPA (arXiv 2510.00739), section 4; the defaults are those of DMC from states.
    """

    reads = ("observation", "action", "next_observation", "terminated")
    target_phi: Any
    target_psi: Any

    def __init__(
        self,
        observation_dim: int | list[int],
        action_dim: int,
        symmetric: bool = False,
        phi_dim: int = 256,
        psi_dim: int = 50,
        phi_layers: int = 0,
        psi_layers: int = 2,
        encoder_dim: int = 256,
        predictor_dim: int = 1024,
        predictor_layers: int = 1,
        embedding_layers: int = 2,
        heads: int = 2,
        actor: Literal["gaussian", "flow"] = "gaussian",
        actor_dim: int = 1024,
        actor_layers: int = 1,
        actor_reads_phi: bool = True,
        actor_std: float = 0.2,
        actor_clip: float = 0.3,
        bc_coeff: float = 0.0,
        flow_dim: int = 512,
        flow_layers: int = 4,
        flow_steps: int = 10,
        discount: float = 0.98,
        phi_ortho: float = 0.1,
        psi_ortho: float = 0.1,
        goal_share: float = 0.5,
        scale_goals: bool = False,
        predictor_pessimism: float = 0.0,
        actor_pessimism: float = 0.0,
        encoder_tau: float = 0.001,
        predictor_tau: float = 0.001,
        shift: int = 4,
        lr: float = 1e-4,
        lr_phi: float | None = None,
        lr_psi: float | None = None,
        lr_predictor: float | None = None,
        lr_actor: float | None = None,
        lr_flow: float | None = None,
        weights: str | dict[str, str] | None = None,
    ) -> None:
        super().__init__(lr=lr, start_lr=lr, final_lr=lr, warmup=0.0, weight_decay=(0.0, 0.0), weights=weights)
        check_choice("actor", actor, ("gaussian", "flow"))
        for least, names in _LEAST.items():
            check_numbers({name: self.hparams[name] for name in names.split()}, least)
        check_numbers({"goal_share": goal_share, "encoder_tau": encoder_tau, "predictor_tau": predictor_tau}, 0, 1)
        check_numbers({"discount": discount}, 0, below=1)
        self.automatic_optimization = False
        self.frames = None if isinstance(observation_dim, int) else DrQEncoder(observation_dim)
        state_dim = observation_dim if isinstance(observation_dim, int) else DrQEncoder.embed_dim
        self.task_dim = phi_dim if symmetric else psi_dim
        sizes = (predictor_dim, predictor_layers, embedding_layers, heads)
        self.phi = SphereEncoder(state_dim, phi_dim, encoder_dim, phi_layers)
        self.phi_predictor = TaskPredictor(phi_dim, action_dim, self.task_dim, self.task_dim, *sizes)
        if not symmetric:
            self.psi = SphereEncoder(state_dim, psi_dim, encoder_dim, psi_layers)
            self.psi_predictor = TaskPredictor(psi_dim, action_dim, self.task_dim, phi_dim, *sizes)
        for teacher in self.teachers():
            network = copy.deepcopy(self.get_submodule(teacher.student))
            self.add_module(teacher.teacher, network.requires_grad_(False).eval())
        sees = phi_dim if actor_reads_phi else state_dim
        of_actor = (actor_dim, actor_layers, embedding_layers)
        self.actor = TaskActor(sees, self.task_dim, action_dim, *of_actor, noise=actor == "flow")
        self.flow = VectorField(sees, action_dim, flow_dim, flow_layers) if actor == "flow" else None
        self.register_buffer("task_moment", torch.eye(self.task_dim))

    # --- The update --------------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """A step of the networks that predict, then one of the actor by what they have become; teachers follow."""
        predicting, acting = self.optimizers()  # type: ignore[attr-defined]
        size = len(self.observations(batch)[0])
        drawn = self._drawn(batch, size, batch_idx)
        seen = self.see(batch, drawn)
        task = self.tasks(seen, drawn)
        latents = self.predict(seen, task, drawn)
        terms = self.loss(latents)
        self._descend(predicting, terms["loss"])
        self._remember(latents.embeddings["phi" if self.hparams.symmetric else "psi"].values.squeeze(1))
        terms |= self.actor_loss(seen, task, drawn)
        self._descend(acting, terms["actor_loss"])
        if is_logged(self.trainer):
            self.log_terms(terms, "train", size)
        return {**terms, "latents": latents.detach(), "drawn": drawn}

    def draw(self, batch: Any, rng: Rng) -> Drawn:
        """Tasks, the noise of actions and flows, and shifts of frames."""
        actions, flows = self.hparams.action_dim, self.flow is not None
        return Drawn(
            task=rng.normal(self.task_dim),
            goal=rng.shared(rng.batch_size * rng.ranks).argsort()[rng.rank :: rng.ranks],
            mix=rng.sample(1),
            next_action=rng.normal(actions),
            action=rng.normal(actions),
            flow=rng.normal(actions) if flows else None,
            flow_time=rng.sample(1) if flows else None,
            shift=None if self.frames is None else rng.sample(4),
        )

    def see(self, batch: Any, drawn: Drawn) -> Seen:
        """A batch as the networks see it; frames are shifted, and encoded once.

        Raises:
            ValueError: observations or actions of another size.
        """
        observation, action, following, terminated = self.observations(batch)
        self._check_shapes(observation, action)
        if self.frames is None:
            state, next_state = observation.float(), following.float()
        else:
            most, shift = self.hparams.shift, drawn.shift
            assert shift is not None
            state = self.frames(shift_frames(observation, shift[:, :2], most))
            with torch.no_grad():
                next_state = self.frames(shift_frames(following, shift[:, 2:], most))
        return Seen(state, action.float(), next_state, 1.0 - terminated.reshape(-1, 1).to(state.dtype))

    @torch.no_grad()
    def tasks(self, seen: Seen, drawn: Drawn) -> Tensor:
        """The tasks of a step, `[B, Z]`: for some, to be in a state of the batch; for others, any direction."""
        goals = self._goal(gather_samples(self.task_encoder(seen.next_state))[drawn.goal])
        return to_sphere(torch.where(drawn.mix < self.hparams.goal_share, goals, drawn.task))

    def predict(self, seen: Seen, task: Tensor, drawn: Drawn) -> Latents:
        """What each predictor says will follow, of all heads, and what it should have said."""
        given, states = self.hparams, {"phi": self.phi(seen.state)}
        with torch.no_grad():
            following = {"phi": self.target_phi(seen.next_state)}
            sees = following["phi"] if given.actor_reads_phi else seen.next_state
            action = self.policy(sees, task, drawn.next_action)
            if not given.symmetric:
                following["psi"] = self.target_psi(seen.next_state)
        if not given.symmetric:
            states["psi"] = self.psi(seen.state)
        predictions = {}
        for name, state in states.items():
            other = "phi" if given.symmetric or name == "psi" else "psi"
            with torch.no_grad():
                later = self.get_submodule(f"target_{name}_predictor")(following[name], action, task)
                later = pessimistic(later, given.predictor_pessimism)
                target = following[other] + given.discount * seen.goes_on * later
            predicted = self.get_submodule(f"{name}_predictor")(state, seen.action, task).transpose(0, 1)
            predictions[name] = Prediction(predicted, target.unsqueeze(1).expand_as(predicted))
        embeddings = {name: Tokens(state.unsqueeze(1)) for name, state in states.items()}
        return Latents(predictions, embeddings, embeddings["phi"])

    def loss(self, latents: Latents) -> dict[str, Tensor]:
        """The distances of both predictions and, by their weights, how orthonormal both embeddings are."""
        terms, loss = {}, torch.zeros((), device=self.device)
        for name, each in latents.predictions.items():
            terms[f"{name}_td"] = weighted_over_ranks(self.distances(each.prediction, each.target), None)
            if self.training:
                check_batch(len(each.prediction))
            terms[f"{name}_ortho"] = orthonormality(latents.embeddings[name].values.squeeze(1))
            loss = loss + terms[f"{name}_td"] + self.hparams[f"{name}_ortho"] * terms[f"{name}_ortho"]
        energy = torch.stack([terms[f"{name}_td"] for name in latents.predictions]).mean()
        return {"loss": loss, "energy": energy, **terms}

    def actor_loss(self, seen: Seen, task: Tensor, drawn: Drawn) -> dict[str, Tensor]:
        """Minus the value of the actor's action, with what keeps it near to the data's, and the flow's own loss."""
        given, terms = self.hparams, {}
        with torch.no_grad():
            phi, state = self.phi(seen.state), seen.state.detach()
        sees = phi if given.actor_reads_phi else state
        action = self.policy(sees, task, drawn.action)
        values = (self.phi_predictor(phi, action, task) * task).sum(-1)  # [H, B]
        value = pessimistic(values, given.actor_pessimism).mean()
        loss, wanted = -value, seen.action
        if self.flow is not None:
            assert drawn.flow is not None
            assert drawn.flow_time is not None
            on_the_way = (1 - drawn.flow_time) * drawn.flow + drawn.flow_time * seen.action
            velocity = self.flow(sees, on_the_way, drawn.flow_time)
            terms["flow_loss"] = F.mse_loss(velocity, seen.action - drawn.flow)
            with torch.no_grad():
                wanted = self.flow.integrate(sees, drawn.action, given.flow_steps)
        if given.bc_coeff or self.flow is not None:
            terms["bc_error"] = F.mse_loss(action, wanted)
            size = sum_over_ranks(values.detach().abs().mean()) / num_ranks()
            loss = loss / size + given.bc_coeff * terms["bc_error"] + terms.get("flow_loss", 0.0)
        return {"actor_loss": loss, "value": value, **terms}

    def policy(self, sees: Tensor, task: Tensor, noise: Tensor) -> Tensor:
        """The actions `[B, A]` that noise makes; those out of bounds are clipped, but their gradients are not."""
        if self.flow is not None:
            return self.actor(sees, task, noise)
        given = self.hparams
        action = self.actor(sees, task) + (given.actor_std * noise).clamp(-given.actor_clip, given.actor_clip)
        return action + (action.clamp(-1 + 1e-6, 1 - 1e-6) - action).detach()

    def teachers(self) -> list[Teacher]:
        """Of the encoders, and of the predictors."""
        given = self.hparams
        encoders, predictors = 1 - given.encoder_tau, 1 - given.predictor_tau
        return [
            each
            for name in (("phi",) if given.symmetric else ("phi", "psi"))
            for each in (
                Teacher(name, f"target_{name}", lambda step, total: encoders),
                Teacher(f"{name}_predictor", f"target_{name}_predictor", lambda step, total: predictors),
            )
        ]

    def distances(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Squared, of each head, `[B, H]`: the sum over the features."""
        return (prediction - target).square().sum(-1)

    # --- What the base wants to know ---------------------------------------------------------------------------------

    def latents(self, batch: Any, drawn: Drawn | None = None) -> Latents:
        """φ and ψ of a batch's states, and what is predicted of each, for tasks that are drawn."""
        drawn = self.draw(batch, Rng.fresh(len(self.observations(batch)[0]), self.device)) if drawn is None else drawn
        seen = self.see(batch, drawn)
        return self.predict(seen, self.tasks(seen, drawn), drawn)

    def features(self, batch: Any) -> Tokens:
        """φ of the states."""
        return Tokens(self.phi(self._encode(self.observations(batch)[0])).unsqueeze(1))

    def configure_optimizers(self) -> Any:
        """Two Adams, each one kernel for all tensors of its networks."""
        acting = ("actor", "flow")
        parts: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
        for name, network in self.named_children():
            parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
            if parameters:
                parts[name in acting].append({"params": parameters, "lr": self._rate(name), "name": name})
        fused = self.device.type in ("cpu", "cuda")
        return [torch.optim.Adam(groups, lr=self.hparams.lr, fused=fused) for groups in parts.values()]

    def _rate(self, network: str) -> float:
        option = {"frames": "lr_phi", "phi_predictor": "lr_predictor", "psi_predictor": "lr_predictor"}
        rate = self.hparams[option.get(network, f"lr_{network}")]
        return float(self.hparams.lr if rate is None else rate)

    def _descend(self, optimizer: Any, loss: Tensor) -> None:
        """A step of one optimiser, which needs the gradients of its own parameters only."""
        if num_ranks() == 1:
            own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for parameter in own:
                parameter.grad = None
            self.manual_backward(loss, inputs=own)
        else:  # DDP waits for the gradients of all
            self.zero_grad()
            self.manual_backward(loss + 0.0 * sum(p.sum() for p in self.parameters() if p.requires_grad))
        optimizer.step()

    @classmethod
    def from_official(cls, path: str, **options: Any) -> Self:
        """A module of the sizes, options and weights of an official checkpoint, to act or train on with.

        Args:
            path: a folder in the layout of facebookresearch/td_jepa, with `config.json` and `model/`.
            **options: what is to be other than there.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: another agent, or one from pixels.
        """
        theirs, state = official.read(path)
        module = cls(**theirs | options)
        module.load_state_dict(state)
        return module

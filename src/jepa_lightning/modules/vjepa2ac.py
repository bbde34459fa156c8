"""V-JEPA 2-AC: the next frame's embedding from those before, actions and states (Assran et al., arXiv 2506.09985)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import Self

from jepa_lightning import batches
from jepa_lightning.checkpoints import load_networks, predictor_sizes, read_networks, video_transformer_sizes
from jepa_lightning.losses import Distance
from jepa_lightning.modules.jepa import JEPA
from jepa_lightning.networks import ActionPredictor, build_network
from jepa_lightning.planning import PUBLISHED_CEM, ActionWorld, Imagined, policy_options, rollout
from jepa_lightning.schedules import warmup_constant_cooldown
from jepa_lightning.step import Latents, Prediction, Tokens

# The encoder of the published model; its weights are those of V-JEPA 2.
VIT_G = {
    "class_path": "jepa_lightning.networks.VideoTransformer",
    "init_args": {
        "image_size": [256, 256],
        "num_frames": 64,
        "embed_dim": 1408,
        "depth": 40,
        "num_heads": 22,
        "mlp_ratio": 48 / 11,
        "positions": "tiled_rope",
    },
}


class VJEPA2AC(JEPA):
    """Predict the tokens of the next frame, those of a frozen encoder, from actions and states up to now.

    Context: the frames so far, each encoded alone and layer-normed. Target: the next frame's, the same way. Condition:
    the actions and the robot's states. Against collapse: the encoder is frozen. The loss is the L1 distance with the
    true frames as context (`forced`), plus that of a roll-out of a few steps, which is fed its own predictions.

    `world` is what one plans in. On held-out data, `plan/rollout_error` is how far frames that are imagined from the
    first one alone, and the actions, are from the true ones; `plan/rollout_error/<t>` t steps later.

    A batch has episodes (see `EpisodesDataModule`): `observation` `[B, C, T, H, W]`, of several views
    `[B, V, C, T, H, W]`, or whatever vectors the encoder takes, `[B, T, F]`; `action` `[B, T, A]` or `[B, T − 1, A]`,
    each of which leads to the next frame; `state` `[B, T, S]`; where there is a field `valid` `[B, T]`, frames that are
    not valid are not learnt.

    Args:
        encoder: `{"class_path": …, "init_args": {…}}` of the frozen encoder, by default the published ViT-g/16; its
            weights by `weights={"target_encoder": path}`, of any checkpoint of its kind.
        action_dim: numbers A of an action.
        state_dim: numbers S of a state; 0 for no states.
        next_state: how a roll-out goes on to the next state: `pose`, by the action, for poses of 7 numbers and
            differences of such (see `move_pose`), or `keep`, the state stays that of the start.
        predictor_embed_dim: width of the predictor.
        predictor_depth: blocks of the predictor.
        predictor_num_heads: attention heads of the predictor.
        rollout_steps: steps of the roll-out in the loss; none with 1.
        window: of how many frames the predictor sees the last, while planning too; of all without.
        num_embodiments: kinds of robots, of which a batch's `embodiment` `[B]` says which is whose. Each has maps of
            actions and states of its own (see `EmbodimentsDataModule`).
        num_views: cameras.
        normalize: whether a frame's tokens are layer-normed, before and after they are predicted.
        official: frequencies of the predictor's rotary positions as in the official code (see `rotation`).
        planner: what `load_planner` and `jepa plan` plan by, `{"class_path": …, "init_args": {…}}` (see
            `build_planner`), and options of `Policy`: `execute`, `last`. By default a CEM of the published sizes, for
            actions that are normalised.
        distance: `l1` as published, `l2` or `smooth_l1`.
        lr: learning rate between warm-up and cool-down.
        start_lr: learning rate at the start of the warm-up.
        final_lr: learning rate at the end of the cool-down.
        warmup: share of the training spent on the linear warm-up.
        cooldown: share of the training spent on the linear cool-down.
        weight_decay: weight decay at the start and at the end.
        **training: how else it is trained, see `TrainingModule`.

    Raises:
        ValueError: a value out of its range.

    Source: V-JEPA 2 (arXiv 2506.09985), section 3.
    """

    reads: tuple[str, ...] = ("observation", "action", "state")
    target_encoder: Any

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        action_dim: int = 7,
        state_dim: int = 7,
        next_state: Literal["pose", "keep"] = "pose",
        predictor_embed_dim: int = 1024,
        predictor_depth: int = 24,
        predictor_num_heads: int = 16,
        rollout_steps: int = 2,
        window: int | None = None,
        num_embodiments: int = 1,
        num_views: int = 1,
        normalize: bool = True,
        official: bool = False,
        planner: dict[str, Any] | None = None,
        distance: Distance = "l1",
        lr: float = 4.25e-4,
        start_lr: float = 7.5e-5,
        final_lr: float = 0.0,
        warmup: float = 15 / 315,
        cooldown: float = 15 / 315,
        weight_decay: tuple[float, float] = (0.04, 0.04),
        **training: Any,
    ) -> None:
        if next_state not in ("pose", "keep"):
            raise ValueError(f"next_state is pose or keep, got {next_state!r}")
        if next_state == "pose" and state_dim and (state_dim, action_dim) != (7, 7):
            raise ValueError(
                f"poses and their differences have 7 numbers, not state_dim={state_dim} and action_dim={action_dim}: "
                "give next_state=keep, or state_dim=0 for no states"
            )
        if rollout_steps < 1 or (window is not None and window < 1):
            raise ValueError(f"rollout_steps and window must be 1 or more, got {rollout_steps} and {window}")
        if not (cooldown >= 0 and warmup + cooldown <= 1):
            raise ValueError(f"warmup and cooldown are shares of one training, got {warmup} and {cooldown}")
        schedule: dict[str, Any] = {"lr": lr, "start_lr": start_lr, "final_lr": final_lr, "warmup": warmup}
        super().__init__(weight_decay=weight_decay, **schedule, **training)
        encoder, planner = VIT_G if encoder is None else encoder, PUBLISHED_CEM if planner is None else planner
        for name, value in {"encoder": encoder, "planner": planner}.items():  # what is not given is kept, too
            self.hparams[name] = self._hparams_initial[name] = value
        policy_options(planner, action_dim)
        self.distance = distance
        if not state_dim:
            self.reads = ("observation", "action")
        self.target_encoder = build_network(encoder).requires_grad_(False).eval()
        for needed in ("embed_dim", "grid_of"):
            if not hasattr(self.target_encoder, needed):
                raise ValueError(f"{type(self.target_encoder).__name__} has no {needed}, as an encoder has")
        self.predictor = ActionPredictor(
            self.target_encoder.embed_dim,
            action_dim,
            state_dim,
            predictor_embed_dim,
            predictor_depth,
            predictor_num_heads,
            "tiled_rope" if official else "rope",
            num_embodiments,
            num_views,
        )

    def rates(self) -> dict[str, float]:
        """The encoder is frozen."""
        return {"target_encoder": 0.0}

    @property
    def world(self) -> ActionWorld:
        """The model to plan in."""
        hparams = self.hparams
        return ActionWorld(self.target_encoder, self.predictor, hparams.next_state, hparams.window, hparams.normalize)

    def latents(self, batch: Any, drawn: Any = None) -> Latents:
        """Encode the frames, predict each from the true ones before it, and a few from predictions.

        Raises:
            ValueError: episodes of less than two times, or fewer times than the roll-out takes.
        """
        (frames, actions, states, embodiment, grid), valid = self._read(batch)
        world, times, steps = self.world, frames.shape[1], self.hparams.rollout_steps
        if times < 1 + steps:
            raise ValueError(f"episodes of {times} times are too short for a roll-out of {steps} steps and its start")
        weight = None if valid is None else valid[:, 1:, None].expand(-1, -1, frames.shape[2]).to(frames)
        forced = world.predict(frames[:, :-1], actions, _first(states, times - 1), grid, embodiment)
        predictions = {"forced": Prediction(forced, frames[:, 1:], weight)}
        if steps > 1:
            # The first prediction is that of the first frame already; each later one is fed those before.
            fed = torch.cat([frames[:, :1], forced[:, :1]], 1)
            for time in range(2, steps + 1):
                condition = actions[:, :time], _first(states, time)
                fed = torch.cat([fed, world.predict(fed, *condition, grid, embodiment, last=True)], 1)
            target = frames[:, 1 : 1 + steps]
            predictions["rollout"] = Prediction(fed[:, 1:], target, None if weight is None else weight[:, :steps])
        features = Tokens(frames.flatten(1, 2))
        return Latents(predictions, {"target": features}, features)

    def loss(self, latents: Latents) -> dict[str, Tensor]:
        """The sum of both distances, and each."""
        terms = super().loss(latents)
        return {**terms, "loss": terms["loss"] * len(latents.predictions)}

    def features(self, batch: Any) -> Tokens:
        """The encoder's tokens of all frames."""
        return Tokens(self.world.encode(self.observations(batch)[0])[0].flatten(1, 2))

    @torch.no_grad()
    def rollout_errors(self, batch: Any) -> Tensor:
        """How far imagined frames are from the true ones, after each step, `[B, T − 1]`: L1, whatever is trained.

        Imagined are all but the first frame, from that one, its state, and the actions alone.
        """
        (frames, actions, states, embodiment, grid), _ = self._read(batch)
        start = Imagined(frames[:, :1], actions[:, :0], _first(states, 1), embodiment, grid)
        imagined = rollout(self.world, start, actions)
        return (imagined[-1].frames[:, 1:] - frames[:, 1:]).abs().mean((2, 3))

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """The losses, and the error of open-loop roll-outs."""
        errors, valid = self.rollout_errors(batch), batches.fields(batch, self.reads).get("valid")
        for step, error in enumerate(errors.unbind(1), start=1):
            there = torch.ones_like(error) if valid is None else valid[:, step].to(error)
            if there.any():
                mean, weight = (error * there).sum() / there.sum(), int(there.sum())
                self.log(f"plan/rollout_error/{step}", mean, batch_size=weight, sync_dist=True, on_epoch=True)
        there = torch.ones_like(errors) if valid is None else valid[:, 1:].to(errors)
        mean = (errors * there).sum() / there.sum().clamp(min=1)
        self.log("plan/rollout_error", mean, batch_size=len(errors), sync_dist=True, on_epoch=True)
        return super().validation_step(batch, batch_idx)

    def learning_rate(self, step: int, total: int) -> float:
        """Linear warm-up, constant, linear cool-down."""
        hparams = self.hparams
        warmup, cooldown, end = hparams.warmup * total, hparams.cooldown * total, self.stretch * total
        return warmup_constant_cooldown(step, end, warmup, cooldown, hparams.start_lr, hparams.lr, hparams.final_lr)

    def _read(self, batch: Any) -> tuple[Imagined, Tensor | None]:
        """What episodes show, and at which times there is anything `[B, T]`."""
        observation, action, *state = self.observations(batch)
        found = batches.fields(batch, self.reads)
        seen = self.world.seen(observation, action, state[0] if state else None, found.get("embodiment"))
        return seen, found.get("valid")

    @classmethod
    def from_official(
        cls,
        path: str,
        image_size: int | list[int] | None = None,
        num_heads: int | None = None,
        predictor_num_heads: int = 16,
        **options: Any,
    ) -> Self:
        """A module of the sizes and weights of an official checkpoint (`vjepa2-ac-vitg.pt`), to plan or train on with.

        Args:
            path: a file in the layout of facebookresearch/vjepa2 (`encoder`, `predictor`). The map of camera
                extrinsics in it, which the published model does not use, is left out.
            image_size: side of the frames in pixels, or `[rows, columns]`; 256 without.
            num_heads: attention heads of the encoder, asked for only where the width is none of the published ones.
            predictor_num_heads: those of the predictor.
            **options: everything else that the module takes.

        Raises:
            ValueError: a file that is not such a checkpoint, or sizes that it does not tell.
        """
        networks = read_networks(path)
        predictor = networks.states.get("predictor", {})
        if "action_encoder.weight" not in predictor:
            raise ValueError(
                f"{path} holds no predictor with actions, as V-JEPA 2-AC has: {', '.join(networks.states)}"
            )
        sizes = video_transformer_sizes(networks.states["target_encoder"], image_size, None, num_heads, added=False)
        side = sizes["image_size"]
        sizes["image_size"], sizes["positions"] = [side, side] if isinstance(side, int) else side, "tiled_rope"
        sized: dict[str, Any] = {**predictor_sizes(predictor)}
        module = cls(
            encoder={"class_path": VIT_G["class_path"], "init_args": sizes},
            action_dim=predictor["action_encoder.weight"].shape[1],
            state_dim=predictor["state_encoder.weight"].shape[1],
            predictor_num_heads=predictor_num_heads,
            official=True,
            **sized,
            **options,
        )
        load_networks(module, networks)
        return module


def _first(states: Tensor | None, times: int) -> Tensor | None:
    return None if states is None else states[:, :times]

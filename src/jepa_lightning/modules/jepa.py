"""The base of every method: predict the embedding of a target from the embedding of a context."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Generator, Tensor, nn

from jepa_lightning.callbacks.ema import EMATargetEncoder, students_and_teachers
from jepa_lightning.callbacks.guard import GradientGuard
from jepa_lightning.checkpoints import load_networks, read_networks
from jepa_lightning.modules.latents import Latents
from jepa_lightning.modules.messages import differences, unknown_options
from jepa_lightning.modules.regularizer import Regularizer
from jepa_lightning.modules.resumable import ResumableModule
from jepa_lightning.networks.sharding import recompute_activations, shard
from jepa_lightning.schedules import ScheduledOptions, cosine, warmup_cosine


class JEPA(ResumableModule):
    """Optimisation, teacher and step of a joint-embedding predictive architecture.

    A method says what is context, target and condition in `latents`, how far a prediction is from its target in
    `energy`, and what else it minimises in `loss`. Networks and masks come from `build_encoder`, `build_predictor` and
    `build_masking`, which subclasses override freely.

    Learning rate and weight decay are set at every optimiser step as functions of its number; the target encoder
    follows by `EMATargetEncoder`, which the module brings along unless the Trainer has one, as it does `GradientGuard`.
    A subclass with another `configure_optimizers` replaces both schedules.

    Args:
        lr: peak learning rate of AdamW.
        start_lr: learning rate at the start of the warm-up.
        final_lr: learning rate at the end.
        warmup: share of the training spent on the linear warm-up, in [0, 1).
        weight_decay: weight decay at the start and at the end, along half a cosine; biases and norms have none.
        momentum: momentum of the target encoder at the start and at the end, along a line.
        stretch: the schedules are laid out for that many times the training's steps and cut off at its end, which is
            what the official codes' `ipe_scale` does; 1 or more.
        regularizers: what is added to the loss against collapse: `vicreg` and `sigreg`, each with the options of
            `Regularizer`, such as `{"sigreg": {"weight": 0.05}}`.
        weights: a checkpoint (official or ours) whose networks this training starts from, while regularisers start
            anew; read when the fit starts and only then, so that a checkpoint of the run itself needs no other file.
        recompute_activations: keep of every block of encoder and predictor its input only, and compute the rest again
            in the backward pass: a third more computation, for memory that no longer grows with the number of blocks.

    Raises:
        ValueError: a value out of its range.
        TypeError: an option that the method does not have; the message names the nearest that it has.
    """

    hparams: Any
    trainer: Any
    context_encoder: Any
    target_encoder: Any
    predictor: Any

    def __init__(
        self,
        lr: float = 1e-3,
        start_lr: float = 2e-4,
        final_lr: float = 1e-6,
        warmup: float = 0.1,
        weight_decay: tuple[float, float] = (0.04, 0.4),
        momentum: tuple[float, float] = (0.996, 1.0),
        stretch: float = 1.0,
        regularizers: dict[str, dict[str, Any]] | None = None,
        weights: str | None = None,
        recompute_activations: bool = False,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            bases = [base for base in type(self).__mro__ if issubclass(base, JEPA)]
            known = {name for base in bases for name in inspect.signature(base).parameters}
            raise TypeError(unknown_options(type(self).__name__, list(unknown), known))
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup is the share of the training in [0, 1), got {warmup}")
        if not 1 <= stretch < math.inf:
            raise ValueError(f"schedules can be stretched, by 1 or more, but not shrunk: got stretch={stretch}")
        rates = {"lr": (lr,), "start_lr": (start_lr,), "final_lr": (final_lr,), "weight_decay": weight_decay}
        for name, values in rates.items():
            if not all(0 <= value < math.inf for value in values):
                raise ValueError(f"{name} must not be negative, got {', '.join(map(str, values))}")
        self.save_hyperparameters()
        # Not of `hparams`, where a method has no such option of its own.
        self.stretch = stretch
        self.recompute_activations = recompute_activations
        self.context_encoder = self.build_encoder()
        self.target_encoder = self.build_teacher(self.context_encoder)
        self.masking = self.build_masking()
        self.predictor = self.build_predictor()
        self.regularizers = nn.ModuleDict(self.build_regularizers())

    @abstractmethod
    def build_encoder(self) -> nn.Module:
        """An encoder: `encoder(x, indices=None) -> [B, K, D]`, with attributes `embed_dim` and `grid`."""

    def build_teacher(self, student: nn.Module) -> nn.Module:
        """The teacher of a network `context_<name>`, to be kept as `target_<name>`, which is how it is found."""
        return copy.deepcopy(student).requires_grad_(False).eval()

    @abstractmethod
    def build_predictor(self) -> nn.Module:
        """A predictor: `predictor(context, context_indices, target_indices) -> [B, M, K_t, D]`."""

    @abstractmethod
    def build_masking(self) -> Any:
        """A masking: `masking(batch_size, grid, generator=None) -> Masks`."""

    def build_regularizers(self) -> dict[str, Regularizer]:
        """The regularisers by name."""
        width = self.context_encoder.embed_dim
        options = self.hparams.get("regularizers") or {}  # a method may have none of its own
        return {name: Regularizer(name, width, **chosen) for name, chosen in options.items()}

    @abstractmethod
    def latents(self, observation: Tensor, masks: Any = None) -> Latents | list[Latents]:
        """The embeddings of context, prediction and target of a batch; draws the masks if none are given.

        A list where a step makes several predictions.
        """

    @abstractmethod
    def energy(self, latents: Any) -> Tensor:
        """How far each sample's prediction is from its target, `[B]`: low for compatible pairs."""

    def loss(self, latents: Any) -> dict[str, Tensor]:
        """All terms by name; `"loss"` is what is minimised: the mean energy plus the regularisers.

        Of several predictions a step the terms are averaged.
        """
        loss = energy = self.energy(latents).mean()
        several = latents if isinstance(latents, list) else [latents]
        terms: dict[str, Tensor] = {}
        for name, regularizer in self.regularizers.items():
            for each in several:
                penalty, parts = regularizer(each)
                loss = loss + penalty / len(several)
                for part, value in parts.items():
                    term = f"{name}_{part}" if part else name
                    terms[term] = terms.get(term, 0.0) + value / len(several)
        return {"loss": loss, "energy": energy, **terms} if terms else {"loss": loss}

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Log every term under `train/`; return them with the masks and the detached latents, which callbacks read."""
        return self._step(batch, batch_idx, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """The same on held-out data, under `val/`; the masks of a batch are the same in every epoch."""
        return self._step(batch, batch_idx, "val")

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """The same on the test data, under `test/`."""
        return self._step(batch, batch_idx, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """What an evaluation reads, `features` `[B, D]`, the means of the target encoder's tokens; and the labels."""
        observation = batch if isinstance(batch, Tensor) else batch[0]
        labels = () if isinstance(batch, Tensor) else batch[1:]
        names = getattr(batch, "_fields", ("observation", "label"))[1:]
        return {"features": self.target_encoder(observation).mean(1), **dict(zip(names, labels, strict=True))}

    def _step(self, batch: Any, batch_idx: int, stage: str) -> dict[str, Any]:
        observation = batch if isinstance(batch, Tensor) else batch[0]
        grid = self.grid(observation)
        masks = self.draw_masks(len(observation), batch_idx, grid)
        latents = self.latents(observation, masks)
        features = (latents[0] if isinstance(latents, list) else latents).features
        if features is not None and features.shape[1] != math.prod(grid):
            raise ValueError(
                f"observations {list(observation.shape)} have {features.shape[1]} tokens, but the masks are drawn for "
                f"a grid of {tuple(grid)}: give module and data the same size (image_size, num_frames)"
            )
        terms = self.loss(latents)
        training = stage == "train"
        # What a progress bar is to show is read, and so waited for, in every step.
        shown = training and self._trainer is not None and self.trainer.progress_bar_callback is not None
        for name, value in terms.items():
            self.log(
                f"{stage}/{name}",
                value.detach(),
                prog_bar=shown and name == "loss",
                sync_dist=not training,
                batch_size=len(observation),
            )
        detached = [each.detach() for each in latents] if isinstance(latents, list) else latents.detach()
        return {**terms, "latents": detached, "masks": masks}

    def grid(self, observation: Tensor) -> tuple[int, ...]:
        """The token grid of a batch of observations: the encoder's, unless a method takes several sizes."""
        return self.context_encoder.grid

    def draw_masks(self, batch_size: int, batch_idx: int, grid: Sequence[int] | None = None) -> Any:
        """The masks of a batch: a function of seed, epoch and batch, so that a resumed run draws the same.

        They are drawn for the batches of all processes at once, and each process takes those of its own samples, every
        W-th of W processes: so the masks of a sample do not depend on the number of processes. Official masks, which
        are cut to the shortest of a batch, are drawn by each process for its own.

        Args:
            batch_size: number of observations.
            batch_idx: number of the batch in its epoch.
            grid: of their tokens; the encoder's by default.
        """
        epoch = self.current_epoch if self.training else -1
        ranks = 1 if self._trainer is None else self._trainer.world_size
        official = getattr(self.masking, "official", False)
        apart = ranks == 1 or official
        seed = hash((torch.initial_seed(), epoch, batch_idx, self.global_rank if apart else 0)) % 2**63
        # The official samplers look at what they have drawn: on a GPU that would have to be waited for.
        generator = Generator("cpu" if official else self.device).manual_seed(seed)
        grid = grid or self.context_encoder.grid
        if apart:
            masks = self.masking(batch_size, grid, generator=generator)
            if official and self.device.type == "cuda":
                return apply_to_collection(
                    masks, Tensor, lambda part: part.pin_memory().to(self.device, non_blocking=True)
                )
            return masks
        joint = self.masking(ranks * batch_size, grid, generator=generator)
        return apply_to_collection(joint, Tensor, lambda part: part[self.global_rank :: ranks])

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **options: Any) -> Any:
        """Load the weights of a checkpoint.

        Raises:
            ValueError: weights of another method, or of networks of other sizes.
        """
        try:
            return super().load_state_dict(state_dict, *args, **options)
        except RuntimeError as error:
            raise ValueError(
                f"these are not the weights of this {type(self).__name__}: "
                f"{differences(self.state_dict(), state_dict)}. Give it the options that they were trained with "
                "(config.yaml in the folder of their run), or start a new training from the networks that both have by "
                "--model.weights"
            ) from error

    def train(self, mode: bool = True) -> JEPA:
        """Put all but the teachers into training mode: a target encoder with dropout would aim at noise."""
        super().train(mode)
        for _, teacher in students_and_teachers(self):
            teacher.eval()
        return self

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with step-wise warm-up cosine; tensors of less than two dimensions are not decayed."""
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError("the schedules need an end: give the Trainer max_epochs or max_steps")
        hparams = self.hparams
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": hparams.weight_decay[0]},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=hparams.lr,
            # One kernel for all tensors. With a gradient scaler it would take over the unscaling, too, which comes too
            # late for gradients to be clipped.
            fused=self.device.type in ("cpu", "cuda") and self.trainer.precision != "16-mixed",
        )
        # The official counter is advanced before the step that uses it: the first step is number one.
        scheduler = ScheduledOptions(
            optimizer,
            lr=lambda step: self.learning_rate(step + 1, total),
            weight_decay=lambda step: cosine(step + 1, self.stretch * total, *hparams.weight_decay),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def learning_rate(self, step: int, total: int) -> float:
        """The learning rate of a step, counted from one, of a training of `total` steps."""
        hparams = self.hparams
        warmup, end = hparams.warmup * total, self.stretch * total
        return warmup_cosine(step, end, warmup, hparams.start_lr, hparams.lr, hparams.final_lr)

    def configure_callbacks(self) -> list[pl.Callback]:
        """The teacher's callback, if there is a teacher, and the guard, unless the Trainer was given its own."""
        callbacks: list[pl.Callback] = [GradientGuard()]
        if students_and_teachers(self):
            callbacks.append(EMATargetEncoder(self.hparams.momentum, self.stretch))
        given = {type(callback) for callback in self.trainer.callbacks}
        return [callback for callback in callbacks if not any(issubclass(kind, type(callback)) for kind in given)]

    def configure_model(self) -> None:
        """Shard the networks where the strategy is `ModelParallelStrategy` (FSDP2), the teachers as their students.

        Raises:
            ValueError: a strategy that is to split single layers too.
        """
        if self.recompute_activations:
            for network in (self.context_encoder, self.predictor):
                recompute_activations(network)
        if self.device_mesh is None:
            return
        if self.device_mesh["tensor_parallel"].size() > 1:
            raise ValueError(
                f"the networks are sharded, but not split within layers: give ModelParallelStrategy "
                f"tensor_parallel_size=1, not {self.device_mesh['tensor_parallel'].size()}"
            )
        shard(self, self.device_mesh["data_parallel"])

    def on_fit_start(self) -> None:
        """Start from `weights`, unless a checkpoint of this run is being resumed."""
        # Lightning warns of modules in evaluation mode; of a teacher that is how it should be.
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
        if self.hparams.weights is not None and self.trainer.ckpt_path is None:
            load_networks(self, read_networks(self.hparams.weights))

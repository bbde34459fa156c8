"""The base of methods that predict what a mask hides of an observation from what it leaves."""

from __future__ import annotations

import copy
import inspect
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lightning.draws import Rng
from jepa_lightning.losses import Distance
from jepa_lightning.masking import Masks
from jepa_lightning.modules.jepa import JEPA
from jepa_lightning.modules.regularizer import Regularizer
from jepa_lightning.modules.training import Teacher
from jepa_lightning.networks import Transformer, build_network, gather_tokens
from jepa_lightning.networks.hiding import check_hiding
from jepa_lightning.schedules import linear
from jepa_lightning.step import Latents, Prediction, Tokens


class MaskedJEPA(JEPA):
    """Predict the teacher's tokens of the hidden places from the student's tokens of the visible ones.

    Context: the visible tokens, encoded. Target: those of an exponential moving average of the encoder, which sees all
    of the observation, layer-normed. Condition: the places of both. Against collapse: the teacher.

    Networks and masks come from `build_encoder`, `build_predictor` and `build_masking`, which subclasses override
    freely. An encoder is any module with `embed_dim`, `grid_of(observation)` and
    `encoder(observation, indices=None) -> [B, K, D]`. Where observations differ in length, encoder and predictor are
    given a further argument, `valid`: which tokens there are.

    Args:
        encoder: another encoder than the default one, `{"class_path": …, "init_args": {…}}` (see `build_network`). The
            sizes of the default encoder are then not to be given.
        distance: between prediction and target: `smooth_l1`, `l1` or `l2`.
        momentum: momentum of the target encoder at the start and at the end, along a line.
        regularizers: what is added to the loss against collapse: `vicreg` and `sigreg`, each with the options of
            `Regularizer`, such as `{"sigreg": {"weight": 0.05}}`.
        **training: how it is trained, see `TrainingModule`.

    Raises:
        ValueError: a value out of its range, or sizes beside an encoder that has others.
    """

    encoder_sizes: tuple[str, ...] = ()  # options of the default encoder, attributes of it too
    any_size = False  # whether observations may have another size than the module was built for
    context_encoder: Any
    target_encoder: Any
    predictor: Any

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        distance: Distance = "smooth_l1",
        momentum: tuple[float, float] = (0.996, 1.0),
        regularizers: dict[str, dict[str, Any]] | None = None,
        **training: Any,
    ) -> None:
        if distance not in get_args(Distance):
            raise ValueError(f"distance must be one of {', '.join(get_args(Distance))}, got {distance!r}")
        if not all(0 <= value <= 1 for value in momentum):
            raise ValueError(f"momentum must lie in [0, 1] at start and end, got {tuple(momentum)}")
        super().__init__(**training)
        self.distance = distance
        self.context_encoder = self.build_encoder() if encoder is None else build_network(encoder)
        self._note_sizes()
        self.target_encoder = self.build_teacher(self.context_encoder)
        self.grid = self._built_grid()
        self.masking = self.build_masking()
        self.predictor = self.build_predictor()
        self.regularizers = nn.ModuleDict(self.build_regularizers())

    @abstractmethod
    def example(self) -> Tensor:
        """An observation of the size that the module is built for, `[1, ...]`, of which only the shape matters."""

    @abstractmethod
    def build_encoder(self) -> nn.Module:
        """The default encoder; context and target encoder start as copies of it."""

    def build_teacher(self, student: nn.Module) -> nn.Module:
        """A network to follow another, as its copy at the start."""
        return copy.deepcopy(student).requires_grad_(False).eval()

    @abstractmethod
    def build_predictor(self) -> nn.Module:
        """A predictor: `predictor(context, context_indices, target_indices, condition=None) -> [B, M, K_t, D]`."""

    @abstractmethod
    def build_masking(self) -> Any:
        """A masking: `masking(batch_size, grid, lengths, rng) -> Masks`."""

    def build_regularizers(self) -> dict[str, Regularizer]:
        """The regularisers by name."""
        width, options = self.context_encoder.embed_dim, self.hparams.regularizers or {}
        return {name: Regularizer(name, width, **chosen) for name, chosen in options.items()}

    def teachers(self) -> list[Teacher]:
        """The target encoder follows the context encoder."""
        return [Teacher("context_encoder", "target_encoder", self.momentum)]

    def momentum(self, step: int, total: int) -> float:
        """τ of a step, counted from zero."""
        return linear(step, self.stretch * total, *self.hparams.momentum)

    def grid_of(self, observation: Tensor) -> tuple[int, ...]:
        """The token grid of observations.

        Raises:
            ValueError: observations of another size than the module was built for, of a method that takes no others.
        """
        grid = tuple(self.context_encoder.grid_of(observation))
        if grid != self.grid and not self.any_size:
            raise ValueError(
                f"observations {list(observation.shape)} have a grid of {grid} tokens, but the module was built for "
                f"one of {self.grid}: give module and data the same size (image_size, num_frames)"
            )
        return grid

    def valid(self, batch: Any) -> Tensor | None:
        """Which tokens of its observations there are, BoolTensor `[B, N]`; all, None, where lengths are the same."""
        return None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Try at the first batch whether an encoder of another kind hides what it is told to; ours do by construction.

        Raises:
            ValueError: an encoder that does not.
        """
        super().on_train_batch_start(batch, batch_idx)
        encoder = getattr(self.context_encoder, "_orig_mod", self.context_encoder)  # what a compiled one was made of
        if batch_idx or isinstance(encoder, Transformer):
            return
        observation = self.observations(batch)[0][:1]
        if observation.ndim != 2 + len(self.grid):
            return
        training = encoder.training
        check_hiding(encoder.eval(), observation, self.grid_of(observation), type(encoder).__name__)
        encoder.train(training)

    def draw(self, batch: Any, rng: Rng) -> Any:
        """The masks."""
        observation, valid = self.observations(batch)[0], self.valid(batch)
        lengths = None if valid is None else valid.sum(1)
        return self.masking(len(observation), self.grid_of(observation), lengths, rng)

    def kinds(self, drawn: Any) -> dict[str, Masks]:
        """The masks of each prediction by its name."""
        return {"": drawn}

    def latents(self, batch: Any, drawn: Any = None) -> Latents:
        """Encode the whole for the targets, and for each kind of mask encode the context and predict.

        Args:
            batch: with observations of the size that the module was built for.
            drawn: the masks; drawn if not given.

        Raises:
            ValueError: observations of another size.
        """
        observation, valid = self.observations(batch)[0], self.valid(batch)
        grid = self.grid_of(observation)
        if drawn is None:
            drawn = self.draw(batch, Rng.fresh(len(observation), observation.device))
        with torch.no_grad():
            features = self.encode(self.target_encoder, observation, None, valid)
            if features.values.shape[1] != math.prod(grid):
                raise ValueError(
                    f"observations {list(observation.shape)} give {features.values.shape[1]} tokens, but the encoder's "
                    f"grid_of says that their grid is {grid}"
                )
            targets = self.targets(features.values)
        predictions, embeddings = {}, {}
        for kind, (name, masks) in enumerate(self.kinds(drawn).items()):
            masks = Masks(masks.context.to(observation.device), masks.targets.to(observation.device))
            context = self.encode(self.context_encoder, observation, masks.context, valid)
            lengths = {} if valid is None else {"valid": valid}
            prediction = self.predict(context.values, masks, kind, grid, **lengths)
            weight = None if valid is None else gather_tokens(valid.unsqueeze(-1), masks.targets).squeeze(-1).float()
            predictions[name] = Prediction(prediction, gather_tokens(targets, masks.targets), weight)
            embeddings[f"context/{name}" if name else "context"] = context
        return Latents(predictions, {**embeddings, "target": features}, features)

    def encode(self, encoder: nn.Module, observation: Tensor, indices: Tensor | None, valid: Tensor | None) -> Tokens:
        """The tokens of observations at some places, or of the whole."""
        if valid is None:
            return Tokens(encoder(observation) if indices is None else encoder(observation, indices))
        return Tokens(encoder(observation, indices, valid), valid if indices is None else valid.gather(1, indices))

    def targets(self, features: Tensor) -> Tensor:
        """What is to be predicted at each place, `[B, N, D]`, from the teacher's tokens of the whole observation."""
        return F.layer_norm(features, features.shape[-1:])

    def predict(
        self, context: Tensor, masks: Masks, kind: int, grid: Sequence[int], valid: Tensor | None = None
    ) -> Tensor:
        """The predictions `[B, M, K_t, D]` from the encoded context tokens `[B, K_c, D]`.

        Args:
            context: the encoded context tokens.
            masks: their places, and those to predict.
            kind: number of the kind of mask, where there are several.
            grid: that of the observations' tokens.
            valid: BoolTensor `[B, N]`, which tokens there are, where observations differ in length.
        """
        lengths = {} if valid is None else {"valid": valid}
        return self.predictor(context, masks.context, masks.targets, **lengths)

    def features(self, batch: Any) -> Tokens:
        """The target encoder's tokens of the whole observation."""
        return self.encode(self.target_encoder, self.observations(batch)[0], None, self.valid(batch))

    def _built_grid(self) -> tuple[int, ...]:
        """The token grid of observations of the size that the module is built for."""
        try:
            return tuple(self.context_encoder.grid_of(self.example()))
        except ValueError as error:
            raise ValueError(
                f"this {type(self).__name__} is built for observations {list(self.example().shape)}, which its encoder "
                f"does not take: give both the same size (image_size, num_frames). {error}"
            ) from error

    def _note_sizes(self) -> None:
        """Let `hparams` say what was built: sizes that the encoder has, and none that it has not."""
        encoder, hparams = self.context_encoder, self.hparams
        for needed in ("embed_dim", "grid_of"):
            if not hasattr(encoder, needed):
                raise ValueError(
                    f"{type(encoder).__name__} has no {needed}: an encoder says its width by embed_dim, and the token "
                    "grid of observations by grid_of(observation)"
                )
        for name in self.encoder_sizes:
            given, built, there = hparams[name], getattr(encoder, name, None), hasattr(encoder, name)
            default = next(
                signature[name].default
                for signature in (inspect.signature(base).parameters for base in type(self).__mro__)
                if name in signature
            )
            if there and _same(given, built):
                continue
            if given != default and (there or hparams.encoder is not None):
                raise ValueError(
                    f"{name}={given} is an option of the default encoder, but this one is a {type(encoder).__name__}"
                    + (f" with {name}={built}" if built is not None else "")
                    + f": leave {name} out, or give it to the encoder"
                )
            if there:
                hparams[name] = list(built) if isinstance(built, tuple) else built
            elif given == default:
                del hparams[name]
        self._hparams_initial = copy.deepcopy(hparams)


def _same(given: Any, built: Any) -> bool:
    """Whether two sizes are the same, of which a whole number may stand for all sides."""
    if isinstance(built, Sequence):
        return list(built) == ([given] * len(built) if isinstance(given, int) else list(given))
    return bool(given == built)

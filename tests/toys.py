"""Methods that no module of the package is: what broke version 1 of the contracts, as small as it gets."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from jepa_lightning import IJEPA, JEPA, Latents, MaskedJEPA, Prediction, Teacher, Tokens
from jepa_lightning.draws import Rng
from jepa_lightning.masking import Masks
from jepa_lightning.networks import PatchEmbed, Predictor, Transformer
from jepa_lightning.schedules import linear


def mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 12), nn.GELU(), nn.Linear(12, outputs))


def copied(network: nn.Module) -> nn.Module:
    """A teacher that starts as its student."""
    return copy.deepcopy(network).requires_grad_(False)


# --- (a) Two encoders of different widths, two target predictors, three optimisers, vectors --------------------------


class Transition(NamedTuple):
    """A sample or batch: `[B, 6]`, `[B, 2]`, `[B, 6]` and a class."""

    observation: Tensor
    action: Tensor
    next_observation: Tensor
    kind: Tensor


class TwoEncoders(JEPA):
    """Each encoder's embedding of the next state, and of what follows it, predicted from the other's of this state."""

    reads = ("observation", "action", "next_observation")
    distance = "l2"

    def __init__(self, lr: float = 0.05, tau: tuple[float, float] = (0.5, 0.9), **training: Any) -> None:
        super().__init__(lr=lr, **training)
        self.automatic_optimization = False
        self.phi, self.psi = mlp(6, 8), mlp(6, 5)
        self.phi_predictor, self.psi_predictor = mlp(8 + 2, 5), mlp(5 + 2, 8)
        for name in self.networks:
            setattr(self, f"target_{name}", copied(getattr(self, name)))

    networks = ("phi", "psi", "phi_predictor", "psi_predictor")

    def teachers(self) -> list[Teacher]:
        """Encoders with one momentum, predictors with another."""

        def slow(step: int, total: int) -> float:
            return linear(step, total, *self.hparams.tau)

        def fast(step: int, total: int) -> float:
            return 0.25

        return [Teacher(name, f"target_{name}", fast if name.endswith("predictor") else slow) for name in self.networks]

    def latents(self, batch: Any, drawn: Any = None) -> Latents:
        observation, action, following = self.observations(batch)
        phi, psi = self.phi(observation), self.psi(observation)
        with torch.no_grad():
            ahead, ahead_psi = self.target_phi(following), self.target_psi(following)
            targets = {
                "phi": ahead_psi + 0.9 * self.target_phi_predictor(torch.cat([ahead, action], 1)),
                "psi": ahead + 0.9 * self.target_psi_predictor(torch.cat([ahead_psi, action], 1)),
            }
        predicted = {
            "phi": self.phi_predictor(torch.cat([phi, action], 1)),
            "psi": self.psi_predictor(torch.cat([psi, action], 1)),
        }
        predictions = {name: Prediction(value, targets[name]) for name, value in predicted.items()}
        embeddings = {"phi": Tokens(phi.unsqueeze(1)), "psi": Tokens(psi.unsqueeze(1))}
        return Latents(predictions, embeddings, embeddings["phi"])

    def features(self, batch: Any) -> Tokens:
        return Tokens(self.phi(self.observations(batch)[0]).unsqueeze(1))

    def configure_optimizers(self) -> Any:
        parts = ([self.phi, self.psi], [self.phi_predictor], [self.psi_predictor])
        return [
            torch.optim.SGD([value for network in part for value in network.parameters()], lr=self.hparams.lr)
            for part in parts
        ]

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        size = len(self.observations(batch)[0])
        latents = self.latents(batch, self.draw(batch, self.rng(size, batch_idx)))
        terms = self.loss(latents)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(terms["loss"])
        for optimizer in self.optimizers():
            optimizer.step()
        self.log_terms(terms, "train", size)
        return {**terms, "latents": latents.detach(), "drawn": None}


# --- (b) Series of unequal lengths -----------------------------------------------------------------------------------


class Series(NamedTuple):
    """A sample or batch: `[B, 24, 2]`, `[B, 24]` and a class."""

    series: Tensor
    valid: Tensor
    kind: Tensor


class StretchMasking:
    """Two tokens of context and three targets a series, of those that there are as long as there are any."""

    def __call__(self, batch_size: int, grid: Any, lengths: Tensor | None = None, rng: Rng | None = None) -> Masks:
        rng = rng or Rng.fresh(batch_size)
        noise = rng.sample(grid[0])
        if lengths is not None:
            noise = noise + (torch.arange(grid[0], device=noise.device) >= lengths.unsqueeze(1))
        order = noise.argsort(1)
        return Masks(order[:, :2], order[:, None, 2:5])


class SeriesJEPA(MaskedJEPA):
    """Stretches of a series predicted from others, post-norm, with a class token; padding does not count."""

    reads = ("series", "valid")
    encoder_sizes = ("embed_dim",)

    def __init__(self, embed_dim: int = 8, **options: Any) -> None:
        super().__init__(**options)

    def example(self) -> Tensor:
        return torch.empty(1, 24, 2)

    def build_encoder(self) -> nn.Module:
        tokenizer = PatchEmbed((4,), 2, self.hparams.embed_dim)
        return Transformer(tokenizer, (6,), 1, 2, positions="learned", norm_first=False, class_token=True)

    def build_predictor(self) -> nn.Module:
        return Predictor(self.grid, self.context_encoder.embed_dim, 8, 1, 2)

    def build_masking(self) -> StretchMasking:
        return StretchMasking()

    def valid(self, batch: Any) -> Tensor:
        return self.observations(batch)[1].unflatten(1, (6, 4)).all(-1)


# --- (c) Three predictions of different widths in one step, one of several futures -----------------------------------


class ThreePredictions(JEPA):
    """Tokens, a vector, and four possible vectors, of which the nearest counts."""

    distance = "l1"

    def __init__(self, lr: float = 1e-2, **training: Any) -> None:
        super().__init__(lr=lr, **training)
        self.encoder = mlp(6, 8)
        self.teacher = copied(self.encoder)
        self.heads = nn.ModuleDict({"tokens": mlp(8, 8), "mean": mlp(8, 3), "futures": mlp(8 + 2, 4)})

    def teachers(self) -> list[Teacher]:
        return [Teacher("encoder", "teacher", lambda step, total: 0.0)]

    def draw(self, batch: Any, rng: Rng) -> Tensor:
        return rng.sample(4, 2)

    def latents(self, batch: Any, drawn: Tensor | None = None) -> Latents:
        (observation,) = self.observations(batch)  # [B, 5, 6]
        drawn = self.draw(batch, Rng.fresh(len(observation))) if drawn is None else drawn
        tokens = self.encoder(observation)
        with torch.no_grad():
            target = self.teacher(observation)
        mean = tokens.mean(1)
        weight = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.5]).expand(len(tokens), -1)
        futures = self.heads["futures"](torch.cat([mean.unsqueeze(1).expand(-1, 4, -1), drawn], dim=-1))
        predictions = {
            "tokens": Prediction(self.heads["tokens"](tokens), F.layer_norm(target, (8,)), weight),
            "mean": Prediction(self.heads["mean"](mean), target.mean(1)[:, :3]),
            "futures": Prediction(futures, target[:, 0, :4]),
        }
        return Latents(predictions, {"context": Tokens(tokens), "target": Tokens(target)}, Tokens(target))

    def features(self, batch: Any) -> Tokens:
        return Tokens(self.teacher(self.observations(batch)[0]))


# --- (d) A frozen encoder, and a multiplier --------------------------------------------------------------------------


class Dropping(nn.Module):
    """An encoder that one sees in its tokens whether it is in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = 8, 2
        self.patches, self.dropout = nn.Conv2d(3, 8, 4, 4), nn.Dropout(0.5)

    def grid_of(self, x: Tensor) -> tuple[int, ...]:
        return x.shape[-2] // 4, x.shape[-1] // 4

    def forward(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        tokens = self.dropout(self.patches(x).flatten(2).mT)
        return tokens if indices is None else tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, 8))


class Frozen(IJEPA):
    """Only the predictor learns, its first layer half as fast as the rest."""

    def build_encoder(self) -> nn.Module:
        return Dropping()

    def rates(self) -> dict[str, float]:
        return {"context_encoder": 0.0, "predictor": 2.0, "predictor.predictor_embed": 1.0}


# --- (e) Conditioned by actions --------------------------------------------------------------------------------------


class Episode(NamedTuple):
    """A sample or batch: `[B, 4, 6]`, `[B, 4, 2]`, `[B, 4, 3]`; to be read off, positions `[B, 4, 2]` and a class."""

    observation: Tensor
    action: Tensor
    state: Tensor
    position: Tensor
    kind: Tensor


class ActionConditioned(JEPA):
    """The embedding of the next frame from that of this one, the action, and the state."""

    reads = ("observation", "action", "state")
    distance = "l1"

    def __init__(self, lr: float = 1e-2, **training: Any) -> None:
        super().__init__(lr=lr, **training)
        self.encoder = mlp(6, 8)
        self.teacher = copied(self.encoder)
        self.predictor = mlp(8 + 2 + 3, 8)

    def teachers(self) -> list[Teacher]:
        return [Teacher("encoder", "teacher", lambda step, total: 0.9)]

    def latents(self, batch: Any, drawn: Any = None) -> Latents:
        observation, action, state = self.observations(batch)
        frames, features = self.encoder(observation), self.features(batch)
        predicted = self.predictor(torch.cat([frames, action, state], dim=-1)[:, :-1])
        prediction = Prediction(predicted, features.values[:, 1:].detach())
        return Latents({"": prediction}, {"context": Tokens(frames), "target": features}, features)

    def features(self, batch: Any) -> Tokens:
        return Tokens(self.teacher(self.observations(batch)[0]))


# --- Their data ------------------------------------------------------------------------------------------------------


class Rows(Dataset[Any]):
    """Samples of some tensors, a batch of which `kind` makes: a NamedTuple's class, `dict`, `tuple` or `list`."""

    def __init__(self, batch: Any, kind: Any = None) -> None:
        self.batch, self.kind = batch, kind or type(batch)

    def __len__(self) -> int:
        return len(self.batch[0])

    def __getitem__(self, index: int) -> Any:
        row = type(self.batch)(*(field[index] for field in self.batch))
        if self.kind is dict:
            return row._asdict()
        return row if self.kind is type(self.batch) else self.kind(row)


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def transitions(count: int = 16) -> Transition:
    kind = torch.arange(count) % 2
    return Transition(numbers(1, count, 6) + 2 * kind.unsqueeze(1), numbers(2, count, 2), numbers(3, count, 6), kind)


def series(count: int = 16) -> Series:
    kind, lengths = torch.arange(count) % 2, 12 + torch.arange(count) * 5 % 13
    valid = torch.arange(24) < lengths.unsqueeze(1)
    values = numbers(4, count, 24, 2) + 2 * kind.view(-1, 1, 1)
    return Series(values.masked_fill(~valid.unsqueeze(-1), 1e3), valid, kind)


class Sets(NamedTuple):
    """A sample or batch: `[B, 5, 6]` and a class."""

    tokens: Tensor
    kind: Tensor


def sets(count: int = 16) -> Sets:
    kind = torch.arange(count) % 2
    return Sets(numbers(5, count, 5, 6) + 2 * kind.view(-1, 1, 1), kind)


def episodes(count: int = 16) -> Episode:
    kind = torch.arange(count) % 2
    observation = numbers(6, count, 4, 6) + 2 * kind.view(-1, 1, 1)
    return Episode(observation, numbers(7, count, 4, 2), numbers(8, count, 4, 3), observation[..., :2], kind)

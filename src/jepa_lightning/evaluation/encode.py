"""What encoders, trained and not, make of a data set: computed once, for all probes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from jepa_lightning import batches
from jepa_lightning.batches import UNLABELLED
from jepa_lightning.callbacks.probes.raw import classes_of_tokens
from jepa_lightning.checkpoints import read_networks
from jepa_lightning.evaluation.probe import FrozenEncoder, Width
from jepa_lightning.networks import build_network
from jepa_lightning.step import Tokens

MAX_STEPS = 100_000  # tokens that a label of steps is read off, at most


class Encoded(NamedTuple):
    """What an encoder makes of a data set.

    Attributes:
        pooled: `[N, L, D]`, the means of the last L blocks' tokens.
        tokens: `[N, T, D]`, those of the last block; None of a module's features.
        labels: by name, `[N, ...]`.
        steps: by the name of a label of steps `[N, T]`, as if each token that has a class were a sample; of modules.
    """

    pooled: Tensor
    tokens: Tensor | None
    labels: dict[str, Tensor]
    steps: dict[str, Encoded] = {}  # noqa: RUF012  # never changed

    def of(self, label: str) -> Encoded:
        """What that label is read off: samples, or tokens."""
        return self.steps.get(label, self)


def built_anew(module: Any) -> Any:
    """A module of the same class and options, untrained."""
    known = inspect.signature(type(module)).parameters
    takes_all = any(each.kind is each.VAR_KEYWORD for each in known.values())
    # Lightning's CLI leaves a note of its own among the options, whose name begins with `_`.
    options = {name: value for name, value in module.hparams.items() if not name.startswith("_")}
    return type(module)(**{name: value for name, value in options.items() if takes_all or name in known})


# Of a batch, the pooled features [B, L, D] and, of an encoder, the tokens [B, T, D]; of a module all of its `Tokens`.
Reader = Callable[[Any], tuple[Tensor, Tensor | Tokens | None]]


def readers_of_checkpoint(
    path: str, observation: Tensor, device: torch.device, given: dict[str, Any] | None
) -> tuple[list[Reader], Width]:
    """Readers of a checkpoint's encoder and of the same untrained, and what their features are like."""
    if observation.ndim < 4:
        raise ValueError(
            f"{path} is to encode series, sounds or words, of which some may not be there, which its module knows: "
            "give that, such as TSJEPA.load_from_checkpoint(path) or Data2Vec.from_official(path)"
        )
    options, size, configuration = dict(given or {}), observation.shape[2:], read_networks(path).options.get("encoder")
    if configuration is None:  # then the sizes are those of the data
        options = {"image_size": list(size[-2:])} | ({"num_frames": size[0]} if len(size) == 3 else {}) | options
    trained = FrozenEncoder(path, 1, options)
    untrained = copy.deepcopy(trained)
    if configuration is None:
        untrained.encoder.init_weights()
    else:
        untrained.encoder = build_network(configuration).eval()
    for each in (trained, untrained):
        each.layers = min(4, each.depth)
    width = Width(trained.embed_dim, trained.grid, trained.num_heads)
    return [partial(_encoder_features, each.to(device)) for each in (trained, untrained)], width


def _encoder_features(encoder: FrozenEncoder, batch: Any) -> tuple[Tensor, Tensor]:
    tokens = encoder(batches.observations(batch)[0])
    return tokens.mean(2), tokens[:, -1]


def features_of_module(module: Any, batch: Any) -> tuple[Tensor, Tokens]:
    """What probes read of a module, pooled, as of one block: `[B, 1, D]`; and all of it."""
    features: Tokens = module.features(batch)
    return features.pooled().unsqueeze(1), features


@torch.no_grad()
def encode(
    readers: list[Reader], loader: Any, reads: Sequence[str], device: torch.device, limit: int | None = None
) -> list[Encoded]:
    """Encode the first samples that a loader gives, by each reader."""
    pooled: list[list[Tensor]] = [[] for _ in readers]
    last: list[list[Tensor]] = [[] for _ in readers]
    labels: dict[str, list[Tensor]] = {}
    steps: list[dict[str, list[tuple[Tensor, Tensor]]]] = [{} for _ in readers]
    count = 0
    for batch in loader:
        there = move_data_to_device(batch, device)
        for number, reader in enumerate(readers):
            means, tokens = reader(there)
            pooled[number].append(means.float().cpu())
            if isinstance(tokens, Tokens):
                for name, found in _steps(tokens, batches.labels(there, reads)).items():
                    steps[number].setdefault(name, []).append(found)
            elif tokens is not None:
                last[number].append(tokens.cpu())
        for name, label in batches.labels(batch, reads).items():
            if isinstance(label, Tensor):
                labels.setdefault(name, []).append(label)
        count += len(pooled[0][-1])
        if limit is not None and count >= limit:
            break
    if not count:
        raise ValueError("a loader of the data gave no batch: training and test samples are needed to evaluate")
    by_name = {name: batches.joined(column)[:limit] for name, column in labels.items()}
    return [
        Encoded(
            torch.cat(means)[:limit], torch.cat(tokens)[:limit] if tokens else None, by_name, _joined(of_steps, limit)
        )
        for means, tokens, of_steps in zip(pooled, last, steps, strict=True)
    ]


def _steps(tokens: Tokens, labels: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each label of steps `[B, T]` the tokens that have a class, `[M, D]`, and their classes `[M]`."""
    found = {}
    for name, label in labels.items():
        if not isinstance(label, Tensor) or label.ndim != 2 or label.shape[1] < 2 or label.is_floating_point():
            continue
        known = classes_of_tokens(batches.classes(label, maps=True), tokens.values.shape[1])
        there = known != UNLABELLED if tokens.valid is None else tokens.valid & (known != UNLABELLED)
        found[name] = tokens.values[there].float().cpu(), known[there].cpu()
    return found


def _joined(steps: dict[str, list[tuple[Tensor, Tensor]]], limit: int | None) -> dict[str, Encoded]:
    """The tokens of all batches as samples, the first of them."""
    most, found = min(limit or MAX_STEPS, MAX_STEPS), {}
    for name, parts in steps.items():
        values, known = (torch.cat(column)[:most] for column in zip(*parts, strict=True))
        found[name] = Encoded(values.unsqueeze(1), None, {name: known})
    return found

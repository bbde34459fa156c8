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
from jepa_lightning.checkpoints import read_networks
from jepa_lightning.evaluation.probe import FrozenEncoder, Width
from jepa_lightning.networks import build_network


class Encoded(NamedTuple):
    """Of a data set, the means of the last L blocks' tokens, the tokens of the last block, and the labels by name."""

    pooled: Tensor  # [N, L, D]
    tokens: Tensor | None  # [N, T, D]; of a module's features None
    labels: dict[str, Tensor]  # [N, ...]


def built_anew(module: Any) -> Any:
    """A module of the same class and options, untrained."""
    known = inspect.signature(type(module)).parameters
    takes_all = any(each.kind is each.VAR_KEYWORD for each in known.values())
    # Lightning's CLI leaves a note of its own among the options, whose name begins with `_`.
    options = {name: value for name, value in module.hparams.items() if not name.startswith("_")}
    return type(module)(**{name: value for name, value in options.items() if takes_all or name in known})


# Of a batch, the pooled features [B, L, D] and, of an encoder, the tokens [B, T, D].
Reader = Callable[[Any], tuple[Tensor, Tensor | None]]


def readers_of_checkpoint(
    path: str, observation: Tensor, device: torch.device, given: dict[str, Any] | None
) -> tuple[list[Reader], Width]:
    """Readers of a checkpoint's encoder and of the same untrained, and what their features are like."""
    if observation.ndim == 3:
        raise ValueError(
            f"{path} is to encode series, of whose steps some may not be there, which its module knows: give that, "
            "TSJEPA.load_from_checkpoint(path), or TSJEPA.from_official(path)"
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


def features_of_module(module: Any, batch: Any) -> tuple[Tensor, None]:
    """What probes read of a module, pooled, as of one block: `[B, 1, D]`."""
    return module.features(batch).pooled().unsqueeze(1), None


@torch.no_grad()
def encode(
    readers: list[Reader], loader: Any, reads: Sequence[str], device: torch.device, limit: int | None = None
) -> list[Encoded]:
    """Encode the first samples that a loader gives, by each reader."""
    pooled: list[list[Tensor]] = [[] for _ in readers]
    last: list[list[Tensor]] = [[] for _ in readers]
    labels: dict[str, list[Tensor]] = {}
    count = 0
    for batch in loader:
        there = move_data_to_device(batch, device)
        for number, reader in enumerate(readers):
            means, tokens = reader(there)
            pooled[number].append(means.float().cpu())
            if tokens is not None:
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
        Encoded(torch.cat(means)[:limit], torch.cat(tokens)[:limit] if tokens else None, by_name)
        for means, tokens in zip(pooled, last, strict=True)
    ]

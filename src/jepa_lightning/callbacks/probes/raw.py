"""What a probe reads of raw input, the baseline that features have to pass: for each sample, or for each token."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_lightning import batches

WINDOW, BANDS = 512, 64  # samples that a spectrum is of, and numbers that are kept of it
BUCKETS = 1024  # that words are counted in


def raw_samples(pl_module: Any, batch: Any) -> Tensor:
    """One vector for each sample, `[B, D]`, of the same width in all batches.

    Words are counted, in 1024 buckets by their number; of waves, a field `wave`, the mean and the spread over time of
    their log power in 64 bands are taken, as their samples say nothing one by one. Anything else is read as it is.
    """
    observation = batches.observations(batch, pl_module.reads)[0]
    if not observation.is_floating_point() and observation.ndim == 2:
        valid = _valid(batch, observation)
        counts = observation.new_zeros(len(observation), BUCKETS, dtype=torch.float32)
        counts.scatter_add_(1, observation % BUCKETS, valid.float())
        return counts / valid.sum(1, keepdim=True).clamp(min=1)
    if _is_wave(pl_module, batch):
        power, valid = _log_power(observation), _valid(batch, observation)
        whole = F.pad(valid, (0, max(0, WINDOW - valid.shape[1]))).unfold(1, WINDOW, WINDOW // 2).all(-1)
        whole[:, 0] = True  # of a sound that is shorter
        weight = whole.unsqueeze(-1).float()
        count = weight.sum(1).clamp(min=1)
        mean = (power * weight).sum(1) / count
        spread = (((power - mean.unsqueeze(1)) ** 2 * weight).sum(1) / count).sqrt()
        return torch.cat([mean, spread], 1)
    return observation.flatten(1).float()


def raw_tokens(pl_module: Any, batch: Any, tokens: int) -> Tensor:
    """One vector for each of the tokens of series, waves or words, `[B, tokens, D]`.

    Of words which they are, in 1024 buckets, of waves the log power in 64 bands around their middle, and of series all
    numbers of their stretch.

    Raises:
        ValueError: a series whose steps are no multiple of the tokens.
    """
    observation = batches.observations(batch, pl_module.reads)[0]
    if not observation.is_floating_point():
        return F.one_hot(_at(observation.unsqueeze(-1), tokens).squeeze(-1) % BUCKETS, BUCKETS).float()
    if _is_wave(pl_module, batch):
        return _at(_log_power(observation), tokens)
    if observation.shape[1] % tokens:
        raise ValueError(f"series of {observation.shape[1]} steps cannot be cut into {tokens} stretches of one length")
    return observation.unflatten(1, (tokens, -1)).flatten(2).float()


def classes_of_tokens(labels: Tensor, tokens: int) -> Tensor:
    """The class of each token: the most frequent one of its stretch of steps, or that of the nearest step.

    Args:
        labels: of each step, `[B, T]` integers.
        tokens: N, which share the T steps evenly.

    Returns:
        `[B, N]`.

    >>> classes_of_tokens(torch.tensor([[1, 1, 2, 3, 3, 3]]), 2), classes_of_tokens(torch.tensor([[1, 2]]), 4)
    (tensor([[1, 3]]), tensor([[1, 1, 2, 2]]))
    """
    steps = labels.shape[1]
    width = max(1, steps // tokens)
    middle = (torch.arange(tokens, device=labels.device) + 0.5) * (steps / tokens)
    first = (middle - width / 2).round().long().clamp(0, steps - width)
    places = first.unsqueeze(1) + torch.arange(width, device=labels.device)
    return labels[:, places].mode(-1).values


def _is_wave(pl_module: Any, batch: Any) -> bool:
    found = batches.fields(batch, pl_module.reads)
    return "wave" in found and found["wave"] is batches.observations(batch, pl_module.reads)[0]


def _valid(batch: Any, observation: Tensor) -> Tensor:
    valid = batches.valid(batch, observation.shape[:2])
    return observation.new_ones(observation.shape[:2], dtype=torch.bool) if valid is None else valid


def _log_power(waves: Tensor) -> Tensor:
    """Waves `[B, L, C]` as the log power in bands of equal width, of windows that overlap by half, `[B, T, BANDS]`."""
    wave = F.pad(waves.mean(-1).float(), (0, max(0, WINDOW - waves.shape[1])))
    window = torch.hann_window(WINDOW, device=wave.device)
    spectra = torch.stft(wave, WINDOW, WINDOW // 2, window=window, center=False, return_complex=True)
    power = spectra.abs().square()[:, 1:].unflatten(1, (BANDS, -1)).mean(2)
    return (power + 1e-6).log().mT


def _at(values: Tensor, tokens: int) -> Tensor:
    """Of values `[B, T, D]` those at the middles of so many tokens, `[B, tokens, D]`."""
    middle = (torch.arange(tokens, device=values.device) + 0.5) * (values.shape[1] / tokens)
    return values[:, middle.long().clamp(max=values.shape[1] - 1)]

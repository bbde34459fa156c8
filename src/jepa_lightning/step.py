"""What a step of any method has computed, as modules make it and callbacks read it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tokens(NamedTuple):
    """Embeddings of a batch of observations.

    Attributes:
        values: `[B, N, D]`; an embedding that is one vector has N = 1.
        valid: BoolTensor `[B, N]`, which tokens there are where samples differ in length; all of them without.
        summary: `[B, D]`, a token that stands for the whole observation, such as a class token.
    """

    values: Tensor
    valid: Tensor | None = None
    summary: Tensor | None = None

    def pooled(self) -> Tensor:
        """One vector for each observation, `[B, D]`: the summary, or else the mean of the valid tokens.

        >>> Tokens(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]])).pooled()
        tensor([[2.]])
        """
        if self.summary is not None:
            return self.summary
        if self.valid is None:
            return self.values.mean(1)
        valid = self.valid.unsqueeze(-1)
        return self.values.masked_fill(~valid, 0.0).sum(1) / valid.sum(1).clamp(min=1)

    def detach(self) -> Tokens:
        """The same without gradients."""
        return Tokens(self.values.detach(), self.valid, None if self.summary is None else self.summary.detach())

    def float(self) -> Tokens:
        """The same in float32."""
        return Tokens(self.values.float(), self.valid, None if self.summary is None else self.summary.float())


class Prediction(NamedTuple):
    """A prediction and what it should have been.

    Attributes:
        prediction: `[B, ..., D]`, or `[B, K, ..., D]`, with one axis more than the target, for K possible futures.
        target: `[B, ..., D]`.
        weight: `[B, ...]`, zero or more: how much each place counts, such as zero where there is only padding; all
            places alike without.
    """

    prediction: Tensor
    target: Tensor
    weight: Tensor | None = None

    @property
    def futures(self) -> int | None:
        """The number K of possible futures; None of a single one."""
        return self.prediction.shape[1] if self.prediction.ndim > self.target.ndim else None

    def tokens(self) -> Tokens:
        """What is predicted, as tokens `[B, N, D]`; those of weight zero are not valid."""
        valid = None if self.weight is None else (self.weight > 0)
        if valid is not None and self.futures is not None:
            valid = valid.unsqueeze(1).expand(self.prediction.shape[:-1])
        # An embedding that is one vector has no axis of tokens.
        values = self.prediction.unsqueeze(1) if self.prediction.ndim == 2 else self.prediction.flatten(1, -2)
        return Tokens(values, None if valid is None else valid.reshape(values.shape[:2]))

    def detach(self) -> Prediction:
        """The same without gradients."""
        return Prediction(self.prediction.detach(), self.target.detach(), self.weight)


class Latents(NamedTuple):
    """What a step has computed, in the words of `L = D(g(f(x), c), sg(f'(y)))`.

    Attributes:
        predictions: by name; `""` where there is only one.
        embeddings: what monitors watch, by name: `context` and `target`, or `context/short`, `phi`, `level1`.
        features: what probes read unless they name an embedding.
    """

    predictions: dict[str, Prediction]
    embeddings: dict[str, Tokens]
    features: Tokens | None = None

    @property
    def prediction(self) -> Tensor:
        """What is predicted, where there is one prediction."""
        return self._only().prediction

    @property
    def target(self) -> Tensor:
        """What should have been predicted, where there is one prediction."""
        return self._only().target

    def detach(self) -> Latents:
        """The same without gradients."""
        return Latents(
            {name: each.detach() for name, each in self.predictions.items()},
            {name: each.detach() for name, each in self.embeddings.items()},
            None if self.features is None else self.features.detach(),
        )

    def _only(self) -> Prediction:
        if len(self.predictions) != 1:
            raise ValueError(
                f"this step makes {len(self.predictions)} predictions, {', '.join(self.predictions)}: "
                "take one by its name, latents.predictions[name]"
            )
        return next(iter(self.predictions.values()))


def weighted_mean(values: Tensor, weight: Tensor | None, dim: tuple[int, ...]) -> Tensor:
    """`Σ weight · value / Σ weight` over some axes, and zero where all weights are; the mean without weights.

    >>> weighted_mean(torch.tensor([[1.0, 5.0], [2.0, 4.0]]), torch.tensor([[3.0, 1.0], [0.0, 0.0]]), (1,))
    tensor([2., 0.])
    """
    if not dim:
        return values
    if weight is None:
        return values.mean(dim)
    total = weight.sum(dim)
    return (values * weight).sum(dim) / torch.where(total > 0, total, 1.0)


def nearest_future(distances: Tensor, each: Prediction) -> tuple[Tensor, Tensor | None]:
    """Of the distances of K possible futures, those of each sample's nearest.

    Args:
        distances: `[B, ...]`, or `[B, K, ...]` of K futures.
        each: the prediction that they are of.

    Returns:
        `[B, ...]`, and the weights of that shape, None where all places count alike.

    Raises:
        ValueError: weights of another shape.
    """
    expected = distances.shape if each.futures is None else distances.shape[:1] + distances.shape[2:]
    if each.weight is not None and each.weight.shape != expected:
        raise ValueError(f"weights {list(each.weight.shape)} are not of the shape {list(expected)} of the places")
    if each.futures is None:
        return distances, each.weight
    weight = None if each.weight is None else each.weight.unsqueeze(1).expand_as(distances)
    nearest = weighted_mean(distances, weight, tuple(range(2, distances.ndim))).argmin(1)
    return distances[torch.arange(len(distances), device=distances.device), nearest], each.weight

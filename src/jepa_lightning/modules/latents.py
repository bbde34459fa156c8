"""What a step of any method has computed."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Latents(NamedTuple):
    """What a step has computed, in the words of `L = D(g(f(x), c), sg(f'(y)))`.

    Attributes:
        context: `[B, K_c, D]`, the context encoder's tokens.
        prediction: `[B, M, K_t, D]`, the predictor's tokens of the M target blocks.
        target: `[B, M, K_t, D]`, what they should have been.
        features: `[B, N, D]`, the target encoder's tokens of the whole observation, as a probe would get them.
    """

    context: Tensor
    prediction: Tensor
    target: Tensor
    features: Tensor | None = None

    def detach(self) -> Latents:
        """The same without gradients."""
        features = None if self.features is None else self.features.detach()
        return Latents(self.context.detach(), self.prediction.detach(), self.target.detach(), features)

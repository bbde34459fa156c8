"""What frozen encoders share that stand in scikit-learn's pipelines as transformers. Needs scikit-learn."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any

import torch
from sklearn.base import BaseEstimator, TransformerMixin
from typing_extensions import Self


class FeatureTransformer(TransformerMixin, BaseEstimator):
    """Observations to the features of a checkpoint's encoder. Nothing is fitted: `transform` may be called right away.

    Attributes:
        encoder_: the encoder, once the checkpoint is read.
    """

    encoder_: Any

    @abstractmethod
    def read(self) -> None:
        """Read the checkpoint into `encoder_`, and what else it holds."""

    def fit(self, X: Any = None, y: Any = None) -> Self:  # noqa: N803
        """Read the checkpoint, if that has not been done."""
        if not hasattr(self, "encoder_"):
            self.read()
        return self

    def __sklearn_is_fitted__(self) -> bool:
        """As there is nothing to fit."""
        return True

    def untrained(self, seed: int = 0) -> Self:
        """The same with weights drawn anew: what features are worth without any training."""
        other = copy.deepcopy(self.fit())
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(seed)
            other.encoder_.init_weights()
        return other

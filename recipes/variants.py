"""Modules that lack something, for recipes/README.md: `jepa fit --config … --model recipes.variants.<name>`."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jepa_lightning import CJEPA, DMTJEPA, IJEPA, VJEPA
from jepa_lightning.masking import MaskingList, Masks, RandomTubeMasking


class NoPredictor(IJEPA):
    """The mean context token is the prediction at every place."""

    def build_predictor(self) -> nn.Module:
        """Nothing to train."""
        return nn.Identity()

    def predict(self, context: Tensor, masks: Masks, kind: int, grid: Sequence[int]) -> Tensor:
        """The mean, as often as it is asked for."""
        return torch.broadcast_to(context.mean(1)[:, None, None], (*masks.targets.shape, context.shape[-1]))


class CJEPANoPredictor(CJEPA, NoPredictor):
    """The same with C-JEPA's terms."""


class DMTJEPANoPredictor(DMTJEPA, NoPredictor):
    """The same from the aggregated context and for the aggregated targets."""


class RandomTubes(VJEPA):
    """Places hidden at random, each through all frames, instead of blocks."""

    def build_masking(self) -> MaskingList:
        """One kind of mask, with the published share of hidden places."""
        return MaskingList([RandomTubeMasking(0.9)])

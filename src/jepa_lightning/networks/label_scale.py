"""The scale of labels that are numbers: a regression is fitted to them in units of their own spread."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LabelScale(nn.Module):
    """Mean and standard deviation of the labels seen so far, kept in checkpoints.

    Without it a head had to walk to labels like 640 pixels in steps of its learning rate.

    Args:
        num_outputs: numbers a sample.

    >>> scale = LabelScale(1)
    >>> scale.add(scale.sums(torch.tensor([[100.0], [104.0]])))
    >>> scale.standardise(torch.tensor([[104.0]]))
    tensor([[1.]])
    """

    total: Tensor

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        # The number of labels, their sum and that of their squares; in float64, as means may be far from zero.
        self.register_buffer("total", torch.zeros(3, num_outputs, dtype=torch.float64))

    def sums(self, labels: Tensor) -> Tensor:
        """What labels `[B, num_outputs]` add to the statistics, `[3, num_outputs]`: several processes add it up."""
        labels = labels.double()
        return torch.stack([torch.ones_like(labels), labels, labels.square()]).sum(1)

    def add(self, sums: Tensor) -> None:
        """Take labels into account."""
        self.total += sums

    def standardise(self, labels: Tensor) -> Tensor:
        """Labels `[B, num_outputs]` in standard deviations from their mean."""
        num, total, squares = self.total
        num = num.clamp(min=1)
        variance = squares / num - (total / num).square()
        alike = variance <= 1e-12 * (squares / num)  # up to rounding: then the unit is one
        return ((labels - total / num) / torch.where(alike, 1.0, variance).sqrt()).float()

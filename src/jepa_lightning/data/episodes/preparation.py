"""How observations, actions and states come into the units that a model sees, and actions back into the world's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jepa_lightning.data.crops import IMAGENET, Fit
from jepa_lightning.data.episodes.columns import Array
from jepa_lightning.poses import pose_difference


class Scale(NamedTuple):
    """Mean and standard deviation of numbers: what they are normalised by."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, rows: Sequence[Array]) -> Scale:
        """That of the rows `[N, F]` of several arrays; what never changes is not scaled."""
        numbers = np.concatenate([np.asarray(each, dtype=np.float64) for each in rows])
        mean, std = numbers.mean(0), numbers.std(0)
        std = np.where(std > 1e-6 * np.maximum(1.0, np.abs(mean)), std, 1.0)
        return cls(*(torch.tensor(each, dtype=torch.float32) for each in (mean, std)))

    def to(self, values: Tensor) -> Tensor:
        """Normalised."""
        return (values - self.mean.to(values)) / self.std.to(values)

    def back(self, values: Tensor) -> Tensor:
        """As they were."""
        return values * self.std.to(values) + self.mean.to(values)


class Preparation:
    """What is done to the numbers of episodes before a model sees them.

    Frames are resized and cropped to a size, and normalised by channel; vectors, actions and states are normalised by
    the statistics of the training episodes. An action of the model is a block of the world's actions, one after the
    other, or the difference of two states.

    Args:
        stride: steps of the world between two times of the model.
        image_size: `[rows, columns]` of frames; as they are without.
        mean: of each channel of frames in [0, 1].
        std: like `mean`.
        scales: by `observation` (of vectors), `action`, `state`; what has none is left as it is.
        differences: whether an action is the difference of two states.
        action_dim: numbers of an action of the model, where they are known.
    """

    def __init__(
        self,
        stride: int = 1,
        image_size: Sequence[int] | None = None,
        mean: Sequence[float] = IMAGENET[0],
        std: Sequence[float] = IMAGENET[1],
        scales: Mapping[str, Scale] | None = None,
        differences: bool = False,
        action_dim: int | None = None,
    ) -> None:
        self.stride, self.image_size = stride, None if image_size is None else list(image_size)
        self.mean, self.std, self.differences = list(mean), list(std), differences
        self.scales, self.action_dim = dict(scales or {}), action_dim

    def observations(self, raw: Array) -> Tensor:
        """Frames `[T, rows, columns, C]` or `[T, C, rows, columns]` as `[C, T, H, W]`, vectors `[T, F]` as they come.

        Raises:
            ValueError: frames of another number of channels than there are means for.
        """
        values = torch.from_numpy(np.ascontiguousarray(raw))
        if values.ndim == 2:
            values = values.float()
            return self.scales["observation"].to(values) if "observation" in self.scales else values
        if values.ndim != 4:
            raise ValueError(f"observations are frames or vectors, not arrays of {list(values.shape[1:])}")
        if values.shape[-1] in (1, 3):
            values = values.permute(0, 3, 1, 2)
        if values.shape[1] != len(self.mean):
            raise ValueError(f"frames have {values.shape[1]} channels, but mean={self.mean} has {len(self.mean)}")
        unit = 255.0 if values.dtype == torch.uint8 else 1.0
        frames = values.float() if values.dtype == torch.uint8 else values.float().clone()
        if self.image_size is not None:
            frames = Fit(self.image_size)(frames)
        mean, std = (unit * torch.tensor(each).view(-1, 1, 1) for each in (self.mean, self.std))
        return frames.sub_(mean).div_(std).transpose(0, 1)

    def states(self, raw: Array) -> Tensor:
        """States `[T, S]`."""
        values = torch.from_numpy(np.ascontiguousarray(raw)).float()
        return self.scales["state"].to(values) if "state" in self.scales else values

    def blocks(self, raw: Array) -> Tensor:
        """Actions of the world `[T · stride, A]` as those of the model, `[T, stride · A]`."""
        values = torch.from_numpy(np.ascontiguousarray(raw)).float()
        values = self.scales["action"].to(values) if "action" in self.scales else values
        return values.unflatten(0, (len(values) // self.stride, self.stride)).flatten(1)

    def world_actions(self, actions: Tensor) -> Tensor:
        """Actions of the model `[..., H, stride · A]` as those of the world, `[..., H · stride, A]`."""
        if self.differences:
            return self.scales["action"].back(actions) if "action" in self.scales else actions
        values = actions.unflatten(-1, (self.stride, -1)).flatten(-3, -2)
        return self.scales["action"].back(values) if "action" in self.scales else values

    def between(self, raw: Array) -> Tensor:
        """The differences of states `[T, S]`, `[T − 1, S]`, of poses (7 numbers) those by `pose_difference`."""
        values = difference(raw)
        return self.scales["action"].to(values) if "action" in self.scales else values

    def state(self) -> dict[str, Any]:
        """All of it in plain values, for a checkpoint."""
        return {
            "stride": self.stride,
            "image_size": self.image_size,
            "mean": self.mean,
            "std": self.std,
            "differences": self.differences,
            "action_dim": self.action_dim,
            "scales": {
                name: {"mean": each.mean.tolist(), "std": each.std.tolist()} for name, each in self.scales.items()
            },
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Preparation:
        """What a checkpoint holds."""
        scales = {
            name: Scale(torch.tensor(each["mean"]), torch.tensor(each["std"])) for name, each in state["scales"].items()
        }
        return cls(**{**state, "scales": scales})


def difference(raw: Array) -> Tensor:
    """The differences of states `[T, S]` to those after them, of poses (7 numbers) by `pose_difference`."""
    values = torch.from_numpy(np.ascontiguousarray(raw)).double()
    before, after = values[:-1], values[1:]
    return (pose_difference(before, after) if values.shape[1] == 7 else after - before).float()

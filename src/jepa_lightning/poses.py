"""Poses of a robot's hand, and the actions between them: xyz, rotation by Euler angles about fixed x, y, z, gripper."""

from __future__ import annotations

import torch
from torch import Tensor


def rotation_matrix(angles: Tensor) -> Tensor:
    """The rotation about fixed x, then y, then z, `[..., 3, 3]`, by angles `[..., 3]` in radians.

    >>> quarter = rotation_matrix(torch.tensor([0.0, 0.0, torch.pi / 2]))
    >>> torch.allclose(quarter @ torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)
    True
    """
    (cx, cy, cz), (sx, sy, sz) = angles.cos().unbind(-1), angles.sin().unbind(-1)
    rows = [
        [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
        [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
        [-sy, cy * sx, cy * cx],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def euler_angles(rotation: Tensor) -> Tensor:
    """The angles `[..., 3]` of a rotation `[..., 3, 3]`, that about y in [−π/2, π/2]."""
    x = torch.atan2(rotation[..., 2, 1], rotation[..., 2, 2])
    y = torch.asin(-rotation[..., 2, 0].clamp(-1, 1))
    z = torch.atan2(rotation[..., 1, 0], rotation[..., 0, 0])
    return torch.stack([x, y, z], -1)


def move_pose(pose: Tensor, action: Tensor) -> Tensor:
    """The pose `[..., 7]` after an action `[..., 7]`: places and grippers add up, the latter within [0, 1].

    Source: V-JEPA 2 (arXiv 2506.09985), section 3.1 and appendix; angles are combined in float64, as in its code.
    """
    before, by = pose.double(), action.double()
    turned = euler_angles(rotation_matrix(by[..., 3:6]) @ rotation_matrix(before[..., 3:6]))
    gripper = (before[..., 6:] + by[..., 6:]).clamp(0, 1)
    return torch.cat([before[..., :3] + by[..., :3], turned, gripper], -1).to(pose.dtype)


def pose_difference(before: Tensor, after: Tensor) -> Tensor:
    """The action `[..., 7]` that leads from one pose `[..., 7]` to another.

    >>> pose, action = torch.tensor([0.1, 0.2, 0.3, 3.0, -0.2, 0.1, 0.5]), torch.tensor([0.1, 0, 0, 0.1, 0, -0.2, 0.3])
    >>> torch.allclose(pose_difference(pose, move_pose(pose, action)), action, atol=1e-6)
    True
    """
    first, second = before.double(), after.double()
    turn = rotation_matrix(second[..., 3:6]) @ rotation_matrix(first[..., 3:6]).mT
    difference = second - first
    return torch.cat([difference[..., :3], euler_angles(turn), difference[..., 6:]], -1).to(before.dtype)

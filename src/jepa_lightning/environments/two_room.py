"""TwoRoom: two rooms and a door."""

from __future__ import annotations

from typing import Literal

from jepa_lightning.environments.layout import Door, Layout
from jepa_lightning.environments.rooms import Rooms


class TwoRoom(Rooms):
    """Two rooms and a door, as LeWorldModel's Two-Room.

    Its published task is a goal 25 steps away within 50 steps: `TwoRoom(goal_steps=25)`, with a budget of 50. PLDM's
    and eb_jepa's rooms of 65 pixels are another task.

    Args:
        door: centre of the door along the wall, in pixels of 224.
        observation: `pixels` or `scene`.
        image_size: rows and columns of a frame.
        endless: whether an episode goes on with another goal at success.
        goal_steps: let the goal be where the expert gets within that many steps; anywhere without.
        crossings: doors on the shortest way to the goal, 0 or 1 (see `Rooms`).
        render_mode: `rgb_array` or None.

    Source: LeWorldModel (arXiv 2603.19312); geometry of `stable_worldmodel`'s TwoRoom.
    """

    def __init__(
        self,
        door: float = 49.0,
        observation: Literal["pixels", "scene"] = "pixels",
        image_size: int = 64,
        endless: bool = False,
        goal_steps: int | None = None,
        crossings: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        if not 28 <= door <= 196:
            raise ValueError(f"a door at {door} would lie in the border: give 28 to 196")
        layout = Layout([Door(0, door, 14.0)], [0], radius=7.0, speed=5.0, thickness=10)
        super().__init__(layout, 0, observation, image_size, endless, goal_steps, crossings, render_mode)

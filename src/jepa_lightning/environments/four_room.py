"""FourRoom: four rooms, doors that close, and distractors."""

from __future__ import annotations

from typing import Literal

from jepa_lightning.environments.layout import Door, Layout
from jepa_lightning.environments.rooms import DISTRACTORS, Rooms


class FourRoom(Rooms):
    """Four rooms and four doors, one of which may be closed, and distractors that move and jump, as in H-JEPA.

    Doors: 0 above and 1 below in the vertical wall, 2 left and 3 right in the horizontal one. The published tasks are
    `FourRoom(goal_steps=75, crossings=2)` within 210 steps. The goal's image shows the distractor where it was then.

    Args:
        distractors: the least and the largest number of distractors, up to five.
        closing: probability that a door is closed in an episode.
        radius: of the dots in pixels of 224.
        speed: of the dot, pixels a step.
        observation: `pixels` or `scene`.
        image_size: rows and columns of a frame.
        endless: whether an episode goes on with another goal at success.
        goal_steps: let the goal be where the expert gets within that many steps; anywhere without.
        crossings: doors on the shortest way to the goal, 0 to 2 (see `Rooms`).
        render_mode: `rgb_array` or None.

    Raises:
        ValueError: an option out of its range.

    Source: H-JEPA (arXiv 2610.06805), FourRoom with distractors.
    """

    def __init__(
        self,
        distractors: tuple[int, int] = (1, 1),
        closing: float = 0.5,
        radius: float = 3.5,
        speed: float = 2.5,
        observation: Literal["pixels", "scene"] = "pixels",
        image_size: int = 64,
        endless: bool = False,
        goal_steps: int | None = None,
        crossings: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        if not 0 <= distractors[0] <= distractors[1] <= len(DISTRACTORS):
            raise ValueError(f"distractors are the least and the largest number, 0 to 5, got {distractors}")
        if not 0 <= closing <= 1:
            raise ValueError(f"closing is a probability, got {closing}")
        doors = [Door(0, 56.0, 16.0), Door(0, 168.0, 16.0), Door(1, 56.0, 16.0), Door(1, 168.0, 16.0)]
        layout = Layout(doors, [0, 1], radius, speed, thickness=10)
        super().__init__(layout, distractors[1], observation, image_size, endless, goal_steps, crossings, render_mode)
        self.least_distractors, self.closing = distractors[0], closing

    def draw_closed(self) -> int:
        """None, or any of the four."""
        closed = self.np_random.random() < self.closing
        return int(self.np_random.integers(4)) if closed else -1

    def draw_number(self) -> int:
        """Any number in the range."""
        return int(self.np_random.integers(self.least_distractors, self.max_distractors + 1))

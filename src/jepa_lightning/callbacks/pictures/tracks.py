"""Pictures of tracks on a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from jepa_lightning import batches
from jepa_lightning.callbacks.pictures.base import Pictures
from jepa_lightning.callbacks.pictures.drawing import BLOCK_COLOURS, as_colours, as_table
from jepa_lightning.masking import PointMasks

SIZE, MARGIN, DOT = 160, 8, 3  # pixels of a map's side, around what it shows, and of a point's radius
HIDDEN, LINE = (0.6, 0.6, 0.6), (0.85, 0.85, 0.85)


class TrackPictures(Pictures):
    """Tracks on a map, north up, with what T-JEPA hides of them (`pictures/tracks`).

    Of a track a row. From left to right: of the first two targets, what the context encoder sees in black, what it does
    not see in grey, and the target in colour; and the target encoder's tokens, their first three principal components
    over all rows as red, green and blue. Drawn at every validation or, without held-out data, in every epoch.

    Args:
        num_images: number of tracks, at least 1.

    Raises:
        ValueError: no rows, or batches without a field `track` `[B, L, 2]`, as `TrajectoriesDataModule` gives it.
    """

    tag = "pictures/tracks"

    def shown(self, pl_module: Any, batch: Any) -> Tensor:
        """The first tracks in metres.

        Raises:
            ValueError: a batch without them, or a method that hides no points.
        """
        track = batches.fields(batch, pl_module.reads).get("track")
        if track is None:
            raise ValueError("TrackPictures draws the field `track` [B, L, 2] of a batch, which this one has not")
        return track[: self.num_images]

    def titles(self, pl_module: Any, images: Tensor, outputs: Any) -> list[str]:
        """A title a column."""
        return [*[f"target {number + 1}" for number in range(self._targets(outputs))], "features"]

    def draw(self, pl_module: Any, images: Tensor, outputs: Any) -> Tensor:
        """Of each track a row."""
        tokens, masks = outputs["latents"].features, outputs["drawn"]
        valid = tokens.valid
        there = torch.ones(images.shape[:2], dtype=torch.bool) if valid is None else valid[: len(images)].cpu()
        columns = []
        for target in range(self._targets(outputs)):
            seen, sought = (mask[: len(images), target].cpu().unsqueeze(-1) for mask in masks)
            colours = torch.where(seen, torch.zeros(3), torch.tensor(HIDDEN))
            columns.append(torch.where(sought, BLOCK_COLOURS[target], colours))
        columns.append(as_colours(tokens.values[: len(images)].float().cpu()))
        return draw_tracks(images, there, columns)

    def _targets(self, outputs: Any) -> int:
        if not isinstance(outputs["drawn"], PointMasks):
            raise ValueError("TrackPictures draws what TJEPA hides of tracks; this method draws no PointMasks")
        return min(2, outputs["drawn"].targets.shape[1])


def draw_tracks(tracks: Tensor, valid: Tensor, colours: Sequence[Tensor]) -> Tensor:
    """A picture with a row for each track and a column for each colouring of its points.

    Args:
        tracks: `[R, L, 2]`, metres to the east and north.
        valid: BoolTensor `[R, L]`, which points there are.
        colours: of each column `[R, L, 3]` in [0, 1].

    Returns:
        `[3, height, width]` in [0, 1].
    """
    tracks = tracks.detach().float().cpu()
    columns = []
    for each in colours:
        rows = []
        for track, there, colour in zip(tracks, valid, each, strict=True):
            points, pen, picture = _map(track[there])
            _line(pen, points, LINE)
            for (x, y), dot in zip(points, colour[there].tolist(), strict=True):
                pen.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), _rgb(dot))
            rows.append(pil_to_tensor(picture).float() / 255)
        columns.append(torch.stack(rows))
    return as_table(columns)


def draw_found(queries: Sequence[Tensor], found: Sequence[Sequence[Tensor]]) -> Tensor:
    """A picture of searches among tracks: a row for each query, itself in orange over each track found for it.

    Args:
        queries: R tracks `[L, 2]`, metres to the east and north.
        found: of each the K tracks that were found, the nearest first.

    Returns:
        `[3, height, width]` in [0, 1], K columns; all of a row on one scale.
    """
    columns: list[list[Tensor]] = [[] for _ in found[0]]
    for query, several in zip(queries, found, strict=True):
        everything = torch.cat([query, *several]).float()
        for column, one in zip(columns, several, strict=True):
            points, pen, picture = _map(everything)
            own, others = points[: len(query)], _within(one.float(), everything)
            _line(pen, others, (0.2, 0.2, 0.2))
            _line(pen, own, tuple(BLOCK_COLOURS[0].tolist()))
            column.append(pil_to_tensor(picture).float() / 255)
    return as_table([torch.stack(column) for column in columns])


def _map(points: Tensor) -> tuple[list[tuple[float, float]], Any, Any]:
    """Where points `[L, 2]` are on an empty map that just holds them, and the map."""
    picture = Image.new("RGB", (SIZE, SIZE), "white")
    return _within(points, points), ImageDraw.Draw(picture), picture


def _within(points: Tensor, frame: Tensor) -> list[tuple[float, float]]:
    """Pixels of points `[L, 2]` on a map that just holds a frame `[N, 2]`, north up and to one scale."""
    if not len(frame):
        return []
    low, high = frame.amin(0), frame.amax(0)
    scale = (SIZE - 2 * MARGIN) / (high - low).max().clamp(min=1e-6)
    placed = (points - (low + high) / 2) * scale
    return [(SIZE / 2 + x, SIZE / 2 - y) for x, y in placed.tolist()]


def _line(pen: Any, points: list[tuple[float, float]], colour: tuple[float, ...]) -> None:
    if len(points) > 1:
        pen.line(points, _rgb(colour), width=1)


def _rgb(colour: Sequence[float]) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in colour)

"""Pictures of texts: which words are hidden, and what the target encoder makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from jepa_lightning.callbacks.pictures.base import Pictures
from jepa_lightning.callbacks.pictures.drawing import BLOCK_COLOURS, colours_of_tokens
from jepa_lightning.masking import Masks
from jepa_lightning.step import Tokens

WIDTH, LINE, BAR, LINES = 600, 20, 4, 4  # pixels of a text, of a line, of the colours below; lines of a text at most


class WordPictures(Pictures):
    """Texts, their hidden words, and what the target encoder makes of each word (`pictures/words`).

    Of each text its first lines: hidden words stand on orange, and below each word is the target encoder's token, its
    first three principal components over all texts as red, green and blue. What a word is called, the DataModule says
    (`pieces`); without one, words are numbers. Of several masks of a text the first is drawn.

    Drawn at every validation or, without held-out data, in every epoch.

    Args:
        num_images: number of texts, at least 1.

    Raises:
        ValueError: no texts.
    """

    tag = "pictures/words"
    axes = (2,)

    def titles(self, pl_module: Any, images: Tensor, outputs: Any) -> list[str]:
        """One for the whole."""
        return ["texts, what is hidden of them, and the features"]

    def draw(self, pl_module: Any, images: Tensor, outputs: Any) -> Tensor:
        """The texts."""
        data: Any = getattr(pl_module.trainer, "datamodule", None)
        masks, words = next(iter(pl_module.kinds(outputs["drawn"]).values())), images.cpu()
        pieces = [
            data.pieces(row) if hasattr(data, "pieces") else [f"{word} " for word in row.tolist()] for row in words
        ]
        return draw_words(pieces, masks, outputs["latents"].features)


def draw_words(pieces: Sequence[Sequence[str]], masks: Masks, features: Tokens) -> Tensor:
    """The picture of `WordPictures`.

    Args:
        pieces: what each of the N words of R texts is called, with the spaces around it.
        masks: those of R or more texts.
        features: the tokens `[R, N, D]`, or those of more texts.

    Returns:
        `[3, height, width]` in [0, 1].
    """
    font = ImageFont.load_default(size=13)
    colours = (255 * colours_of_tokens(features, len(pieces))).long().tolist()
    orange = tuple(int(255 * value) for value in BLOCK_COLOURS[0])
    rows = []
    for row, words in enumerate(pieces):
        picture = Image.new("RGB", (WIDTH, LINES * LINE + BAR), "white")
        pen, left, top = ImageDraw.Draw(picture), 4.0, 0
        hidden = set(masks.targets[row, 0].tolist())
        for place, word in enumerate(words):
            if features.valid is not None and not features.valid[row, place]:
                continue
            name = " ".join(word.split("\n")) or "|"
            width = pen.textlength(name, font)
            if left + width > WIDTH - 4:
                left, top = 4.0, top + LINE
            if top >= LINES * LINE:
                break
            if place in hidden:
                pen.rectangle((left, top + 1, left + width - 1, top + LINE - BAR - 2), fill=orange)
            pen.text((left, top), name, "black", font)
            pen.rectangle((left, top + LINE - BAR, left + width - 1, top + LINE - 2), fill=tuple(colours[row][place]))
            left += width
        height = min(top + LINE, LINES * LINE) + BAR
        rows.append(pil_to_tensor(picture)[:, :height].float() / 255)
    return torch.cat(rows, 1)

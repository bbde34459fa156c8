"""Pictures of sounds: their spectrograms, what is hidden of them, and what the target encoder makes of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_lightning.callbacks.pictures.base import Pictures
from jepa_lightning.callbacks.pictures.drawing import BLOCK_COLOURS, colours_of_tokens
from jepa_lightning.masking import Masks
from jepa_lightning.step import Tokens

WIDTH, HEIGHT, STRIP, GAP = 600, 96, 16, 4  # pixels of a spectrogram, of the strip of colours below, and between rows
_WINDOW = 512  # samples of a spectrum
_FLOOR = 10.0  # how far below the loudest, in natural logarithms of the power, black begins


class WavePictures(Pictures):
    """Spectrograms, what is hidden of them, and what the target encoder makes of the frames (`pictures/waves`).

    Of each sound a row: its spectrogram, low frequencies below, with the hidden stretches in orange; and the target
    encoder's tokens, their first three principal components over all rows as red, green and blue. The strip is white
    where the batch has only padding. Of several masks of a sound the first is drawn.

    Drawn at every validation or, without held-out data, in every epoch.

    Args:
        num_images: number of sounds, at least 1.

    Raises:
        ValueError: no rows.
    """

    tag = "pictures/waves"
    axes = (3,)

    def titles(self, pl_module: Any, images: Tensor, outputs: Any) -> list[str]:
        """One for the whole."""
        return ["spectrograms, what is hidden of them, and the features"]

    def draw(self, pl_module: Any, images: Tensor, outputs: Any) -> Tensor:
        """The rows."""
        masks = next(iter(pl_module.kinds(outputs["drawn"]).values()))
        return draw_waves(images, masks, outputs["latents"].features)


def draw_waves(waves: Tensor, masks: Masks, features: Tokens) -> Tensor:
    """The picture of `WavePictures`.

    Args:
        waves: `[R, L, C]`, of which the mean of the channels is shown.
        masks: those of R or more sounds.
        features: the tokens `[R, N, D]`, or those of more sounds.

    Returns:
        `[3, height, width]` in [0, 1].
    """
    count, tokens = len(waves), features.values.shape[1]
    wave = F.pad(waves.detach().float().cpu().mean(-1), (0, max(0, _WINDOW - waves.shape[1])))
    window, hop = torch.hann_window(_WINDOW), max(1, min(_WINDOW // 4, wave.shape[1] // WIDTH))
    spectra = torch.stft(wave, _WINDOW, hop, window=window, return_complex=True)
    power = (spectra.abs().square()[:, 1:] + 1e-10).log().flip(1)
    loudest = power.amax((1, 2), keepdim=True)
    shown = ((power - loudest + _FLOOR) / _FLOOR).clamp(0, 1)
    shown = F.interpolate(shown.unsqueeze(1), (HEIGHT, WIDTH), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    hidden = torch.zeros(count, tokens).scatter_(1, masks.targets[:count, 0].cpu(), 1.0)
    there = torch.ones(count, tokens) if features.valid is None else features.valid[:count].float().cpu()
    tint = _along(hidden * there) * 0.5
    shown = shown * (1 - tint) + BLOCK_COLOURS[0].view(1, 3, 1, 1) * tint
    strip = _along(colours_of_tokens(features, count).permute(2, 0, 1)).expand(-1, -1, STRIP, -1)
    rows = torch.cat([shown, strip, torch.ones(count, 3, GAP, WIDTH)], 2)
    return torch.cat(list(rows), 1)


def _along(values: Tensor) -> Tensor:
    """Values of tokens `[R, N]` or `[C, R, N]` along the width: `[R, 1, 1, WIDTH]` or `[R, C, 1, WIDTH]`."""
    values = values.unsqueeze(0) if values.ndim == 2 else values
    return F.interpolate(values, WIDTH, mode="nearest").transpose(0, 1).unsqueeze(2)

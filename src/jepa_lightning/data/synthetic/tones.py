"""Sounds of instruments made of sines: a labelled data set of waves that needs no download."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jepa_lightning.batches import UNLABELLED
from jepa_lightning.data.synthetic.rendered import DrawnDataset, RenderedDataModule
from jepa_lightning.data.synthetic.streams import Streams

INSTRUMENTS = ("organ", "flute", "clarinet", "fiddle", "harp", "bell")
LOWEST = 130.8  # Hz, the C below the middle one, of octave 0
OCTAVES = 3
NOTES = 3  # of a sound
CONTOURS = ("down, down", "down, up", "up, down", "up, up")
RATE = 8_000  # samples a second
LABEL_RATE = 100  # notes a second

# Of each instrument, the frequencies of its partials over that of the note, and how loud they are.
_EVEN = np.arange(1, 9)
_RATIOS = np.array(
    [[1, 2, 3, 4, 6, 8, 10, 12], _EVEN, 2 * _EVEN - 1, _EVEN, _EVEN, [0.56, 0.92, 1.19, 1.71, 2, 2.74, 3, 3.76]]
)
_LOUDNESS = np.array(
    [
        [1, 0.8, 0.5, 0.6, 0.4, 0.5, 0.2, 0.2],
        [1, 0.2, 0.06, 0.02, 0.01, 0, 0, 0],
        1 / (2 * _EVEN - 1),
        1 / _EVEN,
        1 / _EVEN,
        [0.5, 1, 0.8, 0.7, 0.9, 0.5, 0.4, 0.3],
    ]
)
_ATTACK = np.array([0.01, 0.05, 0.02, 0.06, 0.002, 0.002])  # seconds
_DECAY = np.array([0.0, 0.0, 0.0, 0.0, 4.0, 2.0])  # a second, of the lowest partial; faster of others
_VIBRATO = np.array([0.0, 0.003, 0.0, 0.008, 0.0, 0.0])  # of the frequency
_BREATH = np.array([0.0, 0.15, 0.05, 0.03, 0.0, 0.0])  # noise, over the sound
_ROOM = 2.0  # how much the logarithm of a partial's amplitude may change by each of three waves over six octaves


class TonesBatch(NamedTuple):
    """A batch of sounds (or, without the leading `B`, one sample).

    Attributes:
        wave: `[B, L, 1]` float32, of mean zero and variance one, zero behind the end.
        valid: BoolTensor `[B, L]`, which samples there are.
        instrument: `[B]` int64, an index into `INSTRUMENTS`.
        octave: `[B]` int64, of all notes, 0 to 2.
        contour: `[B]` int64, an index into `CONTOURS`: which way the melody goes; -1 where a note comes twice in a row.
        note: `[B, T]` int64, for each hundredth of a second the pitch class that sounds, from C as 0 to 11; -1 behind
            the end.
    """

    wave: Tensor
    valid: Tensor
    instrument: Tensor
    octave: Tensor
    contour: Tensor
    note: Tensor


class TonesDataset(DrawnDataset):
    """Three notes each of one of six instruments, additive synthesis of eight partials, with some noise.

    Instruments differ in their partials, attack, decay and vibrato. Loudness, phases, pitches, lengths, noise, and a
    room that makes some frequencies up to 100 times as loud as others are drawn apart from these. So neither samples
    nor the mean spectrum tell much of an instrument, but which partials there are, and how they rise and fall; and of
    the contour, which way the melody goes, the mean spectrum tells nearly nothing.

    Every sound is a pure function of the seed, the split and its index, to rounding.

    Args:
        num_sounds: length of the data set.
        seconds: of the longest sound, at 8,000 samples a second; others have six tenths of it or more.
        seed: any integer in [0, 2**63); other seeds give other sounds.
        split: "train", "val" or "test", three disjoint streams of sounds.

    Raises:
        ValueError: for an argument out of range.

    Example:
        >>> sample = TonesDataset(100)[7]
        >>> sample.wave.shape, INSTRUMENTS[sample.instrument], sample.note.shape
        (torch.Size([8000, 1]), 'fiddle', torch.Size([100]))
    """

    batch = TonesBatch
    chunk = 64  # a property of the base

    def __init__(self, num_sounds: int, seconds: float = 1.0, seed: int = 0, split: str = "train") -> None:
        super().__init__(num_sounds, seed, split)
        if not 0.25 <= seconds <= 60:
            raise ValueError(f"seconds={seconds} must lie between 0.25 and 60")
        self.samples = round(seconds * RATE)

    def render(self, draws: Streams) -> TonesBatch:
        """Play the notes."""
        count, samples = len(draws.keys), self.samples
        instrument = (draws.uniform(1)[:, 0] * len(INSTRUMENTS)).astype(np.int64)
        octave = (draws.uniform(1)[:, 0] * OCTAVES).astype(np.int64)
        pitch = (draws.uniform(NOTES) * 12).astype(np.int64)
        length = np.round(draws.uniform(1, low=0.6, high=1.0)[:, 0] * samples).astype(np.int64)
        shares = draws.uniform(NOTES, low=1.0, high=2.0)
        ends = np.round(np.cumsum(shares / shares.sum(1, keepdims=True), 1) * length[:, None]).astype(np.int64)
        phases = draws.uniform(NOTES, _RATIOS.shape[1]) * 2 * np.pi
        height, place = draws.uniform(3, low=0.0, high=_ROOM), draws.uniform(3) * 2 * np.pi
        hiss = draws.uniform(1, low=0.1, high=0.8)
        rate, loud = draws.uniform(1, low=4.0, high=7.0), draws.uniform(NOTES, low=0.5, high=1.0)

        time = np.arange(samples)
        playing = (time[None, :, None] >= ends[:, None]).sum(2).clip(max=NOTES - 1)  # the number of the note
        rows = np.arange(count)[:, None]
        starts = np.concatenate([np.zeros((count, 1), np.int64), ends[:, :-1]], 1)
        since = (time - starts[rows, playing]) / RATE
        hertz = LOWEST * 2.0 ** (octave[:, None] + pitch / 12)
        wobble = _VIBRATO[instrument][:, None] * np.sin(2 * np.pi * rate * since) / (2 * np.pi * rate)
        turns = hertz[rows, playing] * (since + wobble)
        rise = np.minimum(1.0, since / _ATTACK[instrument][:, None])
        wave = np.zeros((count, samples))
        for partial in range(_RATIOS.shape[1]):
            ratio = _RATIOS[instrument, partial][:, None]
            fall = np.exp(-since * _DECAY[instrument][:, None] * (1 + 0.5 * partial))
            below = ratio * hertz[rows, playing] < RATE / 2  # those above would be heard as others
            octaves = np.log2(ratio * hertz / LOWEST)[..., None]  # what the room does to each of the notes
            waves = height[:, None] * np.cos(np.arange(1, 4) * octaves * np.pi / 3 + place[:, None])
            room = np.exp(waves.sum(2))[rows, playing]
            sine = np.sin(2 * np.pi * ratio * turns + phases[rows, playing, partial])
            wave += below * room * _LOUDNESS[instrument, partial][:, None] * fall * sine
        wave *= rise * loud[rows, playing]
        valid = time < length[:, None]
        noise = (draws.uniform(samples) + draws.uniform(samples) - 1) * np.sqrt(6)
        spread = np.sqrt((wave**2 * valid).sum(1, keepdims=True) / length[:, None])
        wave += noise * spread * (hiss + _BREATH[instrument][:, None])
        wave = np.where(valid, wave, 0.0)
        wave -= wave.sum(1, keepdims=True) / length[:, None]
        wave /= np.sqrt((wave**2 * valid).sum(1, keepdims=True) / length[:, None])
        middle = ((np.arange(samples * LABEL_RATE // RATE) + 0.5) * RATE / LABEL_RATE).astype(np.int64)
        note = np.where(valid[:, middle], pitch[rows, playing[:, middle]], UNLABELLED)
        steps = np.diff(pitch, axis=1)
        contour = np.where((steps != 0).all(1), (steps > 0) @ [2, 1], UNLABELLED)
        return TonesBatch(
            torch.from_numpy(np.where(valid, wave, 0.0).astype(np.float32)).unsqueeze(-1),
            torch.from_numpy(valid),
            torch.from_numpy(instrument),
            torch.from_numpy(octave),
            torch.from_numpy(contour),
            torch.from_numpy(note),
        )


class TonesDataModule(RenderedDataModule):
    """Sounds for training, validation and testing; see `TonesDataset`.

    Batches are `TonesBatch`es: `wave` is `[batch_size, 8000 * seconds, 1]`. Predicting uses the test sounds.

    Args:
        seconds: of the longest sound.
        num_train: number of training sounds.
        num_val: number of validation sounds, and of test sounds.
        batch_size: sounds per batch. Training drops an incomplete last batch.
        num_workers: worker processes per loader; 0 renders in the training process.
        seed: of the sounds, an integer in [0, 2**63).

    Attributes:
        classes: the names of each label's classes in the order of their numbers.

    Raises:
        ValueError: for an argument out of range.
    """

    classes = {  # noqa: RUF012
        "instrument": list(INSTRUMENTS),
        "octave": ["0", "1", "2"],
        "contour": list(CONTOURS),
        "note": ["C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"],
    }

    def __init__(
        self,
        seconds: float = 1.0,
        num_train: int = 10_000,
        num_val: int = 1_000,
        batch_size: int = 64,
        num_workers: int = 1,
        seed: int = 0,
    ) -> None:
        def render(number: int, split: str) -> TonesDataset:
            return TonesDataset(number, seconds, seed, split)

        super().__init__(render, num_train, num_val, batch_size, num_workers)
        self.save_hyperparameters(logger=False)

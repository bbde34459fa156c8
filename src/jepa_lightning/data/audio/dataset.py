"""Batches of waves."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from jepa_lightning.data.audio.decoding import Wave, read_wave
from jepa_lightning.data.faults import Faults, UnreadableError, read_first
from jepa_lightning.data.labels import collated, per_step
from jepa_lightning.data.resume import Visit, as_visit, seeded
from jepa_lightning.data.samples import Sample, Samples

LABEL_RATE = 100  # steps a second of labels that change within a sound


class Waves(Dataset[Any]):
    """Waves of some sounds, a batch at a time, each with what could not be read for it and how many were tried.

    A batch is a dict: `wave` `[B, L, 1]` float32, as long as its longest sound and zero beyond the others, `valid`
    `[B, L]`, and the labels. Of labels that change within a sound there are 100 a second, `[B, T]`.

    Args:
        source: of the sounds; the label of a `Sample` is a class, or a dict of labels as `Vocabulary` numbers them.
        rate: samples a second.
        resample: whether sounds of another rate are resampled.
        shortest: samples that a sound has to have.
        longest: samples of a sound at most; of longer ones a part is taken.
        is_random: whether that is any part, or the middle.
        normalize: whether each wave has mean zero and variance one.
        seed: of all draws.
        faults: where the loader keeps count.
    """

    def __init__(
        self,
        source: Samples,
        rate: int,
        resample: bool,
        shortest: int,
        longest: int | None,
        is_random: bool,
        normalize: bool,
        seed: int,
        faults: Faults,
    ) -> None:
        self.source, self.rate, self.resample, self.seed, self.faults = source, rate, resample, seed, faults
        self.shortest, self.longest, self.is_random, self.normalize = shortest, longest, is_random, normalize

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, keys: list[int | Visit] | int) -> Any:
        return self.__getitems__(keys if isinstance(keys, list) else [keys])

    def __getitems__(self, keys: list[int | Visit]) -> tuple[dict[str, Tensor], dict[str, str], int]:
        faulty: dict[str, str] = {}
        found = [self._sample(as_visit(key), faulty) for key in keys]
        length = max(len(wave.values) for _, wave in found)
        waves = np.zeros((len(found), length, 1), np.float32)
        valid = np.zeros((len(found), length), bool)
        for row, (_, wave) in enumerate(found):
            waves[row, : len(wave.values), 0] = self._scaled(wave.values)
            valid[row, : len(wave.values)] = True
        batch = {"wave": torch.from_numpy(waves), "valid": torch.from_numpy(valid)}
        return batch | self._labels(found), faulty, len(keys) + len(faulty)

    def _sample(self, visit: Visit, faulty: dict[str, str]) -> tuple[Sample, Wave]:
        with seeded(self.seed, visit):
            place = float(torch.rand(())) if self.is_random else 0.5
            read = partial(self._read, place=place)
            return read_first(self.source.candidates(visit), read, "sounds", faulty)

    def _read(self, sample: Sample, place: float) -> Wave:
        try:
            wave = read_wave(sample.read(), self.rate, self.resample, self.longest, place)
        except ValueError as error:
            raise ValueError(f"{sample.name}: {error}") from error
        if len(wave.values) < self.shortest:
            raise UnreadableError(f"it has {len(wave.values)} samples, fewer than min_seconds")
        return wave

    def _scaled(self, values: Any) -> Any:
        return (values - values.mean()) / np.sqrt(values.var() + 1e-5) if self.normalize else values

    def _labels(self, found: list[tuple[Sample, Wave]]) -> dict[str, Tensor]:
        """The labels of a batch.

        Raises:
            RuntimeError: if some sounds have labels and others none.
        """
        rows: list[dict[str, Any]] = []
        for sample, wave in found:
            given: Any = sample.label
            row = dict(given) if isinstance(given, dict) else {} if given is None else {"label": given}
            steps = -(-len(wave.values) * LABEL_RATE // self.rate)
            for name, value in row.items():
                if isinstance(value, list):
                    row[name] = per_step(value, steps, LABEL_RATE, wave.start)
            rows.append(row)
        if len({tuple(row) for row in rows}) > 1:
            raise RuntimeError("some of the sounds in a batch have labels and others none: label all of them, or none.")
        return collated(rows)

"""Waves out of sound files."""

from __future__ import annotations

import math
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jepa_lightning.data.faults import UnreadableError


class Wave(NamedTuple):
    """What is read of a sound.

    Attributes:
        values: `[L]` float32.
        start: where it begins in its file, in seconds.
    """

    values: NDArray[np.float32]
    start: float


def check_libraries() -> None:
    """Raise an ImportError without the libraries that decode and resample."""
    try:
        import soundfile  # noqa: F401
        import soxr  # noqa: F401
    except (ImportError, OSError) as error:  # soundfile without its library of C
        raise ImportError(f"sounds are decoded by soundfile, and resampled by soxr ({error}): {_INSTALL}") from error


_INSTALL = 'pip install "jepa-lightning[audio]"'


def read_seconds(content: str | bytes) -> float:
    """How long a sound is, by its header.

    Raises:
        UnreadableError: a file that is no sound.
    """
    with _opened(content) as file:
        return file.frames / file.samplerate


def read_wave(content: str | bytes, rate: int, resample: bool, longest: int | None = None, place: float = 0.5) -> Wave:
    """Decode a sound, to one channel, the mean of all, at a rate.

    Args:
        content: the path, or the bytes of the file.
        rate: samples a second.
        resample: whether a sound of another rate is resampled, by soxr.
        longest: samples that are read at most, at `rate`; the whole sound without.
        place: which of the possible starts, in [0, 1): 0 for the first, 0.5 for the middle.

    Raises:
        UnreadableError: a file that is no sound, has nothing in it, ends too early, or has samples that are not finite.
        ValueError: another rate, and it is not to be resampled.
    """
    import soxr

    with _opened(content) as file:
        native, frames = file.samplerate, file.frames
        if native != rate and not resample:
            raise ValueError(
                f"it has {native} samples a second, not sample_rate={rate}: give resample=true, or convert it"
            )
        wanted = frames if longest is None else min(frames, math.ceil(longest * native / rate))
        first = int(place * (frames - wanted + 1))
        try:
            file.seek(first)
            found = file.read(wanted, dtype="float32", always_2d=True)
        except (RuntimeError, OSError) as error:
            raise UnreadableError(str(error)) from error
    if not wanted:
        raise UnreadableError("there is nothing in it")
    if len(found) < wanted:
        raise UnreadableError(f"it ends after {first + len(found)} samples, and should have {frames}")
    values = found.mean(1)
    if not np.isfinite(values).all():
        raise UnreadableError("it has samples that are not finite")
    if native != rate:
        values = np.asarray(soxr.resample(values, native, rate), np.float32)
    return Wave(values[:longest], first / native)


def _opened(content: str | bytes) -> Any:
    import soundfile

    try:
        return soundfile.SoundFile(BytesIO(content) if isinstance(content, bytes) else content)
    except (RuntimeError, OSError, TypeError) as error:  # soundfile's are RuntimeErrors
        raise UnreadableError(str(error)) from error

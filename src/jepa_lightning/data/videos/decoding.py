"""Clips from video files, decoded by torchcodec or PyAV: the same frames from both.

A first pass over a file, which decodes nothing, finds its frames and the time of each; its nominal rate plays no part.
So the number and the time of a frame are exact, also with B-frames, at a variable frame rate and where an edit list
hides frames. Frames are turned as the file says, since phones film sideways.

From 8 bits a channel, both decoders make the same bytes. From 10, their FFmpegs, of different versions, may interpolate
colours differently: by less than 0.1 of 255 levels on average, by up to 10 at sharp edges (FFmpeg 5.1 against 8.0).
"""

import io
import re
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa_lightning.data.faults import UnreadableError

_ROUNDING = 1.25e-3  # seconds; Matroska rounds times to milliseconds
_GREY_FRAME = b"YUV4MPEG2 W32 H16 F1:1\nFRAME\n" + bytes([128] * (32 * 16 * 3 // 2))  # a whole video file


class PyAVVideo:
    """A video read with PyAV, whose wheels bring FFmpeg along.

    Args:
        source: a path, or the bytes of a file.

    Attributes:
        times: when each frame appears, in seconds, in order; at least one.

    Raises:
        UnreadableError: if it is no video.
    """

    def __init__(self, source: str | bytes) -> None:
        import av

        self._source = source
        # Times are whole numbers of a unit that the stream has; those of the key frames are where decoding can start.
        self._ticks, self._keys = list[int](), list[int]()
        is_delayed = False
        with self._open() as (container, stream):
            for packet in container.demux(stream):
                if packet.size == 0 or packet.is_discard:  # the end, or hidden by an edit list
                    continue
                if packet.pts is None:
                    raise UnreadableError("its frames have no times")
                self._ticks.append(packet.pts)
                if packet.is_keyframe:
                    self._keys.append(packet.pts)
                is_delayed |= packet.dts is not None and packet.dts != packet.pts
            if not self._ticks:
                raise UnreadableError("it has no frames")
            self._ticks.sort()
            self.times = [float(tick * stream.time_base) for tick in self._ticks]
            # AVI has no times of B-frames, and FFmpeg's guesses are wrong. It has their order, though.
            self._is_counted = is_delayed and container.format.name == "avi"
            # MPEG streams have no index, and what is found without is not always what was looked for.
            if self._is_counted or container.format.flags & av.format.Flags.ts_discont.value:
                self._keys.clear()

    def frames(self, indices: list[int]) -> Tensor:
        """Decode the frames of these numbers.

        Args:
            indices: from 0 to `len(times) - 1`, in any order.

        Returns:
            `[T, 3, H, W]` uint8.

        Raises:
            UnreadableError: if some of them cannot be decoded, or their sizes differ.
        """
        wanted = sorted({self._ticks[index] for index in indices})
        frames: dict[int, Tensor] = {}
        with self._open() as (container, stream):
            for key, ticks in groupby(wanted, self._last_key):
                if key is not None:
                    container.seek(key, stream=stream)
                frames |= self._decode(container.demux(stream), set(ticks))
        if missing := set(wanted) - set(frames):  # sought in vain, as happens in FLV
            with self._open() as (container, stream):
                frames |= self._decode(container.demux(stream), missing)
        if len(frames) < len(wanted):
            raise UnreadableError(f"{len(wanted) - len(frames)} of {len(wanted)} frames cannot be decoded")
        with _reading():
            return torch.stack([frames[self._ticks[index]] for index in indices]).permute(0, 3, 1, 2)

    def _last_key(self, tick: int) -> int | None:
        """The key frame from which decoding reaches a time; None for the start of the file."""
        index = bisect_right(self._keys, tick)
        return self._keys[index - 1] if index else None

    def _decode(self, packets: Iterator[Any], wanted: set[int]) -> dict[int, Tensor]:
        """Decode until the frames `[H, W, 3]` of these times are found or passed."""
        frames: dict[int, Tensor] = {}
        last, counted = max(wanted), iter(self._ticks)
        for packet in packets:
            for frame in packet.decode():
                tick = next(counted, last) if self._is_counted else frame.pts
                if tick in wanted:
                    pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                    frames[tick] = torch.from_numpy(np.ascontiguousarray(pixels))
                if tick >= last:
                    return frames
        return frames

    @contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        import av

        source = io.BytesIO(self._source) if isinstance(self._source, bytes) else self._source
        with _reading(av.FFmpegError), av.open(source, metadata_errors="ignore") as container:
            stream = container.streams.best("video")
            if stream is None:
                raise UnreadableError("it has no video stream")
            stream.codec_context.thread_count = 1  # the workers of a loader fill the processors
            yield container, stream


class TorchCodecVideo(PyAVVideo):
    """A video decoded with torchcodec, which uses the FFmpeg of the system; PyAV still finds the frames."""

    def frames(self, indices: list[int]) -> Tensor:
        """See `PyAVVideo.frames`.

        Raises:
            UnreadableError: also where torchcodec takes other frames for these, as in MPEG transport streams.
        """
        from torchcodec.decoders import VideoDecoder

        with _reading():
            batch = VideoDecoder(self._source, device="cpu").get_frames_at(indices=indices)
        times = torch.tensor([self.times[index] for index in indices], dtype=torch.float64)
        if not torch.allclose(batch.pts_seconds, times, rtol=0, atol=1e-6):
            raise UnreadableError("torchcodec takes other frames for those asked for; PyAV may not")
        return batch.data


@contextmanager
def _reading(own: type[Exception] = RuntimeError) -> Iterator[None]:
    """Make an `UnreadableError` of what decoders and Pillow raise about a file, without the decoder's own lines."""
    try:
        yield
    except UnreadableError:
        raise
    except (RuntimeError, ValueError, LookupError, OSError, EOFError, SyntaxError, own) as error:
        reason = str(getattr(error, "strerror", None) or error).strip().split("\n")[0]
        raise UnreadableError(re.sub(r"^\w+, \S+:\d+, ", "", reason)) from error


def find_decoders(name: str) -> list[type[PyAVVideo]]:
    """The decoders to try, one after the other, on every file.

    Args:
        name: "torchcodec", "pyav", or "auto" for torchcodec where it works, and PyAV where not and for files that
            torchcodec cannot read.

    Raises:
        ImportError: if they are not there; the message says how to get them.
    """
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise ImportError("to read videos, PyAV is needed: pip install av") from error
    if name == "pyav":
        return [PyAVVideo]
    try:
        # It can be imported where it cannot decode, without FFmpeg or beside another torch.
        from torchcodec.decoders import VideoDecoder

        if not hasattr(VideoDecoder(_GREY_FRAME, device="cpu").metadata, "rotation"):
            raise ImportError("versions before 0.11 do not turn frames")
    except (ImportError, RuntimeError, OSError) as error:
        if name == "auto":
            return [PyAVVideo]
        raise ImportError(
            f"decoder={name!r} cannot be used ({str(error).strip().splitlines()[0]}): it needs torchcodec 0.11 or "
            "newer, the torch that belongs to it (see its README), and FFmpeg on the system. Or give 'pyav'."
        ) from error
    return [TorchCodecVideo] if name == "torchcodec" else [TorchCodecVideo, PyAVVideo]


def read_clips(
    source: str | bytes,
    decoders: list[type[PyAVVideo]],
    num_frames: int,
    positions: list[float],
    stride: int = 1,
    rate: float | None = None,
    min_frames: int = 1,
) -> list[Tensor]:
    """Read clips from a video.

    Frames are every `stride`-th of the video or, with a `rate`, those on screen at that many times a second. A clip
    that is longer than the video starts with it, and has only the frames that are there.

    Args:
        source: a path, or the bytes of a file.
        decoders: from `find_decoders`.
        num_frames: frames of a clip.
        positions: where the clips start, for each: 0 for the first possible start, nearly 1 for the last.
        stride: from one frame of a clip to the next.
        rate: frames a second, instead of `stride`.
        min_frames: frames that the video must have.

    Returns:
        the clips `[T, 3, H, W]` uint8, with `T` from 1 to `num_frames`.

    Raises:
        UnreadableError: if no decoder can read the video, or it has fewer frames than `min_frames`.
    """

    def read(decoder: type[PyAVVideo]) -> list[Tensor]:
        video = decoder(source)
        if len(video.times) < min_frames:
            raise UnreadableError(f"it has {len(video.times)} frames, fewer than min_frames={min_frames}")
        if rate is None:
            clips = [_by_stride(len(video.times), num_frames, stride, position) for position in positions]
        else:
            clips = [_by_rate(video.times, num_frames, rate, position) for position in positions]
        frames = video.frames(list(chain(*clips)))  # in one go: clips may overlap
        return list(frames.split([len(clip) for clip in clips]))

    *first, last = decoders
    for decoder in first:
        with suppress(UnreadableError):
            return read(decoder)
    return read(last)


def _by_stride(available: int, num_frames: int, stride: int, position: float) -> list[int]:
    starts = max(1, available - (num_frames - 1) * stride)
    start = min(int(position * starts), starts - 1)
    return list(range(start, min(start + num_frames * stride, available), stride))


def _by_rate(times: list[float], num_frames: int, rate: float, position: float) -> list[int]:
    # Containers disagree on how long the last frame lasts: as long as the others do on average.
    end = times[-1] + (times[-1] - times[0]) / max(1, len(times) - 1)
    start = times[0] + position * max(0.0, end - times[0] - (num_frames - 1) / rate)
    wanted = [start + index / rate for index in range(num_frames)]
    # What is asked for at a frame's own time, up to rounding, must be that frame and not the one before.
    return [bisect_right(times, time + _ROUNDING) - 1 for time in wanted if time < end or time == start]

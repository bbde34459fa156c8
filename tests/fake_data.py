"""A few random images in the formats that data sets have on disk."""

import io
import json
import math
import pickle
import struct
import tarfile
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import av
import h5py
import numpy as np
import soundfile
from PIL import Image

RNG = np.random.default_rng(0)


def write_droid(root: Path, episodes: int = 2, frames: int = 40) -> None:
    """Episodes as in DROID's raw release: a video of each camera, named by its number, and what the robot was like."""
    for number in range(episodes):
        folder = root / "lab" / "success" / f"episode_{number}"
        (folder / "recordings" / "MP4").mkdir(parents=True)
        write_video(folder / "recordings" / "MP4" / "23404442.mp4", num_frames=frames)
        told = {"left_mp4_path": f"success/episode_{number}/recordings/MP4/23404442.mp4", "success": True}
        (folder / "metadata_lab.json").write_text(json.dumps(told))
        with h5py.File(folder / "trajectory.h5", "w") as file:
            pose = np.random.default_rng(number).uniform(0.2, 0.8, (frames, 6))
            file["observation/robot_state/cartesian_position"] = pose
            file["observation/robot_state/gripper_position"] = np.linspace(0, 1, frames)
            file["action/cartesian_position"] = pose


def write_mnist(root: Path, name: str, train: int = 40, test: int = 12) -> None:
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for prefix, number in (("train", train), ("t10k", test)):
        images = RNG.integers(0, 256, (number, 28, 28), np.uint8)
        labels = RNG.integers(0, 10, number).astype(np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, number, 28, 28) + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, number) + labels.tobytes())


def write_images(root: Path, *paths: str, size: tuple[int, int] = (20, 24)) -> list[Path]:
    """Write random images of (columns, rows) to the paths."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(root / path)
    return [root / path for path in paths]


def write_cifar(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        entry = {"data": RNG.integers(0, 256, (6, 3072), np.uint8), "labels": RNG.integers(0, 10, 6).tolist()}
        (folder / name).write_bytes(pickle.dumps(entry))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))


def write_stl10(root: Path) -> None:
    folder = root / "stl10_binary"
    folder.mkdir()
    for name, number in (("train", 5), ("test", 4), ("unlabeled", 7)):
        RNG.integers(0, 256, (number, 3, 96, 96), np.uint8).tofile(folder / f"{name}_X.bin")
        RNG.integers(1, 11, number).astype(np.uint8).tofile(folder / f"{name}_y.bin")
    (folder / "class_names.txt").write_text("a\nb\n")


def write_imagenette(root: Path) -> None:
    for split in ("train", "val"):
        for wnid in ("n01440764", "n03888257"):
            write_images(root / "imagenette2-320", *(f"{split}/{wnid}/{i}.JPEG" for i in range(4)), size=(60, 40))


def write_imagenet(root: Path) -> None:
    for split in ("train", "val"):
        write_images(root, *(f"{split}/{wnid}/{i}.JPEG" for wnid in ("n01440764", "n01443537") for i in range(4)))


def write_video(
    path: Path,
    num_frames: int = 24,
    rate: int = 25,
    times: Sequence[int] | None = None,
    paint: Callable[[int], np.ndarray] | None = None,
    codec: str = "libx264",
    size: tuple[int, int] = (48, 32),
    hidden: int = 0,
    gop: int = 8,
) -> Path:
    """Write a video with B-frames.

    Args:
        path: its extension chooses the container.
        num_frames: how many.
        rate: frames a second.
        times: of each frame in milliseconds, for a variable rate.
        paint: the frame `[rows, columns, 3]` of a number; by default of one grey, `4 * number + 2`.
        codec: FFmpeg's name of the encoder.
        size: (columns, rows).
        hidden: frames at the start that an edit list hides.
        gop: frames from one key frame to the next.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, 1000 if times else rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.gop_size, stream.max_b_frames = gop, 2
        stream.codec_context.qmin = stream.codec_context.qmax = 1
        for number in range(len(times) if times else num_frames):
            pixels = paint(number) if paint else np.full((size[1], size[0], 3), 4 * number + 2)
            frame = av.VideoFrame.from_ndarray(pixels.astype(np.uint8), format="rgb24")
            frame.pts = times[number] if times else number
            container.mux(_shifted(stream.encode(frame), hidden))
        container.mux(_shifted(stream.encode(), hidden))
    return path


def _shifted(packets: list[av.Packet], frames: int) -> list[av.Packet]:
    for packet in packets:
        packet.pts, packet.dts = packet.pts - frames, packet.dts - frames
    return packets


def frame_numbers(frames: np.ndarray) -> list[int]:
    """The numbers of 8-bit frames `[..., rows, columns]` painted by `write_video`, whatever was cut from them."""
    return np.round((frames.mean((-2, -1)) - 2) / 4).astype(int).tolist()


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_videos(root: Path, number: int = 10) -> None:
    """Write `number` videos of noise for training and as many for validation, listed in `train.csv` and `val.csv`."""
    for split in ("train", "val"):
        for video in range(number):
            path = root / split / f"{video}.mp4"
            write_video(path, num_frames=6, paint=lambda _: RNG.integers(0, 256, (32, 48, 3)))
        (root / f"{split}.csv").write_text("".join(f"{split}/{video}.mp4 {video % 3}\n" for video in range(number)))


def cut_up(video: Path, folder: Path, number: int, num_frames: int) -> None:
    """Write the first clips of a video, at a quarter of its size: `number` of them, of `num_frames` each."""
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        width, height = stream.width // 8 * 2, stream.height // 8 * 2
        decoded = islice(container.decode(video=0), number * num_frames)
        frames = [frame.to_ndarray(width=width, height=height, format="rgb24") for frame in decoded]
    for start in range(0, number * num_frames, num_frames):
        clip = frames[start : start + num_frames]
        write_video(folder / f"{start}.mp4", num_frames, paint=clip.__getitem__, size=(width, height))


def write_tracks(path: Path, number: int = 30, points: int = 25) -> None:
    """Tracks around 47 N, 8 E, a point every ten seconds, each on a straight line of its own at 50 m/s."""
    rows = ["id,time,latitude,longitude"]
    for track in range(number):
        turn = 2 * math.pi * track / number
        for point in range(points):
            north, east = (500 * point * part for part in (math.cos(turn), math.sin(turn)))
            rows.append(f"{track},{10 * point},{47 + north / 111195},{8 + east / 111195 / math.cos(math.radians(47))}")
    path.write_text("\n".join(rows) + "\n")


def write_sound(path: Path, hertz: float = 440.0, seconds: float = 0.5, rate: int = 16_000, channels: int = 1) -> Path:
    """A sine in any format, as loud in all channels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    soundfile.write(path, np.repeat(wave[:, None], channels, 1), rate)
    return path


def write_sounds(root: Path) -> None:
    """Noise of two to three seconds, and fairseq's manifests of it."""
    root.mkdir()
    for split in ("train", "valid"):
        lengths = {f"{split}_{number}.wav": 32_000 + 4_000 * number for number in range(4)}
        for number, (name, length) in enumerate(lengths.items()):
            soundfile.write(root / name, 0.1 * np.random.default_rng(number).standard_normal(length), 16_000)
        lines = [str(root), *(f"{name}\t{length}" for name, length in lengths.items())]
        (root / f"{split}.tsv").write_text("\n".join(lines) + "\n")

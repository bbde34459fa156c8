"""How a Trainer reads and writes its checkpoints: nothing in a file is run, and no file is lost to a full disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from jepa_lightning.checkpoints.reading import read_file


class SafeCheckpointIO(TorchCheckpointIO):
    """For `Trainer(plugins=[SafeCheckpointIO()])`; `jepa` has it from the start.

    Of a checkpoint it reads weights and plain values only, where a Trainer unpickles whatever a file holds, and so runs
    what it says, unless told `weights_only=True`. A checkpoint is written beside the one of that name, and takes its
    place when it is complete; a Trainer writes it to the folder for temporary files, and copies it over the old one if
    that is on another disk.

    What has a protocol (`s3://…`) is written as by Lightning.
    """

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint, onto the CPU; with `weights_only=False`, all that it holds.

        Raises:
            FileNotFoundError: nothing is there.
            ValueError: a file that is cut short, is no checkpoint, or holds more than weights and plain values.
        """
        if weights_only is False:
            return super().load_checkpoint(path, map_location, weights_only=False)
        if "://" in str(path):
            with fsspec.open(str(path), "rb") as file:
                checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
                return checkpoint
        return read_file(Path(path))

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: it could not be written; what was there before is still there.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.unfinished")
        try:
            with unfinished.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as a RuntimeError
            unfinished.unlink(missing_ok=True)
            raise OSError(
                f"the checkpoint could not be written to {path} ({error}); one that was there before still is. "
                "Make room, and resume from the last one with --ckpt_path last"
            ) from error

"""What `--ckpt_path last` means: the newest complete checkpoint of earlier runs."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

from jsonargparse import Namespace


def last_checkpoint(config: Any) -> str:
    """The newest complete checkpoint of earlier runs, which have folders of their own; Lightning looks in the new one.

    One that a run was killed while it wrote is passed over, with a word.

    Args:
        config: that of a subcommand, whose Trainer, logger and ModelCheckpoints say where checkpoints are.

    Raises:
        FileNotFoundError: there is none.
    """
    places = _places(config)
    found = {path for root, pattern in places for path in root.glob(pattern) if path.exists()}
    for path in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if path.is_dir() or zipfile.is_zipfile(path):  # sharded ones are folders; a zip file's table is its end
            return str(path)
        warnings.warn(f"{path} is not complete, and passed over", stacklevel=2)
    where = ", ".join(str(root / pattern) for root, pattern in places)
    raise FileNotFoundError(f"--ckpt_path last: there is no complete checkpoint, {where}")


def _places(config: Any) -> list[tuple[Path, str]]:
    """Where runs keep their checkpoints: folders, and patterns of the files in them."""
    given = config.trainer.callbacks or []
    options = [callback.get("init_args") or {} for callback in (given if isinstance(given, list) else [given])]
    if chosen := [Path(each["dirpath"]) for each in options if each.get("dirpath")]:
        return [(folder, "*.ckpt") for folder in chosen]
    logger = config.trainer.logger
    logger = logger[0] if isinstance(logger, list) and logger else logger
    root, runs = Path(config.trainer.default_root_dir or "."), "lightning_logs/version_*/"
    if logger is False:
        runs = ""
    elif isinstance(logger, Namespace):
        of_logger = logger.get("init_args") or {}
        name = of_logger.get("name", "lightning_logs")
        root, runs = Path(of_logger.get("save_dir") or root), f"{name}/*/" if name else "*/"
    return [(root, f"{runs}checkpoints/*.ckpt")]

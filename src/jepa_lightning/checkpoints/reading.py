"""Reading a checkpoint file: weights and plain values only; nothing in it is run."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

StateDict = dict[str, Tensor]
FAIRSEQ = ("argparse", "examples", "fairseq", "omegaconf")  # packages whose objects are in files of fairseq's


class Networks(NamedTuple):
    """The networks that a file holds.

    Attributes:
        states: state dicts under `context_encoder`, `predictor`, `target_encoder` and, of our own checkpoints, every
            other network of the module, as far as they are there.
        options: what the file says of `image_size`, `num_frames`, `num_heads` and `positions`, which no shape tells,
            and the configuration `encoder` of one that was chosen by its class.
    """

    states: dict[str, StateDict]
    options: dict[str, Any]


def uncompiled(name: str) -> str:
    """The name that a weight has in a network that `torch.compile` has not wrapped.

    >>> uncompiled("context_encoder._orig_mod.norm.weight")
    'context_encoder.norm.weight'
    """
    return name.replace("_orig_mod.", "")


class Setting:
    """What stands for an object in a file of fairseq's that is neither a tensor nor a plain value: it holds nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _without_settings(path: Path) -> Any:
    """A file of fairseq's, which holds settings and dictionaries beside the weights; these become `Setting`s.

    Raises:
        pickle.UnpicklingError: a file that is none of fairseq's, or holds what these do not.
    """
    objects = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    packages = {name.partition(".")[0] for name in objects}
    if not packages & set(FAIRSEQ) or not packages <= {*FAIRSEQ, "collections", "enum", "numpy", "typing"}:
        raise pickle.UnpicklingError(f"it holds objects of {', '.join(sorted(objects))}")
    # Whatever is named in the file, none of it is imported or called.
    with torch.serialization.safe_globals([(Setting, name) for name in objects]):
        return torch.load(path, map_location="cpu", weights_only=True)


def read_file(path: Path) -> dict[str, Any]:
    """Read a checkpoint file.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file that is cut short, has changed since it was written, is no checkpoint, or holds more.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}, neither a file nor a folder in the hub's layout")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums
                spoilt = archive.testzip()
            if spoilt is not None:
                raise ValueError(f"the checksum of {spoilt} in it is wrong")
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as refused:
            try:
                checkpoint = _without_settings(path)
            except Exception:  # of another file, for any reason: then the first one counts
                raise refused from None
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than weights or is no checkpoint, and was not read: {error}") from error
    except Exception as error:  # of a spoilt file the unpickler raises anything: KeyError, IndexError, struct.error, …
        raise ValueError(f"{path} cannot be read, it may be cut short or spoilt: {error}") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not the dict of a checkpoint")
    return checkpoint

"""The families of checkpoints: a module each, which tells them by their entries and reads their networks."""

from __future__ import annotations

from pathlib import Path

from jepa_lightning.checkpoints.families import data2vec, hugging_face, ijepa, ours, tjepa, tsjepa, vjepa, vjepa2ac
from jepa_lightning.checkpoints.reading import Networks, read_file

FAMILIES = (vjepa2ac, vjepa, ijepa, tsjepa, tjepa, data2vec, ours)  # the first that matches reads


def read_networks(path: str | Path) -> Networks:
    """Read the networks of a checkpoint: ours, an official one, or a Hugging Face folder.

    Args:
        path: a file, or a folder with `config.json` and `model.safetensors`.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file that is cut short, holds more than weights, or has another layout.
    """
    path = Path(str(path))  # a configuration gives a number for what looks like one
    if path.is_dir():
        return hugging_face.read(path)
    checkpoint = read_file(path)
    for family in FAMILIES:
        if family.matches(checkpoint):
            return family.read(checkpoint)
    raise ValueError(
        f"{path} has the entries {sorted(checkpoint)[:8]}: expected an official checkpoint (encoder, predictor, "
        "target_encoder), one of this package (state_dict), or a Hugging Face folder"
    )

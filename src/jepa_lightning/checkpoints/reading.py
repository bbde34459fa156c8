"""Reading checkpoints: our own, the official ones, and those of the Hugging Face hub.

Everything is read with `weights_only=True` or as safetensors: a file cannot run code.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from jepa_lightning.checkpoints.hugging_face import read_hugging_face
from jepa_lightning.checkpoints.sizes import (
    StateDict,
    grid_of_positions,
    video_transformer_sizes,
    vision_transformer_sizes,
)
from jepa_lightning.networks import VideoPredictor, VideoTransformer, VisionTransformer
from jepa_lightning.networks.video_transformer import Positions

# The official names of the networks, and ours. Encoder and predictor sit in DDP (`module.`) and, for video, in one more
# wrapper (`backbone.`).
OFFICIAL_NETWORKS = {"encoder": "context_encoder", "predictor": "predictor", "target_encoder": "target_encoder"}


class Networks(NamedTuple):
    """The networks that a file holds.

    Attributes:
        states: state dicts under `context_encoder`, `predictor`, `target_encoder` and, of our own checkpoints, every
            other network of the module, as far as they are there.
        options: what the file says of `image_size`, `num_frames`, `num_heads` and `official` (whether positions rotate
            as in V-JEPA 2's code), which no shape tells.
    """

    states: dict[str, StateDict]
    options: dict[str, Any]


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
        return Networks(*read_hugging_face(path))
    checkpoint = read_file(path)
    if set(OFFICIAL_NETWORKS) <= set(checkpoint):
        return Networks({ours: _strip(checkpoint[theirs]) for theirs, ours in OFFICIAL_NETWORKS.items()}, {})
    if "state_dict" in checkpoint:
        states: dict[str, StateDict] = {}
        for key, value in checkpoint["state_dict"].items():
            network, _, name = key.partition(".")
            states.setdefault(network, {})[name] = value
        if "target_encoder" in states:
            hparams = checkpoint.get("hyper_parameters", {})
            told = ("image_size", "num_frames", "num_heads", "official")
            return Networks(states, {name: hparams[name] for name in told if name in hparams})
    raise ValueError(
        f"{path} has the entries {sorted(checkpoint)[:8]}: expected an official checkpoint (encoder, predictor, "
        "target_encoder), one of this package (state_dict with a target_encoder), or a Hugging Face folder"
    )


def load_networks(module: nn.Module, networks: Networks) -> None:
    """Load the networks of a checkpoint into a module that has them; positions are rebuilt for the module's grid.

    A method's further networks (`context_<name>` and `target_<name>`, as the heads of DMT-JEPA) are loaded where the
    checkpoint has them, and stay as they are where it comes from a method without.

    Raises:
        ValueError: the checkpoint lacks a network, or its names or shapes are not those of the module's.
    """
    for name in OFFICIAL_NETWORKS.values():
        network = module.get_submodule(name)
        if isinstance(network, VideoTransformer | VideoPredictor):
            check_positions(networks, network.positions)
        if not networks.states.get(name):
            raise ValueError(
                f"the checkpoint holds no {name}, only {', '.join(networks.states)}: it cannot be trained on"
            )
        _load(network, networks.states[name], name)
    for name, network in module.named_children():
        further = name.startswith(("context_", "target_")) and name not in OFFICIAL_NETWORKS.values()
        if further and name in networks.states:
            _load(network, networks.states[name], name)


def check_positions(networks: Networks, positions: Positions) -> None:
    """Refuse the networks of clips whose positions are others than those of the module that they are loaded into.

    Raises:
        ValueError: weights of V-JEPA for V-JEPA 2 or the other way round, or rotations of the other kind.
    """
    theirs = _positions(networks)
    if theirs == positions:
        return
    if "sincos" in (theirs, positions):
        method, module = ("V-JEPA", "VJEPA") if theirs == "sincos" else ("V-JEPA 2", "VJEPA2")
        raise ValueError(
            f"these are weights of {method}, with {theirs} positions where this module has {positions}, so that its "
            f"features would be wrong: load them into {module}"
        )
    raise ValueError(
        f"the positions of this module are {positions}, and the checkpoint was trained with {theirs}, so that its "
        f"features would be wrong: build the module with official={theirs == 'tiled_rope'}"
    )


def _positions(networks: Networks) -> Positions:
    """Those that a file's networks of clips were trained with."""
    if "official" in networks.options:
        return "tiled_rope" if networks.options["official"] else "rope"
    # Of official files, those of V-JEPA 2 may have positions left over. The predictor gives it away: V-JEPA's has
    # positions too, and two mask tokens, V-JEPA 2's has ten.
    predictor = networks.states.get("predictor", {})
    unused = bool(predictor) and ("predictor_pos_embed" not in predictor or "mask_tokens.9" in predictor)
    if "pos_embed" in networks.states["target_encoder"] and (networks.options or not unused):
        return "sincos"
    return "tiled_rope"


def load_encoder(
    path: str | Path,
    network: str = "target_encoder",
    image_size: int | list[int] | None = None,
    num_frames: int | None = None,
    num_heads: int | None = None,
) -> VisionTransformer | VideoTransformer:
    """The frozen encoder of any checkpoint that can be read: ours, official, or a Hugging Face folder.

    Args:
        path: a checkpoint file, or a folder in the layout of the Hugging Face hub.
        network: `target_encoder`, which the papers evaluate, or `context_encoder`.
        image_size: another size in pixels than the checkpoint's; the positions are rebuilt.
        num_frames: of clips, another number than the checkpoint's.
        num_heads: attention heads, asked for only where neither the file nor a published width tells.

    Returns:
        The encoder in evaluation mode, without gradients.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file that cannot be read, or an encoder that is no vision transformer.
    """
    networks = read_networks(path)
    if network not in networks.states:
        raise ValueError(f"{path} holds {', '.join(networks.states)}, not {network!r}")
    state, told = networks.states[network], networks.options
    size, heads = image_size or told.get("image_size"), num_heads or told.get("num_heads")
    encoder: VisionTransformer | VideoTransformer
    if state.get("patch_embed.proj.weight", torch.empty(0)).ndim == 5:
        sizes = video_transformer_sizes(state, size, num_frames or told.get("num_frames"), heads)
        encoder = VideoTransformer(_pair(sizes.pop("image_size")), **sizes, positions=_positions(networks))
    else:
        sizes = vision_transformer_sizes(state, size, heads)
        encoder = VisionTransformer(_pair(sizes.pop("image_size")), **sizes)
    _load(encoder, state, network)
    return encoder.eval().requires_grad_(False)


def _pair(size: int | list[int]) -> tuple[int, int]:
    rows, columns = (size, size) if isinstance(size, int) else size
    return rows, columns


def read_file(path: Path) -> dict[str, Any]:
    """Read a checkpoint file, weights and plain values only; nothing in it is run.

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
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than weights or is no checkpoint, and was not read: {error}") from error
    except Exception as error:  # of a spoilt file the unpickler raises anything: KeyError, IndexError, struct.error, …
        raise ValueError(f"{path} cannot be read, it may be cut short or spoilt: {error}") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not the dict of a checkpoint")
    return checkpoint


def _strip(state: StateDict) -> StateDict:
    return {re.sub(r"^(module\.|backbone\.)+", "", name): value for name, value in state.items()}


def _of_another_grid(network: nn.Module, positions: Tensor) -> bool:
    """Whether positions are those of clips of another shape, which may have as many tokens."""
    if not isinstance(network, VideoTransformer | VideoPredictor):
        return False
    try:
        return grid_of_positions(positions) != network.grid
    except ValueError:  # no table of sines and cosines that we know: the file's own positions are right
        return False


def _load(network: nn.Module, state: StateDict, name: str) -> None:
    state = dict(state)
    # Positions are no weights: those of another grid give way to this network's own.
    own = network.state_dict()
    for positions in [entry for entry in state if entry.endswith("pos_embed")]:
        if positions not in own:
            warnings.warn(
                f"the checkpoint's {name} has {positions}, which networks with rotary positions do not use; V-JEPA 2's "
                "released files have it left over",
                stacklevel=3,
            )
            del state[positions]
        elif state[positions].shape != own[positions].shape or _of_another_grid(network, state[positions]):
            state[positions] = own[positions]
    if spare := [entry for entry in state if entry.startswith("mask_tokens.") and entry not in own]:
        warnings.warn(
            f"the checkpoint's {name} has mask tokens that stand for no kind of mask of this module, which are left "
            f"out: {', '.join(spare)}; num_mask_tokens keeps them",
            stacklevel=3,
        )
        state = {entry: value for entry, value in state.items() if entry not in spare}
    for entry, whole in own.items():
        if isinstance(whole, DTensor) and entry in state and state[entry].shape == whole.shape:
            state[entry] = distribute_tensor(state[entry].to(whole.device), whole.device_mesh, whole.placements)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint's {name} does not fit this module's: {error}") from error

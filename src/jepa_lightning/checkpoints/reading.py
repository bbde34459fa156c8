"""Reading and writing weights: our own checkpoints, the official ones, and the formats of timm and Hugging Face.

Everything is read with `weights_only=True` or as safetensors: a file cannot run code.
"""

from __future__ import annotations

import json
import math
import pickle
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jepa_lightning.networks import VisionTransformer

StateDict = dict[str, Tensor]

# The official names of the networks, and ours. Encoder and predictor sit in DDP (`module.`) and, for video, in one more
# wrapper (`backbone.`).
OFFICIAL_NETWORKS = {"encoder": "context_encoder", "predictor": "predictor", "target_encoder": "target_encoder"}

# Published widths and their heads, which no shape tells.
PUBLISHED_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}

# Our (the official) names of a block's layers, and those on the Hugging Face hub; query, key and value are apart there.
HUGGING_FACE_BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
HUGGING_FACE_REST = {
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}


class Networks(NamedTuple):
    """The networks that a file holds.

    Attributes:
        states: state dicts under `context_encoder`, `predictor`, `target_encoder` and, of our own checkpoints, every
            other network of the module, as far as they are there.
        options: what the file says of `image_size` and `num_heads`, which no shape tells.
    """

    states: dict[str, StateDict]
    options: dict[str, Any]


def read_networks(path: str | Path) -> Networks:
    """Read the networks of a checkpoint: ours, an official one, or a Hugging Face I-JEPA folder.

    Args:
        path: a file, or a folder with `config.json` and `model.safetensors`.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file that is cut short, holds more than weights, or has another layout.
    """
    path = Path(path)
    if path.is_dir():
        return _read_hugging_face(path)
    checkpoint = _read_file(path)
    if set(OFFICIAL_NETWORKS) <= set(checkpoint):
        return Networks({ours: _strip(checkpoint[theirs]) for theirs, ours in OFFICIAL_NETWORKS.items()}, {})
    if "state_dict" in checkpoint:
        states: dict[str, StateDict] = {}
        for key, value in checkpoint["state_dict"].items():
            network, _, name = key.partition(".")
            states.setdefault(network, {})[name] = value
        if "target_encoder" in states:
            hparams = checkpoint.get("hyper_parameters", {})
            return Networks(states, {name: hparams.get(name) for name in ("image_size", "num_heads")})
    raise ValueError(
        f"{path} has the entries {sorted(checkpoint)[:8]}: expected an official checkpoint (encoder, predictor, "
        "target_encoder), one of this package (state_dict with a target_encoder), or a Hugging Face I-JEPA folder"
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
        if not networks.states.get(name):
            raise ValueError(
                f"the checkpoint holds no {name}, only {', '.join(networks.states)}: it cannot be trained on"
            )
        _load(network, networks.states[name], name)
    for name, network in module.named_children():
        further = name.startswith(("context_", "target_")) and name not in OFFICIAL_NETWORKS.values()
        if further and name in networks.states:
            _load(network, networks.states[name], name)


def load_encoder(
    path: str | Path,
    network: str = "target_encoder",
    image_size: int | list[int] | None = None,
    num_heads: int | None = None,
) -> VisionTransformer:
    """The frozen encoder of any checkpoint that can be read: ours, official, or a Hugging Face folder.

    Args:
        path: a checkpoint file, or a folder in the layout of the Hugging Face hub.
        network: `target_encoder`, which the papers evaluate, or `context_encoder`.
        image_size: another size in pixels than the checkpoint's; the positions are rebuilt.
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
    state = networks.states[network]
    sizes = vision_transformer_sizes(
        state, image_size or networks.options.get("image_size"), num_heads or networks.options.get("num_heads")
    )
    side = sizes.pop("image_size")
    encoder = VisionTransformer((side, side) if isinstance(side, int) else side, **sizes)
    _load(encoder, state, network)
    return encoder.eval().requires_grad_(False)


def vision_transformer_sizes(
    state: StateDict, image_size: int | list[int] | None = None, num_heads: int | None = None
) -> dict[str, Any]:
    """The sizes of the vision transformer that a state dict belongs to.

    Args:
        state: in the official names.
        image_size: in pixels; without it, the square one whose grid has as many tokens as there are positions.
        num_heads: attention heads; those of the published model of that width without.

    Returns:
        `image_size`, `patch_size`, `in_channels`, `embed_dim`, `depth`, `num_heads` and `mlp_ratio`.

    Raises:
        ValueError: names of another network, or a number that must be given since no shape tells it.
    """
    if not {"patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight"} <= set(state):
        raise ValueError(
            f"this encoder is no vision transformer of ours, its weights are named {', '.join(list(state)[:4])}, …: "
            "take it from its own module, MyModule.load_from_checkpoint(path).target_encoder"
        )
    embed_dim, in_channels, *patch_size = state["patch_embed.proj.weight"].shape
    if num_heads is None and embed_dim not in PUBLISHED_HEADS:
        raise ValueError(f"no published model is {embed_dim} wide, and shapes do not tell the heads: give num_heads")
    if image_size is None:
        side = math.isqrt(state["pos_embed"].shape[1])
        if side**2 != state["pos_embed"].shape[1]:
            raise ValueError(f"{state['pos_embed'].shape[1]} positions are no square: give image_size=[rows, columns]")
        image_size = [side * patch_size[0], side * patch_size[1]]
    return {
        "image_size": image_size,
        "patch_size": patch_size,
        "in_channels": in_channels,
        "embed_dim": embed_dim,
        "depth": _depth(state, "blocks"),
        "num_heads": num_heads or PUBLISHED_HEADS[embed_dim],
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / embed_dim,
    }


def predictor_sizes(state: StateDict) -> dict[str, int]:
    """The width and depth of the predictor that a state dict in the official names belongs to."""
    return {
        "predictor_embed_dim": state["predictor_embed.weight"].shape[0],
        "predictor_depth": _depth(state, "predictor_blocks"),
    }


def save_for_timm(encoder: VisionTransformer, path: str | Path) -> None:
    """Write an encoder as safetensors that timm's VisionTransformer loads.

    The model to load it into has neither class token nor a norm after pooling, as timm's own I-JEPA models:
    `timm.create_model(name, class_token=False, global_pool="avg", fc_norm=False, num_classes=0, checkpoint_path=path)`,
    with the `img_size` of the encoder.
    """
    save_file({name: value.detach().contiguous() for name, value in encoder.state_dict().items()}, path)


def save_for_transformers(encoder: VisionTransformer, folder: str | Path) -> None:
    """Write an encoder as a folder that `transformers.IJepaModel.from_pretrained(folder)` loads."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {}
    for name, value in encoder.state_dict().items():
        for theirs, part in _to_hugging_face(name, value.detach()):
            state[theirs] = part.contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    rows, columns = encoder.patch_size
    config = {
        "architectures": ["IJepaModel"],
        "model_type": "ijepa",
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": state["encoder.layer.0.intermediate.dense.weight"].shape[0],
        "image_size": [encoder.grid[0] * rows, encoder.grid[1] * columns],
        "patch_size": [rows, columns],
        "num_channels": encoder.patch_embed.proj.in_channels,
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than weights or is no checkpoint, and was not read: {error}") from error
    except Exception as error:  # of a spoilt file the unpickler raises anything: KeyError, IndexError, struct.error, …
        raise ValueError(f"{path} cannot be read, it may be cut short: {error}") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not the dict of a checkpoint")
    return checkpoint


def _strip(state: StateDict) -> StateDict:
    return {re.sub(r"^(module\.|backbone\.)+", "", name): value for name, value in state.items()}


def _depth(state: StateDict, blocks: str) -> int:
    return 1 + max(int(name.split(".")[1]) for name in state if name.startswith(f"{blocks}."))


def _load(network: nn.Module, state: StateDict, name: str) -> None:
    state = dict(state)
    # Positions are no weights: those of another grid give way to this network's own.
    for positions, own in network.state_dict().items():
        if positions.endswith("pos_embed") and positions in state and state[positions].shape != own.shape:
            state[positions] = own
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint's {name} does not fit this module's: {error}") from error


def _to_hugging_face(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """The hub's name for a weight of ours, or its three for the packed query, key and value."""
    if name in HUGGING_FACE_REST:
        return [(HUGGING_FACE_REST[name], value)]
    _, index, layer, kind = re.fullmatch(r"(blocks)\.(\d+)\.(.+)\.(weight|bias)", name).groups()  # type: ignore[union-attr]
    if layer == "attn.qkv":
        parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
        return [(f"encoder.layer.{index}.attention.attention.{part}.{kind}", piece) for part, piece in parts]
    return [(f"encoder.layer.{index}.{HUGGING_FACE_BLOCK[layer]}.{kind}", value)]


def _read_hugging_face(folder: Path) -> Networks:
    try:
        config = json.loads((folder / "config.json").read_text())
        theirs = load_file(folder / "model.safetensors")
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(
            f"{folder} is no Hugging Face model folder with config.json and model.safetensors: {error}"
        ) from error
    if config.get("model_type") != "ijepa":
        raise ValueError(f"{folder} holds a model of type {config.get('model_type')!r}, expected 'ijepa'")
    # A model with a head on top has its encoder under this prefix; the position of a module in the file is all else.
    theirs = {name.removeprefix("ijepa."): value for name, value in theirs.items()}
    state = {ours: theirs[name] for ours, name in HUGGING_FACE_REST.items()}
    for index in range(config["num_hidden_layers"]):
        for kind in ("weight", "bias"):
            for ours, name in HUGGING_FACE_BLOCK.items():
                state[f"blocks.{index}.{ours}.{kind}"] = theirs[f"encoder.layer.{index}.{name}.{kind}"]
            attention = f"encoder.layer.{index}.attention.attention"
            state[f"blocks.{index}.attn.qkv.{kind}"] = torch.cat(
                [theirs[f"{attention}.{part}.{kind}"] for part in ("query", "key", "value")]
            )
    options = {"image_size": config["image_size"], "num_heads": config["num_attention_heads"]}
    return Networks({"target_encoder": state}, options)

"""Which encoder of data2vec a state dict belongs to, and its sizes, read off names and shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jepa_lightning.checkpoints.reading import StateDict
from jepa_lightning.checkpoints.sizes import PUBLISHED_HEADS

Configuration = dict[str, Any]


def encoder_configuration(
    state: StateDict,
    num_heads: int | None = None,
    image_size: int | list[int] | None = None,
    strides: Sequence[int] | None = None,
    **options: Any,
) -> Configuration:
    """The configuration, for `build_network`, of the encoder that a state belongs to.

    Args:
        state: in our names.
        num_heads: attention heads; those that a bias of attention or a published model of that width has without.
        image_size: in pixels; the square one that positions tell without.
        strides: of the convolutions of a wave's front end; 5 of the first and 2 of others, as published, without.
        **options: further ones of the encoder, which no shape tells.

    Raises:
        ValueError: names of another network, or a number that must be given since no shape tells it.
    """
    depth = 1 + max((int(name.split(".")[1]) for name in state if name.startswith("blocks.")), default=-1)
    if not depth:
        raise ValueError(f"this encoder has no blocks, its weights are named {', '.join(list(state)[:4])}, …")
    hidden, embed_dim = state["blocks.0.mlp.fc1.weight"].shape
    told = {"bias.table": 1, "bias.scale": 0}
    heads = num_heads or next((state[name].shape[axis] for name, axis in told.items() if name in state), None)
    if heads is None and embed_dim not in PUBLISHED_HEADS:
        raise ValueError(f"no published model is {embed_dim} wide, and shapes do not tell the heads: give num_heads")
    sizes: dict[str, Any] = {"embed_dim": embed_dim, "depth": depth, "num_heads": heads or PUBLISHED_HEADS[embed_dim]}
    sizes |= {"mlp_ratio": hidden / embed_dim}
    if "patch_embed.words.weight" in state:
        name, further = "WordTransformer", _words(state)
    elif "patch_embed.convolutions.0.weight" in state:
        name, further = "WaveTransformer", _waves(state, strides)
    elif "bias.table" in state:
        name, further = "BeitTransformer", _images(state, math.isqrt(len(state["bias.table"]) - 3) // 2 + 1, image_size)
        scale = state.get("blocks.0.gamma_1")
        further["layer_scale"] = None if scale is None else float(scale.mean())
    elif "pos_embed" in state:
        name = "PostNormVisionTransformer"
        further = _images(state, math.isqrt(state["pos_embed"].shape[1]), image_size)
    else:
        raise ValueError(f"this is no encoder of data2vec, its weights are named {', '.join(list(state)[:4])}, …")
    return {"class_path": f"jepa_lightning.networks.{name}", "init_args": sizes | further | options}


def decoder_sizes(state: StateDict) -> dict[str, int]:
    """The sizes of the convolutional decoder of a state, in the words of the module's options."""
    width, per_group, *kernel = state["blocks.0.weight"].shape
    linear = [name for name in state if name.startswith("proj.") and name.endswith(".weight")]
    return {
        "predictor_embed_dim": width,
        "predictor_depth": sum(name.startswith("blocks.") and name.endswith(".weight") for name in state),
        "predictor_kernel_size": kernel[0],
        "predictor_groups": len(state[f"proj.{len(linear) - 1}.weight"]) // per_group,
        "head_layers": len(linear),
    }


def _words(state: StateDict) -> dict[str, Any]:
    return {
        "vocab_size": len(state["patch_embed.words.weight"]),
        "max_length": len(state["patch_embed.places.weight"]),
    }


def _waves(state: StateDict, strides: Sequence[int] | None) -> dict[str, Any]:
    layers = [value.shape for name, value in state.items() if name.startswith("patch_embed.convolutions.")]
    strides = strides or [5, *[2] * (len(layers) - 1)]
    if len(strides) != len(layers):
        raise ValueError(f"strides={list(strides)} are not those of the {len(layers)} convolutions of the checkpoint")
    positions = [value.shape for name, value in state.items() if name.startswith("conv_positions.")]
    width, per_group, kernel = positions[0]
    return {
        "convolutions": [[shape[0], shape[2], stride] for shape, stride in zip(layers, strides, strict=True)],
        "position_kernel": kernel,
        "position_groups": width // per_group,
        "position_depth": sum(len(shape) == 3 for shape in positions),
        "mask_token": "patch_embed.mask_token" in state,
        "alibi": "bias.scale" in state,
    }


def _images(state: StateDict, side: int, image_size: int | list[int] | None) -> dict[str, Any]:
    _, in_channels, *patch = state["patch_embed.proj.weight"].shape
    size = [side * patch[0], side * patch[1]] if image_size is None else image_size
    size = [size, size] if isinstance(size, int) else size
    cells = [length // part for length, part in zip(size, patch, strict=True)]
    table, positions = state.get("bias.table"), state.get("pos_embed")
    fits = (
        len(table) == (2 * cells[0] - 1) * (2 * cells[1] - 1) + 3
        if table is not None
        else positions is not None and positions.shape[1] == math.prod(cells)
    )
    if image_size is None and not fits:
        raise ValueError("the positions of the checkpoint are of no square image: give image_size=[rows, columns]")
    return {"image_size": size, "patch_size": patch, "in_channels": in_channels}

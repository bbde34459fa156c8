"""`Data2VecVisionModel`, `Data2VecAudioModel` and `Data2VecTextModel` of the Hugging Face hub's layout, both ways.

In the tables a `#` stands for the number of a block or layer. Of images, keys have no bias there; none would miss it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from jepa_lightning.checkpoints.reading import Networks, StateDict
from jepa_lightning.networks import BeitTransformer, WaveTransformer, WordTransformer

_LAYERS = {
    "blocks.#.attn.query.": "encoder.layers.#.attention.q_proj.",
    "blocks.#.attn.key.": "encoder.layers.#.attention.k_proj.",
    "blocks.#.attn.value.": "encoder.layers.#.attention.v_proj.",
    "blocks.#.attn.proj.": "encoder.layers.#.attention.out_proj.",
    "blocks.#.norm1.": "encoder.layers.#.layer_norm.",
    "blocks.#.mlp.fc1.": "encoder.layers.#.feed_forward.intermediate_dense.",
    "blocks.#.mlp.fc2.": "encoder.layers.#.feed_forward.output_dense.",
    "blocks.#.norm2.": "encoder.layers.#.final_layer_norm.",
}
_BERT_LAYERS = {
    "blocks.#.attn.query.": "encoder.layer.#.attention.self.query.",
    "blocks.#.attn.key.": "encoder.layer.#.attention.self.key.",
    "blocks.#.attn.value.": "encoder.layer.#.attention.self.value.",
    "blocks.#.attn.proj.": "encoder.layer.#.attention.output.dense.",
    "blocks.#.norm1.": "encoder.layer.#.attention.output.LayerNorm.",
    "blocks.#.mlp.fc1.": "encoder.layer.#.intermediate.dense.",
    "blocks.#.mlp.fc2.": "encoder.layer.#.output.dense.",
    "blocks.#.norm2.": "encoder.layer.#.output.LayerNorm.",
}
_BEIT_LAYERS = {
    "blocks.#.attn.query.": "encoder.layer.#.attention.attention.query.",
    "blocks.#.attn.key.": "encoder.layer.#.attention.attention.key.",
    "blocks.#.attn.value.": "encoder.layer.#.attention.attention.value.",
    "blocks.#.attn.proj.": "encoder.layer.#.attention.output.dense.",
    "blocks.#.norm1.": "encoder.layer.#.layernorm_before.",
    "blocks.#.mlp.fc1.": "encoder.layer.#.intermediate.dense.",
    "blocks.#.mlp.fc2.": "encoder.layer.#.output.dense.",
    "blocks.#.norm2.": "encoder.layer.#.layernorm_after.",
    "blocks.#.gamma_": "encoder.layer.#.lambda_",
}
_NAMES: dict[str, dict[str, str]] = {
    "data2vec-vision": {
        "patch_embed.cls_token": "embeddings.cls_token",
        "patch_embed.mask_token": "embeddings.mask_token",
        "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
        "bias.table": "encoder.relative_position_bias.relative_position_bias_table",
        "norm.": "layernorm.",
        **_BEIT_LAYERS,
    },
    "data2vec-audio": {
        "patch_embed.convolutions.#.": "feature_extractor.conv_layers.#.conv.",
        "patch_embed.norms.#.": "feature_extractor.conv_layers.#.layer_norm.",
        "patch_embed.norm.": "feature_projection.layer_norm.",
        "patch_embed.proj.": "feature_projection.projection.",
        "patch_embed.mask_token": "masked_spec_embed",
        "conv_positions.#.": "encoder.pos_conv_embed.layers.#.conv.",
        "norm.": "encoder.layer_norm.",
        **_LAYERS,
    },
    "data2vec-text": {
        "patch_embed.words.": "embeddings.word_embeddings.",
        "patch_embed.places.": "embeddings.position_embeddings.",
        "patch_embed.norm.": "embeddings.LayerNorm.",
        **_BERT_LAYERS,
    },
}
KINDS = tuple(_NAMES)
# Settings of which our encoders have one value; where a configuration says nothing, transformers' default counts.
_FIXED: dict[str, dict[str, tuple[Any, Any]]] = {  # (ours, transformers' default)
    "data2vec-vision": {
        "hidden_act": ("gelu", "gelu"),
        "use_absolute_position_embeddings": (False, False),
        "use_relative_position_bias": (False, False),
        "use_shared_relative_position_bias": (True, False),
        "use_mean_pooling": (False, True),  # then the norm at the end would be behind the pooling
    },
    "data2vec-audio": {
        "hidden_act": ("gelu", "gelu"),
        "feat_extract_activation": ("gelu", "gelu"),
        "conv_bias": (False, False),
        "add_adapter": (False, False),
        "layer_norm_eps": (1e-5, 1e-5),
    },
    "data2vec-text": {"hidden_act": ("gelu", "gelu"), "is_decoder": (False, False)},
}
_ARCHITECTURES = {"vision": "Data2VecVisionModel", "audio": "Data2VecAudioModel", "text": "Data2VecTextModel"}


def written(encoder: BeitTransformer | WaveTransformer | WordTransformer) -> tuple[dict[str, Any], StateDict]:
    """The configuration and weights of an encoder in transformers' words.

    Raises:
        ValueError: an encoder of data2vec 2.0, or patches that the other side has no form for.
    """
    norms = [norm.eps for norm in encoder.modules() if isinstance(norm, torch.nn.LayerNorm)]
    config: dict[str, Any] = {
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": encoder.state_dict()["blocks.0.mlp.fc1.weight"].shape[0],
        "layer_norm_eps": max(norms),
    }
    state = encoder.state_dict()
    if isinstance(encoder, BeitTransformer):
        kind, further = "data2vec-vision", _vision(encoder)
    elif isinstance(encoder, WaveTransformer):
        kind, further = "data2vec-audio", _audio(encoder)
    else:
        kind, further = "data2vec-text", _text(encoder, state)
    fixed = {name: ours for name, (ours, _) in _FIXED[kind].items() if name != "layer_norm_eps"}
    architecture = _ARCHITECTURES[kind.removeprefix("data2vec-")]
    config = {"architectures": [architecture], "model_type": kind, **config, **fixed, **further}
    theirs: StateDict = {}
    for name, value in state.items():
        parts = value.chunk(3) if ".qkv." in name else (value,)
        for part, each in zip(("query", "key", "value"), parts, strict=False):
            theirs[_renamed(name.replace("qkv", part), _NAMES[kind])] = each.detach().clone()
    if kind == "data2vec-vision":
        theirs = {name: value for name, value in theirs.items() if not name.endswith("attention.key.bias")}
    if kind == "data2vec-text":
        theirs["embeddings.token_type_embeddings.weight"] = torch.zeros(1, encoder.embed_dim)
    return config, theirs


def read(config: dict[str, Any], theirs: StateDict, folder: Path) -> Networks:
    """The encoder in a folder, and its configuration.

    Raises:
        ValueError: a variant that our encoders are not, or weights that are missing.
    """
    kind = config["model_type"]
    fixed = {name: (ours, config.get(name, default)) for name, (ours, default) in _FIXED[kind].items()}
    if other := [f"{name}={found!r} (not {ours!r})" for name, (ours, found) in fixed.items() if found != ours]:
        raise ValueError(f"{folder} is of a network that this package does not have, with {', '.join(other)}")
    names = {their: our for our, their in _NAMES[kind].items()}
    state = {}
    for name, value in theirs.items():
        try:
            state[_renamed(name, names)] = value
        except KeyError:
            continue  # of a pooler, or of what else stands on top
    try:
        for query in [name for name in state if ".attn.query.weight" in name]:
            for ending in ("weight", "bias"):
                parts = [query.replace("query.weight", f"{part}.{ending}") for part in ("query", "key", "value")]
                if kind == "data2vec-vision" and ending == "bias":
                    state[parts[1]] = torch.zeros_like(state[parts[0]])
                state[parts[0].replace("query", "qkv")] = torch.cat([state.pop(part) for part in parts])
        sizes = {"data2vec-vision": _of_vision, "data2vec-audio": _of_audio, "data2vec-text": _of_text}[kind](
            config, state, theirs
        )
    except KeyError as error:
        raise ValueError(f"{folder} lacks the weight or setting {error}: it may be incomplete") from error
    epsilon = config.get("layer_norm_eps", 1e-5 if kind == "data2vec-audio" else 1e-12)
    sizes |= {"embed_dim": config["hidden_size"], "depth": config["num_hidden_layers"], "eps": epsilon}
    sizes |= {"num_heads": config["num_attention_heads"]}
    sizes |= {"mlp_ratio": config["intermediate_size"] / config["hidden_size"]}
    classes = {"data2vec-vision": BeitTransformer, "data2vec-audio": WaveTransformer, "data2vec-text": WordTransformer}
    encoder = {"class_path": f"jepa_lightning.networks.{classes[kind].__name__}", "init_args": sizes}
    return Networks({"target_encoder": state}, {"encoder": encoder, "epsilon": epsilon})


def _vision(encoder: BeitTransformer) -> dict[str, Any]:
    side, other = encoder.patch_size
    if side != other:
        raise ValueError(f"transformers' data2vec takes square patches, not of {encoder.patch_size}")
    return {
        "image_size": list(encoder.image_size),
        "patch_size": side,
        "num_channels": encoder.in_channels,
        "use_mask_token": True,
        "layer_scale_init_value": encoder.layer_scale or 0.0,
    }


def _of_vision(config: dict[str, Any], state: StateDict, theirs: StateDict) -> dict[str, Any]:
    size, patch = config.get("image_size", 224), config.get("patch_size", 16)
    state.setdefault("patch_embed.mask_token", torch.zeros_like(state["patch_embed.cls_token"]))
    return {
        "image_size": [size, size] if isinstance(size, int) else size,
        "patch_size": [patch, patch] if isinstance(patch, int) else patch,
        "in_channels": state["patch_embed.proj.weight"].shape[1],
        "layer_scale": config.get("layer_scale_init_value", 0.1) or None,
    }


def check_unbiased(encoder: WaveTransformer | WordTransformer) -> None:
    """Refuse what transformers have no form for.

    Raises:
        ValueError: an encoder with a bias of attention.
    """
    if encoder.bias is not None:
        raise ValueError("transformers' data2vec has no bias of attention (alibi), as encoders of data2vec 2.0 have")


def _audio(encoder: WaveTransformer) -> dict[str, Any]:
    check_unbiased(encoder)
    convolutions: Any = encoder.patch_embed.convolutions
    positions: Any = encoder.conv_positions[0]
    return {
        "conv_dim": [layer.out_channels for layer in convolutions],
        "conv_kernel": [layer.kernel_size[0] for layer in convolutions],
        "conv_stride": [layer.stride[0] for layer in convolutions],
        "conv_pos_kernel_size": positions.kernel_size[0],
        "num_conv_pos_embeddings": len(encoder.conv_positions),
        "num_conv_pos_embedding_groups": positions.groups,
        "mask_time_prob": 0.05 if encoder.patch_embed.mask_token is not None else 0.0,
    }


def _of_audio(config: dict[str, Any], state: StateDict, theirs: StateDict) -> dict[str, Any]:
    layers = [value.shape for name, value in sorted(state.items()) if "patch_embed.convolutions." in name]
    strides = config.get("conv_stride", [5, 2, 2, 2, 2, 2, 2])
    width, per_group, kernel = state["conv_positions.0.weight"].shape
    return {
        "convolutions": [[shape[0], shape[2], stride] for shape, stride in zip(layers, strides, strict=True)],
        "position_kernel": kernel,
        "position_groups": width // per_group,
        "position_depth": sum(name.startswith("conv_positions.") and value.ndim == 3 for name, value in state.items()),
        "mask_token": "patch_embed.mask_token" in state,
    }


def _text(encoder: WordTransformer, state: StateDict) -> dict[str, Any]:
    """There, places have one for padding, behind as many as its number."""
    check_unbiased(encoder)
    pad = encoder.patch_embed.pad_word
    pad = 1 if pad is None else pad
    places = state["patch_embed.places.weight"]
    state["patch_embed.places.weight"] = torch.cat([places.new_zeros(pad + 1, places.shape[1]), places])
    return {
        "vocab_size": encoder.vocab_size,
        "max_position_embeddings": encoder.max_length + pad + 1,
        "pad_token_id": pad,
        "type_vocab_size": 1,
    }


def _of_text(config: dict[str, Any], state: StateDict, theirs: StateDict) -> dict[str, Any]:
    pad = config.get("pad_token_id", 1)
    # Of its kinds of texts ours have one, whose embedding goes with that of the place.
    kind = theirs["embeddings.token_type_embeddings.weight"][0]
    state["patch_embed.places.weight"] = state["patch_embed.places.weight"][pad + 1 :] + kind
    return {
        "vocab_size": len(state["patch_embed.words.weight"]),
        "max_length": len(state["patch_embed.places.weight"]),
        "pad_word": pad,
    }


def _renamed(name: str, names: dict[str, str]) -> str:
    """One name under the other side's; a KeyError if it has none."""
    number = re.search(r"\.(\d+)\.", name)
    pattern = re.sub(r"\.\d+\.", ".#.", name, count=1)
    known = next((each for each in names if pattern.startswith(each) and (each[-1] in "._" or pattern == each)), None)
    if known is None:
        raise KeyError(name)
    renamed = names[known].replace("#", number[1]) if number else names[known]
    return renamed + pattern[len(known) :]

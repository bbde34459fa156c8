"""The layout of the Hugging Face hub, both ways: `IJepaModel` and `VJEPA2Model` (and, in its own file, data2vec's).

Their modules are ours under other names, query, key and value apart. In the tables a `#` stands for a block's number.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from jepa_lightning.checkpoints.families import hugging_face_data2vec
from jepa_lightning.checkpoints.reading import Networks, StateDict
from jepa_lightning.networks import (
    BeitTransformer,
    Predictor,
    VideoTransformer,
    VisionTransformer,
    WaveTransformer,
    WordTransformer,
)

IJEPA_ENCODER = {
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "blocks.#.norm1": "encoder.layer.#.layernorm_before",
    "blocks.#.attn.query": "encoder.layer.#.attention.attention.query",
    "blocks.#.attn.key": "encoder.layer.#.attention.attention.key",
    "blocks.#.attn.value": "encoder.layer.#.attention.attention.value",
    "blocks.#.attn.proj": "encoder.layer.#.attention.output.dense",
    "blocks.#.norm2": "encoder.layer.#.layernorm_after",
    "blocks.#.mlp.fc1": "encoder.layer.#.intermediate.dense",
    "blocks.#.mlp.fc2": "encoder.layer.#.output.dense",
    "norm": "layernorm",
}
# Settings of which our networks have one value, which is also transformers' default.
_FIXED = {"hidden_act": "gelu", "qkv_bias": True}
_DEFAULT_EPSILON = {"ijepa": 1e-12, "vjepa2": 1e-6}  # transformers', which configurations leave out
_UNUSED = ("embeddings.mask_token",)  # of pretraining with masked pixels
_VJEPA2_LAYERS = ("norm1", "attn.query", "attn.key", "attn.value", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
VJEPA2_ENCODER = {
    "patch_embed.proj": "encoder.embeddings.patch_embeddings.proj",
    **{f"blocks.#.{layer}": f"encoder.layer.#.{layer.replace('attn', 'attention')}" for layer in _VJEPA2_LAYERS},
    "norm": "encoder.layernorm",
}
VJEPA2_PREDICTOR = {
    "predictor_embed": "predictor.embeddings.predictor_embeddings",
    "mask_tokens": "predictor.embeddings.mask_tokens",
    **{
        f"predictor_blocks.#.{layer}": f"predictor.layer.#.{layer.replace('attn', 'attention')}"
        for layer in _VJEPA2_LAYERS
    },
    "predictor_norm": "predictor.layernorm",
    "predictor_proj": "predictor.proj",
}


def save_for_transformers(
    encoder: VisionTransformer | VideoTransformer | BeitTransformer | WaveTransformer | WordTransformer,
    folder: str | Path,
    predictor: Predictor | None = None,
) -> None:
    """Write an encoder as a folder that `transformers` loads.

    Args:
        encoder: of images, for `IJepaModel.from_pretrained(folder)`, or of clips with the positions of V-JEPA 2's code
            (`tiled_rope`), for `VJEPA2Model.from_pretrained(folder)`, whose clips are `[B, T, C, H, W]`; or those of
            data2vec, for `Data2VecVisionModel`, `Data2VecAudioModel` and `Data2VecTextModel`.
        folder: made if need be.
        predictor: that of the clips' encoder. Without it transformers gives its model an untrained one.

    Raises:
        ValueError: an encoder, positions or frames that the other side has no form for.
    """
    folder = Path(folder)
    # Of compiled networks what they were made of.
    encoder, predictor = getattr(encoder, "_orig_mod", encoder), getattr(predictor, "_orig_mod", predictor)
    if isinstance(encoder, VideoTransformer):
        config, state = _vjepa2(encoder, predictor)
    elif isinstance(encoder, BeitTransformer | WaveTransformer | WordTransformer):
        config, state = hugging_face_data2vec.written(encoder)
    elif not isinstance(encoder, VisionTransformer):
        raise ValueError(f"transformers has no model for a {type(encoder).__name__}")
    else:
        config, state = _ijepa(encoder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def read(folder: Path) -> Networks:
    """The networks in a folder of the hub's layout, and what its configuration says of them.

    Raises:
        ValueError: no such folder, or another model.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        theirs = _load_weights(folder)
    except (OSError, json.JSONDecodeError, SafetensorError, KeyError) as error:
        raise ValueError(
            f"{folder} is no Hugging Face model folder with config.json and model.safetensors, or with the files that "
            f"model.safetensors.index.json names: {error}"
        ) from error
    kind = config.get("model_type")
    if kind in hugging_face_data2vec.KINDS:
        prefix = f"{kind.replace('-', '_')}."
        theirs = {name.removeprefix(prefix): value for name, value in theirs.items()}
        return hugging_face_data2vec.read(config, theirs, folder)
    if kind not in ("ijepa", "vjepa2"):
        known = " or ".join(map(repr, ("ijepa", "vjepa2", *hugging_face_data2vec.KINDS)))
        raise ValueError(f"{folder} holds a model of type {kind!r}, expected {known}")
    if other := [f"{name}={config[name]!r}" for name, ours in _FIXED.items() if config.get(name, ours) != ours]:
        raise ValueError(f"{folder} is of a network that this package does not have, with {', '.join(other)}")
    epsilon = config.get("layer_norm_eps", _DEFAULT_EPSILON[kind])
    # A model with a head on top has its encoder under this prefix; the head is none of ours.
    theirs = {name.removeprefix(f"{kind}."): value for name, value in theirs.items()}
    if kind == "ijepa":
        options = {"image_size": config["image_size"], "num_heads": config["num_attention_heads"]}
        encoder = _from(theirs, IJEPA_ENCODER, ("embeddings.", "encoder.", "layernorm."), folder)
        return Networks({"target_encoder": encoder}, options | {"epsilon": epsilon})
    states = {"target_encoder": _from(theirs, VJEPA2_ENCODER, ("encoder.",), folder)}
    if "predictor.embeddings.mask_tokens" in theirs:
        states["predictor"] = _from(theirs, VJEPA2_PREDICTOR, ("predictor.",), folder)
        tokens = states["predictor"].pop("mask_tokens")
        states["predictor"] |= {f"mask_tokens.{index}": token for index, token in enumerate(tokens)}
    options = {"image_size": config["crop_size"], "num_heads": config["num_attention_heads"], "epsilon": epsilon}
    return Networks(states, {**options, "num_frames": config["frames_per_clip"], "positions": "tiled_rope"})


def _load_weights(folder: Path) -> StateDict:
    """The weights of one file, or of the several that an index names."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists() or not index.exists():
        return load_file(folder / "model.safetensors")
    weights: StateDict = {}
    for file in sorted(set(json.loads(index.read_text())["weight_map"].values())):
        weights |= load_file(folder / Path(file).name)  # whatever folder the index names, the files lie beside it
    return weights


def _ijepa(encoder: VisionTransformer) -> tuple[dict[str, Any], StateDict]:
    rows, columns = encoder.patch_size
    state = encoder.state_dict()
    return {
        "architectures": ["IJepaModel"],
        "model_type": "ijepa",
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": state["blocks.0.mlp.fc1.weight"].shape[0],
        "image_size": [encoder.grid[0] * rows, encoder.grid[1] * columns],
        "patch_size": [rows, columns],
        "num_channels": encoder.patch_embed.proj.in_channels,
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
    }, _to(state, IJEPA_ENCODER)


def _vjepa2(encoder: VideoTransformer, predictor: Predictor | None) -> tuple[dict[str, Any], StateDict]:
    tubelet, patch, other_patch = encoder.patch_embed.patch
    length, rows, columns = encoder.grid
    if encoder.positions != "tiled_rope":
        raise ValueError(
            f"transformers' V-JEPA 2 has the rotary positions of the official code, tiled_rope, and this encoder has "
            f"{encoder.positions}: its features would differ"
        )
    if patch != other_patch or rows != columns:
        raise ValueError(
            f"transformers' V-JEPA 2 takes square frames and patches, not {encoder.patch_embed.patch} in a "
            f"{encoder.grid} grid"
        )
    state = encoder.state_dict()
    config = {
        "architectures": ["VJEPA2Model"],
        "model_type": "vjepa2",
        "patch_size": patch,
        "tubelet_size": tubelet,
        "crop_size": rows * patch,
        "frames_per_clip": length * tubelet,
        "in_chans": encoder.patch_embed.proj.in_channels,
        "hidden_size": encoder.embed_dim,
        "num_attention_heads": encoder.num_heads,
        "num_hidden_layers": len(encoder.blocks),
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / encoder.embed_dim,
        "layer_norm_eps": 1e-6,
    }
    theirs = _to(state, VJEPA2_ENCODER)
    if predictor is not None:
        width = predictor.predictor_embed.out_features
        config |= {
            "pred_hidden_size": width,
            "pred_num_attention_heads": width // predictor.head_dim,
            "pred_num_hidden_layers": len(predictor.predictor_blocks),
            "pred_num_mask_tokens": len(predictor.mask_tokens),
        }
        ours = {name: value for name, value in predictor.state_dict().items() if not name.startswith("mask_tokens")}
        theirs |= _to(ours | {"mask_tokens": torch.stack(list(predictor.mask_tokens))}, VJEPA2_PREDICTOR)
    return config, theirs


def _to(state: StateDict, names: dict[str, str]) -> StateDict:
    """Our weights under their names."""
    theirs: StateDict = {}
    for name, value in state.items():
        if ".qkv." in name:
            parts = [name.replace("qkv", part) for part in ("query", "key", "value")]
            theirs |= dict(zip((_rename(part, names) for part in parts), value.chunk(3), strict=True))
        else:
            theirs[_rename(name, names)] = value
    return {name: value.detach().contiguous() for name, value in theirs.items()}


def _from(theirs: StateDict, names: dict[str, str], own: tuple[str, ...], folder: Path) -> StateDict:
    """Their weights under our names; those of other networks, which do not begin like its `own`, stay behind."""
    back = {theirs: ours for ours, theirs in names.items()}
    state, unknown = {}, []
    for name, value in theirs.items():
        try:
            state[_rename(name, back)] = value
        except KeyError:
            unknown.append(name)
    if unknown := [name for name in unknown if name.startswith(own) and name not in _UNUSED]:
        raise ValueError(f"{folder} has weights that no network of this package has: {', '.join(unknown[:3])}, …")
    try:
        for query in [name for name in state if ".attn.query." in name]:
            parts = [state.pop(query.replace("query", part)) for part in ("query", "key", "value")]
            state[query.replace("query", "qkv")] = torch.cat(parts)
    except KeyError as error:
        raise ValueError(f"{folder} lacks the weight {error}: it may be incomplete") from error
    return state


def _rename(name: str, names: dict[str, str]) -> str:
    """One name under the other side's; a KeyError if it has none."""
    stem, kind = re.fullmatch(r"(.*?)(\.weight|\.bias)?", name).groups()  # type: ignore[union-attr]
    number = re.search(r"\.(\d+)\.", stem)
    renamed = names[re.sub(r"\.\d+\.", ".#.", stem)]
    return (renamed.replace("#", number[1]) if number else renamed) + (kind or "")

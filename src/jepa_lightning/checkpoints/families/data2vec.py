"""Official checkpoints of data2vec and data2vec 2.0 (fairseq, `examples/data2vec`), for images, sound and text.

A file holds the student; of the teacher, under `_ema`, what follows the student, and nothing that is only copied.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from jepa_lightning.checkpoints.reading import Networks, StateDict

# Official names and ours, in the order in which they are tried; what is named by none is left as it is.
_LAYERS = (
    (r"(?:encoder|sentence_encoder)\.", ""),
    (r"^layers\.", "blocks."),
    (r"self_attn_layer_norm\.", "norm1."),
    (r"final_layer_norm\.", "norm2."),
    (r"self_attn\.out_proj\.", "attn.proj."),
    (r"self_attn\.", "attn."),
    (r"^(blocks\.\d+\.)fc", r"\1mlp.fc"),
)
_CONVOLUTIONS = (
    (r"^(?:feature_extractor|local_encoder)\.conv_layers\.(\d+)\.0\.", r"patch_embed.convolutions.\1."),
    (r"^(?:feature_extractor|local_encoder)\.conv_layers\.(\d+)\.2\.1\.", r"patch_embed.norms.\1."),
)
_WORDS = (
    (r"^(?:local_encoder\.)?embed_tokens\.", "patch_embed.words."),
    (r"^(?:local_encoder\.)?embed_positions\.", "patch_embed.places."),
    (r"^(?:local_encoder\.)?layernorm_embedding\.", "patch_embed.norm."),
)
# Of each kind of file, which of its names only that has, and what is where in it.
_KINDS: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "images": (
        r"^encoder\.rel_pos_bias\.",
        (
            (r"^cls_emb$", "patch_embed.cls_token"),
            (r"^mask_emb$", "patch_embed.mask_token"),
            (r"^patch_embed\.conv\.", "patch_embed.proj."),
            (r"^encoder\.", ""),
            (r"^rel_pos_bias\.relative_position_bias_table$", "bias.table"),
            (r"\.mlp\.0\.", ".mlp.fc1."),
            (r"\.mlp\.2\.", ".mlp.fc2."),
        ),
    ),
    "waves": (
        r"^feature_extractor\.",
        (
            *_CONVOLUTIONS,
            (r"^layer_norm\.", "patch_embed.norm."),
            (r"^post_extract_proj\.", "patch_embed.proj."),
            (r"^mask_emb$", "patch_embed.mask_token"),
            (r"^encoder\.layer_norm\.", "norm."),
            (r"^(?:encoder\.)?pos_conv\.(\d+)\.0\.", r"conv_positions.\1."),
            *_LAYERS,
        ),
    ),
    "words": (r"^encoder\.sentence_encoder\.", (*_LAYERS, *_WORDS)),
    "2.0 images": (
        r"^modality_encoders\.IMAGE\.",
        (
            (r"^extra_tokens$", "cls_token"),
            (r"^local_encoder\.", "patch_embed."),
            (r"^fixed_positional_encoder\.positions$", "pos_embed"),
        ),
    ),
    "2.0 waves": (
        r"^modality_encoders\.AUDIO\.",
        (
            *_CONVOLUTIONS,
            (r"^project_features\.1\.", "patch_embed.norm."),
            (r"^project_features\.2\.", "patch_embed.proj."),
            (r"^alibi_scale$", "bias.scale"),
        ),
    ),
    "2.0 words": (r"^modality_encoders\.TEXT\.", _WORDS),
}
_UNUSED = re.compile(r"(^|\.)(version|relative_position_index)$|^(lm_head|classification_heads)\.|(^|\.)lm_head\.")


def kind_of(state: StateDict) -> str | None:
    """Which kind of file an official state is of: `images`, `waves` or `words`, of 2.0 with `2.0` in front."""
    for kind, (only, _) in _KINDS.items():
        if any(re.match(only, name) for name in state):
            return kind
    return None


def matches(checkpoint: dict[str, Any]) -> bool:
    """Whether it holds the model of a kind of data2vec."""
    return isinstance(checkpoint.get("model"), dict) and kind_of(checkpoint["model"]) is not None


def read(checkpoint: dict[str, Any]) -> Networks:
    """The networks by our names; what the teacher only copies is the student's, and without a teacher it is all that.

    Raises:
        ValueError: a variant that this package does not have.
    """
    state = dict(checkpoint["model"])
    kind = kind_of(state) or ""
    followed = state.pop("_ema", None) or state.pop("encoder._ema", None) or {}
    student = renamed(state, kind)
    if kind == "2.0 words":
        followed = {f"blocks.{name}": value for name, value in followed.items()}
    prefix = {"images": "encoder.", "waves": "encoder.", "words": "encoder.sentence_encoder."}.get(kind, "")
    teacher = renamed({f"{prefix}{name}": value for name, value in followed.items()}, kind)["context_encoder"]
    states = {**student, "target_encoder": student["context_encoder"] | teacher}
    return Networks(states, {"data2vec": kind, "epsilon": 1e-6 if kind == "2.0 images" else 1e-5})


def renamed(state: StateDict, kind: str) -> dict[str, StateDict]:
    """An official state of a kind, or anything with its names, by our networks and names.

    Raises:
        ValueError: a variant that this package does not have.
    """
    networks: dict[str, StateDict] = {"context_encoder": {}, "predictor": {}}
    prenet = {re.split(r"\.", name)[4] for name in state if ".context_encoder.blocks." in name}
    for official, value in state.items():
        if _UNUSED.search(official):
            continue
        name = re.sub(r"^modality_encoders\.[A-Z]+\.", "", official)
        if head := re.match(r"^(?:decoder|final_proj|encoder\.regression_head)\.", name):
            networks["predictor"][_of_the_head(name[head.end() :], state)] = value
            continue
        if kind.startswith("2.0"):
            if official.startswith("blocks."):  # behind those of the modality
                number, _, rest = official.removeprefix("blocks.").partition(".")
                name = f"blocks.{int(number) + len(prenet)}.{rest}"
            name = name.removeprefix("context_encoder.")
            if positions := re.match(r"relative_positional_encoder\.(\d+)\.0\.", name):
                name = f"conv_positions.{int(positions[1]) - 1}.{name[positions.end() :]}"
        for theirs, ours in _KINDS[kind][1]:
            name = re.sub(theirs, ours, name)
        networks["context_encoder"][name] = value
    networks["context_encoder"] = _joined(_reshaped(networks["context_encoder"]))
    return {network: found for network, found in networks.items() if found}


def _of_the_head(name: str, state: StateDict) -> str:
    """Of the head or the decoder."""
    name = re.sub(r"^blocks\.(\d+)\.0\.", r"blocks.\1.", name)
    name = re.sub(r"^proj\.(weight|bias)$", r"proj.0.\1", name)
    name = re.sub(r"^proj\.2\.", "proj.1.", name)
    # A head of one layer is a sequence in files of text.
    single = "encoder.regression_head.0.weight" in state and "encoder.regression_head.2.weight" not in state
    return name.removeprefix("0.") if single else name


def _reshaped(state: StateDict) -> StateDict:
    """What has another shape than ours; what is of a variant that we have not is refused."""
    if "patch_embed.places.weight" in state:
        # The number of the word that fills up, 1, and those before it have no place.
        state["patch_embed.places.weight"] = state["patch_embed.places.weight"][2:]
    if "bias.scale" in state:
        scale = state["bias.scale"]
        if scale.ndim == 5 and len(scale) > 1:
            raise ValueError(
                f"this checkpoint has a scale of ALiBi for each block, {list(scale.shape)}; ours are shared"
            )
        state["bias.scale"] = scale.flatten()
    if "cls_token" in state and state["cls_token"].shape[1] != 1:
        raise ValueError(f"this checkpoint has {state['cls_token'].shape[1]} extra tokens; one is what we know")
    if unknown := [name for name in state if name.startswith(("feature_extractor.", "local_encoder."))]:
        raise ValueError(
            f"this checkpoint's front end is not of the kind with a norm in each layer (extractor_mode): {unknown}"
        )
    return state


def _joined(state: StateDict) -> StateDict:
    """Queries, keys and values as one; keys of images have no bias, which none would miss."""
    found: StateDict = {}
    for name, value in state.items():
        if parts := re.match(r"(.*\.attn\.)q_proj\.(weight|bias)$", name):
            found[f"{parts[1]}qkv.{parts[2]}"] = torch.cat([state[f"{parts[1]}{k}_proj.{parts[2]}"] for k in "qkv"])
        elif name.endswith(".attn.q_bias"):
            stem = name.removesuffix("q_bias")
            found[f"{stem}qkv.bias"] = torch.cat([value, torch.zeros_like(value), state[f"{stem}v_bias"]])
        elif not re.search(r"\.attn\.(k_proj|v_proj|v_bias)", name):
            found[name] = value
    return found

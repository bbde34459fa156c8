"""Official checkpoints of T-JEPA (Jacobieee/T-JEPA, the version of 2024)."""

from __future__ import annotations

from typing import Any

import torch

from jepa_lightning.checkpoints.reading import Networks, StateDict

_ENCODER = {
    "weights": "patch_embed.weights",
    "bias": "patch_embed.bias",
    "W": "patch_embed.proj.weight",
    "pe.pos_embedding": "pos_embed",
}
_LAYER = {
    "self_attn.in_proj_": "attn.qkv.",
    "self_attn.out_proj.": "attn.proj.",
    "linear1.": "mlp.fc1.",
    "linear2.": "mlp.fc2.",
}
_PREDICTOR = {"latent_var": "latent", "pe": "pos_embed", "predictor.final_norm.weight": "final_norm.weight"}
_PREDICTOR |= {f"norm.{kind}": f"norm.{kind}" for kind in ("weight", "bias")}
_PREDICTOR |= {f"proj_out.{kind}": f"proj.{kind}" for kind in ("weight", "bias")}
_HALVES = (
    {"0.0.weight": "norm1.weight", "1.to_out.weight": "attn.proj.weight"},
    {"0.0.weight": "norm2.weight", "1.ff.0.0.": "mlp.fc1.", "1.ff.2.": "mlp.fc2."},
)


def matches(checkpoint: dict[str, Any]) -> bool:
    """Whether it holds an encoder of tracks."""
    state = checkpoint.get("model_state_dict")
    return isinstance(state, dict) and "context_encoder.pe.pos_embedding" in state


def read(checkpoint: dict[str, Any]) -> Networks:
    """The networks by our names; a linear map without effect (`traj_embedding`) is left out."""
    states = renamed(checkpoint["model_state_dict"])
    return Networks(states, {"epsilon": 1e-5, "num_points": states["context_encoder"]["pos_embed"].shape[1]})


def renamed(state: StateDict) -> dict[str, StateDict]:
    """An official state, or anything with its names, by our networks and names.

    Of the encoders' positions those are kept that the predictor has, too: no track is longer.
    """
    encoders = ("context_encoder", "target_encoder")
    predictor = {name: value for name, value in state.items() if not name.startswith(encoders)}
    found = {"predictor": _predictor(predictor)} if predictor else {}
    length = found["predictor"]["pos_embed"].shape[1] if found else None
    for network in encoders:
        prefix = f"{network}."
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if own:
            found[network] = _encoder(own, length)
    return found


def _encoder(state: StateDict, length: int | None) -> StateDict:
    found = {}
    for name, value in state.items():
        if name.startswith("traj_embedding."):
            continue
        layer = name.removeprefix("structural_attn.layers.")
        if layer != name:
            number, _, rest = layer.partition(".")
            theirs = next((each for each in _LAYER if rest.startswith(each)), "")
            found[f"blocks.{number}.{_LAYER.get(theirs, '')}{rest.removeprefix(theirs)}"] = value
        else:
            found[_ENCODER.get(name, name)] = value
    if "patch_embed.proj.weight" in found:  # which is multiplied from the other side
        found["patch_embed.proj.weight"] = found["patch_embed.proj.weight"].T
    found["pos_embed"] = found["pos_embed"][:length].unsqueeze(0)
    return found


def _predictor(state: StateDict) -> StateDict:
    """x-transformers' decoder counts attention and MLP as layers of their own."""
    found, queries = {}, {}
    for name, value in state.items():
        layer = name.removeprefix("predictor.layers.")
        if layer == name:
            found[_PREDICTOR.get(name, name)] = value
            continue
        number, _, rest = layer.partition(".")
        block = f"predictor_blocks.{int(number) // 2}."
        if rest in ("1.to_q.weight", "1.to_k.weight", "1.to_v.weight"):
            queries[block, rest] = value
            continue
        names = _HALVES[int(number) % 2]
        theirs = next((each for each in names if rest.startswith(each)), "")
        found[block + names.get(theirs, "") + rest.removeprefix(theirs)] = value
    for block in sorted({block for block, _ in queries}):
        parts = [queries[block, f"1.to_{kind}.weight"] for kind in "qkv"]
        found[f"{block}attn.qkv.weight"] = torch.cat(parts)
    return found

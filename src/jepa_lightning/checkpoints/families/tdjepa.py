"""Official checkpoints of TD-JEPA (facebookresearch/td_jepa): folders of options and weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from jepa_lightning.checkpoints.reading import StateDict

_NETWORKS = {
    "_actor_vf.": "flow.",
    "_actor.": "actor.",
    "_phi_mlp_encoder.": "phi.",
    "_psi_mlp_encoder.": "psi.",
    "_phi_predictor.": "phi_predictor.",
    "_psi_predictor.": "psi_predictor.",
    "_z_cov": "task_moment",
}
_LAYERS = {
    ".embed_z.": ".embed_task.",
    ".embed_sa.": ".embed_action.",
    ".embed_s.": ".embed_state.",
    ".Fs.": ".head.",
    ".policy.": ".head.",
}
# What of the official training is an option of ours, but for names that are the same.
_TRAINING = {
    "lr_predictor": "lr_predictor",
    "lr_phi": "lr_phi",
    "lr_psi": "lr_psi",
    "lr_actor": "lr_actor",
    "lr_actor_vf": "lr_flow",
    "encoder_target_tau": "encoder_tau",
    "predictor_target_tau": "predictor_tau",
    "phi_ortho_coef": "phi_ortho",
    "psi_ortho_coef": "psi_ortho",
    "train_goal_ratio": "goal_share",
    "predictor_pessimism_penalty": "predictor_pessimism",
    "actor_pessimism_penalty": "actor_pessimism",
    "stddev_clip": "actor_clip",
    "discount": "discount",
    "bc_coeff": "bc_coeff",
    "scale_train_goals": "scale_goals",
    "flow_steps": "flow_steps",
}


def read(path: str | Path) -> tuple[dict[str, Any], StateDict]:
    """The options of `TDJEPA` that a folder's agent was trained with, and its weights by our names.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: another kind of agent, or one from pixels, whose encoder is another one than ours.
    """
    folder = Path(path)
    files = [folder / "config.json", folder / "model" / "model.safetensors"]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise FileNotFoundError(f"{path} is no checkpoint of TD-JEPA: there is no {' and no '.join(missing)}")
    try:
        config, theirs = json.loads(files[0].read_text()), load_file(files[1])
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read, it may be cut short or spoilt: {error}") from error
    if not str(config.get("name")).startswith("TDJEPA"):
        raise ValueError(f"{path} is of a {config.get('name')}, not of a TDJEPAAgent or TDJEPAFlowBCAgent")
    state = {renamed(name): value for name, value in theirs.items()}
    try:
        return _options(config, state), state
    except KeyError as error:
        raise ValueError(f"{path} lacks {error} among its options or weights") from error


def _options(config: dict[str, Any], state: StateDict) -> dict[str, Any]:
    model, training = config["model"], config["train"]
    networks = model["archi"]
    if networks["rgb_encoder"]["name"] != "Identity" or model["obs_normalizer"]["name"] != "IdentityNormalizerConfig":
        raise ValueError("agents from pixels, or with a normaliser of observations, are not read")
    simple = {networks[name].get("model", "simple") for name in ("phi_predictor", "actor")}
    psi = "phi_mlp_encoder" if model["symmetric"] else "psi_mlp_encoder"
    flow = "actor_vf" in networks
    if simple != {"simple"} or not all(networks[name]["norm"] for name in ("phi_mlp_encoder", psi)):
        raise ValueError("networks of another kind than the published ones are not read")
    options = {
        "observation_dim": state["phi.net.0.weight"].shape[1],
        "action_dim": state[f"actor.head.{2 * networks['actor']['hidden_layers']}.bias"].shape[0],
        "symmetric": model["symmetric"],
        "phi_dim": networks["phi_dim"],
        "psi_dim": networks["psi_dim"],
        "phi_layers": networks["phi_mlp_encoder"]["hidden_layers"],
        "psi_layers": networks[psi]["hidden_layers"],
        "encoder_dim": networks["phi_mlp_encoder"]["hidden_dim"],
        "predictor_dim": networks["phi_predictor"]["hidden_dim"],
        "predictor_layers": networks["phi_predictor"]["hidden_layers"],
        "embedding_layers": networks["phi_predictor"]["embedding_layers"],
        "heads": networks["phi_predictor"]["num_parallel"],
        "actor": "flow" if flow else "gaussian",
        "actor_dim": networks["actor"]["hidden_dim"],
        "actor_layers": networks["actor"]["hidden_layers"],
        "actor_reads_phi": model["actor_use_full_encoder"],
        "actor_std": model["actor_std"],
        **{ours: training[theirs] for theirs, ours in _TRAINING.items() if theirs in training},
    }
    if flow:
        options |= {
            "flow_dim": networks["actor_vf"]["hidden_dim"],
            "flow_layers": networks["actor_vf"]["hidden_layers"],
        }
    return options


def renamed(name: str) -> str:
    """A weight's name of an official checkpoint by ours."""
    target = "target_" if name.startswith("_target_") else ""
    name = name.replace("_target_", "_", 1) if target else name
    prefix = next((theirs for theirs in _NETWORKS if name.startswith(theirs)), "")
    name = _NETWORKS.get(prefix, "") + name.removeprefix(prefix)
    for theirs, ours in _LAYERS.items():
        name = name.replace(theirs, ours)
    return target + name

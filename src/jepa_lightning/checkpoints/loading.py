"""The networks of a checkpoint of any family, loaded into a module."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from jepa_lightning.checkpoints.families import read_networks
from jepa_lightning.checkpoints.families.ijepa import OFFICIAL_NETWORKS
from jepa_lightning.checkpoints.reading import Networks
from jepa_lightning.checkpoints.sizes import grid_of_positions
from jepa_lightning.networks import Predictor, Transformer
from jepa_lightning.networks.positions import Positions

TWINS = {"context_encoder": "target_encoder", "target_encoder": "context_encoder"}


def load_networks(module: nn.Module, networks: Networks) -> list[str]:
    """Load the networks of a checkpoint into a module that has them; positions are rebuilt for the module's grid.

    Regularisers start anew. So do networks that the checkpoint's method does not have, as the heads of DMT-JEPA where
    it comes from I-JEPA.

    Returns:
        The names of networks that start anew.

    Raises:
        ValueError: the checkpoint lacks one of the encoders or the predictor of the module, or has none of its
            networks, or its names or shapes are not those of the module's.
    """
    names = [name for name in trained_networks(module) if name != "regularizers"]
    missing = [name for name in names if not networks.states.get(name)]
    lacked = [name for name in missing if name in OFFICIAL_NETWORKS.values()]
    if lacked or len(missing) == len(names):
        raise ValueError(
            f"the checkpoint holds no {' and no '.join(lacked or names)}, only {', '.join(networks.states)}: it cannot "
            "be trained on as a whole; what it holds can be chosen, weights={context_encoder: path}"
        )
    for name in names:
        if name not in missing:
            load_network(module.get_submodule(name), networks, name)
    for name, kept in module.named_buffers(recurse=False):  # what a module remembers of its data, as TDJEPA ψ's moment
        if "" in networks.states.get(name, {}):
            kept.copy_(networks.states[name][""])
    return missing


def trained_networks(module: nn.Module) -> list[str]:
    """The names of a module's networks that have parameters."""
    return [name for name, network in module.named_children() if any(True for _ in network.parameters())]


def start_from(module: Any, weights: str | Mapping[str, str]) -> list[str]:
    """Load the networks that a training starts from.

    Args:
        module: a `JEPA`.
        weights: a checkpoint with all of them, or the checkpoint of each by its name, such as
            `{"context_encoder": path}`. An encoder that a checkpoint does not have by that name is its other one. The
            teacher of a network that is given starts as its copy, unless it is given too.

    Returns:
        The names of networks that start anew.

    Raises:
        FileNotFoundError: nothing is at a path.
        ValueError: a checkpoint that cannot be read or does not fit, or a network that the module does not have.
    """
    if not isinstance(weights, Mapping):
        return load_networks(module, read_networks(weights))
    names = trained_networks(module)
    if not weights or (unknown := [name for name in weights if name not in names]):
        wrong = f"has no network {', '.join(unknown)}" if weights else "is given no network to start from"
        raise ValueError(f"{type(module).__name__} {wrong}; weights are given for {', '.join(names)}")
    for name, path in weights.items():
        networks = read_networks(path)
        source = name if name in networks.states else TWINS.get(name, name)
        if not networks.states.get(source):
            raise ValueError(f"{path} holds no {name}, only {', '.join(networks.states)}")
        load_network(module.get_submodule(name), networks, source)
    started = set(weights)
    for each in module.teachers():
        student, teacher = (name.partition(".")[0] for name in (each.student, each.teacher))  # of parts, the networks
        if student in weights and teacher not in weights:
            module.get_submodule(each.teacher).load_state_dict(module.get_submodule(each.student).state_dict())
            started.add(teacher)
    return [name for name in names if name not in started]


def check_positions(networks: Networks, positions: Positions) -> None:
    """Refuse the networks of clips whose positions are others than those of the module that they are loaded into.

    Raises:
        ValueError: weights of V-JEPA for V-JEPA 2 or the other way round, or rotations of the other kind.
    """
    theirs = networks.options.get("positions")
    if theirs in (None, positions):
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


def _of_another_grid(network: nn.Module, positions: Tensor) -> bool:
    """Whether positions are those of clips of another shape, which may have as many tokens."""
    if not isinstance(network, Transformer | Predictor) or len(network.grid) != 3:
        return False
    try:
        return grid_of_positions(positions) != network.grid
    except ValueError:  # no table of sines and cosines that we know: the file's own positions are right
        return False


def load_network(network: nn.Module, networks: Networks, name: str) -> None:
    """Load one network of a checkpoint; positions of another grid give way to this network's own.

    Raises:
        ValueError: names, shapes or positions that are not those of the network.
    """
    network, state = getattr(network, "_orig_mod", network), dict(networks.states[name])  # what was compiled
    epsilon = networks.options.get("epsilon", 0.0)
    own_epsilon = max([norm.eps for norm in network.modules() if isinstance(norm, nn.LayerNorm)], default=epsilon)
    # What is up to 1e-6 makes no difference to the variances that norms of tokens meet.
    if epsilon and max(epsilon, 1e-6) != max(own_epsilon, 1e-6):
        raise ValueError(
            f"the norms of the checkpoint's {name} have an epsilon of {epsilon:g}, and this module's {own_epsilon:g}: "
            "its features would be others"
        )
    if isinstance(network, Transformer | Predictor) and len(network.grid) == 3:
        check_positions(networks, network.positions)
    own = network.state_dict()
    for positions in [entry for entry in state if entry.endswith("pos_embed")]:
        if positions not in own:
            warnings.warn(
                f"the checkpoint's {name} has {positions}, which networks with rotary positions do not use; V-JEPA 2's "
                "released files have it left over",
                stacklevel=3,
            )
            del state[positions]
        elif getattr(network, "positions", None) == "learned":
            continue  # which nothing can replace
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

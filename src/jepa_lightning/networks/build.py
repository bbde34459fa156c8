"""Networks by configuration: a class by its path, and plain values for its constructor."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from jepa_lightning.errors import unknown_options
from jepa_lightning.importing import imported


def build_network(configuration: Mapping[str, Any]) -> nn.Module:
    """The network of a configuration, as a recipe writes it.

    Args:
        configuration: `{"class_path": …, "init_args": {…}}`, with the full path of the class.

    Raises:
        ValueError: other entries, or a path under which there is no `nn.Module`.
        TypeError: an argument that the class does not have, or lacks.

    >>> path = "jepa_lightning.networks.VisionTransformer"
    >>> build_network({"class_path": path, "init_args": {"embed_dim": 48, "depth": 1}}).embed_dim
    48
    """
    if not isinstance(configuration, Mapping) or "class_path" not in configuration:
        raise ValueError(f"expected {{class_path: …, init_args: {{…}}}} of a network, got {configuration!r}")
    if unknown := sorted(set(configuration) - {"class_path", "init_args"}):
        raise ValueError(f"a network is given by class_path and init_args alone, not by {', '.join(unknown)}")
    path, arguments = str(configuration["class_path"]), dict(configuration.get("init_args") or {})
    found = imported(path)
    # A path may come out of a checkpoint: what is no network is not called.
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"{path} is not a class of networks, a subclass of torch.nn.Module")
    known = inspect.signature(found).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    if not takes_all and (unknown := sorted(set(arguments) - set(known))):
        raise TypeError(unknown_options(path, unknown, known))
    network: nn.Module = found(**arguments)
    return network

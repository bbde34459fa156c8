"""Planners by configuration: plain values, as recipes write them and checkpoints keep them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from jepa_lightning.errors import unknown_options
from jepa_lightning.importing import imported
from jepa_lightning.planning import cem, gradient, mppi, projections
from jepa_lightning.planning.planner import Planner

# That of V-JEPA 2-AC's released code, whose actions are not normalised, but within 0.05 along each axis, unrotated.
PUBLISHED_CEM: dict[str, Any] = {
    "class_path": "CEM",
    "init_args": {
        "horizon": 2,
        "samples": 400,
        "elites": 10,
        "iterations": 10,
        "momentum": 0.15,
        "std_momentum": 0.15,
    },
}

_KNOWN: dict[str, Any] = {
    "CEM": cem.CEM,
    "MPPI": mppi.MPPI,
    "GradientPlanner": gradient.GradientPlanner,
    **{name: getattr(projections, name) for name in ("Ball", "Box", "FixedAxes")},
}


def build_planner(configuration: Mapping[str, Any], action_dim: int) -> Planner:
    """The planner of a configuration, as a recipe writes it.

    Args:
        configuration: `{"class_path": "CEM", "init_args": {"horizon": 5, …}}`; its `project` is a list of projections,
            each by its name, `{"Box": {"low": -1.0, "high": 1.0}}`. Classes of your own have their full paths.
        action_dim: numbers of an action.

    Raises:
        ValueError: other entries, or a class that there is not.
        TypeError: an argument that the class does not have.

    >>> options = {"horizon": 5, "project": [{"Box": {"low": -1.0, "high": 1.0}}]}
    >>> build_planner({"class_path": "CEM", "init_args": options}, action_dim=2).horizon
    5
    """
    arguments = dict(configuration.get("init_args") or {})
    # A parser of configurations would make objects of nested class paths, which no checkpoint can hold.
    arguments["project"] = [
        _built({"class_path": name, "init_args": options})
        for each in arguments.get("project") or ()
        for name, options in _by_name(each).items()
    ]
    planner = _built({**configuration, "init_args": {**arguments, "action_dim": action_dim}})
    if not isinstance(planner, Planner):
        raise ValueError(f"{configuration['class_path']} is no planner")
    return planner


def _by_name(projection: Any) -> Mapping[str, Any]:
    if not isinstance(projection, Mapping) or "class_path" in projection:
        raise ValueError(f"a projection is given by its name, {{Box: {{low: -1, high: 1}}}}, not as {projection!r}")
    return projection


def _built(configuration: Any) -> Any:
    if not isinstance(configuration, Mapping) or not {"class_path"} <= set(configuration) <= {
        "class_path",
        "init_args",
    }:
        raise ValueError(f"expected {{class_path: …, init_args: {{…}}}}, got {configuration!r}")
    path, arguments = str(configuration["class_path"]), dict(configuration.get("init_args") or {})
    found = _KNOWN.get(path) or _KNOWN.get(path.removeprefix("jepa_lightning.planning."))
    if found is None:
        try:
            found = imported(path)
        except ValueError as error:
            raise ValueError(f"there is no {path}: {', '.join(_KNOWN)}, or the path of a class") from error
        # A path may come out of a checkpoint: what is neither is not called.
        if not (isinstance(found, type) and issubclass(found, Planner | projections.Projection)):
            raise ValueError(f"{path} is neither a planner nor a projection, a subclass of Planner or Projection")
    known = {name for base in inspect.getmro(found) for name in inspect.signature(base).parameters}
    if unknown := sorted(set(arguments) - known):
        raise TypeError(unknown_options(path, unknown, known - {"args", "kwargs", "options"}))
    return found(**arguments)


def policy_options(configuration: Mapping[str, Any], action_dim: int) -> tuple[Planner, dict[str, Any]]:
    """The planner of a configuration, and what it says of a policy beside, `execute` and `last`.

    Raises:
        ValueError: what is no such configuration, see `build_planner`.
        TypeError: an argument that the class does not have.
    """
    rest = dict(configuration)
    own: dict[str, Any] = {name: rest.pop(name) for name in ("execute", "last") if name in rest}
    return build_planner(rest, action_dim), own

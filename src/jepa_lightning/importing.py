"""Classes by their paths, as recipes and checkpoints name them."""

from __future__ import annotations

import importlib
from typing import Any


def imported(path: str) -> Any:
    """What a path such as `package.module.Class` leads to. Whoever calls it looks what that is before using it.

    Raises:
        ValueError: nothing is there.

    >>> imported("jepa_lightning.planning.CEM").__name__
    'CEM'
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"there is no class {path}: {error}") from error

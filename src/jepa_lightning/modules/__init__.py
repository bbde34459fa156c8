"""The LightningModules, one file a method; `jepa.py` is the base they share."""

from jepa_lightning.modules.ijepa import IJEPA
from jepa_lightning.modules.jepa import JEPA, Latents

__all__ = ["IJEPA", "JEPA", "Latents"]

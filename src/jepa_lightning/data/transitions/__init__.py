"""Steps of environments, each from a state to the next, in memory: from files or recorded."""

from jepa_lightning.data.transitions.datamodule import TransitionsDataModule
from jepa_lightning.data.transitions.dataset import TransitionSet, WithReplacement
from jepa_lightning.data.transitions.reading import Steps, read_steps

__all__ = ["Steps", "TransitionSet", "TransitionsDataModule", "WithReplacement", "read_steps"]

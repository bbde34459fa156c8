"""The LightningModules, one file a method.

`jepa.py` is the base of all, `masked.py` of those that hide places, `task_agent.py` of those that act for rewards.
"""

from jepa_lightning.modules.cjepa import CJEPA
from jepa_lightning.modules.data2vec import Data2Vec
from jepa_lightning.modules.data2vec2 import Data2Vec2
from jepa_lightning.modules.dmtjepa import DMTJEPA
from jepa_lightning.modules.ijepa import IJEPA
from jepa_lightning.modules.jepa import JEPA
from jepa_lightning.modules.lejepa import LeJEPA
from jepa_lightning.modules.masked import MaskedJEPA
from jepa_lightning.modules.tdjepa import TDJEPA
from jepa_lightning.modules.tjepa import TJEPA
from jepa_lightning.modules.training import Teacher
from jepa_lightning.modules.tsjepa import TSJEPA
from jepa_lightning.modules.vjepa import VJEPA
from jepa_lightning.modules.vjepa2 import VJEPA2
from jepa_lightning.modules.vjepa2ac import VJEPA2AC

__all__ = [
    "CJEPA",
    "DMTJEPA",
    "IJEPA",
    "JEPA",
    "TDJEPA",
    "TJEPA",
    "TSJEPA",
    "VJEPA",
    "VJEPA2",
    "VJEPA2AC",
    "Data2Vec",
    "Data2Vec2",
    "LeJEPA",
    "MaskedJEPA",
    "Teacher",
]

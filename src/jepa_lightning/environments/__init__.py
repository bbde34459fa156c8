"""Environments, drawn with NumPy; Gymnasium makes them by `jepa_lightning/TwoRoom-v0` and the like.

They need the extra `control`: `pip install "jepa-lightning[control]"`.
"""

try:
    import gymnasium
except ImportError as error:
    raise ImportError(
        'environments are built on gymnasium, which is in the extra `control`: pip install "jepa-lightning[control]"'
    ) from error

from jepa_lightning.environments.dm_control import DMControl
from jepa_lightning.environments.four_room import FourRoom
from jepa_lightning.environments.point_mass import REWARDS, PointMass
from jepa_lightning.environments.reaching import Reaching
from jepa_lightning.environments.rooms import Rooms
from jepa_lightning.environments.scenes import SceneEnv
from jepa_lightning.environments.two_room import TwoRoom

# Steps after which an episode ends, unless `gymnasium.make` is given others.
for _name, _steps in {"TwoRoom": 200, "FourRoom": 400, "PointMass": 200}.items():
    gymnasium.register(f"jepa_lightning/{_name}-v0", f"{__name__}:{_name}", max_episode_steps=_steps)
gymnasium.register("jepa_lightning/DMControl-v0", f"{__name__}:DMControl")  # which has a time limit of its own
gymnasium.register("jepa_lightning/Reaching-v0", f"{__name__}:Reaching")  # episodes are as long as the environment's

__all__ = ["REWARDS", "DMControl", "FourRoom", "PointMass", "Reaching", "Rooms", "SceneEnv", "TwoRoom"]

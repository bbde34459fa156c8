"""What a frozen encoder of tracks is good for: search among tracks, and standing in for costly distances.

Needs the extra `trajectories`.
"""

try:
    import aeon  # noqa: F401
    import shapely  # noqa: F401
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError(
        "tracks are evaluated by scikit-learn, shapely and aeon: pip install 'jepa-lightning[trajectories]'"
    ) from error

from jepa_lightning.evaluation.trajectories.distances import pairwise
from jepa_lightning.evaluation.trajectories.encoder import TrajectoryEncoder
from jepa_lightning.evaluation.trajectories.regression import DistanceHead, hits
from jepa_lightning.evaluation.trajectories.search import (
    Search,
    by_features,
    distorted,
    mean_rank,
    thinned,
    twin_search,
    twins,
)

__all__ = [
    "DistanceHead",
    "Search",
    "TrajectoryEncoder",
    "by_features",
    "distorted",
    "hits",
    "mean_rank",
    "pairwise",
    "thinned",
    "twin_search",
    "twins",
]

"""What is hidden, and what is seen: masks and views, drawn for a whole batch from explicit numbers."""

from jepa_lightning.masking.blockwise import BlockwiseMasking, InverseBlockMasking
from jepa_lightning.masking.masks import Masks
from jepa_lightning.masking.multiblock import MultiBlockMasking
from jepa_lightning.masking.points import PointMasking, PointMasks
from jepa_lightning.masking.spans import SpanMasking
from jepa_lightning.masking.tubes import MaskingList, RandomTubeMasking, TubeMasking
from jepa_lightning.masking.views import MultiViews, Views, take_views

__all__ = [
    "BlockwiseMasking",
    "InverseBlockMasking",
    "MaskingList",
    "Masks",
    "MultiBlockMasking",
    "MultiViews",
    "PointMasking",
    "PointMasks",
    "RandomTubeMasking",
    "SpanMasking",
    "TubeMasking",
    "Views",
    "take_views",
]

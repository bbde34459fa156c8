"""What is hidden, and what is seen: masks and views, drawn for a whole batch from an explicit generator."""

from jepa_lightning.masking.multiblock import Masks, MultiBlockMasking
from jepa_lightning.masking.views import MultiViews, Views, take_views

__all__ = ["Masks", "MultiBlockMasking", "MultiViews", "Views", "take_views"]

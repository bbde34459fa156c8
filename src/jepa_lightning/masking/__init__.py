"""What is hidden from the context encoder, and what is to be predicted."""

from jepa_lightning.masking.multiblock import Masks, MultiBlockMasking

__all__ = ["Masks", "MultiBlockMasking"]

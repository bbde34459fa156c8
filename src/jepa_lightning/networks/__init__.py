"""Encoders and predictors: plain `nn.Module`s that draw no masks, compute no loss and own no optimiser."""

from jepa_lightning.networks.attentive import AttentivePooler
from jepa_lightning.networks.predictor import Predictor
from jepa_lightning.networks.timm_encoder import TimmEncoder
from jepa_lightning.networks.tokens import gather_tokens, hide_patches
from jepa_lightning.networks.video_predictor import VideoPredictor
from jepa_lightning.networks.video_transformer import VideoTransformer
from jepa_lightning.networks.vision_transformer import VisionTransformer

__all__ = [
    "AttentivePooler",
    "Predictor",
    "TimmEncoder",
    "VideoPredictor",
    "VideoTransformer",
    "VisionTransformer",
    "gather_tokens",
    "hide_patches",
]

"""Encoders and predictors: plain `nn.Module`s that draw no masks, compute no loss and own no optimiser."""

from jepa_lightning.networks.action_predictor import ActionPredictor
from jepa_lightning.networks.attention_bias import Alibi, RelativePositionBias
from jepa_lightning.networks.attentive import AttentivePooler
from jepa_lightning.networks.beit import BeitTransformer
from jepa_lightning.networks.blocks import Block
from jepa_lightning.networks.build import build_network
from jepa_lightning.networks.conv_decoder import ConvDecoder
from jepa_lightning.networks.encoders import (
    PostNormVisionTransformer,
    SeriesTransformer,
    VideoTransformer,
    VisionTransformer,
)
from jepa_lightning.networks.predictors import Predictor
from jepa_lightning.networks.series_convolutions import SeriesConvolutions
from jepa_lightning.networks.timm_encoder import TimmEncoder
from jepa_lightning.networks.tokenizers import PatchEmbed, SeriesPatchEmbed
from jepa_lightning.networks.tokens import gather_tokens, hide_patches
from jepa_lightning.networks.tracks import AdjFuse, TrackPredictor, TrackTransformer
from jepa_lightning.networks.transformer import Transformer
from jepa_lightning.networks.waves import ConvPositions, WaveEmbed, WaveTransformer
from jepa_lightning.networks.words import WordEmbed, WordTransformer

__all__ = [
    "ActionPredictor",
    "AdjFuse",
    "Alibi",
    "AttentivePooler",
    "BeitTransformer",
    "Block",
    "ConvDecoder",
    "ConvPositions",
    "PatchEmbed",
    "PostNormVisionTransformer",
    "Predictor",
    "RelativePositionBias",
    "SeriesConvolutions",
    "SeriesPatchEmbed",
    "SeriesTransformer",
    "TimmEncoder",
    "TrackPredictor",
    "TrackTransformer",
    "Transformer",
    "VideoTransformer",
    "VisionTransformer",
    "WaveEmbed",
    "WaveTransformer",
    "WordEmbed",
    "WordTransformer",
    "build_network",
    "gather_tokens",
    "hide_patches",
]

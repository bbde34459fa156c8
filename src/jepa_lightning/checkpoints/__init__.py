"""Reading and writing weights: our own checkpoints, the official ones, and the formats of timm and Hugging Face."""

from pathlib import Path

from safetensors.torch import save_file

from jepa_lightning.checkpoints.data2vec_sizes import encoder_configuration
from jepa_lightning.checkpoints.encoder import load_encoder
from jepa_lightning.checkpoints.families import read_networks
from jepa_lightning.checkpoints.families.hugging_face import save_for_transformers
from jepa_lightning.checkpoints.loading import check_positions, load_networks, start_from
from jepa_lightning.checkpoints.reading import Networks, uncompiled
from jepa_lightning.checkpoints.safe_io import SafeCheckpointIO
from jepa_lightning.checkpoints.sizes import (
    predictor_sizes,
    series_transformer_sizes,
    track_predictor_sizes,
    track_transformer_sizes,
    video_transformer_sizes,
    vision_transformer_sizes,
)
from jepa_lightning.networks import VisionTransformer

__all__ = [
    "Networks",
    "SafeCheckpointIO",
    "check_positions",
    "encoder_configuration",
    "load_encoder",
    "load_networks",
    "predictor_sizes",
    "read_networks",
    "save_for_timm",
    "save_for_transformers",
    "series_transformer_sizes",
    "start_from",
    "track_predictor_sizes",
    "track_transformer_sizes",
    "video_transformer_sizes",
    "vision_transformer_sizes",
]


def save_for_timm(encoder: VisionTransformer, path: str | Path) -> None:
    """Write an encoder as safetensors that timm's VisionTransformer loads.

    The model to load it into has neither class token nor a norm after pooling, as timm's own I-JEPA models:
    `timm.create_model(name, class_token=False, global_pool="avg", fc_norm=False, num_classes=0, checkpoint_path=path)`,
    with the `img_size` of the encoder.
    """
    weights = {uncompiled(name): value.detach().contiguous() for name, value in encoder.state_dict().items()}
    save_file(weights, path)

"""The encoder of a checkpoint of any family, on its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from jepa_lightning.checkpoints.data2vec_sizes import encoder_configuration
from jepa_lightning.checkpoints.families import read_networks
from jepa_lightning.checkpoints.loading import load_network
from jepa_lightning.checkpoints.sizes import (
    series_transformer_sizes,
    track_transformer_sizes,
    video_transformer_sizes,
    vision_transformer_sizes,
)
from jepa_lightning.errors import UnknownEncoderError
from jepa_lightning.networks import (
    SeriesTransformer,
    TrackTransformer,
    VideoTransformer,
    VisionTransformer,
    build_network,
)


def load_encoder(
    path: str | Path,
    network: str = "target_encoder",
    image_size: int | list[int] | None = None,
    num_frames: int | None = None,
    num_heads: int | None = None,
) -> Any:
    """The frozen encoder of any checkpoint that can be read: ours, official, or a Hugging Face folder.

    Args:
        path: a checkpoint file, or a folder in the layout of the Hugging Face hub. One of ours whose encoder was chosen
            by its class (`encoder: {class_path: …}`) says which it is; that class is imported, so load files of that
            kind from people you trust.
        network: `target_encoder`, which the papers evaluate, or `context_encoder`.
        image_size: another size in pixels than the checkpoint's; the positions are rebuilt.
        num_frames: of clips, another number than the checkpoint's.
        num_heads: attention heads, asked for only where neither the file nor a published width tells.

    Returns:
        The encoder in evaluation mode, without gradients: a `Transformer`, or the class that the checkpoint names.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file that cannot be read, or an encoder that is no vision transformer.
    """
    networks = read_networks(path)
    if network not in networks.states:
        raise UnknownEncoderError(f"{path} holds {', '.join(networks.states)}, not {network!r}")
    state, told = networks.states[network], networks.options
    encoder: nn.Module
    if "encoder" in told:
        if chosen := [each for each in (image_size, num_frames, num_heads) if each is not None]:
            raise ValueError(f"{path} says what its encoder is, {told['encoder']}: it takes no other sizes, {chosen}")
        encoder = build_network(told["encoder"])
        load_network(encoder, networks, network)
        return encoder.eval().requires_grad_(False)
    size, heads = image_size or told.get("image_size"), num_heads or told.get("num_heads")
    dimensions = state.get("patch_embed.proj.weight", torch.empty(0)).ndim
    if "data2vec" in told or "bias.table" in state or "cls_token" in state:
        if num_frames:
            raise ValueError(f"{path} encodes no clips: it takes no num_frames")
        further: dict[str, Any] = {"pad_word": 1} if str(told.get("data2vec")).endswith("words") else {}
        further |= {"eps": told.get("epsilon", 1e-6)}
        encoder = build_network(encoder_configuration(state, heads, size, **further))
    elif "num_points" in told:
        if image_size or num_frames:
            raise ValueError(f"{path} encodes tracks: it takes no image_size and no num_frames")
        encoder = TrackTransformer(**track_transformer_sizes(state, heads or 4))
    elif dimensions == 3 and "patch_embed.fc.weight" in state:
        if image_size or num_frames:
            raise ValueError(f"{path} encodes series of any length: it takes no image_size and no num_frames")
        encoder = SeriesTransformer(**series_transformer_sizes(state, told.get("patch_size"), heads or 2))
    elif dimensions == 5:
        sizes = video_transformer_sizes(state, size, num_frames or told.get("num_frames"), heads)
        encoder = VideoTransformer(
            _pair(sizes.pop("image_size")), **sizes, positions=told.get("positions", "tiled_rope")
        )
    else:
        sizes = vision_transformer_sizes(state, size, heads)
        encoder = VisionTransformer(_pair(sizes.pop("image_size")), **sizes)
    for norm in encoder.modules() if "data2vec" not in told else ():  # which is built with it
        if isinstance(norm, nn.LayerNorm):
            norm.eps = told.get("epsilon", norm.eps)
    load_network(encoder, networks, network)
    return encoder.eval().requires_grad_(False)


def _pair(size: int | list[int]) -> tuple[int, int]:
    rows, columns = (size, size) if isinstance(size, int) else size
    return rows, columns

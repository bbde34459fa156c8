"""What networks a checkpoint's weights belong to, read off their shapes and positions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from jepa_lightning.checkpoints.reading import StateDict
from jepa_lightning.errors import UnknownEncoderError
from jepa_lightning.networks.positions import sincos_positions

# Published widths and their heads, which no shape tells. The giant differs between images and videos.
PUBLISHED_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}
PUBLISHED_VIDEO_HEADS = PUBLISHED_HEADS | {1408: 22}
PUBLISHED_CLIP = (64, 256)  # frames and side of V-JEPA 2's released models, whose rotary positions fit any


def vision_transformer_sizes(
    state: StateDict, image_size: int | list[int] | None = None, num_heads: int | None = None
) -> dict[str, Any]:
    """The sizes of the vision transformer that a state dict belongs to.

    Args:
        state: in the official names.
        image_size: in pixels; without it, the square one whose grid has as many tokens as there are positions.
        num_heads: attention heads; those of the published model of that width without.

    Returns:
        `image_size`, `patch_size`, `in_channels`, `embed_dim`, `depth`, `num_heads` and `mlp_ratio`.

    Raises:
        ValueError: names of another network, or a number that must be given since no shape tells it.
    """
    _expect(state, 4, "pos_embed")
    embed_dim, in_channels, *patch_size = state["patch_embed.proj.weight"].shape
    if image_size is None:
        side = math.isqrt(state["pos_embed"].shape[1])
        if side**2 != state["pos_embed"].shape[1]:
            raise ValueError(f"{state['pos_embed'].shape[1]} positions are no square: give image_size=[rows, columns]")
        image_size = [side * patch_size[0], side * patch_size[1]]
    return {
        "image_size": image_size,
        "patch_size": patch_size,
        "in_channels": in_channels,
        **_transformer_sizes(state, embed_dim, num_heads, PUBLISHED_HEADS),
    }


def video_transformer_sizes(
    state: StateDict,
    image_size: int | list[int] | None = None,
    num_frames: int | None = None,
    num_heads: int | None = None,
    added: bool = True,
) -> dict[str, Any]:
    """The sizes of the video transformer that a state dict belongs to.

    Args:
        state: in the official names. Positions that are added tell the size of the clips; rotary ones, of which there
            is nothing in the state, fit any, and the size is then that of V-JEPA 2's released models.
        image_size: in pixels, another than that.
        num_frames: another number of frames.
        num_heads: attention heads; those of the published model of that width without.
        added: whether the network adds positions; those in the state are left over otherwise, and need not tell a size.

    Returns:
        `image_size`, `num_frames`, `patch_size`, `tubelet_size`, `in_channels`, `embed_dim`, `depth`, `num_heads` and
        `mlp_ratio`.

    Raises:
        ValueError: names of another network, or a number that must be given since nothing tells it.
    """
    _expect(state, 5)
    embed_dim, in_channels, tubelet_size, *patch_size = state["patch_embed.proj.weight"].shape
    frames, side = PUBLISHED_CLIP
    size: int | list[int] = side
    if "pos_embed" in state and (image_size is None or num_frames is None):
        try:
            length, rows, columns = grid_of_positions(state["pos_embed"])
            frames, size = length * tubelet_size, [rows * patch_size[0], columns * patch_size[1]]
        except ValueError:
            if added:
                raise
    return {
        "image_size": image_size or size,
        "num_frames": num_frames or frames,
        "patch_size": patch_size,
        "tubelet_size": tubelet_size,
        "in_channels": in_channels,
        **_transformer_sizes(state, embed_dim, num_heads, PUBLISHED_VIDEO_HEADS),
    }


def series_transformer_sizes(
    state: StateDict, patch_size: int | None = None, num_heads: int | None = None
) -> dict[str, Any]:
    """The sizes of the transformer of time series that a state dict belongs to.

    Args:
        state: in our names.
        patch_size: steps that a token spans, where the kernel of the tokenizer does not divide it.
        num_heads: attention heads, which no shape tells; left out without.

    Returns:
        `num_steps`, `patch_size`, `in_channels`, `kernel_size`, `embed_dim`, `depth`, `mlp_ratio` and, if given,
        `num_heads`.

    Raises:
        ValueError: names of another network, or a patch that does not fit the weights.
    """
    _expect(state, 3, "pos_embed", "patch_embed.fc.weight")
    embed_dim, in_channels, kernel_size = state["patch_embed.proj.weight"].shape
    seen = state["patch_embed.fc.weight"].shape[1] // embed_dim * kernel_size
    patch_size = patch_size or seen
    if not seen - kernel_size < patch_size < seen + kernel_size:
        raise ValueError(
            f"patch_size={patch_size} does not fit the weights, which read {seen} steps with a kernel of {kernel_size}"
        )
    return {
        "num_steps": state["pos_embed"].shape[1] * patch_size,
        "patch_size": patch_size,
        "in_channels": in_channels,
        "kernel_size": kernel_size,
        "embed_dim": embed_dim,
        "depth": _depth(state, "blocks"),
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / embed_dim,
        **({} if num_heads is None else {"num_heads": num_heads}),
    }


def track_transformer_sizes(state: StateDict, num_heads: int | None = None) -> dict[str, Any]:
    """The sizes of the transformer of tracks that a state dict belongs to.

    Args:
        state: in our names.
        num_heads: attention heads, which no shape tells; left out without.

    Returns:
        `num_points`, `embed_dim`, `depth`, `mlp_ratio`, `adj_fuse` and, if given, `num_heads`.

    Raises:
        ValueError: names of another network.
    """
    if not {"pos_embed", "blocks.0.mlp.fc1.weight"} <= set(state):
        raise UnknownEncoderError(
            f"this encoder is no transformer of tracks of ours, its weights are named {', '.join(list(state)[:4])}, …"
        )
    num_points, embed_dim = state["pos_embed"].shape[1:]
    return {
        "num_points": num_points,
        "embed_dim": embed_dim,
        "depth": _depth(state, "blocks"),
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / embed_dim,
        "adj_fuse": "patch_embed.weights" in state,
        **({} if num_heads is None else {"num_heads": num_heads}),
    }


def track_predictor_sizes(state: StateDict, num_heads: int) -> dict[str, int]:
    """The depth and the width of a head of the predictor of tracks of a state dict."""
    inner = state["predictor_blocks.0.attn.proj.weight"].shape[1]
    return {"predictor_depth": _depth(state, "predictor_blocks"), "predictor_head_dim": inner // num_heads}


def predictor_sizes(state: StateDict) -> dict[str, int]:
    """The width, depth and number of mask tokens (where there are several) of the predictor of a state dict."""
    mask_tokens = sum(name.startswith("mask_tokens.") for name in state)
    return {
        "predictor_embed_dim": state["predictor_embed.weight"].shape[0],
        "predictor_depth": _depth(state, "predictor_blocks"),
        **({"num_mask_tokens": mask_tokens} if mask_tokens else {}),
    }


def _expect(state: StateDict, dimensions: int, *further: str) -> None:
    """Refuse the weights of other networks, and of patches of another number of dimensions."""
    kinds, found = {4: "images", 5: "clips"}, state.get("patch_embed.proj.weight", torch.empty(0)).ndim
    if found in kinds and found != dimensions:
        raise ValueError(
            f"this encoder takes {kinds[found]}, expected one of {kinds[dimensions]}: "
            "I-JEPA's checkpoints load into IJEPA, those of V-JEPA into VJEPA, and of V-JEPA 2 into VJEPA2"
        )
    needed = {"patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", *further}
    if found != dimensions or not needed <= set(state):
        raise UnknownEncoderError(
            f"this encoder is no vision transformer of ours, its weights are named {', '.join(list(state)[:4])}, …: "
            "take it from its own module, MyModule.load_from_checkpoint(path).target_encoder"
        )


def _transformer_sizes(
    state: StateDict, embed_dim: int, num_heads: int | None, published: dict[int, int]
) -> dict[str, Any]:
    if num_heads is None and embed_dim not in published:
        raise ValueError(f"no published model is {embed_dim} wide, and shapes do not tell the heads: give num_heads")
    return {
        "embed_dim": embed_dim,
        "depth": _depth(state, "blocks"),
        "num_heads": num_heads or published[embed_dim],
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / embed_dim,
    }


def _depth(state: StateDict, blocks: str) -> int:
    return 1 + max(int(name.split(".")[1]) for name in state if name.startswith(f"{blocks}."))


def grid_of_positions(positions: Tensor) -> tuple[int, int, int]:
    """The grid whose sine-cosine positions these `[1, N, D]` are: their number alone tells no frames from rows."""
    _, tokens, dim = positions.shape
    places, share = positions[0].float().cpu(), 2 * math.ceil(dim / 6)
    # Of frame, row and column each has its share of the features: a frame is as long as its share stays that of the
    # first token, and a row likewise.
    area, columns = (
        int(torch.isclose(part, part[0], atol=1e-3).all(1).int().cumprod(0).sum())
        for part in (places[:, :share], places[:, share : 2 * share])
    )
    grid = (tokens // area, max(1, area // columns), min(area, columns))
    if math.prod(grid) == tokens and torch.allclose(sincos_positions(grid, dim)[0], places, atol=1e-3):
        return grid
    raise ValueError(f"no grid has these {tokens} positions: give image_size and num_frames")

"""The encoders of I-JEPA, the V-JEPA family and TS-JEPA: transformers on patches of their data, by their sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jepa_lightning.networks.positions import Positions
from jepa_lightning.networks.tokenizers import PatchEmbed, SeriesPatchEmbed
from jepa_lightning.networks.tokens import check_sizes
from jepa_lightning.networks.transformer import Transformer


class VisionTransformer(Transformer):
    """The encoder of I-JEPA: a ViT on image patches with fixed sine-cosine positions and without class token.

    Args:
        image_size: `(rows, columns)` in pixels, multiples of the patch size.
        patch_size: `(rows, columns)` of a patch in pixels.
        in_channels: number of image channels.
        embed_dim: width D of the tokens, a multiple of four and of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads a block.
        mlp_ratio: width of the MLPs over `embed_dim`.
        patch_std: standard deviation of the patch embedding's initial weights, see `PatchEmbed`.

    Raises:
        ValueError: a size that does not fit.

    Source: I-JEPA (arXiv 2301.08243), section 3 and appendix A.1.

    >>> import torch
    >>> encoder = VisionTransformer((32, 48), (16, 16), embed_dim=8, depth=1, num_heads=2)
    >>> encoder.grid_of(torch.zeros(5, 3, 32, 48)), encoder(torch.zeros(5, 3, 32, 48)).shape
    ((2, 3), torch.Size([5, 6, 8]))
    >>> encoder(torch.zeros(5, 3, 32, 48), torch.tensor([[0, 4]]).expand(5, -1)).shape
    torch.Size([5, 2, 8])
    """

    def __init__(
        self,
        image_size: Sequence[int] = (224, 224),
        patch_size: Sequence[int] = (16, 16),
        in_channels: int = 3,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        patch_std: float | None = None,
    ) -> None:
        grid = check_image(image_size, patch_size)
        tokenizer = PatchEmbed(patch_size, in_channels, embed_dim, patch_std)
        super().__init__(tokenizer, grid, depth, num_heads, mlp_ratio)
        self.patch_size, self.patch_std = (patch_size[0], patch_size[1]), patch_std


class PostNormVisionTransformer(Transformer):
    """The encoder of data2vec 2.0 on images: a ViT of post-norm blocks, with a class token and sine-cosine positions.

    Args:
        image_size: `(rows, columns)` in pixels, multiples of the patch size.
        patch_size: `(rows, columns)` of a patch in pixels.
        in_channels: number of image channels.
        embed_dim: width D of the tokens, a multiple of four and of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads a block.
        mlp_ratio: width of the MLPs over `embed_dim`.
        patch_std: standard deviation of the patch embedding's initial weights, see `PatchEmbed`.
        eps: epsilon of the norms.

    Raises:
        ValueError: a size that does not fit.

    Source: data2vec 2.0 (arXiv 2212.07525), section 4.1.

    >>> import torch
    >>> encoder = PostNormVisionTransformer((32, 48), (16, 16), embed_dim=8, depth=1, num_heads=2)
    >>> encoder(torch.zeros(5, 3, 32, 48), torch.tensor([[0, 4]]).expand(5, -1)).shape
    torch.Size([5, 2, 8])
    """

    def __init__(
        self,
        image_size: Sequence[int] = (224, 224),
        patch_size: Sequence[int] = (16, 16),
        in_channels: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        patch_std: float | None = None,
        eps: float = 1e-6,
    ) -> None:
        grid, tokenizer = check_image(image_size, patch_size), PatchEmbed(patch_size, in_channels, embed_dim, patch_std)
        super().__init__(tokenizer, grid, depth, num_heads, mlp_ratio, norm_first=False, class_token=True, eps=eps)
        self.image_size, self.patch_size = (image_size[0], image_size[1]), (patch_size[0], patch_size[1])
        self.in_channels, self.patch_std = in_channels, patch_std

    def example(self) -> Tensor:
        """An image of the size that it is built for, of which only the shape matters."""
        return torch.empty(1, self.in_channels, *self.image_size, device="meta")


class VideoTransformer(Transformer):
    """The encoder of V-JEPA and V-JEPA 2: a ViT on tubelets, patches that span a few frames.

    Args:
        image_size: `(rows, columns)` in pixels, multiples of the patch size.
        num_frames: frames of a clip, a multiple of the tubelet size.
        patch_size: `(rows, columns)` of a patch in pixels.
        tubelet_size: frames that a token spans.
        in_channels: number of channels.
        embed_dim: width D of the tokens, a multiple of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads a block.
        mlp_ratio: width of the MLPs over `embed_dim`.
        positions: `sincos` (V-JEPA), `rope` (V-JEPA 2), or `tiled_rope`, which V-JEPA 2's published weights need.

    Raises:
        ValueError: a size that does not fit.

    Source: V-JEPA (arXiv 2404.08471), section 3.2; V-JEPA 2 (arXiv 2506.09985), section 2.1.

    >>> import torch
    >>> encoder = VideoTransformer((32, 48), 4, (16, 16), 2, embed_dim=12, depth=1, num_heads=2, positions="rope")
    >>> encoder.grid_of(torch.zeros(5, 3, 4, 32, 48)), encoder(torch.zeros(5, 3, 4, 32, 48)).shape
    ((2, 2, 3), torch.Size([5, 12, 12]))
    >>> encoder(torch.zeros(5, 3, 32, 48), torch.tensor([[0, 4]]).expand(5, -1)).shape
    torch.Size([5, 2, 12])
    """

    def __init__(
        self,
        image_size: Sequence[int] = (224, 224),
        num_frames: int = 16,
        patch_size: Sequence[int] = (16, 16),
        tubelet_size: int = 2,
        in_channels: int = 3,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        positions: Positions = "sincos",
    ) -> None:
        check_sizes(patch_rows=patch_size[0], patch_columns=patch_size[1], tubelet_size=tubelet_size)
        check_sizes(rows=image_size[0], columns=image_size[1], num_frames=num_frames)
        size, tubelet = (num_frames, *image_size), (tubelet_size, *patch_size)
        if any(length % part for length, part in zip(size, tubelet, strict=True)):
            raise ValueError(f"a clip of {size} (frames, rows, columns) cannot be cut into tubelets of {tubelet}")
        grid = [length // part for length, part in zip(size, tubelet, strict=True)]
        super().__init__(PatchEmbed(tubelet, in_channels, embed_dim), grid, depth, num_heads, mlp_ratio, positions)
        self.patch_size, self.tubelet_size = (patch_size[0], patch_size[1]), tubelet_size


class SeriesTransformer(Transformer):
    """The encoder of TS-JEPA: a transformer on stretches of a time series with fixed sine-cosine positions.

    Args:
        num_steps: length of the series, a multiple of the patch size; others are fine too.
        patch_size: steps that a token spans.
        in_channels: number of channels.
        embed_dim: width D of the tokens, even and a multiple of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads a block.
        mlp_ratio: width of the MLPs over `embed_dim`.
        kernel_size: steps of the tokenizer's convolution.

    Raises:
        ValueError: a size that does not fit.

    Source: TS-JEPA (arXiv 2509.25449), section 3.

    >>> import torch
    >>> encoder = SeriesTransformer(24, 4, in_channels=2, embed_dim=8, depth=1, num_heads=2)
    >>> encoder.grid_of(torch.zeros(5, 24, 2)), encoder(torch.zeros(5, 24, 2)).shape
    ((6,), torch.Size([5, 6, 8]))
    """

    def __init__(
        self,
        num_steps: int = 320,
        patch_size: int = 32,
        in_channels: int = 1,
        embed_dim: int = 128,
        depth: int = 1,
        num_heads: int = 2,
        mlp_ratio: float = 4.0,
        kernel_size: int = 3,
    ) -> None:
        check_sizes(num_steps=num_steps, patch_size=patch_size)
        if num_steps % patch_size:
            raise ValueError(f"a series of {num_steps} steps cannot be cut into patches of {patch_size}")
        tokenizer = SeriesPatchEmbed(patch_size, in_channels, embed_dim, kernel_size)
        super().__init__(tokenizer, (num_steps // patch_size,), depth, num_heads, mlp_ratio)
        self.patch_size, self.kernel_size, self.in_channels = patch_size, kernel_size, in_channels
        for norm in self.modules():
            if isinstance(norm, nn.LayerNorm):
                norm.eps = 1e-5  # as the official ones


def check_image(image_size: Sequence[int], patch_size: Sequence[int]) -> tuple[int, int]:
    """The grid of an image's patches.

    Raises:
        ValueError: sizes that are not positive, or that the patches do not divide.
    """
    check_sizes(patch_rows=patch_size[0], patch_columns=patch_size[1], rows=image_size[0], columns=image_size[1])
    if any(size % patch for size, patch in zip(image_size, patch_size, strict=True)):
        raise ValueError(f"an image of {tuple(image_size)} pixels cannot be cut into patches of {tuple(patch_size)}")
    return image_size[0] // patch_size[0], image_size[1] // patch_size[1]

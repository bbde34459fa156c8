"""The encoder of I-JEPA: a vision transformer without class token that embeds a subset of an image's patches."""

from __future__ import annotations

from collections.abc import Sequence

from timm.layers import PatchEmbed
from torch import Tensor, nn

from jepa_lightning.networks.rotary import RotaryBlock
from jepa_lightning.networks.tokens import check_sizes, gather_tokens, init_transformer, sincos_positions


class VisionTransformer(nn.Module):
    """A ViT with fixed sine-cosine positions, whose hidden tokens are dropped before the first block.

    Parameter names are the official ones (and timm's), so that checkpoints of either load as they are.

    Args:
        image_size: `(rows, columns)` in pixels, multiples of the patch size.
        patch_size: `(rows, columns)` of a patch in pixels.
        in_channels: number of image channels.
        embed_dim: width D of the tokens, a multiple of four and of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads a block.
        mlp_ratio: width of the MLPs over `embed_dim`.

    Source: I-JEPA (arXiv 2301.08243), section 3 and appendix A.1.

    >>> import torch
    >>> encoder = VisionTransformer((32, 48), (16, 16), embed_dim=8, depth=1, num_heads=2)
    >>> encoder.grid, encoder(torch.zeros(5, 3, 32, 48)).shape
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
    ) -> None:
        super().__init__()
        check_sizes(in_channels=in_channels, embed_dim=embed_dim, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio)
        check_sizes(patch_rows=patch_size[0], patch_columns=patch_size[1], rows=image_size[0], columns=image_size[1])
        if any(size % patch for size, patch in zip(image_size, patch_size, strict=True)):
            raise ValueError(
                f"an image of {tuple(image_size)} pixels cannot be cut into patches of {tuple(patch_size)}"
            )
        if embed_dim % num_heads:
            raise ValueError(f"a width of {embed_dim} cannot be split among {num_heads} heads")
        self.patch_size = (patch_size[0], patch_size[1])
        self.grid = (image_size[0] // patch_size[0], image_size[1] // patch_size[1])
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.patch_embed = PatchEmbed(None, self.patch_size, in_channels, embed_dim)  # type: ignore[arg-type]
        # A parameter without gradient and no buffer: so it stands in the official checkpoints and parameter counts.
        self.pos_embed = nn.Parameter(sincos_positions(self.grid, embed_dim), requires_grad=False)
        self.blocks = nn.Sequential(*(RotaryBlock(embed_dim, num_heads, mlp_ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the weights anew."""
        self.apply(init_transformer)
        # Position and image must start level. The official std of 0.02 does that for patches of 16x16x3 only; at 4x4x1
        # it leaves a token whose position (std 0.7) drowns what it shows, and training polishes just that.
        fan_in = self.patch_embed.proj.weight[0].numel()
        nn.init.trunc_normal_(self.patch_embed.proj.weight, std=fan_in**-0.5)

    def forward(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        """Encode the patches at `indices`, which see one another and nothing else.

        Args:
            x: images `[B, C, H, W]`. Sizes other than `image_size` are fine as long as patches fit; the positions are
                then rebuilt for the grid they give.
            indices: LongTensor `[B, K]` into the grid in raster order; all patches without.

        Returns:
            Tokens `[B, K, D]`, layer-normed.

        Raises:
            ValueError: an image size that the patches do not divide, or another number of channels.
        """
        channels = self.patch_embed.proj.in_channels
        rows, columns = self.patch_size
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % rows or x.shape[3] % columns:
            raise ValueError(
                f"expected images [B, {channels}, H, W] with H a multiple of {rows} and W of {columns}, "
                f"got {list(x.shape)}"
            )
        grid = (x.shape[2] // rows, x.shape[3] // columns)
        positions = self.pos_embed if grid == self.grid else sincos_positions(grid, self.embed_dim).to(x.device)
        tokens = self.patch_embed(x) + positions
        if indices is not None:
            tokens = gather_tokens(tokens, indices)
        return self.norm(self.blocks(tokens))

"""The networks of T-JEPA: tokens from a cell and its neighbours, an encoder of tracks, and a causal predictor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_lightning.networks.blocks import Block
from jepa_lightning.networks.linear import linear
from jepa_lightning.networks.tokens import check_sizes, init_transformer
from jepa_lightning.networks.transformer import Transformer

NEIGHBOURHOOD = 9  # a cell and the eight around it


class AdjFuse(nn.Module):
    """The embedding of a point's cell, to which a mixture of those of the cell and its neighbours is added.

    With the softmax w of nine trained weights, the same everywhere: `h + ReLU(Σ w_j h_j + b) W`.

    Args:
        embed_dim: width D of a cell's embedding, and of the tokens.
        adj_fuse: whether there is such a mixture; without, tokens are the embeddings of the points' own cells.

    Source: T-JEPA (arXiv 2406.12913), section 4.1, "AdjFuse".

    >>> AdjFuse(4)(torch.zeros(2, 5, 9 * 4)).shape
    torch.Size([2, 5, 4])
    """

    def __init__(self, embed_dim: int, adj_fuse: bool = True) -> None:
        super().__init__()
        check_sizes(embed_dim=embed_dim)
        self.embed_dim, self.adj_fuse = embed_dim, adj_fuse
        if adj_fuse:
            self.weights = nn.Parameter(torch.zeros(NEIGHBOURHOOD))
            self.bias = nn.Parameter(torch.zeros(embed_dim))
            self.proj = nn.Linear(embed_dim, embed_dim, bias=False)

    def init_weights(self) -> None:
        """Draw the weights anew: all neighbours count alike at the start."""
        if self.adj_fuse:
            nn.init.zeros_(self.weights)
            nn.init.zeros_(self.bias)
            nn.init.trunc_normal_(self.proj.weight, std=self.embed_dim**-0.5)

    def grid_of(self, x: Tensor) -> tuple[int, ...]:
        """The number of points `(L,)` of tracks.

        Raises:
            ValueError: what are no tracks of such cells.
        """
        if x.ndim != 3 or x.shape[-1] != NEIGHBOURHOOD * self.embed_dim:
            raise ValueError(
                f"expected tracks [B, L, {NEIGHBOURHOOD * self.embed_dim}], the embeddings of {self.embed_dim} numbers "
                f"of each point's cell and its eight neighbours, got {list(x.shape)}: give the data the width of the "
                "encoder (cell_dim of TrajectoriesDataModule is embed_dim)"
            )
        return (x.shape[1],)

    def forward(self, x: Tensor) -> Tensor:
        """Tracks `[B, L, 9 D]`, of each point its cell first, to tokens `[B, L, D]`."""
        self.grid_of(x)
        cells = x.unflatten(-1, (-1, self.embed_dim))
        return self.fuse(cells[:, :, 0], cells)

    def fuse(self, own: Tensor, around: Tensor) -> Tensor:
        """Tokens from the embeddings `[B, L, D]` of points' cells and those `[B, L, 9, D]` of what is around them."""
        if not self.adj_fuse:
            return own
        mixed = torch.einsum("blnd,n->bld", around, self.weights.softmax(0).to(around.dtype))
        return own + linear(self.proj, F.relu(mixed + self.bias))


class TrackTransformer(Transformer):
    """The encoder of T-JEPA: post-norm blocks on the points of a track, with learned positions.

    Args:
        num_points: points of the longest track.
        embed_dim: width D of the tokens and of the cells' embeddings, a multiple of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads a block.
        mlp_ratio: width of the MLPs over `embed_dim`.
        adj_fuse: whether a token knows the cells around its own, see `AdjFuse`.

    Raises:
        ValueError: a size that does not fit.

    Source: T-JEPA (arXiv 2406.12913), section 4.2.

    >>> encoder = TrackTransformer(20, embed_dim=8, depth=1, num_heads=2)
    >>> encoder(torch.zeros(3, 12, 9 * 8)).shape
    torch.Size([3, 12, 8])
    """

    def __init__(
        self,
        num_points: int = 200,
        embed_dim: int = 256,
        depth: int = 3,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        adj_fuse: bool = True,
    ) -> None:
        check_sizes(num_points=num_points)
        tokenizer, grid = AdjFuse(embed_dim, adj_fuse), (num_points,)
        super().__init__(tokenizer, grid, depth, num_heads, mlp_ratio, "learned", norm_first=False, activation="relu")
        self.num_points, self.adj_fuse = num_points, adj_fuse
        self.norm = nn.Identity()  # which is before the first block elsewhere
        for norm in self.modules():
            if isinstance(norm, nn.LayerNorm):
                norm.eps = 1e-5  # as the official ones

    def init_weights(self) -> None:
        """Draw the weights anew, positions as in the official code."""
        super().init_weights()
        nn.init.uniform_(self.pos_embed, -0.1, 0.1)

    def _added(self, grid: tuple[int, ...]) -> Tensor:
        """The positions of the first points."""
        if grid[0] > self.grid[0]:
            raise ValueError(
                f"a track has {grid[0]} points, more than the {self.grid[0]} positions of this encoder: give it a "
                "larger num_points, or the data max_points"
            )
        return self.pos_embed[:, : grid[0]]


class TrackPredictor(nn.Module):
    """Predict the tokens of points from the context: a causal transformer on the context and a query for each point.

    A query is the same latent vector everywhere; what is sought gets its position, too. A point's query sees the
    context, and the queries before it.

    Args:
        num_points: points of the longest track.
        embed_dim: width D of the tokens.
        depth: number of blocks.
        num_heads: attention heads a block.
        head_dim: width of a head.

    Raises:
        ValueError: a size that does not fit.

    Source: T-JEPA (arXiv 2406.12913), section 4.4, and the authors' code of 2024.
    """

    def __init__(self, num_points: int, embed_dim: int, depth: int = 2, num_heads: int = 8, head_dim: int = 64) -> None:
        super().__init__()
        check_sizes(num_points=num_points, predictor_depth=depth, predictor_num_heads=num_heads, head_dim=head_dim)
        self.positions = "learned"
        self.latent = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, num_points, embed_dim))
        self.predictor_blocks = nn.ModuleList(
            Block(embed_dim, num_heads, head_dim=head_dim, bias=False) for _ in range(depth)
        )
        self.final_norm = nn.LayerNorm(embed_dim, bias=False)
        self.norm = nn.LayerNorm(embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        for norm in self.modules():
            if isinstance(norm, nn.LayerNorm):
                norm.eps = 1e-5  # as the official ones
        self.apply(init_transformer)
        nn.init.trunc_normal_(self.latent, std=0.02)
        nn.init.uniform_(self.pos_embed, -0.1, 0.1)

    def forward(self, context: Tensor, sought: Tensor, valid: Tensor | None = None) -> Tensor:
        """Predict one set of points a track.

        Args:
            context: encoded tracks `[B, L, D]`, of which a part was hidden.
            sought: BoolTensor `[B, L]`, the points to predict.
            valid: BoolTensor `[B, L]`, which points there are; the others are seen by none. All without.

        Returns:
            `[B, L, D]`, of which those at the points that are sought count.
        """
        length = context.shape[1]
        queries = self.latent + self.pos_embed[:, :length] * sought.unsqueeze(-1)
        tokens = torch.cat([context, queries.to(context.dtype)], dim=1)
        mask = torch.ones(2 * length, 2 * length, dtype=torch.bool, device=tokens.device).tril()
        if valid is not None:
            # What is not there sees itself: nothing reads what is made of it, and it must not be NaN.
            itself = torch.eye(2 * length, dtype=torch.bool, device=tokens.device)
            mask = (mask & (valid.repeat(1, 2).unsqueeze(1) | itself)).unsqueeze(1)
        for number, block in enumerate(self.predictor_blocks, start=1):
            tokens = block(tokens, None, mask, length if number == len(self.predictor_blocks) else 0)
        return linear(self.proj, self.norm(self.final_norm(tokens)))

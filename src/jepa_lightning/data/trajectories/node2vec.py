"""Embeddings of the cells of a grid by random walks on it (node2vec, Grover and Leskovec, arXiv 1607.00653)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepa_lightning.data.trajectories.cells import neighbours

WALKS = 10  # from each cell
LENGTH = 50  # cells of a walk
WINDOW = 10  # cells before and after that count as context, at most
NEGATIVES = 10


@lru_cache(maxsize=4)
def node2vec(rows: int, columns: int, dim: int, seed: int = 0) -> NDArray[Any]:
    """The embeddings of a grid's cells, `[rows * columns, dim]` float32, with mean 0 and standard deviation 1.

    Each cell is joined to its eight neighbours, and walks go to any of them alike (p = q = 1, as in the official code);
    skip-gram with negative samples, by gensim. The same grid always has the same embeddings.

    Args:
        rows: of the grid.
        columns: of the grid.
        dim: D.
        seed: of walks and embeddings.

    Raises:
        ImportError: gensim is missing.
    """
    try:
        from gensim.models import Word2Vec
    except ImportError as error:
        raise ImportError("cells are embedded by gensim: pip install 'jepa-lightning[trajectories]'") from error
    walks = random_walks(rows, columns, np.random.default_rng(seed))
    model = Word2Vec(
        [walk.tolist() for walk in walks.astype(str)],
        vector_size=dim,
        window=WINDOW,
        min_count=0,
        sg=1,
        negative=NEGATIVES,
        workers=1,  # several threads would learn something else every time
        seed=seed,
        epochs=2,
    )
    table = np.stack([model.wv[str(cell)] for cell in range(rows * columns)])
    table -= table.mean(0)
    return (table / table.std()).astype(np.float32)


def random_walks(rows: int, columns: int, rng: np.random.Generator) -> NDArray[Any]:
    """Walks from every cell, in random order, `[10 * rows * columns, 50]`."""
    around = np.sort(neighbours(rows, columns)[:, 1:], 1)  # those that there are first
    degree = (around < rows * columns).sum(1)
    here = rng.permutation(np.repeat(np.arange(rows * columns), WALKS))
    walk = [here]
    for _ in range(LENGTH - 1):
        turn = (rng.random(len(here)) * degree[here]).astype(np.int64)
        here = np.where(degree[here] > 0, around[here, turn], here)
        walk.append(here)
    return np.stack(walk, 1)

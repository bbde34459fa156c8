"""The encoder of text: embedded words, with learned positions or by their distances, and post-norm blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa_lightning.networks.attention_bias import Alibi
from jepa_lightning.networks.tokens import check_sizes
from jepa_lightning.networks.transformer import Transformer


class WordEmbed(nn.Module):
    """Of each word an embedding, to which that of its place is added, and a norm of both.

    Args:
        vocab_size: number V of words, or of bytes or parts of words.
        embed_dim: width D of the tokens.
        max_length: words of the longest text.
        mask_word: the number of the word that stands for words that are hidden, if any are.
        pad_word: the number of the word that fills up short texts, if there is one: its embedding, that of its place
            included, is zero before the norm.
        places: whether there are embeddings of places; those of words stand alone without.
        eps: epsilon of the norm.

    Raises:
        ValueError: a size that is not positive, or the number of a word that there is not.

    Source: BERT (arXiv 1810.04805), section 3, without segments.

    >>> WordEmbed(50, embed_dim=8, max_length=16)(torch.zeros(3, 10, dtype=torch.long)).shape
    torch.Size([3, 10, 8])
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        max_length: int,
        mask_word: int | None = None,
        pad_word: int | None = None,
        places: bool = True,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_sizes(vocab_size=vocab_size, embed_dim=embed_dim, max_length=max_length)
        for name, word in {"mask_word": mask_word, "pad_word": pad_word}.items():
            if word is not None and not 0 <= word < vocab_size:
                raise ValueError(f"{name}={word} is none of the {vocab_size} words, 0 to {vocab_size - 1}")
        self.embed_dim, self.max_length, self.mask_word, self.pad_word = embed_dim, max_length, mask_word, pad_word
        self.words = nn.Embedding(vocab_size, embed_dim, padding_idx=pad_word)
        self.places = nn.Embedding(max_length, embed_dim) if places else None
        self.norm = nn.LayerNorm(embed_dim, eps=eps)

    def init_weights(self) -> None:
        """Draw the weights anew."""
        nn.init.normal_(self.words.weight, std=0.02)
        if self.places is not None:
            nn.init.normal_(self.places.weight, std=0.02)
        if self.pad_word is not None:
            with torch.no_grad():
                self.words.weight[self.pad_word].zero_()

    def grid_of(self, x: Tensor) -> tuple[int, ...]:
        """The number of words of texts.

        Raises:
            ValueError: what are no numbers of words, or too many of them.
        """
        longest = self.max_length
        if x.ndim != 2 or x.is_floating_point() or not 0 < x.shape[1] <= longest:
            raise ValueError(
                f"expected texts [B, L] of whole numbers, of at most {longest} words, got {x.dtype} {list(x.shape)}: "
                "give module and data the same length (max_length)"
            )
        return (x.shape[1],)

    def forward(self, x: Tensor) -> Tensor:
        """Words `[B, L]` to tokens `[B, L, D]`.

        Raises:
            ValueError: the number of a word that there is not.
        """
        (length,) = self.grid_of(x)
        try:
            tokens = self._placed(self.words(x), length)
        except IndexError as error:  # which a GPU does not tell
            raise ValueError(
                f"words are numbers from 0 to {self.words.num_embeddings - 1}, got {int(x.min())} to {int(x.max())}: "
                "give the encoder the vocab_size of the data's tokenizer"
            ) from error
        if self.pad_word is not None:
            tokens = tokens.masked_fill((x == self.pad_word).unsqueeze(-1), 0.0)
        return self.norm(tokens)

    def valid(self, valid: Tensor) -> Tensor:
        """Which tokens there are: those of the words that there are."""
        return valid

    def masked(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Tokens `[B, L, D]` with those of the mask word at the places `hidden`, a BoolTensor `[B, L]`.

        Raises:
            ValueError: a tokenizer without mask word.
        """
        if self.mask_word is None:
            raise ValueError("this WordEmbed has no mask word: build it with mask_word, the number of one")
        masks = self.norm(self._placed(self.words.weight[self.mask_word], tokens.shape[1]))
        return torch.where(hidden.unsqueeze(-1), masks.to(tokens.dtype), tokens)

    def _placed(self, words: Tensor, length: int) -> Tensor:
        return words if self.places is None else words + self.places.weight[:length]


class WordTransformer(Transformer):
    """The encoder of data2vec (1 and 2.0) on words: that of RoBERTa.

    Args:
        vocab_size: number of words, or of bytes or parts of words.
        max_length: words of the longest text; shorter ones are fine too.
        embed_dim: width D of the tokens, a multiple of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads a block.
        mlp_ratio: width of the MLPs over `embed_dim`.
        mask_word: the number of the word that stands for hidden words, as in data2vec 1 (see `WordEmbed`).
        pad_word: the number of the word that fills up short texts, if there is one.
        alibi: whether a bias of attention grows with the distance, and there are no embeddings of places, as of waves
            in data2vec 2.0 (see `Alibi`); not published of words. With places, most of what small encoders predict
            comes to be places (`recipes/data2vec/README.md`).
        eps: epsilon of the norms.

    Raises:
        ValueError: a size that does not fit.

    Source: data2vec (arXiv 2202.03555), section 4.3; RoBERTa (arXiv 1907.11692).

    >>> encoder = WordTransformer(50, max_length=16, embed_dim=8, depth=1, num_heads=2)
    >>> encoder(torch.zeros(3, 10, dtype=torch.long)).shape
    torch.Size([3, 10, 8])
    """

    def __init__(
        self,
        vocab_size: int = 50265,
        max_length: int = 512,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        mask_word: int | None = None,
        pad_word: int | None = None,
        alibi: bool = False,
        eps: float = 1e-5,
    ) -> None:
        tokenizer = WordEmbed(vocab_size, embed_dim, max_length, mask_word, pad_word, not alibi, eps)
        bias = Alibi(num_heads) if alibi else None
        super().__init__(
            tokenizer, (max_length,), depth, num_heads, mlp_ratio, "none", norm_first=False, eps=eps, bias=bias
        )
        self.vocab_size, self.max_length = vocab_size, max_length
        self.norm = nn.Identity()  # which is in the tokenizer

    def example(self) -> Tensor:
        """A text of the length that it is built for, of which only the shape matters."""
        return torch.empty(1, self.max_length, dtype=torch.long, device="meta")

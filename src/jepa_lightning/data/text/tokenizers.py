"""Texts as tokens: of transformers' tokenizers, or bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Encoded(NamedTuple):
    """The tokens of a text.

    Attributes:
        ids: `[N]` int32.
        spans: `[N, 2]` int64, the first character of each token, and that after its last.
    """

    ids: NDArray[np.int32]
    spans: NDArray[np.int64]


class Tokenizer(Protocol):
    """What makes tokens of texts.

    Attributes:
        vocab_size: how many tokens there are.
        pad: the token behind the end of a text.
        start: the token before a text, if there is one.
        end: the token after a text, if there is one.
        mask: the token in place of hidden ones, if there is one.
    """

    vocab_size: int
    pad: int
    start: int | None
    end: int | None
    mask: int | None

    def encode(self, text: str) -> Encoded:
        """The tokens of a text, without any around it."""

    def pieces(self, ids: list[int]) -> list[str]:
        """What is shown of each token."""


class Bytes:
    """The bytes of a text in UTF-8, from 4 on: 0 is behind the end, 1 and 2 are around a text, 3 hides a token.

    >>> tokens = Bytes().encode("né")
    >>> tokens.ids.tolist(), tokens.spans.tolist()
    ([114, 199, 173], [[0, 1], [1, 2], [1, 2]])
    """

    vocab_size = 260
    pad = 0
    start: int | None = 1
    end: int | None = 2
    mask: int | None = 3

    def encode(self, text: str) -> Encoded:
        """The bytes of a text, each with the character that it is of."""
        found = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
        first = (found & 0xC0) != 0x80  # the others go on with a character
        character = np.cumsum(first) - 1
        return Encoded(found.astype(np.int32) + 4, np.stack([character, character + 1], 1))

    def pieces(self, ids: list[int]) -> list[str]:
        """The letters of ASCII, dots in place of others, and names of those that are no bytes."""
        return [_letter(each - 4) if each > 3 else "?" if each == self.mask else "" for each in ids]


class Pretrained:
    """A tokenizer of transformers.

    Args:
        path: the folder that it is saved in.

    Raises:
        ImportError: without transformers.
        ValueError: a folder without a tokenizer, or one that does not tell where its tokens are.
    """

    def __init__(self, path: str) -> None:
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise ImportError(
                f'the tokenizer {path} is read by transformers: pip install "jepa-lightning[text]"'
            ) from error
        if not Path(path).is_dir():
            raise ValueError(f"tokenizer={path!r} is neither `bytes` nor a folder that a tokenizer is saved in")
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"tokenizer={path!r} holds no tokenizer that transformers reads: {error}") from error
        own = self.tokenizer
        if not own.is_fast:
            raise ValueError(f"the tokenizer in {path} is not one of the library tokenizers (tokenizer.json)")
        self.vocab_size = len(own)
        self.start = own.cls_token_id if own.cls_token_id is not None else own.bos_token_id
        self.end = own.sep_token_id if own.sep_token_id is not None else own.eos_token_id
        self.mask = own.mask_token_id
        self.pad = next((each for each in (own.pad_token_id, self.end) if each is not None), 0)

    def encode(self, text: str) -> Encoded:
        """The tokens of a text."""
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return Encoded(
            np.array(found["input_ids"], np.int32), np.array(found["offset_mapping"], np.int64).reshape(-1, 2)
        )

    def pieces(self, ids: list[int]) -> list[str]:
        """The texts of the tokens, one by one."""
        return [self.tokenizer.decode([each]) for each in ids]


def open_tokenizer(name: str) -> Tokenizer:
    """`bytes`, or the tokenizer that is saved in a folder."""
    return Bytes() if name == "bytes" else Pretrained(name)


def _letter(byte: int) -> str:
    return chr(byte) if 32 <= byte < 127 else "·"

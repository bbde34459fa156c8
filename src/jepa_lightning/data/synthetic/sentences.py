"""Sentences of a small grammar: a labelled data set of words that needs no download."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jepa_lightning.batches import UNLABELLED
from jepa_lightning.data.synthetic.rendered import DrawnDataset, RenderedDataModule
from jepa_lightning.data.synthetic.streams import Streams
from jepa_lightning.data.text.tokenizers import Bytes

TOPICS = ("kitchen", "sea", "music", "garden")
PARTS = ("determiner", "adjective", "noun", "verb", "preposition")

_DETERMINERS = ("the", "a", "every", "no", "this", "that")
_ADJECTIVES = ("old", "small", "quiet", "bright", "cold", "heavy", "strange", "green", "busy", "wide", "soft", "late")
_PREPOSITIONS = ("near", "under", "behind", "with", "above", "beside")
# Of a topic the nouns and the verbs. Some words are both, and what they are is seen from where they stand.
_NOUNS = (
    ("cook", "knife", "oven", "plate", "soup", "bread", "smoke", "spoon", "salt", "toast"),
    ("sailor", "wave", "harbour", "sail", "gull", "storm", "anchor", "fish", "mast", "boat"),
    ("singer", "drum", "song", "bow", "record", "chord", "dance", "flute", "string", "play"),
    ("gardener", "plant", "rake", "seed", "water", "flower", "hedge", "bee", "root", "shade"),
)
_VERBS = (
    ("cook", "smoke", "salt", "toast", "slice", "taste", "stir", "burn"),
    ("wave", "sail", "fish", "anchor", "row", "drift", "dive", "sink"),
    ("drum", "bow", "record", "dance", "sing", "hear", "tune", "play"),
    ("plant", "rake", "water", "seed", "dig", "grow", "shade", "pick"),
)
_COMMON = ("day", "friend", "house", "stone", "light", "way", "hand", "name")  # nouns of any topic


class SentencesBatch(NamedTuple):
    """A batch of texts (or, without the leading `B`, one sample).

    Attributes:
        words: `[B, L]` int64, bytes as `TextDataModule` has them.
        valid: BoolTensor `[B, L]`, which there are.
        topic: `[B]` int64, an index into `TOPICS`.
        part: `[B, L]` int64, the part of speech of the word that a byte belongs to, an index into `PARTS`; -1 of
            spaces and stops.
    """

    words: Tensor
    valid: Tensor
    topic: Tensor
    part: Tensor


class SentencesDataset(DrawnDataset):
    """Texts of one to three sentences on one of four topics, out of a grammar of a few rules and about 100 words.

    A sentence is a noun phrase, `will`, a verb, another noun phrase, and every other time a preposition with a third
    one. Half of the nouns are of any topic, and a third of the words of a topic are nouns as well as verbs.

    Args:
        num_texts: length of the data set.
        max_tokens: bytes of a text at most, with those around it; longer ones are cut.
        seed: any integer in [0, 2**63); other seeds give other texts.
        split: "train", "val" or "test", three disjoint streams of texts.

    Raises:
        ValueError: for an argument out of range.

    Example:
        >>> sample = SentencesDataset(100)[7]
        >>> "".join(Bytes().pieces(sample.words[:40].tolist()))
        'that song will tune every busy name. th'
    """

    batch = SentencesBatch
    chunk = 4096  # a property of the base

    def __init__(self, num_texts: int, max_tokens: int = 128, seed: int = 0, split: str = "train") -> None:
        super().__init__(num_texts, seed, split)
        if max_tokens < 16:
            raise ValueError(f"max_tokens={max_tokens} must be at least 16")
        self.max_tokens = max_tokens

    def render(self, draws: Streams) -> SentencesBatch:
        """Write the texts."""
        count = len(draws.keys)
        topic = (draws.uniform(1)[:, 0] * len(TOPICS)).astype(np.int64)
        sentences = (draws.uniform(1)[:, 0] * 3).astype(np.int64) + 1
        numbers = draws.uniform(3, 16)
        words = np.full((count, self.max_tokens), Bytes.pad, np.int64)
        part = np.full((count, self.max_tokens), UNLABELLED, np.int64)
        valid = np.zeros((count, self.max_tokens), bool)
        for row in range(count):
            text = " ".join(_sentence(int(topic[row]), list(numbers[row, each])) for each in range(sentences[row]))
            letters, of_word = _spelt(text)
            ids = [Bytes.start, *letters[: self.max_tokens - 2], Bytes.end]
            words[row, : len(ids)], valid[row, : len(ids)] = ids, True
            part[row, 1 : len(ids) - 1] = of_word[: self.max_tokens - 2]
        return SentencesBatch(*map(torch.from_numpy, (words, valid, topic, part)))


def _sentence(topic: int, numbers: list[float]) -> str:
    """A sentence, each word followed by an underscore and the number of its part."""

    def choose(words: tuple[str, ...]) -> str:
        return words[int(numbers.pop() * len(words))]

    def phrase() -> str:
        noun = _NOUNS[topic] if numbers.pop() < 0.5 else _COMMON
        adjective = f"{choose(_ADJECTIVES)}_1 " if numbers.pop() < 0.4 else ""
        return f"{choose(_DETERMINERS)}_0 {adjective}{choose(noun)}_2"

    found = f"{phrase()} will {choose(_VERBS[topic])}_3 "
    found += phrase()
    if numbers.pop() < 0.5:
        found += f" {choose(_PREPOSITIONS)}_4 the_0 {choose(_NOUNS[topic])}_2"
    return found + "."


def _spelt(text: str) -> tuple[list[int], list[int]]:
    """The bytes of a text with marked words, and the parts that they belong to."""
    letters: list[int] = []
    parts: list[int] = []
    for number, marked in enumerate(text.split(" ")):
        stop = marked.endswith(".")
        word, _, part = marked.rstrip(".").partition("_")
        spelt = (" " if number else "") + word + ("." if stop else "")
        letters += Bytes().encode(spelt).ids.tolist()
        inside = [int(part) if part else UNLABELLED] * len(word)
        parts += [UNLABELLED] * bool(number) + inside + [UNLABELLED] * stop
    return letters, parts


class SentencesDataModule(RenderedDataModule):
    """Texts for training, validation and testing; see `SentencesDataset`.

    Batches are `SentencesBatch`es: `words` is `[batch_size, max_tokens]`. Predicting uses the test texts.

    Args:
        max_tokens: bytes of a text at most, with those around it.
        num_train: number of training texts.
        num_val: number of validation texts, and of test texts.
        batch_size: texts per batch. Training drops an incomplete last batch.
        num_workers: worker processes per loader; 0 writes in the training process.
        seed: of the texts, an integer in [0, 2**63).

    Attributes:
        classes: the names of each label's classes in the order of their numbers.
        tokenizer: `Bytes`.

    Raises:
        ValueError: for an argument out of range.
    """

    classes = {"topic": list(TOPICS), "part": list(PARTS)}  # noqa: RUF012
    tokenizer = Bytes()

    def __init__(
        self,
        max_tokens: int = 128,
        num_train: int = 10_000,
        num_val: int = 1_000,
        batch_size: int = 64,
        num_workers: int = 1,
        seed: int = 0,
    ) -> None:
        def render(number: int, split: str) -> SentencesDataset:
            return SentencesDataset(number, max_tokens, seed, split)

        super().__init__(render, num_train, num_val, batch_size, num_workers)
        self.save_hyperparameters(logger=False)

    def pieces(self, words: Tensor) -> list[str]:
        """What is shown of tokens."""
        return self.tokenizer.pieces(words.tolist())

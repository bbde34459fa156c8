"""The DataModule of texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from jepa_lightning.data.datamodule import ROLES, SplitDataModule, roles_of
from jepa_lightning.data.folders import find_list
from jepa_lightning.data.labels import Vocabulary
from jepa_lightning.data.text.dataset import Texts
from jepa_lightning.data.text.sources import Record, Topic, read_folder, read_lines, read_shards
from jepa_lightning.data.text.tokenizers import Tokenizer, open_tokenizer
from jepa_lightning.errors import check_choice


class TextDataModule(SplitDataModule):
    """Words of texts in a folder, in JSON lines, or in webdataset shards.

    Batches are dicts: `words` `[B, L]` int64, `valid` BoolTensor `[B, L]`, which there are, and the labels by name:
    classes `[B]`, numbers `[B]`, or classes of tokens `[B, L]`, -1 for those without. Each text is a sample, or several
    if it is too long, in batches as long as their longest. With `packing` the texts follow one another without a gap,
    all samples have `max_tokens`, and the label of a text is that of each of its tokens.

    Data sets:

    - `folder`: the files `.txt` and those without an ending below `root/train` and, where it exists, `root/val` (also
      used as the test split), or below `root`. The label is the folder right in there, or the file's name (`topic`).
      A `separator` divides a file into many texts: of Debian's package `fortunes`, whose 43 files are topics, it is
      `%`, in `/usr/share/games/fortunes` with `topic: file`.
    - `jsonl`: `root/train.jsonl` and, where they exist, `root/val.jsonl` and `root/test.jsonl`, or `root` is a file; an
      object a line. A label is a word or a number, or of tokens: a list of [first character, that after the last,
      word].
    - `shards`: tar files of `key.txt` with `key.cls` or `key.json` (its `label`), or neither: `root/train/*.tar` or
      `root/*.tar`, and `root/val/*.tar` where it exists, or paths such as `{000..099}.tar`. They are read into memory.

    Without held-out data of its own, a share of the texts, drawn with the same seed every time, validates and tests.

    Args:
        root: folder, file or shards of the data.
        dataset: `folder`, `jsonl` or `shards`.
        tokenizer: `bytes`, which needs nothing, or the folder that a tokenizer of transformers is saved in.
        max_tokens: of a sample, with those around its text.
        packing: whether texts are packed.
        separator: of files, the line between two texts; an empty one stands for blank lines. A file is one text
            without.
        topic: of folders, what is the label: `folder`, `file` or `none`.
        text_field: of JSON lines, the field that is the text.
        labels: of JSON lines, the fields that are labels.
        batch_size: samples per batch. Training drops an incomplete last batch.
        num_workers: worker processes per loader; 0 loads in the training process.
        val_share: of the texts that validates.
        test_share: of the texts that tests.

    Attributes:
        tokenizer: the `Tokenizer`, which tells `vocab_size`, `pad` and `mask`; once the data are set up.
        classes: the names of each label's classes in the order of their numbers; none where the label is a number.

    Raises:
        ValueError: for an unknown data set or an argument out of range; from `setup`, for data that cannot be read, or
            too few of them.
        ImportError: from `setup`, if a library is missing.
        FileNotFoundError: from `setup`, if the data are missing.

    Example:
        >>> data = TextDataModule("/usr/share/games/fortunes", separator="%", topic="file", max_tokens=256)
        >>> data.tokenizer_name
        'bytes'
    """

    def __init__(
        self,
        root: str = "data",
        dataset: str = "folder",
        tokenizer: str = "bytes",
        max_tokens: int = 512,
        packing: bool = False,
        separator: str | None = None,
        topic: Topic = "folder",
        text_field: str = "text",
        labels: Sequence[str] = (),
        batch_size: int = 32,
        num_workers: int = 0,
        val_share: float = 0.1,
        test_share: float = 0.1,
    ) -> None:
        super().__init__(batch_size, num_workers)
        check_choice("dataset", dataset, ("folder", "jsonl", "shards"))
        check_choice("topic", topic, get_args(Topic))
        if max_tokens < 3:
            raise ValueError(f"max_tokens={max_tokens} must be at least 3, as a text stands between two tokens.")
        if min(val_share, test_share) < 0 or val_share + test_share >= 1:
            raise ValueError(f"val_share={val_share} and test_share={test_share} must leave a share to train on.")
        if labels and dataset != "jsonl":
            raise ValueError(f"labels={list(labels)} are fields of JSON lines, not of dataset={dataset!r}.")
        self.save_hyperparameters(logger=False)
        self.root, self.dataset, self.max_tokens, self.packing = root, dataset, max_tokens, packing
        self.separator, self.topic, self.text_field, self.labels = separator, topic, text_field, tuple(labels)
        self.shares = {"train": 1 - val_share - test_share, "val": val_share, "test": test_share}
        self.tokenizer_name = tokenizer
        self.tokenizer: Tokenizer | None = None
        self.classes: dict[str, list[str]] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read the texts, and make tokens of them; for all stages.

        Raises:
            ImportError: without transformers for a tokenizer of its own, or webdataset for shards.
            FileNotFoundError: if the data are missing; the message says what is looked for.
            ValueError: data that cannot be read, or fewer training samples than a batch holds.
        """
        if not self.sets:
            self.tokenizer = open_tokenizer(self.tokenizer_name)
            parts = {role: self._read(role) for role in ROLES}
            if not parts["train"]:
                raise ValueError(f"{self.root} has no training text with anything in it")
            if parts["val"] is None and parts["test"] is None:
                parts = self._divided(parts["train"])
            words = Vocabulary(record.labels for record in parts["train"] or ())
            self.classes = words.classes
            for role, records in parts.items():
                if records:
                    self.sets[role] = self._tokens(records, words)
                    rank_zero_info(f"{self.root}: {len(records)} {role} texts in {len(self.sets[role])} samples")
            if len(self.sets["train"]) < self.batch_size:
                raise ValueError(
                    f"{self.root} has {len(self.sets['train'])} training samples, fewer than "
                    f"batch_size={self.batch_size}, and incomplete batches are dropped: give a smaller batch_size."
                )
        if missing := [role for role in roles_of(stage) if role not in self.sets and stage not in (None, "fit")]:
            raise FileNotFoundError(
                f"{self.root} has no texts for {missing[0]}: give root/val, or a share of the texts."
            )

    def pieces(self, words: Any) -> list[str]:
        """What is shown of tokens."""
        assert self.tokenizer is not None, "there is no tokenizer before setup"
        return self.tokenizer.pieces([int(word) for word in words])

    def _read(self, role: str) -> list[Record] | None:
        """The texts of a role that have anything in them; none where they are divided."""
        root = Path(self.root)
        if self.dataset == "shards":
            records = read_shards(self.root, role, self.separator)
        elif self.dataset == "jsonl":
            path = find_list(root, role, ".jsonl")
            records = None if path is None else read_lines(path, self.text_field, self.labels)
        else:
            train, held_out = root / "train", root / "val"
            if not root.is_dir():
                raise FileNotFoundError(f"{root.absolute()} does not exist: give as root the folder that has texts.")
            inside = (train if train.is_dir() else root) if role == "train" else held_out
            known = role == "train" or (train.is_dir() and held_out.is_dir())
            records = read_folder(inside, self.topic, self.separator) if known else None
        if records is None:
            return None
        kept = [record for record in records if record.text.strip()]
        if len(kept) < len(records):
            rank_zero_info(f"{self.root}: {len(records) - len(kept)} {role} texts have nothing in them")
        return kept

    def _divided(self, records: list[Record] | None) -> dict[str, list[Record] | None]:
        """The texts of each role, drawn from all of them."""
        assert records is not None
        order = np.random.default_rng(0).permutation(len(records))
        ends = np.round(np.cumsum(list(self.shares.values())) * len(records)).astype(int)
        starts = [0, *ends[:-1]]
        return {
            role: [records[place] for place in sorted(order[start:end])]
            for role, start, end in zip(self.shares, starts, ends, strict=True)
        }

    def _tokens(self, records: list[Record], words: Vocabulary) -> Texts:
        assert self.tokenizer is not None
        if self.packing:  # else those of one file would be in one sample
            records = [records[place] for place in np.random.default_rng(0).permutation(len(records))]
        labels = [words.numbered(record.labels, record.where) for record in records]
        texts = [self.tokenizer.encode(record.text) for record in records]
        return Texts(texts, labels, self.tokenizer, self.max_tokens, self.packing)

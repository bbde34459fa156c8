"""Texts: what is read, how it becomes tokens, samples and batches, and labels of texts and of tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_data import write_shard
from torch import Tensor

from jepa_lightning import TextDataModule
from jepa_lightning.data.text.tokenizers import Bytes, open_tokenizer


def module(root: Path, **options: Any) -> TextDataModule:
    data = TextDataModule(str(root), **{"batch_size": 2} | options)
    data.setup()
    return data


def texts(batch: dict[str, Tensor]) -> list[str]:
    """Bytes as they were, without those around."""
    return [bytes(word - 4 for word in row.tolist() if word > 3).decode() for row in batch["words"]]


def write_lines(path: Path, *lines: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def of_role(data: TextDataModule, role: str) -> list[dict[str, Tensor]]:
    samples = data.sets[role]
    return [samples.__getitems__([number]) for number in range(len(samples))]


# --- Tokens ----------------------------------------------------------------------------------------------------------


def test_bytes() -> None:
    """Any text comes back, and each byte tells its character."""
    for text in ("naïve – 音楽 🎵 a", "", "\n\t"):
        ids, spans = Bytes().encode(text)
        assert bytes((ids - 4).tolist()).decode() == text
        assert [text[start:end] for start, end in spans] == [letter for letter in text for _ in letter.encode()]
    assert Bytes().pieces([1, 76, 105, 199, 173, 2, 0, 3]) == ["", "H", "e", "·", "·", "", "", "?"]


def write_tokenizer(folder: Path) -> Any:
    """A tokenizer of words as transformers saves it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", "<mask>", "<unk>", "the", "old", "drum", "s", "##s"]
    words = Tokenizer(models.WordPiece({name: place for place, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {
        "pad_token": "<pad>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "mask_token": "<mask>",
        "unk_token": "<unk>",
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    tokenizer.save_pretrained(folder)
    return tokenizer


def test_tokenizers_of_transformers(tmp_path: Path) -> None:
    """The tokens are those that the tokenizer gives by itself, those around included, and labels follow their words."""
    theirs = write_tokenizer(tmp_path / "words")
    ours = open_tokenizer(str(tmp_path / "words"))
    assert (ours.vocab_size, ours.pad, ours.start, ours.end, ours.mask) == (10, 0, 1, 2, 3)
    lines = [
        {"text": "the old drums", "part": [[0, 3, "article"], [8, 13, "noun"]]},
        {"text": "old  bells the", "part": [[11, 14, "article"]]},
    ]
    write_lines(tmp_path / "train.jsonl", *lines)
    data = module(
        tmp_path, dataset="jsonl", tokenizer=str(tmp_path / "words"), labels=["part"], val_share=0, test_share=0
    )
    batch = data.sets["train"].__getitems__([0, 1])
    padded = theirs([line["text"] for line in lines], padding=True)["input_ids"]
    expected = [[1, *ids, 2] for ids in ([5, 6, 7, 9], [6, 4, 5])]
    assert [[word for word in row if word] for row in padded] == [ids[1:-1] for ids in expected]
    assert batch["words"].tolist() == [expected[0], [*expected[1], 0]]
    assert batch["valid"].sum(1).tolist() == [6, 5]
    assert batch["part"].tolist() == [[-1, 0, -1, 1, 1, -1], [-1, -1, -1, 0, -1, -1]]
    assert data.pieces(torch.tensor([5, 7])) == ["the", "drum"]
    for wrong in (str(tmp_path / "none"), str(tmp_path)):
        with pytest.raises(ValueError, match="tokenizer="):
            open_tokenizer(wrong)


# --- What is read ----------------------------------------------------------------------------------------------------


def test_folders_of_topics(tmp_path: Path) -> None:
    for path, text in {
        "train/sea/a.txt": "waves",
        "train/sea/deep/b.txt": " gulls \n",
        "train/song/c": "drums",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "val/song").mkdir(parents=True)
    (tmp_path / "val/song/d.txt").write_text("flutes")
    (tmp_path / "train/sea/picture.png").write_bytes(b"\x89")
    data = module(tmp_path)
    assert data.classes == {"label": ["sea", "song"]}
    found = {texts(batch)[0]: int(batch["label"]) for batch in of_role(data, "train")}
    assert found == {"waves": 0, "gulls": 0, "drums": 1}
    assert [(texts(batch), batch["label"].tolist()) for batch in of_role(data, "val")] == [(["flutes"], [1])]
    (batch,) = data.train_dataloader()
    assert (batch["words"].dtype, batch["valid"].dtype, list(batch)) == (
        torch.int64,
        torch.bool,
        ["words", "valid", "label"],
    )
    assert torch.equal(batch["valid"], batch["words"] != 0)
    (tmp_path / "train/loose.txt").write_text("x")
    with pytest.raises(ValueError, match=r"loose\.txt.*topic=file or none"):
        module(tmp_path)
    assert list(module(tmp_path, topic="none").sets["train"].__getitems__([0])) == ["words", "valid"]


def test_files_of_many_texts(tmp_path: Path) -> None:
    """As fortunes are: topics are files, a line with % divides, and no text is in two parts."""
    for topic in ("art", "science"):
        (tmp_path / topic).write_text("".join(f"{topic} {number}\n\tnext line\n%\n" for number in range(50)))
        (tmp_path / f"{topic}.dat").write_bytes(b"\x00\xff")
    data = module(tmp_path, topic="file", separator="%")
    found = {role: [texts(batch)[0] for batch in of_role(data, role)] for role in ("train", "val", "test")}
    assert [len(each) for each in found.values()] == [80, 10, 10]
    assert len({text for each in found.values() for text in each}) == 100
    assert found["train"][0].endswith("\n\tnext line")
    for batch in of_role(data, "val"):
        assert texts(batch)[0].startswith(data.classes["label"][int(batch["label"])])
    again = module(tmp_path, topic="file", separator="%")
    assert [texts(batch)[0] for batch in of_role(again, "val")] == found["val"]
    (tmp_path / "poem.txt").write_text("one\nline\n\n\ntwo\n \nthree")
    poem = module(tmp_path, topic="none", separator="", val_share=0, test_share=0)
    assert {"one\nline", "two", "three"} <= {texts(batch)[0] for batch in of_role(poem, "train")}


def test_lines_of_json(tmp_path: Path) -> None:
    rows = [
        {"body": "café", "topic": "food", "stars": 4.5, "spans": [[0, 2, "a"], [3, 4, "b"]]},
        {"body": "sea", "topic": "sea", "stars": None},
        {"body": " ", "topic": "sea"},
    ]
    write_lines(tmp_path / "train.jsonl", *rows)
    write_lines(tmp_path / "val.jsonl", {"body": "é", "topic": "sea", "stars": 1})
    options: dict[str, Any] = {"dataset": "jsonl", "text_field": "body", "labels": ["topic", "stars", "spans"]}
    data = module(tmp_path, **options)
    batch = data.sets["train"].__getitems__([0, 1])
    assert len(data.sets["train"]) == 2  # nothing is in the third
    assert batch["topic"].tolist() == [0, 1]
    assert batch["stars"][0] == 4.5
    assert batch["stars"][1].isnan()
    assert batch["spans"].tolist() == [[-1, 0, 0, -1, 1, 1, -1], [-1] * 7]  # é has two bytes
    assert data.sets["val"].__getitems__([0])["stars"].tolist() == [1.0]
    for line, message in (
        ({"text": "a"}, r"line 1 has no text 'body', but text"),
        ({"body": "a", "topic": {}}, "topic is neither a word or number"),
        ({"body": "a", "spans": [[0, 2, "a"]]}, r"spans is neither.*within 1 characters"),
    ):
        write_lines(tmp_path / "train.jsonl", line)
        with pytest.raises(ValueError, match=message):
            module(tmp_path, **options)
    (tmp_path / "train.jsonl").write_text('{"body": "a"}\n{"body"\n')
    with pytest.raises(ValueError, match=r"train\.jsonl, line 2 is not JSON"):
        module(tmp_path, **options)


def test_shards(tmp_path: Path) -> None:
    for number in range(2):
        members = {f"{number}{each}.txt": f"text {number}{each}".encode() for each in range(3)}
        members |= {f"{number}{each}.cls": b"%d" % each for each in range(3)}
        write_shard(tmp_path / "train" / f"{number}.tar", members)
    data = module(tmp_path, dataset="shards", val_share=0, test_share=0)
    found = {texts(batch)[0]: data.classes["label"][int(batch["label"])] for batch in of_role(data, "train")}
    assert found == {f"text {number}{each}": str(each) for number in range(2) for each in range(3)}


# --- Samples ---------------------------------------------------------------------------------------------------------


def test_long_texts_are_cut_and_nothing_is_lost(tmp_path: Path) -> None:
    text = "".join(chr(97 + number % 26) for number in range(65))
    write_lines(tmp_path / "train.jsonl", {"text": text, "n": 1, "s": [[7, 12, "x"]]}, {"text": "short", "n": 2})
    data = module(tmp_path, dataset="jsonl", labels=["n", "s"], max_tokens=12, val_share=0, test_share=0)
    found = of_role(data, "train")
    assert "".join(texts(batch)[0] for batch in found[:-1]) == text
    assert all(batch["words"].shape[1] <= 12 and batch["words"][0, 0] == 1 for batch in found)
    assert all(batch["words"][0, -1] == 2 for batch in found)
    assert [int(batch["n"]) for batch in found] == [0] * 7 + [1]
    marked = [int(label) for batch in found for label in batch["s"][0, 1:-1]]
    assert [place for place, label in enumerate(marked) if label == 0] == [7, 8, 9, 10, 11]


def test_packed_texts(tmp_path: Path) -> None:
    """All texts, each between its two tokens, one after the other; every token has the label of its text."""
    rows = [{"text": f"text number {number} " + "x" * number, "n": number, "r": number + 0.5} for number in range(12)]
    write_lines(tmp_path / "train.jsonl", *rows)
    data = module(tmp_path, dataset="jsonl", labels=["n", "r"], max_tokens=16, packing=True, val_share=0, test_share=0)
    found = of_role(data, "train")
    assert {batch["words"].shape[1] for batch in found[:-1]} == {16}
    stream = torch.cat([batch["words"][0] for batch in found]).tolist()
    labels = torch.cat([batch["n"][0] for batch in found]).tolist()
    numbers = torch.cat([batch["r"][0] for batch in found])
    starts = [place for place, word in enumerate(stream) if word == 1]
    assert len(starts) == 12
    for start, end in zip(starts, [*starts[1:], len(stream)], strict=True):
        number = labels[start + 1]
        text = rows[int(data.classes["n"][number])]["text"]
        assert stream[start:end] == [1, *(byte + 4 for byte in text.encode()), 2]
        assert labels[start:end] == [-1, *[number] * (end - start - 2), -1]
        assert numbers[start + 1] == int(data.classes["n"][number]) + 0.5
    assert numbers.isnan().sum() == 24
    batch = next(iter(data.train_dataloader()))
    assert (batch["words"].shape, batch["n"].shape, batch["r"].dtype) == ((2, 16), (2, 16), torch.float32)


# --- Arguments and missing data --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "json"}, "did you mean 'jsonl'"),
        ({"topic": "files"}, "did you mean 'file'"),
        ({"max_tokens": 2}, "max_tokens=2"),
        ({"val_share": 0.6, "test_share": 0.4}, "val_share=0.6"),
        ({"labels": ["a"]}, r"labels=\['a'\]"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextDataModule(**options)


def test_missing_data(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone does not exist"):
        module(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="holds no texts"):
        module(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"train\.jsonl does not exist"):
        module(tmp_path, dataset="jsonl")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"a\.txt is not written in UTF-8.*iconv"):
        module(tmp_path)
    (tmp_path / "a.txt").write_text("one text")
    with pytest.raises(ValueError, match="1 training samples, fewer than batch_size=2"):
        module(tmp_path)
    with pytest.raises(FileNotFoundError, match="no texts for test"):
        TextDataModule(str(tmp_path), batch_size=1).setup("test")

"""The scripts of recipes/data2vec, in small: notes out of a sound font, speech, and what features tell."""

import argparse
import csv
import importlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from fake_data import write_mnist
from torch import nn
from transformers import AutoTokenizer

from jepa_lightning import RECIPES

SIZES = {"embed_dim": 16, "depth": 2, "num_heads": 2}
FRONT = [[4, 10, 5], [8, 64, 64]]
OPTIONS = ["--set", "num_layers=2", "predictor_embed_dim=16", "predictor_depth=1"]


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(RECIPES / "data2vec"))
    return importlib.import_module("prepare")


@pytest.fixture
def learning(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, with tiny networks."""
    monkeypatch.syspath_prepend(str(RECIPES / "data2vec"))
    module = importlib.import_module("learning")
    monkeypatch.setattr(module, "SIZES", SIZES)
    monkeypatch.setattr(module, "FRONT", FRONT)
    return module


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


# --- Notes -----------------------------------------------------------------------------------------------------------


def chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def sound_font(recordings: list[tuple[str, int, int]], rate: int = 16_000, seconds: float = 0.5) -> bytes:
    """A sound font: of each recording name, program and key; a sine of that key, and a drum that is no note."""
    steps = int(rate * seconds)
    waves = [np.sin(2 * np.pi * 440 * 2 ** ((key - 69) / 12) * np.arange(steps) / rate) for *_, key in recordings]
    smpl = b"".join((20_000 * wave).astype("<i2").tobytes() + b"\0" * 92 for wave in [*waves, waves[0]])
    tables: dict[bytes, bytes] = {name: b"" for name in (b"phdr", b"pbag", b"pgen", b"inst", b"ibag", b"igen", b"shdr")}
    for number, (name, program, key) in enumerate([*recordings, ("Kick", 0, 36)]):
        bank, start = 128 if name == "Kick" else 0, number * (steps + 46)
        tables[b"phdr"] += struct.pack("<20sHHHIII", name.encode(), program, bank, number, 0, 0, 0)
        tables[b"pbag"] += struct.pack("<HH", number, 0)
        tables[b"pgen"] += struct.pack("<HH", 41, number)
        # A global zone whose root key holds for the zone after it, which has a sample of another.
        tables[b"inst"] += struct.pack("<20sH", name.encode(), 2 * number)
        tables[b"ibag"] += struct.pack("<HHHH", 2 * number, 0, 2 * number + 1, 0)
        tables[b"igen"] += struct.pack("<HHHH", 58, key, 53, number)
        ends = (start, start + steps, start, start + steps)
        tables[b"shdr"] += struct.pack("<20sIIIIIBbHH", name.encode(), *ends, rate, 60, 0, 0, 1)
    count = len(recordings) + 1
    tables[b"phdr"] += struct.pack("<20sHHHIII", b"EOP", 0, 0, count, 0, 0, 0)
    tables[b"pbag"] += struct.pack("<HH", count, 0)
    tables[b"inst"] += struct.pack("<20sH", b"EOI", 2 * count)
    tables[b"ibag"] += struct.pack("<HH", 2 * count, 0)
    for name in (b"pgen", b"igen"):
        tables[name] += struct.pack("<HH", 0, 0)
    tables[b"shdr"] += struct.pack("<20sIIIIIBbHH", b"EOS", 0, 0, 0, 0, 0, 0, 0, 0, 0)
    lists = chunk(b"LIST", b"sdta" + chunk(b"smpl", smpl))
    lists += chunk(b"LIST", b"pdta" + b"".join(chunk(name, body) for name, body in tables.items()))
    return b"RIFF" + struct.pack("<I", 4 + len(lists)) + b"sfbk" + lists


@pytest.fixture
def notes(prepare: Any, tmp_path: Path) -> Path:
    """A folder of 64 notes of four instruments, both channels of each."""
    recordings = [
        (f"{name} {key}({side})", program, key)
        for name, program in (("Piano", 0), ("Organ", 16), ("Brass", 56), ("Reed", 64))
        for key in range(56, 64)
        for side in "LR"
    ]
    (tmp_path / "font.sf2").write_bytes(sound_font(recordings))
    folder = tmp_path / "notes"
    prepare.main(["notes", "--soundfont", str(tmp_path / "font.sf2"), "--folder", str(folder)])
    return folder


@pytest.fixture
def melodies(prepare: Any, notes: Path, tmp_path: Path) -> Path:
    """A folder of 20 melodies of these notes to learn from."""
    folder = tmp_path / "melodies"
    prepare.main(["melodies", "--notes", str(notes), "--folder", str(folder), "--number", "20"])
    return folder


def test_notes_of_a_sound_font(notes: Path) -> None:
    """Labels by hand; the pitch is what is heard; both channels are on one side; drums are no notes."""
    rows = {role: rows_of(notes / f"{role}.csv") for role in ("train", "val")}
    assert [len(rows[role]) for role in ("train", "val")] == [48, 16]
    names = ("c", "c#", "d", "d#", "e", "f", "f#", "g", "g#", "a", "a#", "b")
    heard: dict[str, list[int]] = {"train": [], "val": []}
    for role, own in rows.items():
        for row in own:
            wave, rate = soundfile.read(notes / row["file"])
            hertz = np.abs(np.fft.rfft(wave, 8 * len(wave))).argmax() * rate / (8 * len(wave))
            key = round(69 + 12 * np.log2(hertz / 440))
            assert (row["octave"], row["pitch"]) == (str(key // 12 - 1), names[key % 12])
            assert row["family"] in ("piano", "organ", "brass", "reed")
            heard[role].append((row["family"], key))  # type: ignore[arg-type]
    assert not set(heard["train"]) & set(heard["val"])
    assert all(own.count(each) == 2 for own in heard.values() for each in own)


def test_melodies(prepare: Any, melodies: Path) -> None:
    """In each stretch the note is heard that is told, and of no held-out one is learnt."""
    recordings = {
        role: {tuple(row[name] for name in ("family", "octave", "pitch")) for row in rows_of(melodies / f"{role}.csv")}
        for role in ("train", "val")
    }
    assert not recordings["train"] & recordings["val"]
    rows = rows_of(melodies / "train.csv")
    assert len({row["file"] for row in rows}) == 20
    names = [row["pitch"] for row in rows]
    assert len(set(names)) > 3
    heard = 0
    for row in rows:
        wave, rate = soundfile.read(melodies / row["file"])
        assert len(wave) == 2 * rate
        part = wave[round(float(row["start"]) * rate) : round(float(row["end"]) * rate)]
        if len(part) < 0.1 * rate:
            continue
        hertz = np.abs(np.fft.rfft(part, 32 * len(part))).argmax() * rate / (32 * len(part))
        key = round(69 + 12 * np.log2(hertz / 440))
        assert (row["octave"], row["pitch"]) == (str(key // 12 - 1), prepare.PITCHES[key % 12])
        heard += 1
    assert heard > 20
    with pytest.raises(FileNotFoundError, match="prepare the notes first"):
        prepare.main(["melodies", "--notes", str(melodies / "nowhere")])


def test_refused_sound_fonts(prepare: Any, tmp_path: Path) -> None:
    path, font = tmp_path / "font.sf2", sound_font([("Piano C4", 0, 60)])
    for data, message in ((b"RIFF....WAVE", "is no sound font"), (font[:-60], "cut off"), (font[:40], "cut off")):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            prepare.notes(path)


# --- What features tell ----------------------------------------------------------------------------------------------


# Some ten seconds: five trainings of some steps.
def test_sound(notes: Path, melodies: Path, learning: Any, tmp_path: Path) -> None:
    """A row for each seed, of both methods, of each factor; and of log-mel spectra, which tell the pitch of sines."""
    given = ["sound", "--root", str(notes), "--melodies", str(melodies), "--folder", str(tmp_path / "runs")]
    given += ["--steps", "4", "--batch_size", "8"]
    learning.main([*given, "--seeds", "0", "1", "--set", "num_layers=2"])
    learning.main([*given, "--last"])
    for sees in ("hidden", "masked"):
        learning.main([*given, "--teacher_sees", sees, "--set", "num_layers=2"])
    learning.main([*given, "--method", "Data2Vec2", *OPTIONS])
    learning.main([*given, "--method", "classic"])
    rows = rows_of(tmp_path / "runs" / "results.csv")
    assert [row["method"] for row in rows] == ["Data2Vec"] * 5 + ["Data2Vec2", "classic"]
    for row in rows[:-1]:
        assert row["steps"] == "4"
        assert float(row["target_deviation"]) > 0
        assert 0 <= float(row["linear/family, untrained"]) <= 1
    assert rows[0]["linear/octave"] != ""
    assert float(rows[-1]["knn/octave"]) > 0.7


def test_what_a_narrowed_teacher_sees(notes: Path, learning: Any) -> None:
    """Of hidden tokens alone: what is visible changes no target. Of masked input: what is hidden changes none."""
    options = argparse.Namespace(data="sound", method="Data2Vec", root=notes, batch_size=8, last=False)
    options.set = {"num_layers": 2}
    data = learning.open_data(options)
    batch = next(iter(data.val_dataloader()))
    for sees, unchanged in (("hidden", "visible"), ("masked", "hidden"), ("all", None)):
        options.teacher_sees = sees
        torch.manual_seed(0)
        module = learning.build(options, data)
        drawn = module.draw(batch, learning.Rng.fresh(len(batch["wave"]), torch.device("cpu")))
        tokens = module.context_encoder.tokens(batch["wave"])
        hidden = torch.zeros(tokens.shape[:2], dtype=torch.bool).scatter(1, drawn.targets[:, 0], True)
        found = []
        for part in ("none", "hidden", "visible"):
            places = {"none": torch.zeros_like(hidden), "hidden": hidden, "visible": ~hidden}[part].unsqueeze(-1)
            changed = torch.where(places, tokens + torch.randn(tokens.shape), tokens)
            module.context_encoder.tokens = lambda _, changed=changed: changed
            found.append(module.latents(batch, drawn).target)
        same = {"hidden": torch.equal(found[0], found[1]), "visible": torch.equal(found[0], found[2])}
        assert [part for part, equal in same.items() if equal] == ([unchanged] if unchanged else [])


def test_text(prepare: Any, learning: Any, tmp_path: Path) -> None:
    """Of two topics with words of their own, TF-IDF knows all; the tokenizer gives back what it has read."""
    folder = tmp_path / "fortunes"
    folder.mkdir()
    for name, words in (("cats", "purr meow whiskers paw"), ("ships", "anchor sail harbour mast")):
        texts = [" ".join(words.split()[place] for place in np.random.default_rng(i).permutation(4)) for i in range(60)]
        (folder / name).write_text("\n%\n".join(texts) + "\n%\n")
    prepare.main(["words", "--root", str(folder), "--folder", str(tmp_path / "words"), "--size", "300"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "words")
    assert tokenizer.decode(tokenizer("anchor whiskers")["input_ids"]).strip() == "anchor whiskers"
    given = ["text", "--root", str(folder), "--words", str(tmp_path / "words"), "--folder", str(tmp_path), "--steps=4"]
    for method in ("Data2Vec", "Data2Vec2"):
        learning.main([*given, "--method", method, *OPTIONS[: 2 if method == "Data2Vec" else None]])
    learning.main([*given, "--method", "classic"])
    learning.main([*given, "--places", *OPTIONS[:2]])
    *rows, placed = rows_of(tmp_path / "results.csv")
    assert placed["places"] == "True"
    assert 0 <= float(placed["place"]) <= 1
    assert float(rows[-1]["linear/label"]) == 1.0
    assert all(0 <= float(row["knn/label, untrained"]) <= 1 for row in rows[:-1])


def test_images(learning: Any, tmp_path: Path) -> None:
    """All three methods; and I-JEPA of nothing else."""
    write_mnist(tmp_path, "FashionMNIST")
    given = ["images", "--root", str(tmp_path), "--folder", str(tmp_path), "--steps", "4", "--batch_size", "4"]
    for method in ("Data2Vec", "Data2Vec2", "IJEPA", "classic"):
        several = {"Data2Vec": OPTIONS[:2], "Data2Vec2": OPTIONS}.get(method, [])
        learning.main([*given, "--method", method, *several])
    assert len(rows_of(tmp_path / "results.csv")) == 4
    with pytest.raises(SystemExit):
        learning.main(["sound", "--method", "IJEPA"])


# --- Speech ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """Noises under the names of Debian's packages, some in the format of Asterisk."""
    rng, sounds = np.random.default_rng(0), tmp_path / "share/asterisk/sounds"
    folders = {"en_US_f_Allison": "wav", "es_MX_f_Allison": "wav", "fr_CA_f_June": "wav", "it_IT_m_Carlo": "wav"}
    for speaker, kind in (folders | {"es": "gsm", "fr": "gsm"}).items():
        for name in ("digits/0", "digits/1", "digits/2", "letters/a", "letters/b"):
            path = sounds / speaker / f"{name}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            wave = 0.1 * rng.standard_normal(8000)
            if kind == "gsm":
                soundfile.write(path, wave, 8000, format="RAW", subtype="GSM610")
            else:
                soundfile.write(path, wave, 8000)
    return tmp_path / "share"


def test_speech(prepare: Any, share: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lists, by hand; and a row of the script, in small."""
    folder = tmp_path / "speech"
    prepare.main(["speech", "--share", str(share), "--folder", str(folder)])
    rows = {name: rows_of(folder / f"{name}.csv") for name in ("train", "spoken/train", "spoken/val", "spoken/test")}
    assert len(rows["spoken/test"]) == 10
    assert {row["word"] for row in rows["spoken/test"]} == {*"ab", "cero", "uno", "dos", "zéro", "un", "deux"}
    held_out = {row["file"] for row in rows["spoken/test"]}
    assert not held_out & {row["file"] for name in ("train", "spoken/train", "spoken/val") for row in rows[name]}
    assert {row["language"] for row in rows["spoken/train"]} == {"en", "es", "fr", "it"}
    spoken = importlib.import_module("spoken")
    monkeypatch.setattr(spoken, "SIZES", SIZES)
    monkeypatch.setattr(spoken, "FRONT", [[4, 10, 5], [8, 32, 32]])
    monkeypatch.setattr(spoken, "BATCH", 4)
    given = ["--speech", str(folder), "--folder", str(tmp_path), "--steps", "4", "--fine_tuning", "0.2"]
    spoken.main([*given, "--method", "Data2Vec2", *OPTIONS])
    (row,) = rows_of(tmp_path / "results.csv")
    for name in ("pretrained", "scratch"):
        assert 0 <= float(row[f"test words, {name}"]) <= 1
        assert 0 <= float(row[f"test template, {name}"]) <= 1
        assert float(row[f"test letters, {name}"]) >= 0


def test_spelling(prepare: Any) -> None:
    """The most likely word and the letters, where each frame says which."""
    spoken = importlib.import_module("spoken")

    class Said(nn.Module):
        embed_dim = 4

    speller = spoken.Speller(Said(), ["ab", "ba", "aab"], {0: [0, 1, 2], 1: [0, 2]})
    assert speller.letters == ["a", "b"]
    says = {"ab": [1, 1, 0, 2, 0, 0], "ba": [2, 0, 1, 1, 1, 1], "aab": [1, 0, 1, 2, 2, 0]}
    likely = torch.stack([nn.functional.one_hot(torch.tensor(frames), 3).float() for frames in says.values()])
    speller.forward = lambda batch: ((likely * 8).log_softmax(-1), torch.full((3,), 6))
    one = torch.zeros(3, dtype=torch.long)  # language
    right = spoken.errors(speller, [{"word": torch.tensor([0, 1, 2]), "language": one}])
    assert right == {"letters": 0.0, "words": 0.0}
    found = spoken.errors(speller, [{"word": torch.tensor([1, 0, 2]), "language": one}])
    assert found == {"letters": pytest.approx(4 / 7), "words": pytest.approx(2 / 3)}
    other = torch.tensor([1, 1, 1])  # in which the second word is not said
    assert spoken.errors(speller, [{"word": torch.tensor([0, 0, 2]), "language": other}])["words"] == 0.0
    pairs = (("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("flaw", "lawn", 2))
    assert all(spoken.distance(list(map(ord, a)), list(map(ord, b))) == wanted for a, b, wanted in pairs)


def test_templates(prepare: Any) -> None:
    """A sound is the word of the same one said slower, of its own language."""
    spoken = importlib.import_module("spoken")
    up, down = torch.tensor([[0.0, 1.0], [1.0, 0.0], [3.0, 1.0]]), torch.tensor([[3.0, 1.0], [1.0, 3.0], [0.0, 1.0]])
    known = {"sounds": [up, down, down], "word": torch.tensor([0, 1, 2]), "language": torch.tensor([0, 0, 1])}
    slower = [each.repeat_interleave(torch.tensor([2, 1, 3]), 0) for each in (up, down, up)]
    asked = {"sounds": slower, "word": torch.tensor([0, 1, 2]), "language": torch.tensor([0, 0, 1])}

    def wrong(asked: Any) -> float:
        return float(spoken.template_errors(lambda batch: batch["sounds"], [known], [asked]))

    assert wrong(asked) == 0.0
    assert wrong(asked | {"word": torch.tensor([1, 0, 2])}) == pytest.approx(2 / 3)

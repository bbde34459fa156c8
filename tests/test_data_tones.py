"""Sounds and texts that are made: the same every time, and labels that agree with what is heard and read."""

import itertools

import numpy as np
import pytest
import torch

from jepa_lightning import SentencesDataModule, TonesDataModule
from jepa_lightning.data import SentencesDataset, TonesDataset
from jepa_lightning.data.synthetic import sentences, tones


def test_notes_are_those_that_sound() -> None:
    """Of the middle of each note the frequencies that stand out are multiples of that of its label and octave."""
    batch, right = TonesDataset(100).__getitems__(list(range(40))), []
    for wave, valid, instrument, octave, contour, note in zip(*batch, strict=True):
        length = int(valid.sum())
        assert valid[:length].all()
        assert not wave[length:].any()
        inside = wave[:length, 0]
        assert (abs(float(inside.mean())), float(inside.var())) == pytest.approx((0, 1), abs=1e-3)
        assert (note >= 0).sum() == pytest.approx(length / 80, abs=1)
        if tones.INSTRUMENTS[instrument] == "bell":
            continue
        changes = [0, *((note.diff() != 0).nonzero().flatten() + 1).tolist()]
        heard = [int(note[start]) for start in changes if note[start] >= 0]
        ways = ["up" if after > before else "down" for before, after in itertools.pairwise(heard)]
        assert (tones.CONTOURS[contour] if contour >= 0 else None) == (", ".join(ways) if len(ways) == 2 else None)
        for start, end in zip(changes, [*changes[1:], len(note)], strict=True):
            if note[start] < 0 or end - start < 15:
                continue
            part = inside[(start + 2) * 80 : (end - 2) * 80].numpy()
            hertz = np.abs(np.fft.rfft(part * np.hanning(len(part)), 65536)).argmax() * 8000 / 65536
            ratio = hertz / (tones.LOWEST * 2 ** (float(octave) + float(note[start]) / 12))
            right.append(round(ratio) >= 1 and abs(ratio - round(ratio)) < 0.06)
    assert len(right) > 40
    assert np.mean(right) > 0.95


@pytest.mark.parametrize("dataset", [TonesDataset, SentencesDataset])
def test_samples_are_functions_of_seed_split_and_index(dataset: type) -> None:
    whole = dataset(50).__getitems__([3, 7, 49])
    for place, index in enumerate((3, 7, 49)):
        for one, several in zip(dataset(1000)[index], whole, strict=True):
            assert torch.equal(one, several[place])
    for other in (dataset(50, seed=1), dataset(50, split="val")):
        assert not torch.equal(other[3][0], whole[0][0])
    with pytest.raises(ValueError, match="split='fit'"):
        dataset(50, split="fit")
    with pytest.raises(IndexError):
        dataset(50)[50]


def test_words_and_their_parts() -> None:
    """Every word is one of its part of speech and, if of any, of its topic; some are nouns here, and verbs there."""
    data = SentencesDataModule(num_train=500, batch_size=500, num_workers=0)
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(batch.valid, batch.words != data.tokenizer.pad)
    known = [sentences._DETERMINERS, sentences._ADJECTIVES, None, None, sentences._PREPOSITIONS]
    found: dict[str, set[int]] = {}
    for words, topic, parts, valid in zip(batch.words, batch.topic.tolist(), batch.part, batch.valid, strict=True):
        text = "".join(data.pieces(words[valid]))
        inside = parts[valid].tolist()[1:-1]
        assert len(text) == len(inside)
        starts = [place for place in range(len(text)) if inside[place] >= 0 and (not place or inside[place - 1] < 0)]
        for start in starts:
            end = next((place for place in range(start, len(text)) if inside[place] < 0), len(text))
            if end == len(text):
                continue  # may be cut
            word, part = text[start:end], inside[start]
            allowed = {2: sentences._NOUNS[topic] + sentences._COMMON, 3: sentences._VERBS[topic]}.get(part) or known[
                part
            ]
            assert word in allowed
            found.setdefault(word, set()).add(part)
    assert {2, 3} in found.values()
    assert batch.topic.bincount(minlength=4).min() > 90


def test_data_modules() -> None:
    data = TonesDataModule(0.5, num_train=20, num_val=6, batch_size=8, num_workers=0)
    batch = next(iter(data.train_dataloader()))
    assert (batch.wave.shape, batch.note.shape) == ((8, 4000, 1), (8, 50))
    assert [len(each.octave) for each in data.val_dataloader()] == [6]
    for label in ("instrument", "octave", "contour", "note"):
        assert int(getattr(batch, label).max()) < len(data.classes[label])
    with pytest.raises(ValueError, match="seconds="):
        TonesDataModule(0.1)
    with pytest.raises(ValueError, match="max_tokens=8"):
        SentencesDataModule(8)

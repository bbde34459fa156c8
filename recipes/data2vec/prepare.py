"""The sounds of Debian's packages as folders that `WaveformDataModule` reads.

    apt install fluid-soundfont-gm
    python recipes/data2vec/prepare.py notes

writes the recorded notes of the sound font FluidR3 (MIT licence) to `data/notes`, wav files with `train.csv` and
`val.csv`: of each note the `family` of its instrument, its `octave` and its `pitch` class. Left and right channel of a
recording are on the same side of the split.

    python recipes/data2vec/prepare.py melodies

writes to `data/melodies` what is pretrained on: two seconds of such notes each, one after another, at random, with the
same labels of each stretch; those in `val.csv` of held-out notes.

    apt install fortunes fortunes-min
    python recipes/data2vec/prepare.py words

makes a tokenizer of 4000 words of the texts and saves it as transformers do to `data/words`; the texts themselves
`TextDataModule` reads as they are.

    apt install asterisk-core-sounds-{en,es,fr,it,ru}-wav asterisk-prompt-{es-co,fr-armelle}
    apt install klettres-data ktuberling-data tuxpaint-stamps-default
    python recipes/data2vec/prepare.py speech

writes lists of spoken sounds to `data/speech`: `train.csv` and `val.csv`, for pretraining, of all speakers but two, and
for `spoken.py` numbers and letters with the word that is said, `spoken/train.csv`, `spoken/val.csv` and, of those two,
one in Spanish and one in French, `spoken/test.csv`. Needs the extras `audio` and `text`.
"""

from __future__ import annotations

import argparse
import csv
import re
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FAMILIES = (
    "piano",
    "chromatic percussion",
    "organ",
    "guitar",
    "bass",
    "strings",
    "ensemble",
    "brass",
    "reed",
    "pipe",
    "synth lead",
    "synth pad",
    "synth effects",
    "ethnic",
    "percussive",
    "sound effects",
)
PITCHES = ("c", "c#", "d", "d#", "e", "f", "f#", "g", "g#", "a", "a#", "b")
INSTRUMENT, SAMPLE, ROOT_KEY = 41, 53, 58  # generators of a sound font
DRUMS = 128  # the bank that they are in
CHANNEL = re.compile(r"\s*(\((L|R)\)|(L|R))$")  # the end of a recording's name; the links between both are all 0


def write_list(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a list of sounds, and say how many."""
    if not rows:
        raise ValueError(f"nothing was found for {path}")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"{path}: {len(rows)} sounds", flush=True)


# --- Notes of a sound font -------------------------------------------------------------------------------------------


class Note(NamedTuple):
    """A recorded note.

    Attributes:
        name: of the recording.
        wave: int16 samples.
        rate: of them, a second.
        program: of General MIDI, counted from 0.
        key: of MIDI; 60 is the C in the middle.
    """

    name: str
    wave: NDArray[np.int16]
    rate: int
    program: int
    key: int


def chunks(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """The chunks of a RIFF file, those within lists too.

    Raises:
        ValueError: a file that ends within a chunk.
    """
    place = 0
    while place + 8 <= len(data):
        name, size = bytes(data[place : place + 4]), struct.unpack_from("<I", data, place + 4)[0]
        body = data[place + 8 : place + 8 + size]
        if len(body) < size:
            raise ValueError(f"the sound font is cut off: its chunk {name!r} has {len(body)} of {size} bytes")
        if name in (b"RIFF", b"LIST"):
            yield from chunks(body[4:])
        else:
            yield name, body
        place += 8 + size + size % 2


def zones(bags: Sequence[Any], generators: Sequence[Any], first: int, end: int) -> list[dict[int, int]]:
    """The generators of the zones from one to another, by their numbers; a global first zone holds for all."""
    found = [dict(generators[bags[zone][0] : bags[zone + 1][0]]) for zone in range(first, end)]
    common = found[0] if found and not {INSTRUMENT, SAMPLE} & set(found[0]) else {}
    return [common | zone for zone in found]


def notes(path: Path) -> list[Note]:
    """The notes of the melodic instruments of a sound font (SF2), each by the first program that plays it.

    Raises:
        ValueError: a file that is none, or is cut off.
    """
    data = memoryview(path.read_bytes())
    if bytes(data[:4]) != b"RIFF" or bytes(data[8:12]) != b"sfbk":
        raise ValueError(f"{path} is no sound font: it does not start as a RIFF file of kind sfbk does")
    parts = dict(chunks(data))
    layouts = {
        "phdr": "<20sHHHIII",
        "pbag": "<HH",
        "pgen": "<HH",
        "inst": "<20sH",
        "ibag": "<HH",
        "igen": "<HH",
        "shdr": "<20sIIIIIBbHH",
    }
    if missing := [name for name in (*layouts, "smpl") if name.encode() not in parts]:
        raise ValueError(f"{path} has no chunk {missing[0]!r}")
    table = {name: list(struct.iter_unpack(layout, parts[name.encode()])) for name, layout in layouts.items()}
    samples, wave = table["shdr"], np.frombuffer(parts[b"smpl"], "<i2")
    found: dict[int, Note] = {}
    presets = sorted(zip(table["phdr"][:-1], table["phdr"][1:], strict=True), key=lambda pair: (pair[0][2], pair[0][1]))
    for (_, program, bank, first, *_), following in presets:
        if bank == DRUMS:
            continue
        for outer in zones(table["pbag"], table["pgen"], first, following[3]):
            if INSTRUMENT not in outer:
                continue
            instrument, after = table["inst"][outer[INSTRUMENT] : outer[INSTRUMENT] + 2]
            for inner in zones(table["ibag"], table["igen"], instrument[1], after[1]):
                number = inner.get(SAMPLE)
                if number is None or number in found:
                    continue
                name, start, end, _, _, rate, own_key, *_ = samples[number]
                key = inner.get(ROOT_KEY, own_key)
                if not 0 <= key < 128 or end <= start:
                    continue
                text = name.split(b"\0")[0].decode("latin-1").strip()
                found[number] = Note(text, wave[start:end], rate, program, key)
    return list(found.values())


def write_notes(options: argparse.Namespace) -> None:
    """Write the files and their lists."""
    import soundfile
    import soxr

    found = notes(options.soundfont)
    recordings = sorted({CHANNEL.sub("", note.name) for note in found})
    chosen = np.random.default_rng(0).permutation(len(recordings))[: round(options.val_share * len(recordings))]
    held_out = {recordings[place] for place in chosen}
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    (options.folder / "wav").mkdir(parents=True, exist_ok=True)
    for number, note in enumerate(found):
        wave = note.wave[: round(options.seconds * note.rate)].astype(np.float32) / 2**15
        if len(wave) < 0.1 * note.rate:
            continue
        wave = soxr.resample(wave, note.rate, options.sample_rate)
        file = options.folder / "wav" / f"{number:04}.wav"
        soundfile.write(file, wave, options.sample_rate, subtype="PCM_16")
        labels = {"family": FAMILIES[note.program // 8], "octave": note.key // 12 - 1, "pitch": PITCHES[note.key % 12]}
        rows["val" if CHANNEL.sub("", note.name) in held_out else "train"].append(
            {"file": f"wav/{file.name}", **labels}
        )
    for role, own in rows.items():
        write_list(options.folder / f"{role}.csv", own)


def write_melodies(options: argparse.Namespace) -> None:
    """Write files of several notes, and the lists that say which sounds when.

    Raises:
        FileNotFoundError: without the notes.
    """
    import soundfile

    rng = np.random.default_rng(0)
    (options.folder / "wav").mkdir(parents=True, exist_ok=True)
    for role, number in {"train": options.number, "val": options.number // 10}.items():
        known = read_list(options.notes / f"{role}.csv")
        waves = []
        for note in known:
            wave, rate = soundfile.read(options.notes / note.pop("file"), dtype="float32")
            waves.append(0.5 * wave / max(np.abs(wave).max(), 1e-6))
        rows, longest = [], round(options.seconds * rate)
        for name in (f"{role}{melody:05}.wav" for melody in range(number)):
            parts, at = [], 0
            while at < longest:
                chosen = rng.integers(len(waves))
                length = min(round(rng.uniform(0.2, 0.8) * rate), longest - at)
                part = waves[chosen][:length] * rng.uniform(0.5, 1.0)
                rows.append(
                    {"file": f"wav/{name}", "start": at / rate, "end": (at + len(part)) / rate, **known[chosen]}
                )
                parts.append(part)
                at += len(part)
            soundfile.write(options.folder / "wav" / name, np.concatenate(parts), rate, subtype="PCM_16")
        write_list(options.folder / f"{role}.csv", rows)


def read_list(path: Path) -> list[dict[str, Any]]:
    """The rows of a list of notes.

    Raises:
        FileNotFoundError: without it.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no {path.absolute()}: prepare the notes first")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- Words of texts --------------------------------------------------------------------------------------------------


def write_words(options: argparse.Namespace) -> None:
    """A tokenizer of transformers: pairs of bytes that are often side by side, as those of GPT-2 and RoBERTa."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    files = sorted(str(file) for file in options.root.iterdir() if file.is_file() and not file.suffix)
    if not files:
        raise FileNotFoundError(f"{options.root.absolute()} has no texts: apt install fortunes fortunes-min")
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    words.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train(files, trainers.BpeTrainer(vocab_size=options.size, special_tokens=special, initial_alphabet=alphabet))
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(options.folder)
    print(f"{options.folder}: {words.get_vocab_size()} words", flush=True)


# --- Speech ----------------------------------------------------------------------------------------------------------

# What is said in files of the same name in each language, by the names of Asterisk: 0 to 20, then 30 to 90.
NUMBERS = {
    "en": "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety",
    "es": "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis "
    "diecisiete dieciocho diecinueve veinte treinta cuarenta cincuenta sesenta setenta ochenta noventa",
    "fr": "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix-sept "
    "dix-huit dix-neuf vingt trente quarante cinquante soixante soixante-dix quatre-vingts quatre-vingt-dix",
    "it": "zero uno due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici sedici "
    "diciassette diciotto diciannove venti trenta quaranta cinquanta sessanta settanta ottanta novanta",
}
FILES = [*map(str, range(21)), *map(str, range(30, 100, 10))]
SPEAKERS = {  # folders of Asterisk's sounds: the language, and whether the speaker is held out
    "en_US_f_Allison": ("en", False),
    "es_MX_f_Allison": ("es", False),
    "fr_CA_f_June": ("fr", False),
    "it_IT_m_Carlo": ("it", False),
    "es": ("es", True),
    "fr": ("fr", True),
}


def spoken(share: Path) -> list[tuple[Path, str, str, bool]]:
    """Of each spoken number and letter its file, what is said, in which language, and whether it is held out."""
    found, sounds = [], share / "asterisk/sounds"
    for speaker, (language, held_out) in SPEAKERS.items():
        told = {f"digits/{name}": word for name, word in zip(FILES, NUMBERS[language].split(), strict=True)}
        told |= {f"letters/{letter}": letter for letter in "abcdefghijklmnopqrstuvwxyz"}
        for name, word in told.items():
            for file in (sounds / speaker / f"{name}.wav", sounds / speaker / f"{name}.gsm"):
                if file.exists():
                    found.append((file, word, language, held_out))
    for language in ("en", "en_GB", "es", "it"):
        for file in sorted((share / "klettres" / language / "alpha").glob("?.ogg")):
            if file.stem.lower() in "abcdefghijklmnopqrstuvwxyz":
                found.append((file, file.stem.lower(), language[:2], False))
    return found


def write_speech(options: argparse.Namespace) -> None:
    """Write the lists, and those sounds as wav files that only Asterisk's own format (GSM 06.10) has."""
    import soundfile

    folder: Path = options.folder
    (folder / "spoken").mkdir(parents=True, exist_ok=True)
    sounds = options.share / "asterisk/sounds"
    known = spoken(options.share)
    held_out = tuple(str(sounds / name) + "/" for name, (_, out) in SPEAKERS.items() if out)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("train", "val")}
    rows |= {f"spoken/{name}": [] for name in ("train", "val", "test")}
    places = sorted(
        file
        for name in ("asterisk/sounds", "klettres", "ktuberling/sounds", "tuxpaint/stamps")
        for file in (options.share / name).rglob("*")
        if file.suffix in (".wav", ".ogg") and not str(file).startswith(held_out) and "silence" not in file.parts
    )
    if not places or not any(out for *_, out in known):
        raise FileNotFoundError(f"{options.share.absolute()} lacks sounds of the packages that --help names")
    turns = np.random.default_rng(0).random(len(places))
    for file, turn in zip(places, turns, strict=True):
        rows["val" if turn < 0.03 else "train"].append({"file": str(file.absolute())})
    left = Counter(word for _, word, _, out in known if not out)
    for number, (file, word, language, out) in enumerate(known):
        path = file.absolute()
        if file.suffix == ".gsm":
            wave, rate = soundfile.read(file, samplerate=8000, channels=1, format="RAW", subtype="GSM610")
            path = (folder / f"{number:04}.wav").absolute()
            soundfile.write(path, wave, rate, subtype="PCM_16")
        role = "test" if out else "val" if number % 10 == 0 and left[word] > 1 else "train"
        left[word] -= role == "val"  # as training has every word
        rows[f"spoken/{role}"].append({"file": str(path), "word": word, "language": language})
    for role, own in rows.items():
        write_list(folder / f"{role}.csv", own)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read what is asked for, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(required=True)
    of_notes = kinds.add_parser("notes")
    of_notes.add_argument("--soundfont", type=Path, default=Path("/usr/share/sounds/sf2/FluidR3_GM.sf2"))
    of_notes.add_argument("--folder", type=Path, default=Path("data/notes"))
    of_notes.add_argument("--sample_rate", type=int, default=16_000)
    of_notes.add_argument("--seconds", type=float, default=2.0, help="of a note, from its start, at most")
    of_notes.add_argument("--val_share", type=float, default=0.25, help="of the recordings")
    of_notes.set_defaults(write=write_notes)
    of_melodies = kinds.add_parser("melodies")
    of_melodies.add_argument("--notes", type=Path, default=Path("data/notes"))
    of_melodies.add_argument("--folder", type=Path, default=Path("data/melodies"))
    of_melodies.add_argument("--number", type=int, default=3000, help="of melodies to learn from")
    of_melodies.add_argument("--seconds", type=float, default=2.0, help="of a melody")
    of_melodies.set_defaults(write=write_melodies)
    of_words = kinds.add_parser("words")
    of_words.add_argument("--root", type=Path, default=Path("/usr/share/games/fortunes"))
    of_words.add_argument("--folder", type=Path, default=Path("data/words"))
    of_words.add_argument("--size", type=int, default=4000, help="of the vocabulary")
    of_words.set_defaults(write=write_words)
    of_speech = kinds.add_parser("speech")
    of_speech.add_argument("--share", type=Path, default=Path("/usr/share"), help="that the packages are installed in")
    of_speech.add_argument("--folder", type=Path, default=Path("data/speech"))
    of_speech.set_defaults(write=write_speech)
    options = parser.parse_args(arguments)
    options.write(options)


if __name__ == "__main__":
    main()

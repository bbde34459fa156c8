"""Spoken numbers and letters, of speakers never heard: does pretraining on other speech help?

    python recipes/data2vec/prepare.py speech  # which says what to install
    python recipes/data2vec/spoken.py --method Data2Vec2 --seconds 1200 --seeds 0 1 2

For each seed it pretrains a small `WaveTransformer` on 400 minutes of speech, and trains it on with one linear layer to
spell what is said (connectionist temporal classification), beside the same network from scratch, both for
`--fine_tuning` processor seconds. A row of `results.csv` has the error rates on two speakers who are in no other list:
`letters`, the edit distance to what is said over its letters, of the most likely letter of each frame; and `words`, the
share of sounds for which another word of the language is more likely.

Nothing is fitted for `template`: a sound is the word of that sound of its language, of those to learn from, whose
frames are nearest when time is warped. Frames are those of the encoder, all blocks side by side, pretrained or not, or
`mel`, cepstra of a log-mel spectrogram. Needs the extras `audio` and `series`.

Source: wav2vec 2.0 (arXiv 2006.11477), section 3.3, for the fine-tuning; CTC: Graves et al. (ICML 2006); templates:
Sakoe and Chiba (IEEE Transactions on Acoustics, Speech, and Signal Processing, 1978).
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from aeon.distances import dtw_pairwise_distance
from learning import METHODS, SIZES, SMALL, add_row, assignment, fit, log_mel, steps_in
from torch import Tensor, nn

from jepa_lightning import WaveformDataModule
from jepa_lightning.modules.jepa import JEPA
from jepa_lightning.schedules import warmup_cosine

Frames = Callable[[dict[str, Any]], list[Tensor]]  # of a batch, those of each sound, `[N, D]`
RATE = 8000  # that of most of the sounds
FRONT = [[32, 10, 5], [64, 8, 4], [64, 4, 4], [64, 2, 2]]  # a token every 20 ms
BLANK = 0
BATCH = 16


def sounds(folder: Path) -> WaveformDataModule:
    """The sounds of a folder's lists, at most three seconds of each."""
    data = WaveformDataModule(
        str(folder), "csv", sample_rate=RATE, max_seconds=3.0, batch_size=BATCH, num_workers=0, max_faulty=0.2
    )
    data.setup()
    return data


def build(options: argparse.Namespace) -> JEPA:
    """The method, untrained."""
    masks = options.method == "Data2Vec"
    sizes = SIZES | {"num_steps": 3 * RATE, "convolutions": FRONT, "mask_token": masks, "alibi": not masks}
    positions = {"position_kernel": 9, "position_groups": 8, "position_depth": 2}
    encoder = {"class_path": "jepa_lightning.networks.WaveTransformer", "init_args": sizes | positions}
    given = SMALL[options.method]["sound"] | {"encoder": encoder, "lr": 1e-3, "weight_decay": (0.01, 0.01)}
    module: JEPA = METHODS[options.method](**given | options.set)
    return module


# --- Spelling --------------------------------------------------------------------------------------------------------


class Speller(nn.Module):
    """An encoder, and of each of its tokens how likely each letter is.

    Args:
        encoder: a `WaveTransformer`.
        words: those that are said in training, by the number of their class.
        languages: of each language, by its class, the classes of its words.
    """

    def __init__(self, encoder: Any, words: Sequence[str], languages: dict[int, list[int]]) -> None:
        super().__init__()
        self.encoder, self.languages = encoder, languages
        self.letters = sorted(set("".join(words)))
        self.head = nn.Linear(encoder.embed_dim, 1 + len(self.letters))
        number = {letter: place for place, letter in enumerate(self.letters, 1)}
        self.spelled = [torch.tensor([number[letter] for letter in word]) for word in words]

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Logarithms of probabilities `[B, N, letters]`, and how many tokens there are of each sound, `[B]`."""
        wave, valid = heard(self.encoder, batch)
        logits = self.head(self.encoder(wave, valid=valid))
        return F.log_softmax(logits, -1), valid.sum(1)

    def losses(self, likely: Tensor, lengths: Tensor, words: Sequence[int]) -> Tensor:
        """How unlikely each word is, `[B]`."""
        spelled = [self.spelled[word] for word in words]
        sizes = torch.tensor([len(each) for each in spelled])
        return F.ctc_loss(likely.transpose(0, 1), torch.cat(spelled), lengths, sizes, BLANK, reduction="none")


def heard(encoder: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Waves, zero where they have ended, and which tokens there are."""
    return batch["wave"].masked_fill(~batch["valid"].unsqueeze(-1), 0.0), encoder.patch_embed.valid(batch["valid"])


def endless(data: WaveformDataModule) -> Iterator[dict[str, Any]]:
    """Training batches, epoch after epoch."""
    while True:
        yield from data.train_dataloader()


def train(speller: Speller, data: WaveformDataModule, options: argparse.Namespace) -> dict[str, float]:
    """Train for so many processor seconds."""
    began, batches_of = time.process_time(), endless(data)
    optimizer = torch.optim.AdamW(speller.parameters(), lr=options.lr, weight_decay=0.01)
    spent, steps = 0.0, 0
    speller.train()
    while spent < options.fine_tuning:
        batch = next(batches_of)
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(int(1000 * spent / options.fine_tuning), 1000, 100, 0.0, options.lr, 0.0)
        loss = speller.losses(*speller(batch), batch["word"].tolist())
        optimizer.zero_grad()
        loss.mean().backward()
        nn.utils.clip_grad_norm_(speller.parameters(), 1.0)
        optimizer.step()
        spent, steps = time.process_time() - began, steps + 1
    return {"steps": steps, "ctc": loss.mean().item()}


def distance(found: Sequence[int], said: Sequence[int]) -> int:
    """Insertions, deletions and changes from one to the other (Levenshtein).

    >>> distance([1, 2, 3], [2, 3, 3])
    2
    """
    row = list(range(len(said) + 1))
    for place, letter in enumerate(found, 1):
        above, row[0] = row[0], place
        for column, other in enumerate(said, 1):
            above, row[column] = row[column], min(above + (letter != other), row[column] + 1, row[column - 1] + 1)
    return row[-1]


@torch.no_grad()
def errors(speller: Speller, loader: Any) -> dict[str, float]:
    """The error rates of letters and words."""
    speller.eval()
    wrong = letters = missed = count = 0
    for batch in loader:
        likely, lengths = speller(batch)
        columns = (lengths.tolist(), batch["word"].tolist(), batch["language"].tolist())
        for row, length, word, language in zip(likely, *columns, strict=True):
            best = torch.unique_consecutive(row[:length].argmax(-1))
            said = speller.spelled[word].tolist()
            wrong += distance(best[best != BLANK].tolist(), said)
            others = speller.languages[language]
            several = row.expand(len(others), -1, -1)
            scores = speller.losses(several, torch.full((len(several),), length), others)
            missed += others[int(scores.argmin())] != word
            letters, count = letters + len(said), count + 1
    return {"letters": wrong / letters, "words": missed / count}


# --- Templates -------------------------------------------------------------------------------------------------------


def of_encoder(encoder: Any) -> Frames:
    """The tokens after each block, side by side."""

    @torch.no_grad()
    def frames(batch: dict[str, Any]) -> list[Tensor]:
        wave, valid = heard(encoder.eval(), batch)
        tokens, grid = encoder.tokens(wave), encoder.grid_of(wave)
        values = torch.cat(encoder.layers(tokens, range(encoder.depth), valid=valid, grid=grid), -1)
        return [value[there] for value, there in zip(values, valid, strict=True)]

    return frames


def cepstra(batch: dict[str, Any]) -> list[Tensor]:
    """Twelve cepstra of 40 mel bands every 10 ms, without the one of loudness."""
    order, band = torch.arange(1, 13).unsqueeze(1), torch.arange(40)
    cosines = torch.cos(torch.pi / 40 * order * (band + 0.5))
    waves = zip(batch["wave"].squeeze(-1), batch["valid"], strict=True)
    return [(cosines @ log_mel(wave[there][None], RATE, 40)[0]).T for wave, there in waves]


def template_errors(frames: Frames, known: Any, asked: Any) -> float:
    """The share of sounds for which the nearest known one of their language says another word."""
    parts = []
    for loader in (known, asked):
        sounds, words, languages = [], [], []
        for batch in loader:
            for each in frames(batch):  # each number alike over the sound, and each frame of the same length
                scaled = (each - each.mean(0)) / (each.std(0) + 1e-5)
                sounds.append(F.normalize(scaled, dim=-1).T.double().numpy())
            words += batch["word"].tolist()
            languages += batch["language"].tolist()
        parts.append((sounds, words, languages))
    (templates, said, said_in), (sounds, words, languages) = parts
    wrong = 0
    for sound, word, language in zip(sounds, words, languages, strict=True):
        own = [number for number, each in enumerate(said_in) if each == language]
        far = dtw_pairwise_distance([sound], [templates[number] for number in own])[0]
        far /= [sound.shape[1] + templates[number].shape[1] for number in own]
        wrong += said[own[int(far.argmin())]] != word
    return wrong / len(sounds)


# --- The runs --------------------------------------------------------------------------------------------------------


def run(
    options: argparse.Namespace, speech: WaveformDataModule, spoken: WaveformDataModule, seed: int
) -> dict[str, Any]:
    """The row of a seed."""
    pl.seed_everything(seed, verbose=False)
    module: Any = build(options)
    scratch = copy.deepcopy(module.context_encoder)
    steps = options.steps or steps_in(module, speech, options.seconds)
    row: dict[str, Any] = {
        "method": options.method,
        "set": json.dumps(options.set) if options.set else "",
        "seed": seed,
    }
    row |= fit(module, speech, steps)
    languages: dict[int, set[int]] = {}
    for batch in spoken.train_dataloader():
        for word, language in zip(batch["word"].tolist(), batch["language"].tolist(), strict=True):
            languages.setdefault(language, set()).add(word)
    several = {"mel": cepstra, "pretrained": of_encoder(module.context_encoder), "scratch": of_encoder(scratch)}
    for name, frames in several.items():
        wrong = template_errors(frames, spoken.train_dataloader(), spoken.test_dataloader())
        row |= {f"test template, {name}": wrong}
    for name, encoder in (("pretrained", module.context_encoder), ("scratch", scratch)):
        torch.manual_seed(seed)
        speller = Speller(encoder, spoken.classes["word"], {each: sorted(words) for each, words in languages.items()})
        row |= {f"{key}, {name}": value for key, value in train(speller, spoken, options).items()}
        for role, loader in (("val", spoken.val_dataloader()), ("test", spoken.test_dataloader())):
            row |= {f"{role} {key}, {name}": value for key, value in errors(speller, loader).items()}
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Pretrain, fine-tune, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=["Data2Vec", "Data2Vec2"], default="Data2Vec")
    parser.add_argument("--seconds", type=float, default=1200.0, help="of a processor, that pretraining takes")
    parser.add_argument("--steps", type=int, help="of pretraining, instead of its seconds")
    parser.add_argument("--fine_tuning", type=float, default=300.0, help="processor seconds, of each of both")
    parser.add_argument("--lr", type=float, default=1e-3, help="of the fine-tuning")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--set", nargs="+", type=assignment, default=[], help="options of the method, name=value")
    parser.add_argument("--speech", type=Path, default=Path("data/speech"))
    parser.add_argument("--folder", type=Path, default=Path("runs/spoken"))
    options = parser.parse_args(arguments)
    options.set = dict(options.set)
    options.folder.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", message=".*num_workers.*")
    speech, spoken = sounds(options.speech), sounds(options.speech / "spoken")
    for seed in options.seeds:
        row = run(options, speech, spoken, seed)
        add_row(options.folder / "results.csv", row)
        shown = ", ".join(f"{key} {value:.3g}" for key, value in row.items() if isinstance(value, float))
        print(f"{options.method}, seed {seed}: {row['steps']} steps, {shown}", flush=True)


if __name__ == "__main__":
    main()

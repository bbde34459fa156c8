"""Spoken numbers and letters, of speakers never heard: does pretraining on other speech help?

    python recipes/data2vec/prepare.py speech  # which says what to install
    python recipes/data2vec/spoken.py --method Data2Vec2 --seconds 1200 --seeds 0 1 2

For each seed it pretrains a small `WaveTransformer` on 400 minutes of speech, and trains it on with one linear layer to
spell what is said (connectionist temporal classification), beside the same network from scratch, both for
`--fine_tuning` processor seconds. A row of `results.csv` has the error rates on two speakers who are in no other list:
`letters`, the edit distance to what is said over its letters, of the most likely letter of each frame; and `words`, the
share of sounds for which another of the words is more likely. Needs the extra `audio`.

Source: wav2vec 2.0 (arXiv 2006.11477), section 3.3, for the fine-tuning; CTC: Graves et al. (ICML 2006).
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from learning import METHODS, SIZES, SMALL, add_row, assignment, fit, steps_in
from torch import Tensor, nn

from jepa_lightning import WaveformDataModule
from jepa_lightning.modules.jepa import JEPA
from jepa_lightning.schedules import warmup_cosine

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


class Speller(nn.Module):
    """An encoder, and of each of its tokens how likely each letter is.

    Args:
        encoder: a `WaveTransformer`.
        words: those that are said in training, by the number of their class.
    """

    def __init__(self, encoder: Any, words: Sequence[str]) -> None:
        super().__init__()
        self.encoder, self.words = encoder, list(words)
        self.letters = sorted(set("".join(words)))
        self.head = nn.Linear(encoder.embed_dim, 1 + len(self.letters))
        number = {letter: place for place, letter in enumerate(self.letters, 1)}
        self.spelled = [torch.tensor([number[letter] for letter in word]) for word in words]

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Logarithms of probabilities `[B, N, letters]`, and how many tokens there are of each sound, `[B]`."""
        valid = self.encoder.patch_embed.valid(batch["valid"])
        wave = batch["wave"].masked_fill(~batch["valid"].unsqueeze(-1), 0.0)
        logits = self.head(self.encoder(wave, valid=valid))
        return F.log_softmax(logits, -1), valid.sum(1)

    def losses(self, likely: Tensor, lengths: Tensor, words: Sequence[int]) -> Tensor:
        """How unlikely each word is, `[B]`."""
        spelled = [self.spelled[word] for word in words]
        sizes = torch.tensor([len(each) for each in spelled])
        return F.ctc_loss(likely.transpose(0, 1), torch.cat(spelled), lengths, sizes, BLANK, reduction="none")


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
        for row, length, word in zip(likely, lengths.tolist(), batch["word"].tolist(), strict=True):
            best = torch.unique_consecutive(row[:length].argmax(-1))
            said = speller.spelled[word].tolist()
            wrong += distance(best[best != BLANK].tolist(), said)
            several = row.expand(len(speller.words), -1, -1)
            scores = speller.losses(several, torch.full((len(several),), length), range(len(several)))
            missed += int(scores.argmin()) != word
            letters, count = letters + len(said), count + 1
    return {"letters": wrong / letters, "words": missed / count}


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
    for name, encoder in (("pretrained", module.context_encoder), ("scratch", scratch)):
        torch.manual_seed(seed)
        speller = Speller(encoder, spoken.classes["word"])
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

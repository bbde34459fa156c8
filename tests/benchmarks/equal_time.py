"""What a method has learned after so many processor seconds: the curves of its probes, beside other libraries'.

    OMP_NUM_THREADS=1 python tests/benchmarks/equal_time.py --seconds 400 --readings 5 \
        "recipes/ijepa/fashion_mnist.yaml" "recipes/ijepa/fashion_mnist.yaml --model.regularizers null"

Each contender is a recipe with the options of `jepa fit`. With `--rivals` train stable-pretraining's I-JEPA and
lightly's parts too, where they are installed (the extra `benchmark`), with the sizes, schedules and data of the first
contender; lightly's masks do not fit a grid of 4x4 tokens. All train in one loop: batches of
images that lie in memory, AdamW, and the recipe's schedules laid out over the seconds. Only steps count, not data and
evaluation. Each reading encodes training and held-out images by the teacher, standardises them by the training images',
and prints the vote of the 20 nearest of these and a logistic regression: by the mean over tokens, and before the first
and after the last step by two other readings too, the means of the last four blocks side by side, which I-JEPA's paper
reads, and all tokens side by side.

The seconds of one machine are not those of another: the first line has the rate of its matrix products, and `--steps`
gives everyone so many steps instead.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.util
import math
import shlex
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from step import matmul_rate
from torch import Tensor, nn

from jepa_lightning.callbacks.probes import vote
from jepa_lightning.cli import JEPACLI, EvaluatingTrainer
from jepa_lightning.draws import Rng
from jepa_lightning.schedules import cosine

LAID_OUT = 10_000  # steps that schedules are computed for, of which the progress takes a share


class Idle(EvaluatingTrainer):
    """Trains nothing: the loop is here."""

    def fit(self, *_: Any, **options: Any) -> None:
        """Nothing."""


def recipe(line: str, seed: int) -> tuple[Any, Any]:
    """Module and data of a recipe with options."""
    options: dict[str, Any] = {"subclass_mode_model": True, "subclass_mode_data": True, "save_config_callback": None}
    arguments = ["fit", "--config", *shlex.split(line), f"--seed_everything={seed}"]
    cli = JEPACLI(pl.LightningModule, pl.LightningDataModule, trainer_class=Idle, args=arguments, **options)
    return cli.model, cli.datamodule


class Images(NamedTuple):
    """Images `[N, C, H, W]` and their classes `[N]`."""

    values: Tensor
    labels: Tensor


class Ours:
    """A module of ours, by a recipe."""

    def __init__(self, module: Any, batch_size: int) -> None:
        self.module, self.batch_size, self.step = module.train(), batch_size, 0

    def groups(self) -> list[dict[str, Any]]:
        groups = self.module.parameter_groups(self.module.hparams.weight_decay[0])
        return [{name: value for name, value in group.items() if name != "multiplier"} for group in groups]

    def loss(self, x: Tensor) -> Tensor:
        rng = Rng(torch.initial_seed(), len(x), 0, self.step, 0, 1, x.device)
        self.step += 1
        loss: Tensor = self.module.loss(self.module.latents(x, self.module.draw(x, rng)))["loss"]
        return loss

    def move_teacher(self, progress: float) -> None:
        for each in self.module.teachers():
            student, teacher = self.module.get_submodule(each.student), self.module.get_submodule(each.teacher)
            by = 1 - each.momentum(round(progress * LAID_OUT), LAID_OUT)
            torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), by)

    def encode(self, x: Tensor) -> Tensor:
        """The teacher's tokens, `[B, N, D]`."""
        tokens: Tensor = self.module.target_encoder(x)
        return tokens

    @property
    def blocks(self) -> Any:
        """The teacher's."""
        return self.module.target_encoder.blocks


class Rival(Ours):
    """Networks of another library, of the sizes of a module of ours, whose schedules they train by."""

    networks: Any

    def groups(self) -> list[dict[str, Any]]:
        trained = [parameter for parameter in self.networks.parameters() if parameter.requires_grad]
        decay = self.module.hparams.weight_decay[0]
        return [
            {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": decay},
            {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
        ]


def timm_vit(hparams: Any) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        hparams.image_size,
        hparams.patch_size,
        hparams.in_channels,
        embed_dim=hparams.embed_dim,
        depth=hparams.depth,
        num_heads=hparams.num_heads,
        class_token=False,
        global_pool="",
        num_classes=0,
    )


class StablePretraining(Rival):
    """stable-pretraining's I-JEPA."""

    def __init__(self, module: Any, batch_size: int) -> None:
        super().__init__(module, batch_size)
        hparams, methods = module.hparams, importlib.import_module("stable_pretraining.methods.ijepa")
        start, end = hparams.momentum
        self.networks = methods.IJEPA(
            timm_vit(hparams),
            hparams.predictor_embed_dim,
            hparams.predictor_depth,
            ema_decay_start=start,
            ema_decay_end=end,
        ).train()

    def loss(self, x: Tensor) -> Tensor:
        loss: Tensor = self.networks(x).loss
        return loss

    def move_teacher(self, progress: float) -> None:
        self.networks.encoder.update_teacher()
        self.networks.encoder.update_ema_coefficient(round(progress * LAID_OUT), LAID_OUT)

    def encode(self, x: Tensor) -> Tensor:
        encoded: Tensor = self.networks.encoder.teacher.eval()(x).encoded
        return encoded

    @property
    def blocks(self) -> Any:
        return self.networks.encoder.teacher.vit.blocks


class Lightly(Rival):
    """lightly's parts, put together as I-JEPA is; its masks are cut to the numbers of tokens of ours."""

    def __init__(self, module: Any, batch_size: int) -> None:
        super().__init__(module, batch_size)
        hparams, masking = module.hparams, module.masking
        modules, data = importlib.import_module("lightly.models.modules"), importlib.import_module("lightly.data")
        utils = importlib.import_module("lightly.models.utils")
        self.apply_masks, self.update_momentum = utils.apply_masks, utils.update_momentum
        self.counts = [masks.shape[-1] for masks in masking(1, module.grid)]
        scales = (masking.context_scale, masking.target_scale, masking.target_aspect)
        self.collator = data.IJEPAMaskCollator(
            hparams.image_size, hparams.patch_size, *scales, npred=masking.num_targets, min_keep=0
        )
        network: Any = nn.Module()
        network.context_encoder = modules.MaskedVisionTransformerTIMM(timm_vit(hparams))
        network.target_encoder = copy.deepcopy(network.context_encoder).requires_grad_(False)
        heads = hparams.predictor_num_heads or hparams.num_heads
        sizes = (hparams.predictor_depth, hparams.embed_dim, hparams.predictor_embed_dim, heads)
        network.predictor = modules.IJEPAPredictorTIMM(math.prod(module.grid), *sizes)
        self.networks = network.train()

    def loss(self, x: Tensor) -> Tensor:
        _, seen, hidden = self.collator([torch.zeros(())] * len(x))  # the batch is there already
        seen, hidden = (
            [mask[:, :count] for mask in masks] for masks, count in zip((seen, hidden), self.counts, strict=True)
        )
        with torch.no_grad():
            features = self.networks.target_encoder.encode(x)
            target = self.apply_masks(F.layer_norm(features, features.shape[-1:]), hidden)
        context = self.networks.context_encoder.encode(x, idx_keep=seen[0])
        return F.smooth_l1_loss(self.networks.predictor(context, seen, hidden), target)

    def move_teacher(self, progress: float) -> None:
        start, end = self.module.hparams.momentum
        momentum = start + (end - start) * progress
        self.update_momentum(self.networks.context_encoder, self.networks.target_encoder, momentum)

    def encode(self, x: Tensor) -> Tensor:
        encoded: Tensor = self.networks.target_encoder.encode(x)
        return encoded

    @property
    def blocks(self) -> Any:
        return self.networks.target_encoder.vit.blocks


RIVALS: dict[str, type[Rival]] = {"stable_pretraining": StablePretraining, "lightly": Lightly}


def in_memory(loader: Any) -> Images:
    """Everything that a loader gives in an epoch."""
    parts = [(batch[0], batch[1]) for batch in loader]
    return Images(*(torch.cat(part) for part in zip(*parts, strict=True)))


def read(features: Callable[[Tensor], Tensor], train: Images, held_out: Images) -> str:
    """Accuracies of the nearest neighbours and of a logistic regression, by vectors `[B, D]`."""
    with torch.no_grad():
        bank, queries = (torch.cat([features(x) for x in part.values.split(500)]) for part in (train, held_out))
    mean, std = bank.mean(0), bank.std(0) + 1e-6
    bank, queries = (bank - mean) / std, (queries - mean) / std
    classes = int(train.labels.max()) + 1
    normed = F.normalize(bank, dim=1)
    voted = torch.cat(
        [vote(F.normalize(part, dim=1), normed, train.labels, 20, 0.07, classes) for part in queries.split(500)]
    )
    regression = nn.Linear(bank.shape[1], classes)
    nn.init.zeros_(regression.weight)
    optimizer = torch.optim.LBFGS(regression.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(regression(bank), train.labels) + 1e-5 * regression.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    answers = {"kNN": voted, "linear": regression(queries).argmax(1)}
    return ", ".join(
        f"{name} {100 * (answer == held_out.labels).float().mean():.1f}" for name, answer in answers.items()
    )


def mean_token(contender: Ours, x: Tensor) -> Tensor:
    """Of the last block, `[B, D]`."""
    return contender.encode(x).mean(1)


def last_blocks(contender: Ours, x: Tensor) -> Tensor:
    """The mean tokens of the last four blocks, `[B, 4 * D]`."""
    means: list[Tensor] = []
    keep = [each.register_forward_hook(lambda *call: means.append(call[-1].mean(1))) for each in contender.blocks[-4:]]
    contender.encode(x)
    for hook in keep:
        hook.remove()
    return torch.cat(means, 1)


def all_tokens(contender: Ours, x: Tensor) -> Tensor:
    """Side by side, `[B, N * D]`."""
    return contender.encode(x).flatten(1)


def read_each_way(contender: Ours, train: Images, held_out: Images) -> str:
    """Accuracies by each of the readings."""
    ways = {"mean token": mean_token, "last four blocks": last_blocks, "all tokens": all_tokens}
    return "; ".join(f"{name} {read(partial(way, contender), train, held_out)}" for name, way in ways.items())


def run(name: str, contender: Ours, train: Images, held_out: Images, arguments: argparse.Namespace) -> None:
    """Train, and print a line at each reading."""
    hparams = contender.module.hparams
    optimizer = torch.optim.AdamW(contender.groups(), lr=hparams.lr, fused=True)
    decayed = [group["weight_decay"] > 0 for group in optimizer.param_groups]
    order: list[Tensor] = []
    used, steps, done = 0.0, 0, 0
    while done < arguments.readings:
        if not order:
            order = [part for part in torch.randperm(len(train.values)).split(contender.batch_size)][:-1]
        x = train.values[order.pop()]
        progress = steps / arguments.steps if arguments.steps else min(1.0, used / arguments.seconds)
        begin = time.process_time()
        for group, decays in zip(optimizer.param_groups, decayed, strict=True):
            group["lr"] = contender.module.learning_rate(round(progress * LAID_OUT) + 1, LAID_OUT)
            group["weight_decay"] = cosine(progress, 1.0, *hparams.weight_decay) if decays else 0.0
        optimizer.zero_grad()
        contender.loss(x).backward()
        optimizer.step()
        with torch.no_grad():
            contender.move_teacher(progress)
        used, steps = used + time.process_time() - begin, steps + 1
        progress = steps / arguments.steps if arguments.steps else used / arguments.seconds
        if progress >= (done + 1) / arguments.readings:
            done += 1
            if done == arguments.readings:
                reading = read_each_way(contender, train, held_out)
            else:
                reading = f"mean token {read(partial(mean_token, contender), train, held_out)}"
            print(f"{name}: {used:.0f} s, {steps:,} steps, {reading}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contenders", nargs="*", default=["recipes/ijepa/fashion_mnist.yaml"])
    parser.add_argument("--rivals", nargs="*", default=[], choices=RIVALS, help="other libraries' parts")
    parser.add_argument("--seconds", type=float, default=400.0, help="processor seconds of steps")
    parser.add_argument("--steps", type=int, help="that many steps instead")
    parser.add_argument("--readings", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rate = matmul_rate(argparse.Namespace(device="cpu", precision="32"))
    print(
        f"torch {torch.__version__}, {arguments.threads} threads, matrix products {rate / 1e9:.0f} GFLOP/s", flush=True
    )
    lines = [(line, seed) for seed in arguments.seeds for line in [*arguments.contenders, *arguments.rivals]]
    # All before the first rival is imported: stable-pretraining changes the command line's classes.
    recipes = [recipe(arguments.contenders[0] if line in RIVALS else line, seed) for line, seed in lines]
    _, data = recipes[0]
    data.prepare_data()
    data.setup("fit")
    train, held_out = in_memory(data.train_dataloader()), in_memory(data.val_dataloader())
    print(f"raw input: {read(lambda x: x.flatten(1), train, held_out)}", flush=True)
    for (line, seed), (module, data) in zip(lines, recipes, strict=True):
        ours = line not in RIVALS
        if ours and seed == arguments.seeds[0]:
            print(f"{line}: untrained, {read_each_way(Ours(module, 1), train, held_out)}", flush=True)
        torch.manual_seed(seed)
        contender = Ours(module, data.batch_size) if ours else RIVALS[line](module, data.batch_size)
        run(f"{line}, seed {seed}", contender, train, held_out, arguments)


if __name__ == "__main__":
    main()

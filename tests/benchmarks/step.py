"""The time of a training step and of its parts, beside the same step written with other libraries and by the book.

    python tests/benchmarks/step.py --method ijepa --size small --image-size 224 --batch-size 16 --rounds 8

Our step is the module's own in a Trainer, with the teacher's callback, logging and, with `--monitor`,
`CollapseMonitor`; the data are random and in memory. Beside it run, step by step in turn, `textbook.py` and, for
I-JEPA, lightly's parts and stable-pretraining's method, where they are installed (the extra `benchmark`), all with the
same sizes, batch and optimiser. lightly's masks are cut to the numbers of tokens of ours. stable-pretraining's cannot
be: it hides the same tokens of all images, and predicts all blocks in one pass, which is less work; `GFLOP` tells.

Printed are medians over the rounds: on a processor, of the processor time of all threads, since wall time would count
what else the machine does; on a GPU, between CUDA events. FLOPs are those of matrix products and convolutions, and are
held against the fastest of a few square products in the same run. Peak memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import logging
import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from textbook import Textbook
from textbook_data2vec import Data2VecTextbook
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from jepa_lightning import IJEPA, VJEPA, VJEPA2, Data2Vec
from jepa_lightning.callbacks import CollapseMonitor, EMATargetEncoder
from jepa_lightning.draws import Rng
from jepa_lightning.networks.linear import linear

METHODS: dict[str, type[Any]] = {"ijepa": IJEPA, "vjepa": VJEPA, "vjepa2": VJEPA2, "data2vec": Data2Vec}
IMAGES = ("ijepa", "data2vec")  # methods of images; the others', of clips
SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}  # D, depth, heads
PATCH, FRAMES, TUBELET, WIDTH = 16, 16, 2, 384  # of all sizes; the last is the predictor's
WARM_UP = 2
MOMENTUM = 0.996
PARTS = ("data", "masks", "target", "context", "predictor", "backward", "optimiser", "teacher", "callbacks", "rest")


class Lap(NamedTuple):
    """A step, measured.

    Attributes:
        parts: seconds by part.
        wall: seconds of wall time.
        graphs: what `torch.compile` compiled meanwhile.
    """

    parts: dict[str, float]
    wall: float
    graphs: int

    @property
    def step(self) -> float:
        """Seconds of the whole step."""
        return sum(self.parts.values())


class Clock:
    """Takes the times of the parts of a step: processor time, or that between CUDA events."""

    def __init__(self, device: str) -> None:
        self.device = device

    def _now(self) -> Any:
        if self.device == "cpu":
            return time.process_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def start(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.graphs, self.wall = counters["stats"]["unique_graphs"], time.perf_counter()
        self.marks = [("", self._now())]

    def lap(self, part: str) -> None:
        """What has passed since the last mark belongs to a part."""
        self.marks.append((part, self._now()))

    def stop(self) -> Lap:
        if self.device == "cuda":
            torch.cuda.synchronize()
        parts: dict[str, float] = defaultdict(float)
        for (_, before), (part, after) in zip(self.marks, self.marks[1:], strict=False):
            parts[part] += after - before if self.device == "cpu" else before.elapsed_time(after) / 1e3
        return Lap(parts, time.perf_counter() - self.wall, counters["stats"]["unique_graphs"] - self.graphs)


# --- Our step --------------------------------------------------------------------------------------------------------


def our_module(arguments: argparse.Namespace) -> Any:
    dim, depth, heads = SIZES[arguments.size]
    options: dict[str, Any] = {"embed_dim": dim, "depth": depth, "num_heads": heads}
    if arguments.method != "data2vec":
        options["predictor_embed_dim"] = WIDTH
    if arguments.method == "ijepa":
        options["predictor_depth"] = 6 if depth == 12 else 12
    elif arguments.method not in IMAGES:
        options |= {"num_frames": FRAMES, "tubelet_size": TUBELET}
    momentum = (MOMENTUM, MOMENTUM)
    return METHODS[arguments.method](image_size=arguments.image_size, patch_size=PATCH, momentum=momentum, **options)


class TimedTeacher(EMATargetEncoder):
    def __init__(self, clock: Clock) -> None:
        super().__init__((MOMENTUM, MOMENTUM))
        self.clock = clock

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.clock.lap("rest")
        super().on_train_batch_end(*arguments)
        self.clock.lap("teacher")


class TimedMonitor(CollapseMonitor):
    def __init__(self, clock: Clock) -> None:
        super().__init__(min_rank=0.0, max_cosine=2.0)  # noise over and over may well collapse
        self.clock = clock

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.clock.lap("rest")
        super().on_train_batch_end(*arguments)
        self.clock.lap("callbacks")


class Laps(pl.Callback):
    """Marks the parts of the module's step."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def _timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            self.clock.lap("rest")
            result = call(*arguments, **options)
            self.clock.lap(part)
            return result

        return timed

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.draw = self._timed("masks", pl_module.draw)
        for part, network, name in called(pl_module):
            setattr(network, name, self._timed(part, getattr(network, name)))
        trainer.optimizers[0].register_step_post_hook(lambda *_: self.clock.lap("optimiser"))

    def on_train_batch_start(self, *_: Any) -> None:
        self.clock.lap("data")

    def on_before_backward(self, *_: Any) -> None:
        self.clock.lap("rest")

    def on_after_backward(self, *_: Any) -> None:
        self.clock.lap("backward")

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.clock.lap("rest")


def networks(module: Any) -> dict[str, Any]:
    return {"target": module.target_encoder, "context": module.context_encoder, "predictor": module.predictor}


def called(module: Any) -> list[tuple[str, Any, str]]:
    """Of each network the part of the step that it is, and the method that a step calls."""
    methods = {"target": "outputs", "context": "encode"} if isinstance(module, Data2Vec) else {}
    return [(part, network, methods.get(part, "forward")) for part, network in networks(module).items()]


# --- The others' -----------------------------------------------------------------------------------------------------


class Rival:
    """A step without a Trainer: subclasses make `networks`, and give the loss and what moves the teacher."""

    networks: Any

    def __init__(self, arguments: argparse.Namespace, ours: Any) -> None:
        self.device, self.bf16 = arguments.device, arguments.precision == "bf16"
        self.make(arguments, ours)
        self.networks.to(self.device).train()
        if arguments.compile:
            self.compile()
        parameters = [parameter for parameter in self.networks.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.04)

    def __call__(self, batch: Tensor, clock: Clock) -> None:
        x = batch.to(self.device)
        clock.lap("data")
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            loss = self.loss(x, clock)
        self.optimizer.zero_grad()
        clock.lap("rest")
        loss.backward()
        clock.lap("backward")
        self.optimizer.step()
        clock.lap("optimiser")
        self.move_teacher()
        clock.lap("teacher")

    def make(self, arguments: argparse.Namespace, ours: Any) -> None:
        raise NotImplementedError

    def compile(self) -> None:
        for network in networks(self.networks).values():
            network.forward = torch.compile(network.forward)

    def loss(self, x: Tensor, clock: Clock) -> Tensor:
        raise NotImplementedError

    def move_teacher(self) -> None:
        raise NotImplementedError


class TextbookStep(Rival):
    """By the book, with the weights of ours."""

    def make(self, arguments: argparse.Namespace, ours: Any) -> None:
        dim, depth, heads = SIZES[arguments.size]
        clips, rotary = arguments.method != "ijepa", arguments.method == "vjepa2"
        grid = ours.context_encoder.grid
        kinds = []
        for masking in ours.masking if clips else []:
            kinds.append((masking.num_blocks, masking.spatial_scale[0], *masking.token_counts(grid)))
        self.networks = Textbook(
            {
                "patch": (TUBELET, PATCH, PATCH) if clips else (PATCH, PATCH),
                "grid": grid,
                "dim": dim,
                "depth": depth,
                "num_heads": heads,
                "rotary": rotary,
            },
            {
                "depth": len(ours.predictor.predictor_blocks),
                "num_heads": ours.predictor.predictor_blocks[0].attn.num_heads,
            },
            WIDTH,
            kinds,
            F.l1_loss if clips else F.smooth_l1_loss,
        )
        self.networks.load_state_dict(ours.state_dict())

    def loss(self, x: Tensor, clock: Clock) -> Tensor:
        drawn = self.networks.masks(len(x))
        clock.lap("masks")
        return self.loss_of(x, drawn, clock)

    def loss_of(self, x: Tensor, drawn: Any, clock: Clock) -> Tensor:
        """The loss of our masks, or of its own."""
        module = self.networks
        features = module.targets(x)
        clock.lap("target")
        losses = []
        for kind, masks in enumerate(drawn if isinstance(drawn, list) else [drawn]):
            seen, hidden = (part.to(x.device) for part in masks)
            context = module.context_encoder(x, seen)
            clock.lap("context")
            prediction = module.predictions(context, seen, hidden, kind)
            clock.lap("predictor")
            losses.append(module.loss(prediction, features, hidden))
        return sum(losses[1:], losses[0]) / len(losses)

    def move_teacher(self) -> None:
        self.networks.move_teacher(MOMENTUM)


class Data2VecStep(TextbookStep):
    """The same of data2vec."""

    def make(self, arguments: argparse.Namespace, ours: Any) -> None:
        dim, depth, heads = SIZES[arguments.size]
        hparams, grid = ours.hparams, ours.context_encoder.grid
        hidden = ours.masking(1, grid).targets.shape[-1]
        self.networks = Data2VecTextbook(PATCH, grid, dim, depth, heads, hparams.num_layers, hidden, hparams.beta)
        self.networks.load_state_dict(ours.state_dict())

    def loss_of(self, x: Tensor, drawn: Any, clock: Clock) -> Tensor:
        module = self.networks
        hidden = (drawn if isinstance(drawn, Tensor) else drawn.targets[:, 0]).to(x.device)
        features = module.targets(x)
        clock.lap("target")
        covered = torch.zeros(features.shape[:2], dtype=torch.bool, device=x.device).scatter(1, hidden, True)
        context, _ = module.context_encoder(x, covered)
        clock.lap("context")
        prediction = module.predictor(context)
        clock.lap("predictor")
        return module.loss(prediction, features, hidden)


def timm_vit(arguments: argparse.Namespace) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    dim, depth, heads = SIZES[arguments.size]
    sizes: dict[str, Any] = {"embed_dim": dim, "depth": depth, "num_heads": heads}
    return VisionTransformer(arguments.image_size, PATCH, class_token=False, global_pool="", num_classes=0, **sizes)


class LightlyStep(Rival):
    """lightly's parts, put together as I-JEPA is: its ViT needs one without class token, or masks are off by one."""

    def make(self, arguments: argparse.Namespace, ours: Any) -> None:
        modules, data = importlib.import_module("lightly.models.modules"), importlib.import_module("lightly.data")
        utils = importlib.import_module("lightly.models.utils")
        dim, _, heads = SIZES[arguments.size]
        self.apply_masks, self.update_momentum = utils.apply_masks, utils.update_momentum
        masking = ours.masking
        self.collator = data.IJEPAMaskCollator(
            arguments.image_size, PATCH, masking.context_scale, masking.target_scale, masking.target_aspect, npred=4
        )
        self.counts = [masks.shape[-1] for masks in masking(1, ours.context_encoder.grid)]
        network = nn.Module()
        network.context_encoder = modules.MaskedVisionTransformerTIMM(timm_vit(arguments))
        network.target_encoder = copy.deepcopy(network.context_encoder).requires_grad_(False)
        depth = len(ours.predictor.predictor_blocks)
        tokens = ours.context_encoder.grid[0] * ours.context_encoder.grid[1]
        network.predictor = modules.IJEPAPredictorTIMM(tokens, depth, dim, WIDTH, heads)
        self.networks = network

    def compile(self) -> None:
        module = self.networks
        for network in (module.context_encoder, module.target_encoder):
            network.encode = torch.compile(network.encode)
        module.predictor.forward = torch.compile(module.predictor.forward)

    def loss(self, x: Tensor, clock: Clock) -> Tensor:
        module = self.networks
        _, seen, hidden = self.collator([torch.zeros(())] * len(x))  # the batch is there already
        seen, hidden = (
            [mask[:, :count].to(x.device) for mask in masks]
            for masks, count in zip((seen, hidden), self.counts, strict=True)
        )
        clock.lap("masks")
        with torch.no_grad():
            features = module.target_encoder.encode(x)
            target = self.apply_masks(F.layer_norm(features, features.shape[-1:]), hidden)
        clock.lap("target")
        context = module.context_encoder.encode(x, idx_keep=seen[0])
        clock.lap("context")
        prediction = module.predictor(context, seen, hidden)
        clock.lap("predictor")
        return F.smooth_l1_loss(prediction, target)

    def move_teacher(self) -> None:
        self.update_momentum(self.networks.context_encoder, self.networks.target_encoder, MOMENTUM)


class StablePretrainingStep(Rival):
    """stable-pretraining's method, whose forward pass is in one piece: it counts as `predictor`."""

    def make(self, arguments: argparse.Namespace, ours: Any) -> None:
        methods = importlib.import_module("stable_pretraining.methods.ijepa")
        depth = len(ours.predictor.predictor_blocks)
        self.networks = methods.IJEPA(
            timm_vit(arguments), WIDTH, depth, ema_decay_start=MOMENTUM, ema_decay_end=MOMENTUM
        )

    def compile(self) -> None:
        self.networks.forward = torch.compile(self.networks.forward)

    def loss(self, x: Tensor, clock: Clock) -> Tensor:
        loss = self.networks(x).loss
        clock.lap("predictor")
        return loss

    def move_teacher(self) -> None:
        self.networks.encoder.update_teacher()


RIVALS: dict[str, type[Rival]] = {
    "textbook": TextbookStep,
    "lightly": LightlyStep,
    "stable-pretraining": StablePretrainingStep,
}


def rival(name: str, arguments: argparse.Namespace, ours: Any) -> Rival:
    """One of the others, of a method."""
    if name == "textbook" and arguments.method == "data2vec":
        return Data2VecStep(arguments, ours)
    return RIVALS[name](arguments, ours)


# --- Measuring -------------------------------------------------------------------------------------------------------


class Turns(Dataset[Tensor]):
    """Batches for our Trainer; while it waits for one, the others make their step.

    Our step is what passes between one batch and the asking for the next.
    """

    def __init__(self, batch: Tensor, rounds: int, rivals: dict[str, Rival], clock: Clock) -> None:
        self.batch = batch
        self.rounds = rounds
        self.rivals = rivals
        self.clock = clock
        self.laps: dict[str, list[Lap]] = defaultdict(list)

    def __len__(self) -> int:
        return self.rounds + 1  # a step more, that the last one may end

    def __getitem__(self, index: int) -> Tensor:
        if index:
            self.clock.lap("rest")
            self.laps["ours"].append(self.clock.stop())
        if index < self.rounds:
            self.round()
        self.clock.start()
        return self.batch

    def round(self) -> None:
        """A step of each of the others."""
        for name, rival in self.rivals.items():
            self.clock.start()
            rival(self.batch, self.clock)
            self.laps[name].append(self.clock.stop())


def random_batch(arguments: argparse.Namespace) -> Tensor:
    side = arguments.image_size
    size = (side, side) if arguments.method in IMAGES else (FRAMES, side, side)
    return torch.randn(arguments.batch_size, 3, *size)


def fit(module: Any, turns: Turns, arguments: argparse.Namespace) -> None:
    """Train as a user does."""
    clock = turns.clock
    callbacks: list[pl.Callback] = [Laps(clock), TimedTeacher(clock)]
    if arguments.monitor:
        callbacks.append(TimedMonitor(clock))
    if arguments.compile:
        for _, network, name in called(module):
            setattr(network, name, torch.compile(getattr(network, name)))
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu" if arguments.device == "cpu" else "gpu",
            devices=1,
            precision="bf16-mixed" if arguments.precision == "bf16" else "32-true",
            max_epochs=1,
            logger=TensorBoardLogger(folder),
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        # stable-pretraining, once installed, gives every Trainer of the environment callbacks of its own.
        foreign = [callback for callback in trainer.callbacks if type(callback).__module__.startswith("stable_")]
        trainer.callbacks = [callback for callback in trainer.callbacks if callback not in foreign]
        trainer.fit(module, DataLoader(turns, batch_size=None))


def assert_same(module: Any, textbook: TextbookStep, x: Tensor, clock: Clock) -> None:
    """That the textbook computes what we do: of the same masks the same loss and the same gradient."""
    drawn = module.draw(x, Rng.fresh(len(x)))
    losses = [module.loss(module.latents(x, drawn))["loss"], textbook.loss_of(x, drawn, clock)]
    gradients = [
        torch.autograd.grad(loss, network.context_encoder.patch_embed.proj.weight)[0]
        for loss, network in zip(losses, (module, textbook.networks), strict=True)
    ]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3 * float(gradients[0].abs().max()))


def flops(step: Callable[[], Any]) -> float:
    """Of the matrix products and convolutions of a step, counted where the counter knows their kernels."""
    with (
        torch.backends.mkldnn.flags(enabled=False),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        step()
    return counter.get_total_flops()


def matmul_rate(arguments: argparse.Namespace) -> float:
    """FLOP a second of the fastest square product, by `torch.matmul` and, in float32 on a processor, by oneDNN."""
    dtype = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    clock, fastest = Clock(arguments.device), 0.0
    for side in (1024, 2048) if arguments.device == "cpu" else (4096, 8192):
        a = torch.randn(side, side, device=arguments.device, dtype=dtype)
        layer = nn.Linear(side, side, bias=False, device=arguments.device, dtype=dtype)
        for product in (partial(torch.matmul, a), partial(linear, layer)):
            for _ in range(6):
                clock.start()
                with torch.no_grad():
                    product(a)
                clock.lap("product")
                fastest = max(fastest, 2 * side**3 / clock.stop().step)
    return fastest


def prepare(arguments: argparse.Namespace) -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(arguments.threads)


def peak(name: str, arguments: argparse.Namespace) -> float:
    """Bytes that two steps of one variant take, in a process of their own."""
    prepare(arguments)
    before = resident("VmRSS")
    ours, clock = our_module(arguments), Clock(arguments.device)
    if name == "ours":
        fit(ours, Turns(random_batch(arguments), 1, {}, clock), arguments)
    else:
        turns = Turns(random_batch(arguments), 2, {name: rival(name, arguments, ours)}, clock)
        turns.round()
        turns.round()
    if arguments.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resident("VmHWM") - before


def resident(key: str) -> float:
    """Bytes of memory that the process has (`VmRSS`) or has had at most (`VmHWM`); unknown where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key))


def median(values: list[float]) -> float:
    return statistics.median(values)


def table(laps: dict[str, list[Lap]], work: dict[str, float], peaks: dict[str, float], rate: float, batch: int) -> str:
    """Markdown: a column for each variant."""
    ours = [lap.step for lap in laps["ours"]]
    rows: dict[str, Callable[[str], str]] = {}

    def ratio(name: str) -> str:
        ratios = [lap.step / step for lap, step in zip(laps[name], ours, strict=True)]
        return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"

    def step(name: str) -> float:
        return median([lap.step for lap in laps[name]])

    def milliseconds(part: str, name: str) -> str:
        known = part in laps[name][0].parts
        return f"{1e3 * median([lap.parts[part] for lap in laps[name]]):.1f}" if known else "–"

    rows["step, ms"] = lambda name: f"{1e3 * step(name):.0f}"
    rows["times ours"] = lambda name: "1" if name == "ours" else ratio(name)
    rows["samples a second"] = lambda name: f"{batch / median([lap.wall for lap in laps[name]]):.1f}"
    rows["GFLOP"] = lambda name: f"{work[name] / 1e9:.0f}"
    rows["share of the matmul rate"] = lambda name: f"{work[name] / step(name) / rate:.0%}"
    rows["peak memory, MiB"] = lambda name: f"{peaks[name] / 2**20:.0f}"
    if any(lap.graphs for several in laps.values() for lap in several):
        rows["graphs compiled after warm-up"] = lambda name: str(sum(lap.graphs for lap in laps[name]))
    for part in PARTS:
        if any(part in several[0].parts for several in laps.values()):
            rows[f"{part}, ms"] = partial(milliseconds, part)
    lines = [f"| | {' | '.join(laps)} |", "|---" * (len(laps) + 1) + "|"]
    return "\n".join(lines + [f"| {row} | {' | '.join(map(cell, laps))} |" for row, cell in rows.items()])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=METHODS, default="ijepa")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    parser.add_argument("--compile", action="store_true", help="torch.compile the networks of all")
    parser.add_argument("--monitor", action="store_true", help="with CollapseMonitor at its default interval")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the processor")
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    prepare(arguments)
    pl.seed_everything(0, verbose=False)
    module, batch, clock = our_module(arguments), random_batch(arguments), Clock(arguments.device)
    few = batch[:1].to(arguments.device)
    autocast: AbstractContextManager[Any] = nullcontext()
    if arguments.precision == "bf16":
        autocast = torch.autocast(arguments.device, torch.bfloat16)

    def our_loss() -> Tensor:
        with autocast:
            return module.loss(module.latents(few))["loss"]

    module.to(arguments.device)
    work = {"ours": arguments.batch_size * flops(lambda: our_loss().backward())}
    module.zero_grad()
    rivals: dict[str, Rival] = {}
    for name in RIVALS if arguments.method == "ijepa" else ["textbook"]:
        try:
            rivals[name] = rival(name, arguments, module)
        except ImportError as error:
            print(f"{name} is left out, as it cannot be imported: {error}")
            continue
        clock.start()
        if name == "textbook" and arguments.precision == "32":
            assert_same(module, rivals[name], few, clock)
        work[name] = arguments.batch_size * flops(partial(rivals[name], few, clock))
    turns = Turns(batch, WARM_UP + arguments.rounds, rivals, clock)
    fit(module, turns, arguments)
    laps = {name: turns.laps[name][WARM_UP:] for name in ("ours", *rivals)}
    rate = matmul_rate(arguments)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        peaks = {name: processes.submit(peak, name, arguments).result() for name in laps}
    options = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in vars(arguments).items())
    print(f"{options}; fastest product {rate / 1e9:.0f} GFLOP/s\n")
    print(table(laps, work, peaks, rate, arguments.batch_size))


if __name__ == "__main__":
    main()

"""What several test files share: a tiny module's options, a quiet Trainer, and data that need no disk."""

import copy
import io
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.distributed as dist
import toys
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from jepa_lightning import (
    CJEPA,
    DMTJEPA,
    IJEPA,
    TJEPA,
    TSJEPA,
    VJEPA,
    VJEPA2,
    VJEPA2AC,
    Data2Vec,
    Data2Vec2,
    LeJEPA,
)
from jepa_lightning.data import Order, ResumableLoader
from jepa_lightning.modules import JEPA

GOLDEN = Path(__file__).parent / "golden" / "ijepa"
TINY: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "predictor_embed_dim": 8,
    "predictor_depth": 1,
    "warmup": 0.0,
}


def quiet_trainer(folder: Path | str = ".", **options: Any) -> pl.Trainer:
    """A Trainer on the CPU that prints and, unless asked to, writes nothing."""
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": str(folder),
    }
    return pl.Trainer(**(quiet | options))


class Labelled(NamedTuple):
    """A batch with more than one label."""

    image: Tensor
    label: Tensor
    other: Tensor


class LabelledImages(Dataset[Labelled]):
    """Images of class `index % classes`: noise on a bright square whose place is the class; separable at a glance."""

    def __init__(self, num_images: int = 64, size: int = 16, classes: int = 4) -> None:
        self.num_images, self.size, self.classes = num_images, size, classes

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Labelled:
        image = 0.3 * torch.randn(3, self.size, self.size, generator=torch.Generator().manual_seed(index))
        label, half = index % self.classes, self.size // 2
        row, column = divmod(label, 2)
        image[:, row * half : (row + 1) * half, column * half : (column + 1) * half] += 2.0
        return Labelled(image, torch.tensor(label), torch.tensor(index % 3))


def random_images(num_images: int = 32, size: int | tuple[int, int] = 16, channels: int = 3) -> Tensor:
    """The same noise at every call."""
    shape = (size, size) if isinstance(size, int) else size
    return torch.randn(num_images, channels, *shape, generator=torch.Generator().manual_seed(num_images))


def logged_images(logger: TensorBoardLogger, tag: str) -> dict[int, Tensor]:
    """The pictures in TensorBoard's files by step, `[3, rows, columns]` in [0, 1]."""
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0})
    events.Reload()
    pictures = {image.step: Image.open(io.BytesIO(image.encoded_image_string)) for image in events.Images(tag)}
    return {step: torch.tensor(np.array(picture)).permute(2, 0, 1) / 255 for step, picture in pictures.items()}


def loader(data: Tensor | Dataset[Any], batch_size: int = 8) -> DataLoader[Any]:
    """Batches in a fixed order; a bare tensor's are tuples of one tensor."""
    dataset: Dataset[Any] = TensorDataset(data) if isinstance(data, Tensor) else data
    return DataLoader(dataset, batch_size)


# Older releases of torch shard on accelerators only.
SHARDS_ON_CPU = hasattr(torch.cpu.Stream, "record_event")
shards_on_cpu = pytest.mark.skipif(not SHARDS_ON_CPU, reason="FSDP2 wants a GPU in this torch")


# Processes are forked from one that has imported all there is: to import it takes longer than most of these tests.
multiprocessing.set_forkserver_preload(["jepa_lightning.cli"])


def exit_code(function: Callable[..., None], *arguments: Any) -> int | None:
    """How a process of its own ends that runs `function(*arguments)`."""
    process = multiprocessing.get_context("forkserver").Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def in_two_processes(function: Callable[..., dict[str, Any]], folder: Path, *arguments: Any) -> list[dict[str, Any]]:
    """What `function(rank, folder, *arguments)` gives in each of two gloo processes: tensors and plain values."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = (port, function, folder, arguments)
    torch.multiprocessing.start_processes(_one_of_two, given, nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"rank {rank}.pt", weights_only=True) for rank in range(2)]


def _one_of_two(rank: int, port: int, function: Callable[..., Any], folder: Path, arguments: tuple[Any, ...]) -> None:
    # What an earlier test has seeded everything with; DDP seeds its processes by it.
    os.environ.pop("PL_GLOBAL_SEED", None)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.save(function(rank, folder, *arguments), folder / f"rank {rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


# --- Video -----------------------------------------------------------------------------------------------------------

GOLDEN_VIDEO = {method: Path(__file__).parent / "golden" / method for method in ("vjepa", "vjepa2")}
TINY_VIDEO: dict[str, Any] = {
    "image_size": 16,
    "num_frames": 4,
    "patch_size": 4,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 2,
    "predictor_embed_dim": 16,
    "predictor_depth": 1,
    "predictor_num_heads": 2,
    "warmup": 0.0,
}


def random_clips(num_clips: int = 8, frames: int = 4, size: int | tuple[int, int] = 16, channels: int = 3) -> Tensor:
    """The same noise `[num_clips, channels, frames, rows, columns]` at every call."""
    rows, columns = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(num_clips)
    return torch.randn(num_clips, channels, frames, rows, columns, generator=generator)


# --- Series ----------------------------------------------------------------------------------------------------------

GOLDEN_SERIES = Path(__file__).parent / "golden" / "ts_jepa"
TINY_SERIES: dict[str, Any] = {
    "num_steps": 40,
    "patch_size": 4,
    "in_channels": 2,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "predictor_embed_dim": 8,
    "predictor_depth": 1,
    "warmup": 0.0,
}

# --- Tracks ----------------------------------------------------------------------------------------------------------

GOLDEN_TRACKS = Path(__file__).parent / "golden" / "t_jepa"
TINY_TRACKS: dict[str, Any] = {
    "num_points": 20,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "predictor_depth": 1,
    "predictor_num_heads": 2,
    "predictor_head_dim": 8,
    "num_targets": 2,
    "warmup": 0.0,
}

# --- data2vec --------------------------------------------------------------------------------------------------------

TINY_DATA2VEC: dict[str, Any] = {name: TINY[name] for name in ("image_size", "patch_size", "embed_dim", "depth")}
TINY_DATA2VEC |= {"num_heads": 2, "num_layers": 2, "mask_length": 4, "warmup": 0.0}
CLONES: dict[str, Any] = {"num_masks": 2, "mask_length": 2, "predictor_embed_dim": 8, "predictor_depth": 2}
CLONES |= {"predictor_groups": 2, "cls_weight": 0.5}
SMALL = {"embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
WAVES = {"num_steps": 400, "convolutions": [[8, 10, 5], [8, 3, 2]], "position_kernel": 3, "position_groups": 2}
OF_WAVES: dict[str, Any] = {
    "encoder": {
        "class_path": "jepa_lightning.networks.WaveTransformer",
        "init_args": SMALL | WAVES | {"position_depth": 2},
    },
    **{"num_layers": 2, "mask_length": 3, "mlp_targets": True, "layer_norm": "instance", "target_norm": False},
    **{"beta": 0.0, "warmup": 0.0},
}
OF_WORDS: dict[str, Any] = {
    "encoder": {
        "class_path": "jepa_lightning.networks.WordTransformer",
        "init_args": SMALL | {"vocab_size": 64, "max_length": 12},
    },
    **CLONES,
    **{"mask_length": 1, "mask_ratio": 0.5, "num_layers": 2, "head_layers": 2, "predictor_residual": False},
    **{"ema_tokenizer": False, "cls_weight": 0.0, "loss_scale": 1.0, "target_norm": False, "warmup": 0.0},
}

# --- Every method ----------------------------------------------------------------------------------------------------
# A method that is added to METHODS is tested for everything that test_contracts.py and test_scale.py ask of all.

VIEWS = {"num_global": 2, "num_local": 1, "local_size": 8, "num_slices": 8, "projector": (12, 8)}
VIEWS |= {name: TINY[name] for name in ("image_size", "patch_size", "embed_dim", "depth", "num_heads", "warmup")}
SIGREG = {"sigreg": {"weight": 0.1, "projector": [8], "num_slices": 8}}
METHODS: dict[str, tuple[type[JEPA], dict[str, Any]]] = {
    "I-JEPA": (IJEPA, TINY),
    "I-JEPA with SIGReg": (IJEPA, TINY | {"regularizers": SIGREG}),
    "C-JEPA": (CJEPA, TINY | {"beta": 0.1, "projector": (12, 8)}),
    "DMT-JEPA": (DMTJEPA, TINY),
    "LeJEPA": (LeJEPA, VIEWS),
    "V-JEPA": (VJEPA, TINY_VIDEO),
    "V-JEPA 2": (VJEPA2, TINY_VIDEO),
    "TS-JEPA": (TSJEPA, TINY_SERIES),
    "T-JEPA": (TJEPA, TINY_TRACKS),
    "data2vec": (Data2Vec, TINY_DATA2VEC),
    "data2vec 2.0": (Data2Vec2, TINY_DATA2VEC | CLONES),
}


class Observed(NamedTuple):
    """Images or clips, and a class."""

    observation: Tensor
    kind: Tensor


def images(count: int = 16) -> Observed:
    kind = torch.arange(count) % 2
    return Observed(random_images(count) + 2 * kind.view(-1, 1, 1, 1), kind)


def clips(count: int = 16) -> Observed:
    kind = torch.arange(count) % 2
    return Observed(random_clips(count) + 2 * kind.view(-1, 1, 1, 1, 1), kind)


def random_series(number: int = 16, steps: int = 40, channels: int = 2) -> Tensor:
    """The same noise `[number, steps, channels]` at every call."""
    return torch.randn(number, steps, channels, generator=torch.Generator().manual_seed(number))


def series(count: int = 16) -> Observed:
    kind = torch.arange(count) % 2
    return Observed(random_series(count) + 2 * kind.view(-1, 1, 1), kind)


def tracks(count: int = 16) -> Observed:
    """Of 12 points and cells of 16 numbers."""
    kind = torch.arange(count) % 2
    return Observed(random_series(count, 12, 9 * 16) + 2 * kind.view(-1, 1, 1), kind)


def waves(count: int = 16) -> Observed:
    kind = torch.arange(count) % 2
    return Observed(random_series(count, 400, 1) * (1 + kind.view(-1, 1, 1)), kind)


def words(count: int = 16) -> Observed:
    kind = torch.arange(count) % 2
    numbers = torch.rand(count, 12, generator=torch.Generator().manual_seed(count))
    return Observed((numbers * 30).long() + 30 * kind.view(-1, 1), kind)


class Case(NamedTuple):
    """A method, its options, and a batch of so many samples of its data, with a field `kind` of two classes."""

    method: type[Any]
    options: dict[str, Any]
    data: Callable[[int], Any]


class Driven(NamedTuple):
    """Episodes of frames `[B, 3, 4, 16, 16]`, actions `[B, 4, 2]` and states `[B, 4, 3]`, and a class."""

    observation: Tensor
    action: Tensor
    state: Tensor
    kind: Tensor


def driven(count: int = 16) -> Driven:
    observed, kind = clips(count)
    return Driven(observed, toys.numbers(7, count, 4, 2), toys.numbers(8, count, 4, 3), kind)


SMALL_ENCODER = {"image_size": [16, 16], "num_frames": 2, "patch_size": [8, 8], "embed_dim": 24, "depth": 1}
TINY_AC: dict[str, Any] = {
    "encoder": {
        "class_path": "jepa_lightning.networks.VideoTransformer",
        "init_args": SMALL_ENCODER | {"num_heads": 2, "positions": "rope"},
    },
    "action_dim": 2,
    "state_dim": 3,
    "next_state": "keep",
    "predictor_embed_dim": 16,
    "predictor_depth": 2,
    "predictor_num_heads": 2,
    "warmup": 0.0,
}

# What a method reads that has neither images nor, where there are `num_frames`, clips.
DATA: dict[str, Callable[[int], Any]] = {"TS-JEPA": series, "T-JEPA": tracks}
OF_IMAGES = {"image_size": 16, "predictor_embed_dim": 8, "predictor_depth": 1, "warmup": 0.0}
CASES: dict[str, Case] = {
    **{
        name: Case(method, options, DATA.get(name, clips if "num_frames" in options else images))
        for name, (method, options) in METHODS.items()
    },
    "two encoders, three optimisers": Case(toys.TwoEncoders, {}, toys.transitions),
    "unequal lengths": Case(toys.SeriesJEPA, {"warmup": 0.0}, toys.series),
    "three predictions": Case(toys.ThreePredictions, {"warmup": 0.0}, toys.sets),
    "frozen encoder": Case(toys.Frozen, OF_IMAGES, images),
    "V-JEPA 2-AC": Case(VJEPA2AC, TINY_AC, driven),
    "data2vec of waves": Case(Data2Vec, OF_WAVES, waves),
    "data2vec 2.0 of words": Case(Data2Vec2, OF_WORDS, words),
    "actions": Case(toys.ActionConditioned, {"warmup": 0.0}, toys.episodes),
}


def made(name: str, **options: Any) -> Any:
    """A method as it is, always with the same weights."""
    torch.manual_seed(0)
    return CASES[name].method(**CASES[name].options | options)


class PlainSteps:
    """Plain gradient steps, which do not blow up rounding errors as Adam's do, with the method's rates; fast teachers.

    A method that optimises by hand keeps its own steps.
    """

    def configure_optimizers(self: Any) -> Any:
        if not self.automatic_optimization:
            return super().configure_optimizers()  # type: ignore[misc]
        groups = self.parameter_groups(0.0)
        return torch.optim.SGD([{"params": g["params"], "lr": 0.05 * g["multiplier"]} for g in groups], lr=0.05)

    def teachers(self) -> Any:
        return [teacher._replace(momentum=half) for teacher in super().teachers()]  # type: ignore[misc]


def half(step: int, total: int) -> float:
    return 0.5


def plain(name: str, **options: Any) -> Any:
    """A method with plain steps, and with weights so large that everything has an effect."""
    case = CASES[name]
    torch.manual_seed(0)
    return eager(type(f"Plain{case.method.__name__}", (PlainSteps, case.method), {})(**case.options | options))


def observations(name: str, number: int = 16) -> Tensor:
    """What a method trains on, without classes."""
    if name in DATA:
        return DATA[name](number)[0]
    return random_clips(number) if "num_frames" in METHODS[name][1] else random_images(number)


class Data(pl.LightningDataModule):
    """Training data of a case in an order that can be resumed, and held-out data."""

    def __init__(self, name: str, batch_size: int = 4) -> None:
        super().__init__()
        self.name, self.size = name, batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        rows = toys.Rows(CASES[self.name].data(16))
        return ResumableLoader(rows, self.size, sampler=Order(rows, self.size, self.trainer, seed=0))

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(toys.Rows(CASES[self.name].data(12)), batch_size=self.size)

    test_dataloader = predict_dataloader = val_dataloader


def tensors(values: Any) -> list[Tensor]:
    """Those in nested tuples and lists."""
    if isinstance(values, Tensor):
        return [values]
    return [tensor for value in values or () for tensor in tensors(value)]


# --- Comparing -------------------------------------------------------------------------------------------------------


def eager(module: nn.Module) -> nn.Module:
    """With large weights: at the initial 0.02 attention hardly matters, and no test could tell who sees whom."""
    for parameter in module.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5)
    return module


def copies(module: nn.Module) -> dict[str, Any]:
    """The state of a module as it is now."""
    return copy.deepcopy(module.state_dict())


def difference(a: Any, b: Any, path: str = "state") -> str:
    """Where nested values first differ, tensors by any bit; nothing where they are equal."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return "" if torch.equal(a, b) else f"{path}: {a} and {b}"
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return f"{path}: {a.keys() ^ b.keys()} are in one of them only"
        return next((found for key in a if (found := difference(a[key], b[key], f"{path}/{key}"))), "")
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return f"{path}: {len(a)} and {len(b)} entries"
        return next(
            (found for i, pair in enumerate(zip(a, b, strict=True)) if (found := difference(*pair, f"{path}/{i}"))), ""
        )
    return "" if a == b else f"{path}: {a} and {b}"


def assert_close(ours: Tensor, theirs: Tensor, name: str, but: Tensor | None = None) -> None:
    """Within 1e-5 of the largest entry of the tensor; of those at the places `but`, within 1e-4."""
    assert ours.shape == theirs.shape, name
    errors, limit = (ours.detach() - theirs).abs(), 1e-5 * float(theirs.abs().max()) + 1e-9
    errors = errors if but is None else torch.where(but, errors / 10, errors)
    assert float(errors.max()) <= limit, f"{name}: differs by {float(errors.max()):.2e}, more than {limit:.2e}"


def assert_golden_step(module: pl.LightningModule, trace: dict[str, Tensor]) -> None:
    """The gradients, and all parameters after the step, are those of a trace, which has no others.

    AdamW's first step divides a gradient by its size. Where that is no more than the error it may have, as it is in a
    few places, rounding alone can move the parameter by more than 1e-5; so can a change of the inputs by one bit.
    """
    for network in ("context_encoder", "predictor", "target_encoder"):
        parameters = dict(module.get_submodule(network).named_parameters())
        after = {n.split("/", 2)[2]: t for n, t in trace.items() if n.startswith(f"after_step/{network}/")}
        grads = {n.split("/", 2)[2]: t for n, t in trace.items() if n.startswith(f"grad/{network}/")}
        assert parameters.keys() == after.keys()
        assert {name for name, value in parameters.items() if value.grad is not None} == grads.keys()
        for name, grad in grads.items():
            assert_close(parameters[name].grad, grad, f"gradient of {network}.{name}")
        for name, value in after.items():
            rounding = grads[name].abs() <= 1e-5 * grads[name].abs().max() if name in grads else None
            assert_close(parameters[name], value, f"{network}.{name} after the step", rounding)

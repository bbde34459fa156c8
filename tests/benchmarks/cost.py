"""What a published configuration costs: memory by strategy, and operations, counted on the meta device.

    python tests/benchmarks/cost.py recipes/ijepa/imagenet_vith14.yaml ...

No weight is made and nothing is timed. Of every recipe, as a table in Markdown:

- the parameters that are trained and those of the teacher;
- the memory a GPU needs beside the activations: weights, gradients and Adam's two moments in float32 and the teacher,
  whole under DDP and in parts under FSDP2 (with the largest block whole);
- the activations that a sample leaves for the backward pass, in bf16 with attention as one kernel, kept or recomputed;
- the operations of a step for a sample, forward and backward, and of the whole training;
- the GPU-hours of it at a rate that is given, `--tflops`: what your own GPUs reach is what
  `tests/benchmarks/step.py --device cuda --precision bf16` says.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import jepa_lightning
from jepa_lightning.draws import Rng
from jepa_lightning.networks.sharding import blocks, recompute_activations

SAMPLES = {"ImageDataModule": 1_281_167, "VideoDataModule": 0}  # of ImageNet; videos are counted in steps
GB, BATCH = 1e9, 2


def step(module: Any, observation: Tensor) -> Tensor:
    """The loss of a batch, with masks drawn on the CPU."""
    drawn = module.draw(observation, Rng(0, batch_size=len(observation)))
    return module.loss(module.latents(observation, drawn))["loss"]


def activations(module: Any, observation: Tensor) -> int:
    """Bytes that the forward pass of a sample keeps, but for weights and attention matrices, which no kernel keeps."""
    weights = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and not (tensor.ndim >= 3 and tensor.shape[-1] == tensor.shape[-2]):
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = step(module, observation)
    del loss
    return sum(kept.values()) // len(observation)


def row(path: Path, tflops: float) -> list[str]:
    """The line of a recipe."""
    recipe = yaml.safe_load(path.read_text())
    options, data, trainer = recipe["model"]["init_args"], recipe["data"], recipe["trainer"]
    options.pop("weights", None)
    kind = getattr(jepa_lightning, recipe["model"]["class_path"].rsplit(".", 1)[-1])
    with torch.device("meta"):
        module = kind(**options)
        size = options["image_size"]
        frames = [options["num_frames"]] if "num_frames" in options else []
        observation = torch.empty(BATCH, 3, *frames, size, size)
    teacher = sum(p.numel() for p in module.target_encoder.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    with FlopCounterMode(display=False) as counter:
        step(module, observation).backward()
    flops = counter.get_total_flops() / BATCH
    module.bfloat16()
    kept = activations(module, observation.bfloat16())
    for network in (module.context_encoder, module.predictor):
        recompute_activations(network)
    recomputed = activations(module, observation.bfloat16())
    gpus = int(trainer.get("devices", 1)) * int(trainer.get("num_nodes", 1))
    batch = data["init_args"]["batch_size"] * gpus
    samples = SAMPLES[data["class_path"].rsplit(".", 1)[-1]] * trainer.get("max_epochs", 0)
    if trainer.get("max_steps", -1) > 0:
        samples = trainer["max_steps"] * batch
    largest = max(sum(p.numel() for p in block.parameters()) for _, _, block in blocks(module.context_encoder))
    whole = 16 * trained + 4 * teacher
    return [
        str(path).removeprefix("recipes/"),
        f"{gpus} x {data['init_args']['batch_size']}",
        f"{trained / 1e6:.0f} + {teacher / 1e6:.0f}",
        f"{whole / GB:.1f}",
        f"{(whole / gpus + 4 * largest) / GB:.1f}",
        f"{kept / GB:.2f}",
        f"{recomputed / GB:.2f}",
        f"{flops / 1e9:.0f}",
        f"{flops * samples / 1e18:,.0f}",
        f"{flops * samples / (tflops * 1e12) / 3600:,.0f}",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--tflops", type=float, default=300.0, help="what a GPU reaches, in 10^12 operations a second")
    arguments = parser.parse_args()
    header = ["recipe", "GPUs x batch", "trained + teacher, M", "DDP, GB", "FSDP2, GB", "sample, GB", "recomputed, GB"]
    header += ["GFLOP a sample", "EFLOP in all", f"GPU-hours at {arguments.tflops:.0f} TFLOP/s"]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for path in arguments.recipes:
        print(f"| {' | '.join(row(path, arguments.tflops))} |", flush=True)


if __name__ == "__main__":
    main()

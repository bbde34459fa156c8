"""How networks of any kind are spread over processes, and how their activations are left out of memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper, checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method


def blocks(network: nn.Module) -> Iterator[tuple[Any, str, nn.Module]]:
    """What is in a network's `blocks` or `predictor_blocks`, with where it is kept and its name there."""
    for name, sequence in network.named_children():
        if name in ("blocks", "predictor_blocks"):
            for number, block in sequence.named_children():
                yield sequence, number, block


def recompute_activations(network: nn.Module) -> None:
    """Keep of each block its input only, and compute the rest once more in the backward pass.

    Names of parameters, and with them checkpoints, stay as they are.
    """
    for sequence, number, block in blocks(network):
        if not isinstance(block, CheckpointWrapper):
            setattr(sequence, number, checkpoint_wrapper(block))


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shard the parameters of all networks in a module, block by block, by FSDP2.

    Parameters are whole only while a block computes, in networks without backward pass as well: so those of student
    and teacher are always of one kind.
    """
    for network in module.children():
        if isinstance(network, nn.ModuleDict | nn.ModuleList):  # which nobody calls
            shard(network, mesh)
        elif any(True for _ in network.parameters()) and not isinstance(network, FSDPModule):
            for _, _, block in blocks(network):
                _shard(block, mesh)
            _shard(network, mesh, reshard_after_forward=True)


def _shard(network: nn.Module, mesh: DeviceMesh, **options: Any) -> None:
    """One network, with what it computes beside `forward`."""
    fully_shard(network, mesh=mesh, **options)
    for method in getattr(network, "forward_methods", ()):
        register_fsdp_forward_method(network, method)

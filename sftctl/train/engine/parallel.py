"""How several ranks hold the model: DDP and `alike` copy it, FSDP2 deals its rows out.

DDP and FSDP2 average the gradients over the ranks.
"""

from collections.abc import Iterator

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from sftctl.model.loss import LossModule
from sftctl.world import World


def copied(loss_module: LossModule, world: World) -> DistributedDataParallel:
    """Every rank holds the whole model; gradients are summed when `no_sync` is left."""
    return DistributedDataParallel(
        loss_module,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        # DDP lays its buckets anew after a process's first step unless it looks for unused
        # parameters; from three ranks on, a resumed run would sum in another order.
        find_unused_parameters=world.world_size > 2,
    )


def alike(loss_module: LossModule, world: World) -> LossModule:
    """Every rank holds the whole model, with rank 0's weights; nothing sums the gradients."""
    for tensor in (*loss_module.parameters(), *loss_module.buffers()):
        world.share(tensor.detach())
    return loss_module


def sharded(loss_module: LossModule, world: World) -> LossModule:
    """Every rank holds its rows of each parameter; a block is whole only while it runs.

    The same module, changed in place: its parameters are DTensors on the device from now on. Tied
    weights stay tied: what is in no block is one group, with the loss module as its root.
    """
    mesh = init_device_mesh(world.device.type, (world.world_size,))
    for block in blocks(loss_module):
        fully_shard(block, mesh=mesh)
    root = fully_shard(loss_module, mesh=mesh)
    # A rank whose tokens reach no part of a router would else send less than the others await.
    root.set_reduce_scatter_unused_params(True)
    return loss_module


def blocks(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The members of the outermost module lists: a language model's decoder layers."""
    for child in module.children():
        if isinstance(child, torch.nn.ModuleList):
            yield from (block for block in child if any(True for _ in block.parameters()))
        else:
            yield from blocks(child)

"""How several ranks hold the model: each a copy, or each some rows of every parameter (FSDP2).

DDP and FSDP2 average the gradients over the ranks.
"""

from collections.abc import Iterator

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from sftctl.model.loss import LossModule
from sftctl.world import World


def with_ddp(loss_module: LossModule, world: World) -> DistributedDataParallel:
    """Every rank holds the complete model; backward averages gradients, except under `no_sync`."""
    return DistributedDataParallel(
        loss_module,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        # Without this, DDP rebuilds its buckets after a process's first step. With three or more
        # ranks, a resumed run would then sum in another order.
        find_unused_parameters=world.world_size > 2,
    )


def replicated(loss_module: LossModule, world: World) -> LossModule:
    """Every rank holds the complete model with rank 0's weights; gradients are not summed."""
    for tensor in (*loss_module.parameters(), *loss_module.buffers()):
        world.share(tensor.detach())
    return loss_module


def with_fsdp(loss_module: LossModule, world: World) -> LossModule:
    """Every rank holds its rows of each parameter; a block is gathered only while it runs.

    Changes the module in place: its parameters become DTensors on the device. Everything outside
    the blocks is one group with the loss module as its root, so tied weights stay tied.
    """
    mesh = init_device_mesh(world.device.type, (world.world_size,))
    for block in blocks(loss_module):
        fully_shard(block, mesh=mesh)
    root = fully_shard(loss_module, mesh=mesh)
    # Else a rank whose tokens do not reach an expert would send less than the others expect.
    root.set_reduce_scatter_unused_params(True)
    return loss_module


def blocks(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The members of the outermost module lists: a language model's decoder layers."""
    for child in module.children():
        if isinstance(child, torch.nn.ModuleList):
            yield from (block for block in child if any(True for _ in block.parameters()))
        else:
            yield from blocks(child)

"""How several ranks hold a model. Each has a full copy, or some rows of each parameter (FSDP2)."""

from collections.abc import Iterator

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from sftctl.model.loss import LossModule
from sftctl.world import World


def replicated(loss_module: LossModule, world: World) -> LossModule:
    """Copy rank 0's weights to every rank. Gradients are not summed here (see `Weights`)."""
    for tensor in (*loss_module.parameters(), *loss_module.buffers()):
        world.share(tensor.detach())
    return loss_module


def with_fsdp(
    loss_module: LossModule, world: World, compute_dtype: torch.dtype | None = None
) -> LossModule:
    """Give every rank its own rows of each parameter. A layer is gathered only while it runs.

    Changes the module in place: its parameters become DTensors on the device. Everything outside
    the layers is one FSDP group with the loss module as its root, so tied weights stay tied. With
    `compute_dtype`, the layers compute in this dtype; parameters and the sums over ranks stay
    float32.
    """
    mesh = init_device_mesh(world.device.type, (world.world_size,))
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    for block in blocks(loss_module):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    root = fully_shard(loss_module, mesh=mesh, mp_policy=policy)
    # Without this, an expert that gets no tokens on one rank has no gradient to reduce there.
    root.set_reduce_scatter_unused_params(True)
    return loss_module


def blocks(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The members of the outermost module lists: a language model's decoder layers."""
    for child in module.children():
        if isinstance(child, torch.nn.ModuleList):
            yield from (block for block in child if any(True for _ in block.parameters()))
        else:
            yield from blocks(child)

"""A small state with every kind of tensor, its manifest, and disks that fail."""

import errno
import os
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from sftctl.checkpoint.layout import CheckpointManifest
from sftctl.checkpoint.save import save_checkpoint
from sftctl.disk import DISK, Disk
from sftctl.world import World, start_world

ALONE = World(0, 0, 1, torch.device("cpu"))


def make_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Matrices, a tied one, a bool of odd size, bf16, a scalar, an empty one, a transposed one."""
    torch.manual_seed(seed)
    embedding = torch.randn(11, 4)
    return {
        "model.embed.weight": embedding,
        "model.mask": torch.rand(7) > 0.5,
        "model.half": torch.randn(3, 5).to(torch.bfloat16),
        "model.turned": torch.randn(6, 3).T,
        "model.empty": torch.empty(0, 4),
        "model.count": torch.tensor(2**40 + seed),
        "model.head.weight": embedding,
        "optimizer.embed.weight.exp_avg": torch.randn(11, 4),
        "optimizer.embed.weight.step": torch.tensor(3.0 + seed),
    }


def blank(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of ones with the same names, shapes, dtypes and ties."""
    memory = {id(tensor): torch.ones_like(tensor) for tensor in tensors.values()}
    return {name: memory[id(tensor)] for name, tensor in tensors.items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def make_manifest(step: int) -> CheckpointManifest:
    return CheckpointManifest(
        step=step,
        epoch=step // 500,
        step_in_epoch=step % 500,
        total_steps=1000,
        steps_per_epoch=500,
        examples_seen=16 * step,
        tokens_seen=999,
        learning_rate=1e-4 / 3,
        global_batch_size=16,
        micro_batch_tokens=2048,
        cut_for_ranks=1,
        num_threads=2,
        world_size=1,
        dtype="float32",
        scaler=None,
        data_fingerprint="f" * 64,
        config={"train": {"epochs": 2}},
        versions={"torch": "2.13.0"},
        wandb_run_id=None,
        metrics_bytes=12,
        validation=None,
    )


def save_toy(root: Path, step: int, disk: Disk = DISK) -> Path:
    """A checkpoint of `make_tensors(step)`."""
    return save_checkpoint(root, make_tensors(step), make_manifest(step), ALONE, disk)


def sharded(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rows over two ranks as in FSDP2: 11 rows unevenly; of one row, a rank gets none."""
    mesh = init_device_mesh("cpu", (2,))
    shards = {
        id(tensor): distribute_tensor(tensor, mesh, [Shard(0)]) if tensor.dim() else tensor
        for tensor in tensors.values()
    }
    return {name: shards[id(tensor)] for name, tensor in tensors.items()}


def with_one_row(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Adds a tensor of one row under two names."""
    row = tensors["model.embed.weight"][:1].clone()
    return tensors | {"model.row": row, "model.row.tied": row}


def save_sharded(root: Path, step: int) -> None:
    """Run on each of two ranks: a checkpoint whose tensors are split between them."""
    with start_world("cpu") as world:
        tensors = sharded(with_one_row(make_tensors(step)))
        save_checkpoint(root, tensors, make_manifest(step), world)


class CountingDisk(Disk):
    """Calls `before` before every disk call; it may raise."""

    def __init__(self) -> None:
        self.num_calls = 0

    def before(self, name: str, *args: object) -> None:
        self.num_calls += 1

    def make_folder(self, path: Path) -> None:
        self.before("make_folder")
        super().make_folder(path)

    def create(self, path: Path) -> int:
        self.before("create")
        return super().create(path)

    def write(self, descriptor: int, data: memoryview) -> int:
        self.before("write", descriptor, data)
        return super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self.before("sync")
        super().sync(descriptor)

    def close(self, descriptor: int) -> None:
        super().close(descriptor)
        self.before("close")

    def sync_folder(self, path: Path) -> None:
        self.before("sync_folder")
        super().sync_folder(path)

    def rename(self, source: Path, target: Path) -> None:
        self.before("rename")
        super().rename(source, target)

    def remove_tree(self, path: Path) -> None:
        self.before("remove_tree", path)
        super().remove_tree(path)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FailingDisk(CountingDisk):
    """Call number `at` raises `error`: once, or together with all calls after it."""

    def __init__(self, at: int, forever: bool = False, error: Exception = FULL) -> None:
        super().__init__()
        self.at = at
        self.forever = forever
        self.error = error

    def before(self, name: str, *args: object) -> None:
        super().before(name, *args)
        if self.num_calls == self.at or (self.forever and self.num_calls > self.at):
            raise self.error

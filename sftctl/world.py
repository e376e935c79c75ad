"""World: this process as one of the ranks. Only torch and this file call collectives."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from sftctl import environment
from sftctl.errors import ConfigError, SftctlError
from sftctl.rendezvous import meet

T = TypeVar("T")

# A rank may wait this long for another rank's disk or tokenizer. A dead rank is noticed at once.
_OBJECT_TIMEOUT = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class World:
    """Rank, world size and device. With one rank, every collective returns its input.

    Numbers of Python (`sum_counts`, `max`) travel between the hosts, so they do not wait for a GPU.
    """

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    group: dist.ProcessGroup | None = None  # gloo, for objects; tensors use the default group
    save_group: dist.ProcessGroup | None = (
        None  # gloo, for checkpoints that are written in the background
    )

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def for_saving(self) -> "World":
        """The same ranks with `save_group` as group, for the background thread that saves."""
        return replace(self, group=self.save_group)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_counts(self, *counts: int) -> list[int]:
        """The sum of each number over all ranks, as 64-bit integers that wrap around."""
        if self.world_size == 1:
            return [*counts]
        totals: list[int] = self.sum(torch.tensor(counts)).tolist()
        return totals

    def share(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy rank 0's values into the tensor, in place."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def max(self, value: int) -> int:
        """The largest of all ranks' values, on all ranks."""
        if self.world_size == 1:
            return value
        box = torch.tensor(value)
        dist.all_reduce(box, dist.ReduceOp.MAX)
        return int(box)

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, on all ranks, in rank order."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on all ranks."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def on_main(self, function: Callable[[], T]) -> T:
        """Call `function` on rank 0. Every rank returns its result or raises its SftctlError."""
        result: T | None = None
        error: SftctlError | None = None
        if self.is_main:
            try:
                result = function()
            except SftctlError as raised:
                error = raised
        result, error = self.broadcast((result, error))
        if error is not None:
            raise error
        return result


ALONE = World(0, 0, 1, torch.device("cpu"))


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this rank holds: its shard of a DTensor, or the tensor itself."""
    from torch.distributed.tensor import DTensor  # here, because the import takes half a second

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def choose_device(setting: str, local_rank: int = 0) -> torch.device:
    """This rank's device for the setting `auto`, `cpu`, `cuda` or `mps`. ConfigError if absent."""
    if setting == "mps":
        return _mps(local_rank)
    if setting == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "train.device: cuda is set, but torch finds no CUDA device",
            hint="--device auto uses what is available; "
            f"is torch {torch.__version__} built for CUDA?",
        )
    if setting == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


def _mps(local_rank: int) -> torch.device:
    if not torch.backends.mps.is_available():
        raise ConfigError(
            "train.device: mps is set, but torch finds no Metal device",
            hint="--device auto uses what is available; mps needs a Mac with Apple silicon",
        )
    if local_rank:
        raise ConfigError(
            "train.device: a Mac has one GPU, and several ranks were asked for",
            hint="train on one rank, or with --device cpu",
        )
    return torch.device("mps")


def exact_dtype(device: torch.device) -> torch.dtype:
    """The dtype for sums of scalars: float64, or float32 on MPS, which lacks float64."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextmanager
def start_world(
    device_setting: str, timeout_s: float = 600.0, check: Callable[[], None] = lambda: None
) -> Iterator[World]:
    """The ranks that torchrun or our launcher has started; without a launcher, one rank.

    If a rank does not join a collective of a step within `timeout_s`, the others fail. `check` is
    called while this rank waits for other ranks to start, and may raise an error. ConfigError if
    the environment contradicts itself, or if a rank does not come.
    """
    environment.require_ranks()
    local_rank, world_size = environment.local_rank(), environment.world_size()
    device = choose_device(device_setting, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size == 1:
        yield World(0, 0, 1, device)
        return
    timeout = timedelta(seconds=timeout_s)
    store = meet(environment.rank(), world_size, environment.meeting_point(), check)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=environment.rank(),
        world_size=world_size,
        timeout=timeout,
    )
    try:
        group, save_group = (
            dist.new_group(backend="gloo", timeout=_OBJECT_TIMEOUT) for _ in range(2)
        )
        yield World(dist.get_rank(), local_rank, world_size, device, group, save_group)
    finally:
        dist.destroy_process_group()

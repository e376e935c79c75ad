"""The resources that loader processes need, and which of them the machine lacks."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sftctl.data.loading.loader import LoaderSettings
from sftctl.data.loading.microbatch import Examples
from sftctl.data.step_shape import StepShape
from sftctl.machine import Machine
from sftctl.words import format_bytes

# Measured on Linux with torch 2.13 and rounded up; the measurements are in docs/bench-loader.md.
FILES_PER_RANK = 48
FILES_PER_WORKER = 6
RAM_PER_WORKER = 40_000_000  # bytes that a forked process does not share with its rank
SHM_PER_WORKER = 12 * 4096  # bytes for the semaphores of queues; batches need none (pipes)
BYTES_PER_TOKEN = 24  # id, position and target of a token: 8 bytes each


@dataclass(frozen=True, slots=True)
class Shortage:
    """A resource of which the machine has less than the loader processes need."""

    needed: str  # "about 78 open files"
    available: str  # "64 are allowed"
    fix: str

    def __str__(self) -> str:
        return f"needs {self.needed}, {self.available}"


def shortages(
    store: Examples,
    shape: StepShape,
    settings: LoaderSettings,
    machine: Machine,
    ranks_here: int | None = None,
) -> Iterator[Shortage]:
    """The resources that are too small for the loader processes. Empty without loader processes.

    `ranks_here` is the number of ranks on this machine; None: all ranks.
    """
    workers = settings.num_workers
    if workers == 0:
        return
    files = FILES_PER_RANK + FILES_PER_WORKER * workers
    if files > machine.open_file_limit:
        yield Shortage(
            f"about {files:,} open files",
            f"{machine.open_file_limit:,} are allowed",
            "raise the limit with `ulimit -n`",
        )
    ranks = shape.world_size if ranks_here is None else ranks_here
    held = settings.prefetch_factor * _bytes_of_a_batch(store, shape)
    ram = ranks * workers * (RAM_PER_WORKER + held)
    if machine.ram_free_bytes is not None and ram > machine.ram_free_bytes:
        yield _no_room("memory", ram, machine.ram_free_bytes, "lower data.num_workers")
    shm = ranks * workers * SHM_PER_WORKER
    if machine.shm_free_bytes is not None and shm > machine.shm_free_bytes:
        fix = "make /dev/shm larger (--shm-size in docker)"
        yield _no_room("/dev/shm", shm, machine.shm_free_bytes, fix)
    processes = ranks * (workers + 1)
    if machine.process_limit is not None and processes > machine.process_limit:
        yield Shortage(
            f"{processes:,} processes",
            f"{machine.process_limit:,} are allowed",
            "raise the limit with `ulimit -u`",
        )


def _bytes_of_a_batch(store: Examples, shape: StepShape) -> int:
    """The size of a rank's StepBatch, if every example has the length of the longest example."""
    rows = -(-shape.global_batch_size // shape.world_size)
    return int(np.max(store.lengths)) * rows * BYTES_PER_TOKEN


def _no_room(where: str, needed: int, free: int, fix: str) -> Shortage:
    return Shortage(
        f"about {format_bytes(needed)} of {where}", f"{format_bytes(free)} are free", fix
    )

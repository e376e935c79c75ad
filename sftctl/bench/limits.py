"""Which settings this machine can't hold: known before they are tried."""

import os
import resource

import numpy as np

from sftctl.data.loader import LoaderSettings, StepShape
from sftctl.data.microbatch import Examples
from sftctl.machine import Machine
from sftctl.words import format_bytes

# Estimated from a few runs on Linux with torch 2.13, on the safe side.
_FILES_OF_A_RANK = 24
_FILES_PER_WORKER = 6
_BYTES_PER_WORKER = 40_000_000  # what a forked loader process does not share with its rank
_SHM_PER_WORKER = 5 * 4096  # the semaphores of its queues
_BYTES_PER_TOKEN = 24  # id, position and target of a token, 8 bytes each


def obstacle(
    setting: LoaderSettings, store: Examples, shape: StepShape, machine: Machine
) -> str | None:
    """Why a setting is not tried, or None; limits are of one rank's processes or of all ranks'."""
    workers = setting.num_workers
    if workers == 0:
        return None
    files = _FILES_OF_A_RANK + _FILES_PER_WORKER * workers
    if files > machine.open_file_limit:
        return _skipped(f"about {files:,} open files", f"{machine.open_file_limit:,} are allowed")
    ranks = shape.world_size
    held = ranks * workers * setting.prefetch_factor * _bytes_of_a_batch(store, shape)
    ram = ranks * workers * _BYTES_PER_WORKER + held
    if machine.ram_free_bytes is not None and ram > machine.ram_free_bytes:
        return _skipped(
            f"about {format_bytes(ram)} of memory",
            f"{format_bytes(machine.ram_free_bytes)} are free",
        )
    shm = ranks * workers * _SHM_PER_WORKER
    if machine.shm_free_bytes is not None and shm > machine.shm_free_bytes:
        return _skipped(
            f"about {format_bytes(shm)} of /dev/shm",
            f"{format_bytes(machine.shm_free_bytes)} are free",
        )
    processes = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if os.geteuid() != 0 and 0 <= processes < ranks * (workers + 1):
        return _skipped(f"{ranks * (workers + 1):,} processes", f"{processes:,} are allowed")
    return None


def _bytes_of_a_batch(store: Examples, shape: StepShape) -> int:
    """A batch of the longest examples, on one rank."""
    rows = -(-shape.global_batch_size // shape.world_size)
    return int(np.max(store.lengths)) * rows * _BYTES_PER_TOKEN


def _skipped(need: str, allowed: str) -> str:
    return f"skipped: needs {need}, {allowed}"

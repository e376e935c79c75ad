"""What loader processes need from the machine."""

import os
from dataclasses import replace

import pytest
import torch

from sftctl.bench.measure import measure
from sftctl.bench.sweep import skipped_because
from sftctl.data.loading.loader import LoaderSettings, StepLoader
from sftctl.data.loading.needs import FILES_PER_RANK, FILES_PER_WORKER, SHM_PER_WORKER, shortages
from sftctl.machine import Machine, usage_of
from tests.toys.loaders import SHAPE, Toy

ROOMY = Machine(2, None, 10**9, 1024, 10**10, 1000)
TWENTY = LoaderSettings(num_workers=20)


def test_nothing_is_short_on_a_large_machine_or_where_limits_are_unknown() -> None:
    assert list(shortages(Toy(), SHAPE, TWENTY, ROOMY)) == []
    unknown = Machine(2, None, None, 1024, None, None)
    assert list(shortages(Toy(), SHAPE, TWENTY, unknown)) == []


@pytest.mark.parametrize(
    ("machine", "what", "fix"),
    [
        (
            replace(ROOMY, open_file_limit=100),
            "needs about 168 open files, 100 are allowed",
            "raise the limit with `ulimit -n`",
        ),
        (
            replace(ROOMY, ram_free_bytes=500_000_000),
            "needs about 800.0 MB of memory, 500.0 MB are free",
            "lower data.num_workers",
        ),
        (
            replace(ROOMY, shm_free_bytes=0),
            "needs about 983.0 kB of /dev/shm, 0 B are free",
            "make /dev/shm larger (--shm-size in docker)",
        ),
        (
            replace(ROOMY, process_limit=20),
            "needs 21 processes, 20 are allowed",
            "raise the limit with `ulimit -u`",
        ),
    ],
)
def test_what_is_short_says_how_much_and_what_to_do(machine: Machine, what: str, fix: str) -> None:
    (short,) = shortages(Toy(), SHAPE, TWENTY, machine)
    assert (str(short), short.fix) == (what, fix)
    assert skipped_because(Toy(), SHAPE, TWENTY, machine) == f"skipped: {what}"
    assert list(shortages(Toy(), SHAPE, LoaderSettings(), machine)) == []


def test_exactly_enough_is_enough() -> None:
    exact = Machine(2, None, 20 * SHM_PER_WORKER, FILES_PER_RANK + 20 * FILES_PER_WORKER, None, 21)
    assert list(shortages(Toy(), SHAPE, TWENTY, exact)) == []


def test_the_memory_of_all_ranks_counts_or_of_those_on_this_machine() -> None:
    machine = replace(ROOMY, ram_free_bytes=10**9)
    assert list(shortages(Toy(), SHAPE, TWENTY, machine)) == []
    two_ranks = replace(SHAPE, world_size=2)
    (short,) = shortages(Toy(), two_ranks, TWENTY, machine)
    assert short.needed == "about 1.6 GB of memory"
    assert list(shortages(Toy(), two_ranks, TWENTY, machine, ranks_here=1)) == []


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_loader_processes_take_no_more_than_their_need_of_files_and_shared_memory(
    workers: int,
) -> None:
    cpu = torch.device("cpu")
    before = usage_of([os.getpid()])
    settings = LoaderSettings(num_workers=workers)
    used = measure(lambda: StepLoader(Toy(), SHAPE, settings), settings, cpu, seconds=0.02)
    assert used.open_files is not None and used.shm_bytes is not None
    assert 0 < used.shm_bytes - before.shm_bytes <= workers * SHM_PER_WORKER
    of_each = before.open_files + FILES_PER_WORKER * workers  # a forked process has its rank's too
    assert used.open_files <= (1 + workers) * of_each

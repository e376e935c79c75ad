from dataclasses import replace

import pytest

from sftctl.bench.limits import obstacle
from sftctl.data.loader import LoaderSettings
from sftctl.machine import Machine
from tests.toys.loaders import SHAPE, Toy

ROOMY = Machine(2, None, 10**9, 1024, 10**10)
MANY = LoaderSettings(num_workers=20)


def test_what_fits_is_tried():
    assert obstacle(MANY, Toy(), SHAPE, ROOMY) is None
    unknown = Machine(2, None, None, 1024, None)
    assert obstacle(MANY, Toy(), SHAPE, unknown) is None


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (
            replace(ROOMY, open_file_limit=100),
            "skipped: needs about 144 open files, 100 are allowed",
        ),
        (
            replace(ROOMY, ram_free_bytes=500_000_000),
            "skipped: needs about 800.0 MB of memory, 500.0 MB are free",
        ),
        (
            replace(ROOMY, shm_free_bytes=0),
            "skipped: needs about 409.6 kB of /dev/shm, 0 B are free",
        ),
    ],
)
def test_what_the_machine_can_not_hold_is_skipped_with_the_reason(machine, reason):
    assert obstacle(MANY, Toy(), SHAPE, machine) == reason
    assert obstacle(LoaderSettings(), Toy(), SHAPE, machine) is None


def test_the_memory_of_all_ranks_counts():
    machine = replace(ROOMY, ram_free_bytes=10**9)
    assert obstacle(MANY, Toy(), SHAPE, machine) is None
    assert "1.6 GB of memory" in obstacle(MANY, Toy(), replace(SHAPE, world_size=2), machine)

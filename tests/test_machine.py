"""Quotas, free memory and what processes hold, read from a pretended and from the real system."""

import mmap
import os
import subprocess
from pathlib import Path

import pytest

from sftctl.machine import (
    Machine,
    cpu_quota,
    free_memory,
    load_warning,
    multiplies_bfloat16,
    nanoseconds_waited,
    peak_resident_bytes,
    resident_bytes,
    usage_of,
)

V1_MEMORY = ("memory.limit_in_bytes", "memory.usage_in_bytes")
V2_MEMORY = ("memory.max", "memory.current")


def write(root: Path, files: dict[str, str]) -> Path:
    """Write files below `root`, and return it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(("text", "cores"), [("150000 100000", 1.5), ("max 100000", None)])
def test_the_cpu_quota_is_read_from_cgroup_v2(
    tmp_path: Path, text: str, cores: float | None
) -> None:
    assert cpu_quota(write(tmp_path, {"sys/fs/cgroup/cpu.max": text})) == cores


@pytest.mark.parametrize(("quota", "cores"), [("50000", 0.5), ("-1", None)])
def test_the_cpu_quota_is_read_from_cgroup_v1(
    tmp_path: Path, quota: str, cores: float | None
) -> None:
    folder = "sys/fs/cgroup/cpu"
    files = {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000"}
    assert cpu_quota(write(tmp_path, files)) == cores


def test_without_cgroups_there_is_no_quota_and_free_memory_is_unknown(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    assert free_memory(tmp_path) is None


def test_a_quota_of_an_outer_group_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/pods/pod7/box",
        "sys/fs/cgroup/pods/pod7/box/cpu.max": "400000 100000",
        "sys/fs/cgroup/pods/cpu.max": "250000 100000",
    }
    assert cpu_quota(write(tmp_path, files)) == 2.5


def test_a_quota_leaves_less_than_the_visible_cores() -> None:
    assert Machine(8, 1.5, None, 1024).cores == 1.5
    assert Machine(8, None, None, 1024).cores == 8


def memory_group(folder: str, names: tuple[str, str], limit: object, used: int) -> dict[str, str]:
    """The files of a cgroup with a limit and what is used of it."""
    return {f"{folder}/{names[0]}": str(limit), f"{folder}/{names[1]}": str(used)}


@pytest.mark.parametrize(
    ("groups", "own", "free"),
    [
        pytest.param({}, "0::/", 4_096_000, id="no limit"),
        pytest.param(
            memory_group("sys/fs/cgroup", V2_MEMORY, 3_000_000, 1_000_000),
            "0::/",
            2_000_000,
            id="v2",
        ),
        pytest.param(
            memory_group("sys/fs/cgroup", V2_MEMORY, "max", 1_000_000),
            "0::/",
            4_096_000,
            id="v2 without a limit",
        ),
        pytest.param(
            memory_group("sys/fs/cgroup", V2_MEMORY, 1_000_000, 1_500_000),
            "0::/",
            0,
            id="more used than the limit",
        ),
        pytest.param(
            memory_group("sys/fs/cgroup/pods/box", V2_MEMORY, "max", 0)
            | memory_group("sys/fs/cgroup/pods", V2_MEMORY, 2_000_000, 500_000),
            "0::/pods/box",
            1_500_000,
            id="v2, the limit of an outer group",
        ),
        pytest.param(
            memory_group("sys/fs/cgroup/pods/box", V2_MEMORY, 1_000_000, 300_000)
            | memory_group("sys/fs/cgroup/pods", V2_MEMORY, 2_000_000, 500_000),
            "0::/pods/box",
            700_000,
            id="v2, the smallest of nested groups",
        ),
        pytest.param(
            memory_group("sys/fs/cgroup/memory", V1_MEMORY, 3_000_000, 1_000_000),
            "5:memory:/docker/1234\n4:cpu:/docker/1234",
            2_000_000,
            id="v1, mounted at the group itself",
        ),
        pytest.param(
            memory_group("sys/fs/cgroup/memory/slurm/job", V1_MEMORY, 2_000_000, 800_000)
            | memory_group("sys/fs/cgroup/memory", V1_MEMORY, 2**63 - 4096, 9_000_000),
            "5:memory:/slurm/job\n4:cpu:/other",
            1_200_000,
            id="v1, a nested group",
        ),
        pytest.param(
            memory_group("sys/fs/cgroup/memory/other", V1_MEMORY, 2_000_000, 800_000),
            "5:memory:/slurm/job\n4:cpu:/other",
            4_096_000,
            id="v1, the group of another controller",
        ),
        pytest.param(
            memory_group("sys/fs/cgroup", V2_MEMORY, 3_000_000, 2_500_000)
            | {"sys/fs/cgroup/memory.stat": "anon 400000\ninactive_file 2000000\nslab 9"},
            "0::/",
            2_500_000,
            id="v2, cached files can be dropped",
        ),
        pytest.param(
            memory_group("sys/fs/cgroup/memory", V1_MEMORY, 3_000_000, 2_500_000)
            | {"sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 2000000"},
            "5:memory:/",
            2_500_000,
            id="v1, cached files can be dropped",
        ),
    ],
)
def test_free_memory_is_the_machines_or_the_tightest_groups(
    tmp_path: Path, groups: dict[str, str], own: str, free: int
) -> None:
    meminfo = "MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable: 4000 kB"
    files = {"proc/meminfo": meminfo, "proc/self/cgroup": own}
    assert free_memory(write(tmp_path, files | groups)) == free


def test_this_machine_has_cores_and_memory_and_this_process_takes_some() -> None:
    machine = Machine.here()
    assert machine.usable_cores >= 1 and machine.open_file_limit > 0
    assert machine.ram_free_bytes is None or machine.ram_free_bytes > 0
    usage = usage_of([os.getpid()])
    assert 1e6 < usage.pss_bytes <= usage.rss_bytes
    assert usage.open_files >= 3
    assert 1e6 < resident_bytes() <= peak_resident_bytes() * 1.1


def test_without_proc_the_resident_memory_is_the_peak(tmp_path: Path) -> None:
    assert resident_bytes(root=tmp_path) == peak_resident_bytes()


def test_a_process_that_is_gone_holds_nothing() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert usage_of([process.pid]) == usage_of([])
    with pytest.raises(OSError):
        resident_bytes(process.pid)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm")
def test_mappings_in_shared_memory_count_once_for_all_processes_and_other_files_do_not(
    tmp_path: Path,
) -> None:
    before = usage_of([os.getpid()]).shm_bytes
    shared = Path(f"/dev/shm/sftctl-test-{os.getpid()}")
    ordinary = tmp_path / "dev-shm"
    for path in (shared, ordinary):
        path.write_bytes(bytes(3 * mmap.PAGESIZE))
    with shared.open("r+b") as one, ordinary.open("r+b") as other:
        shared.unlink()  # as semaphores are: only the mapping is left
        with mmap.mmap(one.fileno(), 0), mmap.mmap(other.fileno(), 0):
            child = os.fork()
            if child == 0:
                os.read(os.pipe()[0], 1)  # holds the mapping until it is killed
            try:
                usage = usage_of([os.getpid(), child])
            finally:
                os.kill(child, 9)
                os.waitpid(child, 0)
    assert usage.shm_bytes - before == 3 * mmap.PAGESIZE


@pytest.mark.parametrize(
    ("load", "cores", "on"),
    [(2.9, 2, None), (3.0, 2, "2 cores"), (63.0, 64, None), (2.0, 1, "one core")],
)
def test_a_load_above_the_cores_is_told_but_not_that_of_a_run_which_has_just_ended(
    monkeypatch: pytest.MonkeyPatch, load: float, cores: int, on: str | None
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    told = f"other processes keep it busy: a load of {load} on {on}, so steps take longer"
    assert load_warning() == (told if on is not None else None)
    monkeypatch.delattr(os, "getloadavg")
    assert load_warning() is None


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags : fpu avx2 avx512_bf16", True),
        ("flags : amx_tile amx_bf16", True),
        ("flags : fpu avx2", False),
        ("no such line", None),
        (None, None),
    ],
)
def test_bfloat16_instructions_are_read_from_the_processors_flags(
    tmp_path: Path, flags: str | None, expected: bool | None
) -> None:
    if flags is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc" / "cpuinfo").write_text(f"processor : 0\n{flags}\n")
    assert multiplies_bfloat16(tmp_path) is expected


def test_how_long_each_thread_waited_for_a_core(tmp_path: Path) -> None:
    tasks = {"7": "12 34 5", "8": "1 2 3", "9": "0 0 0", "10": "?", "11": ""}
    write(tmp_path, {f"proc/self/task/{n}/schedstat": text for n, text in tasks.items()})
    assert nanoseconds_waited(tmp_path) == {"7": 34, "8": 2}
    assert nanoseconds_waited(tmp_path / "nothing") == {}

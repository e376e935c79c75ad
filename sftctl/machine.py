"""This machine: its cores, memory and limits, and the memory that processes use."""

import fcntl
import os
import platform
import resource
import shutil
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sftctl.environment import usable_cores

ROOT = Path("/")

_CPUCLOCK_SCHED = 2  # a constant of clock_gettime(2): the processor time of a process
_DATA_LIMITS = resource.getrlimit(resource.RLIMIT_DATA)


@dataclass(frozen=True, slots=True)
class Machine:
    """The free resources and the limits at one moment."""

    usable_cores: int  # cores that this process may use
    cpu_quota_cores: float | None  # the quota of the cgroup, in cores; None: no quota
    shm_free_bytes: int | None  # None: there is no /dev/shm
    open_file_limit: int  # for each process
    ram_free_bytes: int | None = None  # None: unknown
    process_limit: int | None = None  # for this user; None: no limit

    @classmethod
    def here(cls) -> "Machine":
        """This machine, now."""
        shm = ROOT / "dev/shm"
        processes = resource.getrlimit(resource.RLIMIT_NPROC)[0]
        is_limited = os.geteuid() != 0 and processes != resource.RLIM_INFINITY
        return cls(
            usable_cores=usable_cores(),
            cpu_quota_cores=cpu_quota(),
            shm_free_bytes=shutil.disk_usage(shm).free if shm.is_dir() else None,
            open_file_limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            ram_free_bytes=free_memory(),
            process_limit=processes if is_limited else None,
        )

    @property
    def cores(self) -> float:
        """The cores that can really be used. In a container, the quota may be smaller."""
        return min(self.usable_cores, self.cpu_quota_cores or self.usable_cores)


def load_average() -> float | None:
    """The mean number of processes that used or waited for a core in the last minute; None:
    unknown.
    """
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def load_warning() -> str | None:
    """A warning if other processes keep all cores of this machine busy. Call it before training.

    A run that has just ended leaves a load of about one per core. So the load must be at least the
    number of cores plus one.
    """
    load, cores = load_average(), os.cpu_count() or 1
    if load is None or load < cores + 1:
        return None
    on = f"{cores} cores" if cores > 1 else "one core"
    return f"other processes keep it busy: a load of {load:.1f} on {on}, so steps take longer"


def cpu_quota(root: Path = ROOT) -> float | None:
    """The smallest CPU quota of this process's cgroups, in cores; None: no quota."""
    quotas = []
    for folder in _own_groups(root, "cpu"):
        v2 = _words(folder / "cpu.max")  # such as "150000 100000" or "max 100000"
        v1 = [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
        quotas += [
            int(words[0]) / int(words[1])
            for words in (v2, v1)
            if len(words) == 2 and words[0].isdigit()  # neither "max" nor "-1"
        ]
    return min(quotas, default=None)


def free_memory(root: Path = ROOT) -> int | None:
    """Bytes of free memory: of the machine, or of the cgroup with the least. None: unknown."""
    free = []
    available = _number_after("MemAvailable:", root / "proc/meminfo")
    if available is not None:
        free.append(available * 1024)
    for folder in _own_groups(root, "memory"):
        for limit, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            words = [*_words(folder / limit), *_words(folder / used)]
            if len(words) == 2 and words[0].isdigit():
                # The kernel frees cached files if memory is short. MemAvailable counts them too.
                cached = _number_after(cache, folder / "memory.stat") or 0
                free.append(max(0, int(words[0]) - int(words[1]) + cached))
    return min(free, default=None)


def _own_groups(root: Path, controller: str) -> Iterator[Path]:
    """This process's cgroup and the cgroups above it, in v2 and in v1's hierarchy of `controller`.

    Some of these folders may not exist: in a container, the mount can begin at the cgroup itself.
    """
    cgroups = root / "sys/fs/cgroup"
    yield from (cgroups, cgroups / controller)
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = cgroups / controller if controllers else cgroups
        group = top / path.strip("/")
        while group != top and top in group.parents:
            yield group
            group = group.parent


def resident_bytes(pid: int | None = None, root: Path = ROOT) -> int:
    """Memory that a process holds now, with shared pages. The default is this process.

    Without /proc, the result is the peak of this process. OSError if the process does not exist any
    more.
    """
    statm = root / "proc" / ("self" if pid is None else str(pid)) / "statm"
    if pid is None and not statm.is_file():
        return peak_resident_bytes()
    return int(statm.read_text().split()[1]) * resource.getpagesize()


def peak_resident_bytes() -> int:
    """The largest amount of memory that this process has held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(frozen=True, slots=True)
class Usage:
    """The memory that some processes hold together."""

    rss_bytes: int  # a page that several processes share is counted for each of them
    pss_bytes: int  # a page that several processes share is counted once
    shm_bytes: int  # files in /dev/shm
    open_files: int


def usage_of(pids: Iterable[int]) -> Usage:
    """The memory that these processes hold now. A process that has ended is skipped."""
    rss = pss = files = 0
    shared: dict[str, int] = {}  # by inode
    for pid in pids:
        process = ROOT / "proc" / str(pid)
        try:
            rss += resident_bytes(pid)
            pss += (_number_after("Pss:", process / "smaps_rollup") or 0) * 1024
            files += len(os.listdir(process / "fd"))
            shared |= _shared_memory(process)
        except (OSError, IndexError):
            continue
    return Usage(rss, pss, sum(shared.values()), files)


def _shared_memory(process: Path) -> dict[str, int]:
    """The files in /dev/shm that the process maps, also deleted ones: inode -> bytes."""
    found: dict[str, int] = {}
    for line in _lines(process / "maps"):
        addresses, _, _, _, inode, *name = line.split(maxsplit=5)
        if name and name[0].startswith("/dev/shm/"):
            start, end = (int(part, 16) for part in addresses.split("-"))
            found[inode] = found.get(inode, 0) + end - start
    return found


def _number_after(name: str, path: Path) -> int | None:
    """The number after `name` in the line that begins with `name`; None if there is none."""
    for line in _lines(path):
        words = line.split()
        if words[:1] == [name]:
            return int(words[1])
    return None


def _words(path: Path) -> list[str]:
    return path.read_text().split() if path.is_file() else []


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def multiplies_bfloat16(root: Path = ROOT) -> bool | None:
    """Whether the processor has instructions for bfloat16 products; None: unknown."""
    file = root / "proc" / "cpuinfo"
    if not file.is_file():
        return None
    flags = next((line for line in file.read_text().splitlines() if line.startswith("flags")), None)
    return None if flags is None else not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags.split())


def processor_name(root: Path = ROOT) -> str:
    """The name, such as `AMD EPYC 9R14`; if it is unknown, the architecture."""
    for line in _lines(root / "proc" / "cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def data_bytes() -> int | None:
    """The memory that only this process can write to; None if the system is not Linux."""
    try:
        pages = (ROOT / "proc/self/statm").read_text().split()[5]
    except (OSError, IndexError):
        return None
    return int(pages) * resource.getpagesize()


def limit_data(num_bytes: int | None) -> None:
    """Limit the `data_bytes` of this process. None: back to the limit at the start of the process.

    An allocation beyond the limit raises MemoryError. Only Linux enforces the limit.
    """
    soft, hard = _DATA_LIMITS
    if num_bytes is not None:
        soft = num_bytes if soft == resource.RLIM_INFINITY else min(soft, num_bytes)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def processor_seconds(pid: int) -> float:
    """The processor time that a process has used.

    If this is unknown, the time of a clock is returned. So use only the difference of two calls.
    """
    try:
        return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
    except (OSError, OverflowError):
        return time.monotonic()


def nanoseconds_waited(root: Path = ROOT) -> dict[str, int]:
    """How long each thread of this process has waited for a core, by its id; {}: unknown."""
    waited = {}
    for thread in (root / "proc/self/task").glob("*"):
        with suppress(OSError, ValueError):  # the thread has just ended, or the text is unknown
            _, waits, turns = map(int, (thread / "schedstat").read_text().split())
            if turns > 0:  # a system that does not count has only zeros
                waited[thread.name] = waits
    return waited


def path_of_open(descriptor: int, root: Path = ROOT) -> Path | None:
    """The current path of an open file or folder; None if it was deleted, or if it is unknown."""
    try:
        now = Path(os.readlink(root / f"proc/self/fd/{descriptor}"))
        is_it = os.path.samestat(os.stat(now), os.fstat(descriptor))
    except OSError:
        return None
    return now if is_it else None


def lock_holder(path: Path) -> int | None:
    """The id of the process that holds a record lock on a file; None: no process, or unknown.

    Does not take the lock.
    """
    if sys.platform != "linux":
        return None
    form = "hhqqi4x"  # struct flock of fcntl(2): type, whence, start, length, process id
    try:
        with path.open("rb") as file:
            asked = struct.pack(form, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            found = struct.unpack(form, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    except OSError:
        return None
    return found[4] if found[0] != fcntl.F_UNLCK else None

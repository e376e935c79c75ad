"""What this machine allows a loader: cores, memory, shared memory, open files."""

import os
import resource
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sftctl.environment import usable_cores

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Machine:
    """The limits that loader processes meet."""

    usable_cores: int  # by affinity
    cpu_quota_cores: float | None  # what the cgroup allows, in cores; None: no limit
    shm_free_bytes: int | None  # None: there is no /dev/shm
    open_file_limit: int  # of each process
    ram_free_bytes: int | None = None  # of the machine or of the cgroup, whichever is less

    @classmethod
    def here(cls) -> "Machine":
        """This machine, now."""
        shm = Path("/dev/shm")
        return cls(
            usable_cores=usable_cores(),
            cpu_quota_cores=cpu_quota(),
            shm_free_bytes=shutil.disk_usage(shm).free if shm.is_dir() else None,
            open_file_limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            ram_free_bytes=ram_free(),
        )

    @property
    def cores(self) -> float:
        """Cores' worth of time: a container may see more cores than it may use."""
        return min(self.usable_cores, self.cpu_quota_cores or self.usable_cores)


def cpu_quota(cgroups: Path = CGROUPS, proc: Path = PROC) -> float | None:
    """The smallest CPU quota above this process in cores, by cgroup v2 or v1; None: no limit."""
    quotas = []
    for folder in _own_groups(cgroups, "cpu", proc):
        v2 = _words(folder / "cpu.max")  # "150000 100000", or "max 100000"
        v1 = [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
        quotas += [
            int(words[0]) / int(words[1])
            for words in (v2, v1)
            if len(words) == 2 and words[0].isdigit()  # neither "max" nor "-1"
        ]
    return min(quotas, default=None)


def ram_free(cgroups: Path = CGROUPS, proc: Path = PROC) -> int | None:
    """Bytes that may still be taken: of the machine, and of every cgroup above this process."""
    rooms = []
    for line in _lines(proc / "meminfo"):
        if line.startswith("MemAvailable:"):
            rooms.append(int(line.split()[1]) * 1024)
    for folder in _own_groups(cgroups, "memory", proc):
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            words = [*_words(folder / limit), *_words(folder / used)]
            if len(words) == 2 and words[0].isdigit():
                rooms.append(max(0, int(words[0]) - int(words[1])))
    return min(rooms, default=None)


def _own_groups(cgroups: Path, controller: str, proc: Path) -> Iterator[Path]:
    """This process's group and those above it, of v2 and of v1's `controller`.

    In a container the mount may begin at the group itself, so paths that aren't there are no loss.
    """
    yield from (cgroups, cgroups / controller)
    for line in _lines(proc / "self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroups / controller if controllers else cgroups
        group = root / path.strip("/")
        while group != root and root in group.parents:
            yield group
            group = group.parent


@dataclass(frozen=True, slots=True)
class Usage:
    """What processes hold together."""

    rss_bytes: int  # pages that they share are counted in each
    pss_bytes: int  # each such page counted once
    shm_bytes: int  # in /dev/shm
    open_files: int


def usage_of(pids: Iterable[int]) -> Usage:
    """What these processes hold now; one that has just ended holds nothing."""
    rss = pss = files = 0
    shared: dict[str, int] = {}  # by inode
    for pid in pids:
        process = PROC / str(pid)
        try:
            rss += int(_words(process / "statm")[1]) * os.sysconf("SC_PAGE_SIZE")
            pss += _pss(process)
            files += len(os.listdir(process / "fd"))
            shared |= _shared_memory(process)
        except (OSError, IndexError):
            continue
    return Usage(rss, pss, sum(shared.values()), files)


def _pss(process: Path) -> int:
    for line in _lines(process / "smaps_rollup"):
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _shared_memory(process: Path) -> dict[str, int]:
    """Bytes by inode of what the process has mapped from /dev/shm, deleted files too."""
    found: dict[str, int] = {}
    for line in _lines(process / "maps"):
        addresses, _, _, _, inode, *name = line.split(maxsplit=5)
        if name and name[0].startswith("/dev/shm/"):
            start, end = (int(part, 16) for part in addresses.split("-"))
            found[inode] = found.get(inode, 0) + end - start
    return found


def _words(path: Path) -> list[str]:
    return path.read_text().split() if path.is_file() else []


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []

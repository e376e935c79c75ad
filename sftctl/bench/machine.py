"""What this machine allows a loader: cores, shared memory, open files."""

import os
import resource
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sftctl.environment import usable_cores


@dataclass(frozen=True, slots=True)
class Machine:
    """The limits that loader processes meet."""

    usable_cores: int
    cpu_quota_cores: float | None  # what the cgroup allows, in cores; None: no limit
    shm_free_bytes: int | None  # loader processes hand batches over in /dev/shm
    open_file_limit: int

    @classmethod
    def here(cls) -> "Machine":
        """This machine, now."""
        shm = Path("/dev/shm")
        return cls(
            usable_cores=usable_cores(),
            cpu_quota_cores=cpu_quota(),
            shm_free_bytes=shutil.disk_usage(shm).free if shm.is_dir() else None,
            open_file_limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        )

    @property
    def cores(self) -> float:
        """Cores' worth of time: a container may see more cores than it may use."""
        return min(self.usable_cores, self.cpu_quota_cores or self.usable_cores)


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The CPU quota of this container in cores, by cgroup v2 or v1; None: no limit."""
    v2 = _words(root / "cpu.max")  # "150000 100000", or "max 100000"
    v1 = [*_words(root / "cpu/cpu.cfs_quota_us"), *_words(root / "cpu/cpu.cfs_period_us")]
    for words in (v2, v1):
        if len(words) == 2 and words[0].isdigit():  # neither "max" nor "-1"
            return int(words[0]) / int(words[1])
    return None


def rss_bytes(pids: Iterable[int]) -> int:
    """Resident memory of processes; pages that they share are counted in each."""
    pages = sum(int(_words(Path(f"/proc/{pid}/statm"))[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE")


def _words(path: Path) -> list[str]:
    return path.read_text().split() if path.is_file() else []

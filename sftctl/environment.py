"""Facts about this process from the system; the only reader of environment variables."""

import ctypes
import os
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # of prctl(2)


def rank() -> int:
    """This process's rank under torchrun or our launcher, 0 outside."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """The rank on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """The number of ranks, 1 outside torchrun and our launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """The number of ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def debug() -> bool:
    """SFTCTL_DEBUG=1: expected errors are shown with a traceback too."""
    return os.environ.get("SFTCTL_DEBUG") == "1"


def is_set(name: str) -> bool:
    """Whether the user has set a variable of another program."""
    return name in os.environ


def cache_folder() -> Path:
    """The folder for stores that `train` prepares: XDG_CACHE_HOME/sftctl or ~/.cache/sftctl."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sftctl"


def usable_cores() -> int:
    """The number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def signal_when_the_parent_dies(number: int) -> None:
    """Let the system send this process a signal when its parent dies; only Linux can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)

"""Facts about this process that the system gives. Only this file reads environment variables.

Only this file, `processes`, `openmp` and `machine` make calls that exist only on Linux. Each call
has a replacement for other systems.
"""

import ctypes
import fcntl
import importlib.util
import locale
import os
import pwd
import sys
from pathlib import Path
from typing import TextIO

from sftctl.errors import ConfigError, RankAlone
from sftctl.rank_variables import VARIABLES, contradiction, is_number, unset

_SPIN_COUNT = "1000"  # chosen by measurements: docs/measured/speed.md


def rank() -> int:
    """The rank of this process, if torchrun or our launcher started it; else 0."""
    return _number("RANK", 0)


def local_rank() -> int:
    """The rank on this machine."""
    return _number("LOCAL_RANK", 0)


def world_size() -> int:
    """The number of ranks, if torchrun or our launcher started this process; else 1."""
    return _number("WORLD_SIZE", 1)


def local_world_size() -> int:
    """The number of ranks on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1)


def _number(name: str, unset: int) -> int:
    """The number in a variable. `unset` if the variable is empty or has no number; `require_ranks`
    reports that.
    """
    text = os.environ.get(name, "").strip()
    return int(text) if is_number(text) else unset


def is_one_of_several() -> bool:
    """Whether a launcher started this process as one of several ranks."""
    return rank() < world_size() and world_size() > 1


def require_ranks() -> None:
    """RankAlone if variables of a launcher contradict each other, or if some of them are
    missing.
    """
    if problem := contradiction(_given()):
        hint = f"start all ranks with torchrun, or `{unset_ranks()}` to train on one"
        raise RankAlone(f"the environment has {problem}", hint)


def unset_ranks() -> str:
    """The shell command that removes a launcher's variables. Then this process trains alone."""
    return unset(_given())


def _given() -> dict[str, str]:
    """The values of the launcher's variables; "" for a variable that is not set."""
    return {name: os.environ.get(name, "").strip() for name in VARIABLES}


def meeting_point() -> tuple[str, int, str | None]:
    """(host, port, attempt): where the ranks meet.

    `attempt` is the number of the launcher's attempt if its agent listens there; None if rank 0
    listens.
    """
    agent_listens = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_ATTEMPT", "0") if agent_listens else None
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), attempt


def tasks_without_ranks() -> int:
    """The number of tasks that SLURM started, if no launcher made them ranks; else 0."""
    tasks = _number("SLURM_NTASKS", 1)
    return tasks if tasks > 1 and not os.environ.get("WORLD_SIZE", "").strip() else 0


def debug() -> bool:
    """Whether SFTCTL_DEBUG=1: then expected errors are shown with a traceback too."""
    return os.environ.get("SFTCTL_DEBUG") == "1"


def can_move_the_cursor() -> bool:
    """Whether the terminal that TERM names understands control sequences."""
    return os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


def shows_unicode(stream: TextIO) -> bool:
    """Whether `stream` shows letters that are not ASCII.

    The locale must be UTF-8 too. With LC_ALL=C, Python writes UTF-8 to a terminal that may not show
    it.
    """
    return (stream.encoding or "ascii").lower().startswith("utf") and has_utf8_locale()


def has_utf8_locale() -> bool:
    """Whether the C library uses UTF-8. Python's UTF-8 mode has no influence on this."""
    return locale.getencoding().lower().replace("-", "") == "utf8"


def is_set(name: str) -> bool:
    """Whether a variable is set, such as a setting of another program."""
    return name in os.environ


def says_how_threads_wait() -> bool:
    """Whether the user has set how long OpenMP's threads spin while they wait."""
    return any(map(is_set, ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")))


def let_threads_spin_briefly() -> None:
    """Make OpenMP's threads spin only briefly while they wait. Call this before torch is loaded."""
    os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT


def quiet_torchs_log() -> None:
    """Hide warnings of torch's C++ code. Call this before torch is loaded.

    While ranks wait for each other, such warnings are stack traces of 15 lines. A setting by the
    user is not changed.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def load_large_libraries() -> None:
    """Load torch's shared libraries while other threads run, so that signals are answered.

    `import torch` loads and links them for half a second, and holds the GIL all the time. If a
    library can't be loaded here, `import torch` loads it later.
    """
    found = importlib.util.find_spec("torch")
    if sys.platform != "linux" or "torch" in sys.modules or found is None or not found.origin:
        return
    load = ctypes.CDLL(None).dlopen  # ctypes releases the GIL during the call
    load.restype, load.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_int]
    for name, visible in (("torch_global_deps", os.RTLD_GLOBAL), ("torch_cpu", os.RTLD_LOCAL)):
        file = Path(found.origin).parent / "lib" / f"lib{name}.so"
        if not load(os.fsencode(file), os.RTLD_NOW | visible):
            return


def cache_folder() -> Path:
    """The folder for the stores that `train` prepares.

    XDG_CACHE_HOME/sftctl, or else ~/.cache/sftctl. A relative XDG_CACHE_HOME is ignored, as its
    specification says. ConfigError if there is no home folder.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path(os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir) / ".cache"
        except KeyError:
            raise ConfigError(
                "there is no home folder for the cache: HOME is not set, and this user has none",
                hint="set XDG_CACHE_HOME to a folder that can be written",
            ) from None
    return base / "sftctl"


def usable_cores() -> int:
    """The number of processor cores that this process may use; all cores if this is unknown."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_at(descriptor: int, buffer: memoryview, place: int) -> int:
    """Read from byte `place` of a file into `buffer`. Returns the number of bytes, 0 at the end.

    A single read may fill only a part. The position of the descriptor is not used, so threads can
    share it. Without `preadv`, the bytes are copied one time more.
    """
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, (buffer,), place)
    data = os.pread(descriptor, len(buffer), place)
    buffer[: len(data)] = data
    return len(data)


def sync(descriptor: int) -> None:
    """Sync a file to the disk. On macOS, fsync alone leaves the data in the cache of the disk."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is None:
        os.fsync(descriptor)
        return
    try:
        fcntl.fcntl(descriptor, full)
    except OSError:  # the file system does not support it, for example a network disk
        os.fsync(descriptor)

"""Facts about this process from the system; the only file that reads environment variables.

Only this file (and `machine`) makes calls that exist only on Linux. Each such call has a
replacement for other systems.
"""

import ctypes
import fcntl
import importlib.util
import locale
import os
import pwd
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO

from sftctl.errors import ConfigError, RankAlone
from sftctl.rank_variables import VARIABLES, contradiction, is_number, unset

_SPIN_COUNT = "1000"  # measured: docs/measured/speed.md
_PR_SET_PDEATHSIG = 1  # of prctl(2)


def rank() -> int:
    """This process's rank under torchrun or our launcher, 0 outside."""
    return _number("RANK", 0)


def local_rank() -> int:
    """The rank on this machine."""
    return _number("LOCAL_RANK", 0)


def world_size() -> int:
    """The number of ranks, 1 outside torchrun and our launcher."""
    return _number("WORLD_SIZE", 1)


def local_world_size() -> int:
    """The number of ranks on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1)


def _number(name: str, unset: int) -> int:
    """A variable's number; `unset` if the variable is empty or not a number, see
    `require_ranks`."""
    text = os.environ.get(name, "").strip()
    return int(text) if is_number(text) else unset


def is_one_of_several() -> bool:
    """Whether a launcher started this process as a rank of several."""
    return rank() < world_size() and world_size() > 1


def require_ranks() -> None:
    """RankAlone if the variables of a launcher contradict each other, or if some are missing."""
    if problem := contradiction(_given()):
        hint = f"start all ranks with torchrun, or `{unset_ranks()}` to train on one"
        raise RankAlone(f"the environment has {problem}", hint)


def unset_ranks() -> str:
    """The shell command that removes the variables of a launcher, so that this process trains
    alone."""
    return unset(_given())


def _given() -> dict[str, str]:
    """The variables of a launcher; empty if they are not set."""
    return {name: os.environ.get(name, "").strip() for name in VARIABLES}


def meeting_point() -> tuple[str, int, str | None]:
    """Where the ranks meet: host, port, and the number of the agent's attempt if it listens
    there."""
    agent_listens = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_ATTEMPT", "0") if agent_listens else None
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), attempt


def tasks_without_ranks() -> int:
    """The number of tasks that SLURM started, if no variable makes them ranks; else 0."""
    tasks = _number("SLURM_NTASKS", 1)
    return tasks if tasks > 1 and not os.environ.get("WORLD_SIZE", "").strip() else 0


def debug() -> bool:
    """SFTCTL_DEBUG=1: expected errors are shown with a traceback too."""
    return os.environ.get("SFTCTL_DEBUG") == "1"


def can_move_the_cursor() -> bool:
    """Whether the terminal that TERM names understands control codes."""
    return os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


def shows_unicode(stream: TextIO) -> bool:
    """Whether what is written to `stream` can be read there if it is not ASCII.

    The locale counts as well: under LC_ALL=C, Python writes UTF-8 to a terminal that may not.
    """
    return (stream.encoding or "ascii").lower().startswith("utf") and has_utf8_locale()


def has_utf8_locale() -> bool:
    """Whether the C library reads and writes UTF-8; Python's UTF-8 mode does not change that."""
    return locale.getencoding().lower().replace("-", "") == "utf8"


def is_set(name: str) -> bool:
    """Whether the user has set a variable of another program."""
    return name in os.environ


def wait_for_threads_briefly() -> None:
    """Let OpenMP's idle threads give up their core soon; call this before torch loads. By default
    these threads spin, and on a machine with other busy processes a step then takes many times as
    long. Ranks inherit the setting. A user's own setting is not changed.
    """
    if not any(map(is_set, ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"))):
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT


def quiet_torchs_log() -> None:
    """Leave out the warnings of torch's C++ code, which are stack traces of 15 lines for a rank
    that is waited for; call this before torch loads. A user's own setting is not changed.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def load_large_libraries() -> None:
    """Load torch's shared libraries while other threads run, so that a signal is answered.

    `import torch` holds Python's lock for half a second, while the system loads and links them. If
    a library can't be loaded here, `import torch` loads it.
    """
    found = importlib.util.find_spec("torch")
    if sys.platform != "linux" or "torch" in sys.modules or found is None or not found.origin:
        return
    load = ctypes.CDLL(None).dlopen  # a foreign function is called without the lock
    load.restype, load.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_int]
    for name, visible in (("torch_global_deps", os.RTLD_GLOBAL), ("torch_cpu", os.RTLD_LOCAL)):
        file = Path(found.origin).parent / "lib" / f"lib{name}.so"
        if not load(os.fsencode(file), os.RTLD_NOW | visible):
            return


def cache_folder() -> Path:
    """The folder for stores that `train` prepares: XDG_CACHE_HOME/sftctl or ~/.cache/sftctl.

    ConfigError if there is no home folder. A relative XDG_CACHE_HOME is ignored, as its
    specification says.
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
    """The number of processor cores that this process may use; if it is unknown, all cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_at(descriptor: int, buffer: memoryview, place: int) -> int:
    """Read from byte `place` of a file into `buffer`; returns how many bytes, 0 at the end.

    One read may fill only a part. The position of the descriptor is not used, so threads can share
    a descriptor. Without `preadv` the bytes are copied once more.
    """
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, (buffer,), place)
    data = os.pread(descriptor, len(buffer), place)
    buffer[: len(data)] = data
    return len(data)


def sync(descriptor: int) -> None:
    """Sync a file to the disk. On macOS, fsync alone leaves the data in the disk's own cache."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is None:
        os.fsync(descriptor)
        return
    try:
        fcntl.fcntl(descriptor, full)
    except OSError:  # a file system that lacks it, such as one on the network
        os.fsync(descriptor)


def has_ended_badly(pid: int) -> bool:
    """Whether a child has ended with an error. Its exit code can still be collected afterwards.

    ChildProcessError if it was collected before. False if the system can't look without collecting.
    """
    if not hasattr(os, "waitid"):
        return False
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return ended is not None and ended.si_status != 0


def can_fork() -> bool:
    """Whether a process with threads may fork. On macOS the system's libraries crash after a
    fork."""
    return sys.platform == "linux"


def signal_when_the_parent_dies(number: int) -> None:
    """Let the system send this process a signal when its parent dies. Only Linux can do this."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def become_a_worker() -> None:
    """End with the parent, and ignore the signals that a terminal sends to every process, because
    the parent handles them.

    SIGTERM ends the process, unless it was ignored when the program started.
    """
    signal_when_the_parent_dies(signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    is_ignored = signal.getsignal(signal.SIGTERM) == signal.SIG_IGN  # torch has changed it since
    signal.signal(signal.SIGTERM, signal.SIG_IGN if is_ignored else signal.SIG_DFL)


_ENDING = (signal.SIGTERM, signal.SIGHUP)


class EndedBySignal(BaseException):
    """Raised at the line that the command has reached. Not an Exception, because a library could
    catch that."""


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise EndedBySignal at the first signal that would kill the process; repeats are ignored.

    A signal that was ignored when the process started stays ignored. A run has its own handlers
    until it is over. A forked child is killed by the signal, because an exception in Python's fork
    hooks would only be printed.
    """
    heard = [number for number in _ENDING if signal.getsignal(number) == signal.SIG_DFL]

    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a new fork, which has not set its own handlers yet
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        for one in heard:
            signal.signal(one, signal.SIG_IGN)
        raise EndedBySignal(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        heard = []  # only the main thread may set handlers
    for number in heard:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in heard:
            if signal.getsignal(number) == end:  # else signals stay ignored until the exit
                signal.signal(number, signal.SIG_DFL)

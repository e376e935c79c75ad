"""Child processes, and the signals that end this one."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_PR_SET_PDEATHSIG = 1  # a constant of prctl(2)
_ENDING = (signal.SIGTERM, signal.SIGHUP)


def has_ended_badly(pid: int) -> bool:
    """Whether a child process has ended with an error. Does not collect its exit code.

    ChildProcessError if the exit code was collected before. False on systems where the exit code
    can only be read by collecting it.
    """
    if not hasattr(os, "waitid"):
        return False
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return ended is not None and ended.si_status != 0


def can_fork() -> bool:
    """Whether a process with threads may fork. On macOS, system libraries crash after a fork."""
    return sys.platform == "linux"


def signal_when_the_parent_dies(number: int) -> None:
    """Make the system send this process a signal when its parent dies. Works only on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def become_a_worker() -> None:
    """Set up signals in a worker process: it ends with its parent.

    Signals that a terminal sends to every process are ignored, because the parent handles them.
    SIGTERM ends the worker, unless SIGTERM was ignored when the program started.
    """
    signal_when_the_parent_dies(signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    is_ignored = signal.getsignal(signal.SIGTERM) == signal.SIG_IGN  # else torch set a handler
    signal.signal(signal.SIGTERM, signal.SIG_IGN if is_ignored else signal.SIG_DFL)


class EndedBySignal(BaseException):
    """Raised by a signal at any line of the command.

    It is a BaseException, so that no library catches it with `except Exception`.
    """


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """In this context, the first signal that would kill the process raises EndedBySignal instead.

    Later signals are ignored. A signal that was ignored when the process started stays ignored.
    During a training, the run has its own handlers. A forked child is killed by the signal, because
    Python would only print an exception in its fork hooks.
    """
    heard = [number for number in _ENDING if signal.getsignal(number) == signal.SIG_DFL]

    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked child that has not set its own handlers yet
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
            if signal.getsignal(number) == end:  # after one signal, all are ignored until the exit
                signal.signal(number, signal.SIG_DFL)

"""The display of a command that has no run: shows phases, and answers signals."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sftctl import environment
from sftctl.tracking import status

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE_S = 0.1  # if the command ends within this time, the signal is not answered
_END = b"\0"  # no signal has this number


@contextmanager
def working(phase: str = "loading torch", *, needs_torch: bool = True) -> Iterator[None]:
    """Show phases inside this context, first `phase`, and answer signals with a line.

    A signal raises its exception in the main thread, after the current call into torch. During the
    first phase, libraries are imported. There, Ctrl-C ends the process at once, because an
    interrupted import can fail in many ways.
    """
    with status.shown(), _answering(), _leaving_in(phase):
        status.doing(phase)
        if needs_torch:
            environment.load_large_libraries()
        yield
        status.doing("")


@contextmanager
def _leaving_in(phase: str) -> Iterator[None]:
    """Let Ctrl-C end the process at once during this phase."""
    before = signal.getsignal(signal.SIGINT)
    if (
        before is not signal.default_int_handler or not _is_main()
    ):  # SIGINT is ignored, or has another handler
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        if status.phase() != phase:
            raise KeyboardInterrupt
        status.write_line("stopped: by SIGINT: nothing has begun")
        os._exit(128 + number)

    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _is_main() -> bool:
    """Whether this is the main thread. Only there does Python allow signal handlers."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def _answering() -> Iterator[None]:
    if not _is_main():
        yield
        return
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    before = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    over = threading.Event()
    thread = threading.Thread(target=_answer, args=(reads, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.write(writes, _END)
        thread.join()
        os.close(reads)
        os.close(writes)


def _answer(reads: int, over: threading.Event) -> None:
    """Write one line when a signal arrives, except if the command ends at once."""
    is_answered = False
    while _END not in (numbers := os.read(reads, 64)):
        if is_answered or not any(number in numbers for number in _ENDING):
            continue
        is_answered = True
        if not over.wait(_PATIENCE_S):
            status.write_line("stopping: nothing is kept, nothing is lost")

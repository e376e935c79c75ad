"""The display of a command without a run: its phases, and an answer to a signal."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sftctl import environment
from sftctl.tracking import status

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE_S = 0.1  # a command that ends within this time needs no answer
_END = b"\0"  # no signal has this number


@contextmanager
def working(phase: str = "loading torch", *, needs_torch: bool = True) -> Iterator[None]:
    """Show phases inside this context, beginning with the first phase, and answer signals.

    The signal is raised in the main thread, when the running call of torch has returned. In the
    first phase the libraries are imported. There Ctrl-C ends the process, because an interrupted
    import can fail in many ways.
    """
    with status.shown(), _answering(), _leaving_in(phase):
        status.doing(phase)
        if needs_torch:
            environment.load_large_libraries()
        yield
        status.doing("")


@contextmanager
def _leaving_in(phase: str) -> Iterator[None]:
    """Let Ctrl-C end the process as long as this phase lasts."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or not _is_main():  # ignored, or another's
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
    """Whether this is the thread in which Python allows handlers."""
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
    """Say once that a signal was heard, unless the command has ended by then."""
    is_answered = False
    while _END not in (numbers := os.read(reads, 64)):
        if is_answered or not any(number in numbers for number in _ENDING):
            continue
        is_answered = True
        if not over.wait(_PATIENCE_S):
            status.write_line("stopping: nothing is kept, nothing is lost")

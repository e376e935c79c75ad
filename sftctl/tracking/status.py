"""Shows the current phase of the program on stderr, such as `loading torch`.

On a terminal, one line is rewritten. Otherwise each long phase gets a line. All higher layers may
call `doing`. Nothing is shown if the command has not opened the context `shown`.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TextIO

from sftctl import environment
from sftctl.words import printable, shortened, wrapped

_TICK_S = 0.25
_LONG_S = 1.0  # a shorter phase gets no line in a pipe
_ERASE = "\r\x1b[K"


class Status:
    """Shows phases on a stream until it is closed. Thread-safe."""

    def __init__(self, stream: TextIO, *, in_place: bool) -> None:
        self._stream, self._in_place = stream, in_place
        self._text, self._since = "", time.monotonic()
        self._is_drawn = self._is_told = self._is_hidden = False
        self._lock, self._over = threading.RLock(), threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        """The current phase, or an empty string."""
        return self._text

    def doing(self, text: str) -> None:
        """Begin a phase. Texts with the same first word are one phase, such as `validating 3/8` and
        `validating 4/8`."""
        with self._lock:
            if text.partition(" ")[0] != self._text.partition(" ")[0]:
                self._since, self._is_told = time.monotonic(), False
            self._text = text
            self._draw()

    @contextmanager
    def making_room(self) -> Iterator[None]:
        """Erase the phase, so that another line can be printed inside this context. The phase is
        drawn again later."""
        with self._lock:
            self._erase()
            yield

    def hide(self) -> None:
        """Stop writing. A panel shows `text` instead."""
        with self._lock:
            self._erase()
            self._is_hidden = True

    def close(self) -> None:
        """Erase the line and end the thread."""
        self._over.set()
        self._thread.join()
        self._erase()

    def _erase(self) -> None:
        if self._is_drawn:
            self._write(_ERASE)
            self._is_drawn = False

    def _tick(self) -> None:
        while not self._over.wait(_TICK_S):
            with self._lock:
                self._draw()

    def _draw(self) -> None:
        if self._is_hidden:
            return
        if not self._text:
            self._erase()
            return
        seconds = time.monotonic() - self._since
        if self._in_place:
            passed = f" ({seconds:.0f} s)" if seconds >= _LONG_S else ""
            text = shortened(printable(self._text) + passed, self._columns() - 1)
            self._write(f"{_ERASE}{text}")  # never longer than the screen, so it can be erased
            self._is_drawn = True
        elif not self._is_told and seconds >= _LONG_S:
            self._write(f"{printable(self._text)}\n")
            self._is_told = True

    def _columns(self) -> int:
        with suppress(OSError, ValueError):  # not a terminal, or a stream without a descriptor
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        return 80

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # stderr is closed
            self._stream.write(text)
            self._stream.flush()


_status: Status | None = None


@contextmanager
def shown() -> Iterator[None]:
    """Show phases on stderr inside this context. Only rank 0 shows them."""
    global _status
    if environment.rank() != 0 or _status is not None:
        yield
        return
    in_place = sys.stderr.isatty() and environment.can_move_the_cursor()
    _status = Status(sys.stderr, in_place=in_place)
    try:
        yield
    finally:
        status, _status = _status, None
        status.close()


def doing(text: str) -> None:
    """Begin a phase. An empty text ends the current phase."""
    if _status is not None:
        _status.doing(text)


def phase() -> str:
    """The current phase, or an empty string."""
    return _status.text if _status is not None else ""


def making_room() -> AbstractContextManager[None]:
    """A context for printing a line. The phase is erased first, so that the line is separate."""
    return _status.making_room() if _status is not None else nullcontext()


def write_line(text: str) -> None:
    """Write a line to stderr without Python's buffers, because another thread may be using them."""
    with making_room(), suppress(OSError):  # stderr may be closed
        os.write(2, f"{fitted(printable(text))}\n".encode(errors="backslashreplace"))


def fitted(text: str) -> str:
    """The text, wrapped at the width of the terminal if stderr is a terminal."""
    with suppress(OSError, ValueError):  # not a terminal, or a stream without a descriptor
        return wrapped(text, os.get_terminal_size(sys.stderr.fileno()).columns or 80)
    return text


def hide() -> None:
    """Stop writing. A panel shows `phase` instead."""
    if _status is not None:
        _status.hide()


def _forget() -> None:
    """Remove the status in a forked child, because only the parent writes to the screen."""
    global _status
    _status = None
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget)

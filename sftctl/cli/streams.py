"""Write to stdout and stderr. If a pipe or terminal is closed, the run continues."""

import errno
import os
import select
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import TextIO

from sftctl.disk import refusals
from sftctl.errors import ConfigError
from sftctl.tracking import status
from sftctl.words import printable

_BREAK = "\n"


def open_missing() -> None:
    """Open the null device for each standard stream that is closed (`>&-`).

    Otherwise the next opened file would get the file descriptor of the stream.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 stays open until exit
    for stream in (sys.stdout, sys.stderr):  # a stream or a file name may not be UTF-8
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def results() -> Iterator[None]:
    """A context for writing the result of a command to stdout. A closed pipe is not an error."""
    status.doing("")
    hint = "the command is done; free some space and run it again to see the result"
    with refusals("stdout", ConfigError, hint):
        try:
            yield
            sys.stdout.flush()
        except OSError as problem:
            nobody_reads = reader_has_left(sys.stdout, problem)
            _discard(sys.stdout)
            if not nobody_reads:
                raise


def tell(text: str, end: str = "\n", start: str = "") -> None:
    """Print lines on stderr. Control characters are escaped.

    `start` and `end` are printed unchanged, so they may move the cursor. If stderr can't be
    written (a closed pipe, a full disk), this is not an error: the exit code is still right.
    """
    try:
        with status.making_room():
            shown = status.fitted(printable(text, keep=_BREAK))
            print(f"{start}{shown}", end=end, file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def reader_has_left(stream: TextIO, problem: OSError) -> bool:
    """Whether a write failed because the other end of its pipe or terminal was closed."""
    if isinstance(problem, BrokenPipeError):
        return True
    with suppress(OSError, ValueError):  # a stream without a file descriptor
        is_terminal = stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)
        return problem.errno == errno.EIO and is_terminal
    return False


def is_closed() -> bool:
    """Whether stdout is a pipe whose reader is closed."""
    poll = select.poll()
    with suppress(OSError, ValueError):  # a stream without a file descriptor
        poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def settle() -> None:
    """Flush both streams. If this fails at exit, the interpreter prints errors of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _discard(stream)


def _discard(stream: TextIO) -> None:
    """Send all further output to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)

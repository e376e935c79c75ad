"""stdout and stderr, written so that a reader who closes the pipe never ends a run."""

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from sftctl.disk import refusals
from sftctl.errors import ConfigError


def open_missing() -> None:
    """Open the null device for streams that were closed at start (`>&-`).

    Otherwise the next opened file would get their file descriptor.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 stays open until exit


@contextmanager
def results() -> Iterator[None]:
    """Write a command's result to stdout inside this; a closed pipe is not an error."""
    hint = "the command itself is done; free some space and run it again to see the result"
    with refusals("stdout", ConfigError, hint):
        try:
            yield
            sys.stdout.flush()
        except BrokenPipeError:
            _discard(sys.stdout)
        except OSError:
            _discard(sys.stdout)
            raise


def tell(text: str, end: str = "\n") -> None:
    """Print a line on stderr; a closed pipe is not an error."""
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except BrokenPipeError:
        _discard(sys.stderr)


def is_closed() -> bool:
    """Whether stdout is a pipe that its reader has closed."""
    poll = select.poll()
    with suppress(OSError, ValueError):  # a stream without a file descriptor
        poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def settle() -> None:
    """Flush both streams before the interpreter exits, which would print its own errors."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _discard(stream)


def _discard(stream: TextIO) -> None:
    """Send everything that is still written to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)

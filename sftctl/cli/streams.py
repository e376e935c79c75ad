"""stdout and stderr: whoever reads them may leave at any time, and no run ends by that."""

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from sftctl.disk import refusals
from sftctl.errors import ConfigError


def open_missing() -> None:
    """Give streams that came closed (`>&-`) the null device, before a file takes their number."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 open to the end


@contextmanager
def results() -> Iterator[None]:
    """For what a command has found, on stdout: that nobody reads it is no error."""
    hint = "the command's own work is done: free some room, and have it told again"
    with refusals("stdout", ConfigError, hint):
        try:
            yield
            sys.stdout.flush()
        except BrokenPipeError:
            _let_go(sys.stdout)
        except OSError:
            _let_go(sys.stdout)
            raise


def tell(text: str, end: str = "\n") -> None:
    """A line on stderr; that nobody reads it is no error."""
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except BrokenPipeError:
        _let_go(sys.stderr)


def is_left() -> bool:
    """Whether stdout is a pipe whose reader has left."""
    poll = select.poll()
    with suppress(OSError, ValueError):  # a stream without a descriptor
        poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def settle() -> None:
    """Before the interpreter leaves: it would complain of what it can't write any more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _let_go(stream)


def _let_go(stream: TextIO) -> None:
    """What is still written goes nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)

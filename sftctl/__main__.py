"""The program: `sftctl`, or `python -m sftctl`, which torchrun can start."""

import gc
import os
import signal
from types import FrameType


def _leave(number: int, frame: FrameType | None) -> None:
    """Exit at a Ctrl-C during the imports of the program, without a traceback."""
    os.write(2, b"stopped: by SIGINT: nothing has begun\n")
    os._exit(128 + number)


_before = signal.getsignal(signal.SIGINT)
if _before is signal.default_int_handler:  # else this is a background job, which ignores Ctrl-C
    signal.signal(signal.SIGINT, _leave)

from sftctl.cli import app as _commands  # noqa: E402 the handler must be set before this import

signal.signal(signal.SIGINT, _before)


def app() -> None:
    """Run the command that the user typed, and exit with its exit code."""
    try:
        _commands.app(prog_name="sftctl")
    finally:
        # Without this, Python spends a second on freeing the objects of torch and transformers.
        gc.freeze()


if __name__ == "__main__":
    app()

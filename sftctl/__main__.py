"""The program: `sftctl`, and `python -m sftctl`, which torchrun launches."""

import gc
import os
import signal
from types import FrameType


def _leave(number: int, frame: FrameType | None) -> None:
    """Handle Ctrl-C during the imports of the program, without a traceback."""
    os.write(2, b"stopped: by SIGINT: nothing has begun\n")
    os._exit(128 + number)


_before = signal.getsignal(signal.SIGINT)
if _before is signal.default_int_handler:  # a job in the background ignores the signal
    signal.signal(signal.SIGINT, _leave)

from sftctl.cli import app as _commands  # noqa: E402 the handler comes first

signal.signal(signal.SIGINT, _before)


def app() -> None:
    """Run the command that was typed, and leave with its exit code."""
    try:
        _commands.app(prog_name="sftctl")
    finally:
        # Otherwise Python spends a second on collecting the garbage of torch and transformers.
        gc.freeze()


if __name__ == "__main__":
    app()

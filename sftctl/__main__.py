"""The program: `sftctl`, and `python -m sftctl`, which torchrun launches."""

import gc
import os
import signal
from types import FrameType


def _leave(number: int, frame: FrameType | None) -> None:
    """Ctrl-C while the program is still being imported: no traceback of an import."""
    os.write(2, b"stopped: by SIGINT: nothing has begun\n")
    os._exit(128 + number)


_before = signal.getsignal(signal.SIGINT)
if _before is signal.default_int_handler:  # else it is ignored: a job in the background
    signal.signal(signal.SIGINT, _leave)

from sftctl.cli import app as _commands  # noqa: E402 the handler comes first

signal.signal(signal.SIGINT, _before)


def app() -> None:
    """Run the command that was typed, and leave with its exit code."""
    try:
        _commands.app(prog_name="sftctl")
    finally:
        # Python would search all that torch and transformers have made for garbage, for a second.
        gc.freeze()


if __name__ == "__main__":
    app()

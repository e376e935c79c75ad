"""Changes settings of the terminal."""

import os
import sys
import termios
from contextlib import ExitStack, suppress


def without_control_echo() -> ExitStack:
    """Stop the terminal from printing `^C` when Ctrl-C is pressed, until the result is closed.

    In a background process nothing is changed, because the system would stop the process.
    """
    undo = ExitStack()
    with suppress(OSError, ValueError, AttributeError, termios.error):
        terminal = sys.stdin.fileno()
        if os.tcgetpgrp(terminal) != os.getpgrp():
            return undo
        before = termios.tcgetattr(terminal)
        quiet = [*before]
        quiet[3] &= ~termios.ECHOCTL
        termios.tcsetattr(terminal, termios.TCSANOW, quiet)
        undo.callback(_set, terminal, before)
    return undo


def _set(terminal: int, settings: list[object]) -> None:
    with suppress(OSError, termios.error):
        if os.tcgetpgrp(terminal) == os.getpgrp():
            termios.tcsetattr(terminal, termios.TCSANOW, settings)  # type: ignore[arg-type]

"""The terminal's own settings."""

import os
import sys
import termios
from contextlib import ExitStack, suppress


def without_control_echo() -> ExitStack:
    """Stop the terminal from writing `^C` into a panel, until the result is closed.

    Nothing is changed for a process in the background: the system would stop it.
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

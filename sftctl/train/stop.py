"""StopRequest: a signal becomes "stop after this step", on which all ranks agree."""

import os
import signal
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from sftctl.world import World

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_LEAVE_AFTER_S = 2.0  # a second Ctrl-C later than this leaves at once; sooner is the same keypress


class StopRequest:
    """Listens for signals while it is entered; under our launcher the parent listens for us.

    The launcher's parent writes the name of the signal into `stop_file`; rank 0 looks there.
    """

    def __init__(self, stop_file: Path | None = None) -> None:
        self._stop_file = stop_file
        self._signal_name: str | None = None
        self._asked_at = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            if self._stop_file is None or number != signal.SIGINT:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signal_name is None:
            self._signal_name, self._asked_at = signal.Signals(number).name, now
        elif number == signal.SIGINT and now - self._asked_at > _LEAVE_AFTER_S:
            os._exit(128 + number)

    def requested(self, world: World) -> str | None:
        """The signal's name if any rank was asked to stop; the same answer on every rank."""
        if self._signal_name is None and self._stop_file is not None and world.is_main:
            self._signal_name = _read(self._stop_file)
        number = int(signal.Signals[self._signal_name]) if self._signal_name else 0
        agreed = world.max(number)
        return signal.Signals(agreed).name if agreed else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text() or None
    except FileNotFoundError:
        return None

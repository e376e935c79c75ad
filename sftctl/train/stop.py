"""StopRequest: a signal asks to stop, and all ranks agree on the step after which they do.

Nothing here loads torch, so that a signal is heard from the first import on.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from sftctl.errors import Stopped

if TYPE_CHECKING:
    from sftctl.world import World

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_LEAVE_AFTER_S = 2.0  # a second Ctrl-C exits at once; sooner than this it is ignored


class StopRequest:
    """Listens for signals inside its context. Repeats are ignored, except for a late Ctrl-C.

    A terminal sends Ctrl-C to every process. Under our launcher only the parent listens for it and
    writes the signal's name to a file (`relayed_into`), which rank 0 reads as its `stop_file`.
    """

    def __init__(self, stop_file: Path | None = None) -> None:
        self._stop_file = stop_file
        self._relay: Path | None = None
        self._signal_name: str | None = None
        self._agreed: str | None = None
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

    def outlive(self) -> None:
        """Ignore repeats of a signal until the process has ended; call it before its end.

        Python restores the default handlers early in its shutdown, and a repeat would then kill it.
        """
        if self._signal_name is not None:
            for number in self._previous:
                signal.signal(number, signal.SIG_IGN)
            self._previous.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signal_name is None:
            self._signal_name, self._asked_at = signal.Signals(number).name, now
            self._tell_ranks()
        elif number == signal.SIGINT and now - self._asked_at > _LEAVE_AFTER_S:
            for rank in multiprocessing.active_children():
                rank.kill()
            os.write(2, b"exited at a second SIGINT; nothing more is saved\n")
            os._exit(128 + number)

    @contextmanager
    def relayed_into(self, stop_file: Path) -> Iterator[None]:
        """Pass signals on to the ranks through `stop_file`, as long as the context is open."""
        self._relay = stop_file
        self._tell_ranks()  # a signal may have come before
        try:
            yield
        finally:
            self._relay = None

    def _tell_ranks(self) -> None:
        if self._relay is not None and self._signal_name is not None:
            partial = self._relay.with_suffix(".partial")
            partial.write_text(self._signal_name)
            partial.rename(self._relay)

    @property
    def heard(self) -> str | None:
        """The signal's name as far as this process knows; ranks may differ."""
        if self._signal_name is None and self._stop_file is not None:
            self._signal_name = _read(self._stop_file)
        return self._signal_name

    def check(self) -> None:
        """Raise Stopped if a signal has come. For the time before there is anything to save."""
        if self.heard is not None:
            raise Stopped(
                f"by {self.heard} before training began: nothing to save, nothing lost",
                hint="run the same command again",
            )

    def requested(self, world: "World") -> str | None:
        """The signal's name if any rank has heard one, else None; the same answer on every rank.

        All ranks must call it together. After they agree to stop, the answer stays.
        """
        if self._agreed is None:
            heard = self.heard if world.is_main else self._signal_name
            number = world.max(int(signal.Signals[heard]) if heard else 0)
            self._agreed = signal.Signals(number).name if number else None
        return self._agreed

    @property
    def agreed(self) -> str | None:
        """The signal after which all ranks agreed to stop; None: they have not."""
        return self._agreed


def _read(path: Path) -> str | None:
    try:
        return path.read_text() or None
    except FileNotFoundError:
        return None

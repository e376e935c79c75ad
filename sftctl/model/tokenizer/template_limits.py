"""Limits of time, memory and text for chat templates, which are programs of other people.

Jinja's sandbox gives a template no access to files and to Python's inner workings. It does not
prevent endless loops or gigabytes of text. A timer in this process ends a template that takes too
long; it can't end one call that stays in C code, such as a power of large numbers. So
`data/prepare/workers` renders in separate processes, and kills a process that stays in a template
for twice as long.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sftctl.machine import data_bytes, limit_data

SECONDS = 10.0
"""Seconds of processor time that all renderings of a row together may take."""

MEMORY_BYTES = 512 << 20
"""Memory that a row's renderings may use in addition to what the process used before."""

TEXT_CHARS = 64 << 20
"""The longest text that a template may write."""

_TICK_S = 0.1
LARGE_TEXT = 1 << 18
"""Encoding a text of fewer characters needs far less than `MEMORY_BYTES`."""

_BYTES_PER_ROW_BYTE = 20  # what a parsed row may need, for each byte of it

Pulse = memoryview
"""Two 64-bit numbers, shared with a parent process: the number of the row that is being prepared,
and a count of renderings that is odd while a template runs."""


class OutOfTime(BaseException):
    """Raised by the timer inside a template. It is not an Exception, because a template could catch
    that."""


class TemplateLimits:
    """The time that renderings have taken, measured by a timer that ticks.

    By default each rendering has `SECONDS` of its own. Inside `for_rows`, all renderings of a row
    share them, and memory is limited too.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._pulse = new_pulse()
        self._row = 0  # the row that the time was counted for
        self._charged_s = 0.0
        self._sampled_at = 0.0
        self._has_rows = False
        self._memory: int | None = None

    def __reduce__(self) -> tuple[type["TemplateLimits"], tuple[float]]:
        """Another process counts from zero, because a shared pulse can't be pickled."""
        return TemplateLimits, (self.seconds,)

    def begin(self) -> None:
        """A template starts; OutOfTime if its row has no time left."""
        if not self._has_rows:
            self._charged_s = 0.0
            self._start_timer()
        elif self._row == self._pulse[0] and self._charged_s >= self.seconds:
            raise OutOfTime
        self._pulse[1] += 1 + (self._pulse[1] & 1)

    def end(self) -> None:
        """A template has ended; may be called twice."""
        self._pulse[1] += self._pulse[1] & 1
        if not self._has_rows:
            _stop_timer()

    @contextmanager
    def for_rows(self, pulse: Pulse, num_bytes: int) -> Iterator[None]:
        """Share the time of each row, whose number the caller writes into `pulse[0]`.

        `num_bytes` is the size of all rows. For the main thread of a process that only renders.
        """
        own, self._pulse = self._pulse, pulse
        self._charged_s, self._has_rows = 0.0, True
        self._memory = _memory_limit(num_bytes)
        self._start_timer()
        limit_data(self._memory)
        try:
            yield
        finally:
            _stop_timer()
            limit_data(None)
            self._pulse, self._has_rows = own, False

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Remove the limit on memory inside the block: encoding a large text may need more."""
        if self._has_rows:
            limit_data(None)
        try:
            yield
        finally:
            if self._has_rows:
                limit_data(self._memory)

    def _start_timer(self) -> None:
        if threading.current_thread() is threading.main_thread():  # only it receives signals
            self._sampled_at = time.thread_time()
            signal.signal(signal.SIGALRM, self._sample)
            signal.setitimer(signal.ITIMER_REAL, _TICK_S, _TICK_S)

    def _sample(self, number: int, frame: FrameType | None) -> None:
        """Count time for the current row if a template runs now. Time asleep does not count."""
        now = time.thread_time()
        spent, self._sampled_at = now - self._sampled_at, now
        if self._row != self._pulse[0]:
            self._row, self._charged_s = self._pulse[0], 0.0
        if self._pulse[1] & 1:
            self._charged_s += spent
            if self._charged_s >= self.seconds:
                raise OutOfTime


def new_pulse() -> Pulse:
    """A pulse that no other process sees."""
    return memoryview(bytearray(16)).cast("Q")


def _stop_timer() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.setitimer(signal.ITIMER_REAL, 0)


def _memory_limit(num_bytes: int) -> int | None:
    used = data_bytes()
    return None if used is None else used + max(MEMORY_BYTES, _BYTES_PER_ROW_BYTE * num_bytes)

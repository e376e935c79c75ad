"""Limits of time, memory and text for chat templates, which are programs of other people.

Jinja's sandbox protects files and the internals of Python. It does not prevent endless loops or
gigabytes of text. A timer in this process ends a template that takes too long. But the timer can't
interrupt a single long call in C code, such as a power of large numbers. So `data/prepare/workers`
renders in separate processes, and kills a process that stays in a template for twice as long.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sftctl.machine import data_bytes, limit_data

SECONDS = 10.0
"""Processor time, in seconds, for all renderings of one row together."""

MEMORY_BYTES = 512 << 20
"""The memory that the renderings of a row may allocate."""

TEXT_CHARS = 64 << 20
"""The largest number of characters that a template may write."""

_TICK_S = 0.1
LARGE_TEXT = 1 << 18
"""Encoding a text with fewer characters needs far less memory than `MEMORY_BYTES`."""

_BYTES_PER_ROW_BYTE = 20  # memory that a parsed row may need, per byte of the row

Pulse = memoryview
"""Two 64-bit numbers that a parent process can read: the number of the current row, and a counter.
Each start and each end of a rendering adds 1 to the counter, so it is odd during a rendering."""


class OutOfTime(BaseException):
    """Raised by the timer inside a template.

    It is not an Exception, so that `except Exception` in called code does not catch it.
    """


class TemplateLimits:
    """Limits the processor time of renderings with a timer.

    By default, each rendering may take `SECONDS`. Inside `for_rows`, all renderings of a row
    together may take `SECONDS`, and their memory is limited too.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._pulse = new_pulse()
        self._row = 0  # the row to which `_charged_s` belongs
        self._charged_s = 0.0
        self._sampled_at = 0.0
        self._has_rows = False
        self._memory: int | None = None

    def __reduce__(self) -> tuple[type["TemplateLimits"], tuple[float]]:
        """Pickle only the limit, because a shared pulse can't be pickled."""
        return TemplateLimits, (self.seconds,)

    def begin(self) -> None:
        """Call this before a rendering; OutOfTime if its row has no time left."""
        if not self._has_rows:
            self._charged_s = 0.0
            self._start_timer()
        elif self._row == self._pulse[0] and self._charged_s >= self.seconds:
            raise OutOfTime
        self._pulse[1] += 1 + (self._pulse[1] & 1)

    def end(self) -> None:
        """Call this after a rendering. A second call has no effect."""
        self._pulse[1] += self._pulse[1] & 1
        if not self._has_rows:
            _stop_timer()

    @contextmanager
    def for_rows(self, pulse: Pulse, num_bytes: int) -> Iterator[None]:
        """In this context, all renderings of a row share one time limit, and memory is limited.

        The caller writes the number of the current row into `pulse[0]`. `num_bytes` is the size of
        all rows. Call this in the main thread of a process that does nothing else.
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
        """In this context, memory is not limited, because encoding a large text may need more."""
        if self._has_rows:
            limit_data(None)
        try:
            yield
        finally:
            if self._has_rows:
                limit_data(self._memory)

    def _start_timer(self) -> None:
        if threading.current_thread() is threading.main_thread():  # other threads get no signals
            self._sampled_at = time.thread_time()
            signal.signal(signal.SIGALRM, self._sample)
            signal.setitimer(signal.ITIMER_REAL, _TICK_S, _TICK_S)

    def _sample(self, number: int, frame: FrameType | None) -> None:
        """Add processor time to the current row, if a template is running."""
        now = time.thread_time()
        spent, self._sampled_at = now - self._sampled_at, now
        if self._row != self._pulse[0]:
            self._row, self._charged_s = self._pulse[0], 0.0
        if self._pulse[1] & 1:
            self._charged_s += spent
            if self._charged_s >= self.seconds:
                raise OutOfTime


def new_pulse() -> Pulse:
    """A pulse that is not shared with another process."""
    return memoryview(bytearray(16)).cast("Q")


def _stop_timer() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.setitimer(signal.ITIMER_REAL, 0)


def _memory_limit(num_bytes: int) -> int | None:
    used = data_bytes()
    return None if used is None else used + max(MEMORY_BYTES, _BYTES_PER_ROW_BYTE * num_bytes)

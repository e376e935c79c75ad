"""OpenMP's threads give way: they spin less while other processes need the cores."""

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sftctl import environment
from sftctl.machine import nanoseconds_waited

_LOOK_S = 1.0
_BUSY, _FREE = 0.1, 0.02  # shares of a second, chosen by measurements: docs/measured/speed.md
_LOOKS_UNTIL_FREE = 5
_SPARE_THREADS = 32  # more than torch, its loaders and our team usually need


@contextmanager
def threads_give_way() -> Iterator[None]:
    """In this context, OpenMP's threads spin only briefly while the cores are busy.

    While these threads wait for each other, they spin, by default for milliseconds. On an idle
    machine this is the fastest way. On a busy machine, a spinning thread can hold the core that the
    thread it waits for needs, and a step takes many times as long. So this context looks once a
    second how long the threads of this process waited for a core. Results do not change. A setting
    by the user is not changed.

    Some systems do not tell how long threads waited, or allow hardly any more threads. There, all
    spins are short. Therefore enter this context before torch is loaded.
    """
    over = threading.Event()
    if not environment.says_how_threads_wait():
        if nanoseconds_waited() and _has_room_for(_SPARE_THREADS):
            _started("core-watch", lambda: _watch(over))
        else:
            environment.let_threads_spin_briefly()
    try:
        yield
    finally:
        over.set()


def _watch(over: threading.Event) -> None:
    """Look at the waits of this process once a second."""
    spins, waits, at = Spins(), nanoseconds_waited(), time.monotonic()
    while not over.wait(_LOOK_S):
        now, seconds = nanoseconds_waited(), time.monotonic() - at
        longest = max((now[thread] - waits.get(thread, 0) for thread in now), default=0)
        spins.choose(longest / 1e9 / seconds)
        waits, at = now, at + seconds
    spins.lengthen()


class Spins:
    """How long OpenMP's threads spin: as long as libgomp wants, or briefly.

    libgomp decides this before each wait. If there are more OpenMP threads than cores, it spins 100
    times, not 300,000 times (its manual, GOMP_SPINCOUNT). So we start a team of sleeping threads to
    make them spin briefly. The teams that compute keep their size.
    """

    def __init__(self) -> None:
        self._num_cores = environment.usable_cores()  # when libgomp counts them, or soon before
        self._num_free_looks = 0
        self._sleep_is_over = threading.Event()
        self._sleeper: threading.Thread | None = None

    @property
    def are_short(self) -> bool:
        """Whether the threads spin only briefly now."""
        return self._sleeper is not None

    def choose(self, waited: float) -> None:
        """Shorten or lengthen the spins.

        `waited` is a share of the last second, from 0 to 1. One thread waited for a core that long,
        and no thread waited longer.
        """
        self._num_free_looks = self._num_free_looks + 1 if waited < _FREE else 0
        if waited > _BUSY and not self.are_short:
            self._shorten()
        elif self._num_free_looks >= _LOOKS_UNTIL_FREE:
            self.lengthen()

    def lengthen(self) -> None:
        """Let the threads spin as long as libgomp wants."""
        if self._sleeper is not None:
            self._sleep_is_over.set()
            self._sleeper.join()  # the threads of its team end with it
            self._sleeper = None

    def _shorten(self) -> None:
        """Start the sleeping team. Nothing happens without libgomp, or if torch uses one thread."""
        gomp = ctypes.CDLL(None)  # torch makes libgomp's functions visible for the whole process
        num_threads = _num_threads_of_torch()
        if not hasattr(gomp, "GOMP_parallel") or not 1 < num_threads <= self._num_cores:
            return
        self._sleep_is_over = over = threading.Event()
        begun = threading.Event()

        def sleep() -> None:
            gomp.GOMP_parallel(gomp.omp_get_num_threads, None, self._num_cores - num_threads + 2, 0)
            begun.set()
            over.wait()

        self._sleeper = _started("sleeping-team", sleep)
        if self._sleeper is not None:
            begun.wait()


def _has_room_for(num_threads: int) -> bool:
    """Whether the system allows so many more threads. Call it before other threads start some.

    If libgomp can't start a thread, it ends the process.
    """
    over = threading.Event()
    tried = [_started("spare", over.wait) for _ in range(num_threads)]
    over.set()
    for thread in filter(None, tried):
        thread.join()
    return all(tried)


def _started(name: str, function: Callable[[], object]) -> threading.Thread | None:
    """A thread that calls `function`; None if the system does not allow more threads."""
    thread = threading.Thread(target=function, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread


def _num_threads_of_torch() -> int:
    """The size of the teams that compute; 1 while torch is not loaded."""
    ask = getattr(sys.modules.get("torch"), "get_num_threads", None)
    return 1 if ask is None else ask()

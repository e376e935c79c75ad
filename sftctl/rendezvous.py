"""The ranks that a launcher started meet here. A waiting rank reports which ranks are missing."""

import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import count
from typing import TypeVar

from torch._C import _DistNetworkError as DistNetworkError
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from sftctl.environment import unset_ranks
from sftctl.errors import RankAlone

T = TypeVar("T")

LONGEST_WAIT_S = 600.0
_QUIET_S, _REPEAT_S, _LOOK_S = 5.0, 60.0, 0.2
_CONNECT_S = 30.0  # for rank 0 to connect to its own store, with the look-up of its host name
_meetings = count()


def _hint() -> str:
    alone = f"`{unset_ranks()}` trains on one process"
    return f"start the others with the same command; if there are none, {alone}"


def meet(
    rank: int,
    world_size: int,
    place: tuple[str, int, str | None],
    check: Callable[[], None],
    longest_wait_s: float = LONGEST_WAIT_S,
) -> Store:
    """The store of all ranks. Returns when all ranks have come to `place`.

    `place` is (host, port, attempt). If torchrun's agent listens there, `attempt` is the number of
    its attempt. Otherwise it is None, and rank 0 listens. `check` is called several times a second,
    and may raise an error. RankAlone if a rank has not come after `longest_wait_s`.
    """
    host, port, attempt = place
    wait = _Wait(f"of {world_size} at {host}:{port}", check, longest_wait_s)
    # A store can outlive these ranks. The prefix separates the keys of different meetings.
    prefix = f"sftctl/{attempt}/{next(_meetings)}"
    while True:
        store = _open(rank, world_size, place, wait, longest_wait_s)
        prefixed = PrefixStore(prefix, store)
        try:
            prefixed.set(f"here/{rank}", "1")
            missing = [str(other) for other in range(world_size)]
            while missing := [other for other in missing if not prefixed.check([f"here/{other}"])]:
                wait.go_on(missing)
            break
        except DistNetworkError:
            if rank == 0 or attempt is not None:
                raise
            wait.go_on(["0"])  # rank 0's store of an earlier meeting is about to close: try again
    store.set_timeout(timedelta(seconds=longest_wait_s))
    return prefixed


def _open(
    rank: int,
    world_size: int,
    place: tuple[str, int, str | None],
    wait: "_Wait",
    longest_wait_s: float,
) -> Store:
    """The store at `place`. Returns when a process listens there."""
    host, port, attempt = place
    listens = rank == 0 and attempt is None
    while not listens and not wait.during(lambda: _answers(host, port, wait)):
        wait.go_on(["0"])
    others = ["0"] if rank else [str(other) for other in range(1, world_size)]
    # If torch's own time limit ended first, torch would print a stack trace.
    timeout = timedelta(seconds=_CONNECT_S if listens else 2 * longest_wait_s + _CONNECT_S)
    wait.reason = "" if listens else "; a program listens there, but is perhaps not rank 0"
    try:
        return wait.during(
            lambda: TCPStore(
                host,
                port,
                world_size,
                listens,
                timeout,
                wait_for_workers=False,
                multi_tenant=True,
            ),
            others,
        )
    except (RuntimeError, ValueError, TypeError) as problem:
        reason = str(problem).strip().splitlines()[0]
        if "EADDRINUSE" in reason:
            raise RankAlone(
                f"rank {rank} can't wait for the others at {host}:{port}: another program listens "
                "there",
                "give all ranks another MASTER_PORT, or end that program",
            ) from problem
        raise RankAlone(
            f"rank {rank} can't meet the others at {host}:{port}: {reason}", _hint()
        ) from problem
    finally:
        wait.reason = ""


def _answers(host: str, port: int, wait: "_Wait") -> bool:
    """Whether a process listens at this host and port."""
    wait.reason = ""
    # UnicodeError: the text can't be a host name, such as `a..b`
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except (socket.gaierror, UnicodeError):
        wait.reason = f"; the host name {host} has no address here"
        return False
    except OSError:
        return False
    return True


class _Wait:
    """Waits for ranks. Reports which ranks are missing, reacts to signals, and has a time limit."""

    def __init__(self, where: str, check: Callable[[], None], longest_s: float) -> None:
        self._where, self._check, self._longest_s = where, check, longest_s
        self._began = time.monotonic()
        self._speaks_at = self._began + _QUIET_S
        self.reason = ""
        """A possible cause, appended to the message; "" if none is known."""

    def during(self, call: Callable[[], T], missing: Sequence[str] = ("0",)) -> T:
        """The result of a call that may block, such as the look-up of a host name.

        The call runs in a thread, because a signal could not end it otherwise. If the wait ends
        first, the thread is abandoned.
        """
        results: list[T] = []
        problems: list[Exception] = []

        def run() -> None:
            try:
                results.append(call())
            except Exception as problem:  # the waiting thread raises it again
                problems.append(problem)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(_LOOK_S)
        while thread.is_alive():
            self._look(missing)
            thread.join(_LOOK_S)
        for problem in problems:
            raise problem
        return results[0]

    def go_on(self, missing: Sequence[str]) -> None:
        """Wait a moment for the ranks `missing`. RankAlone if the time limit is over."""
        self._look(missing)
        time.sleep(_LOOK_S)

    def _look(self, missing: Sequence[str]) -> None:
        self._check()
        now = time.monotonic()
        whom = f"rank {', '.join(missing[:8])}{', …' if len(missing) > 8 else ''} {self._where}"
        if now - self._began > self._longest_s:
            raise RankAlone(
                f"{whom} did not come within {self._longest_s:g} s{self.reason}", _hint()
            )
        if now > self._speaks_at:
            self._speaks_at = now + _REPEAT_S
            with suppress(OSError):
                text = f"waiting for {whom}, for at most {self._longest_s:g} s{self.reason}"
                print(text, file=sys.stderr, flush=True)

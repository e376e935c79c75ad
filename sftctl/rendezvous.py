"""Ranks that a launcher started find each other here, and report which ranks they wait for."""

import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from itertools import count

from torch._C import _DistNetworkError as DistNetworkError
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from sftctl.environment import unset_ranks
from sftctl.errors import RankAlone

LONGEST_WAIT_S = 600.0
_QUIET_S, _REPEAT_S, _LOOK_S = 5.0, 60.0, 0.2
_CONNECT_S = 30.0  # for rank 0 to reach its own store, which looks its host up
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
    """The store of all ranks, once all of them have come to `place`.

    `place` is host, port, and the number of the agent's attempt if torchrun's agent listens there;
    else rank 0 listens. `check` is called several times a second and may
    raise. RankAlone if a rank has not come after `longest_wait_s`.
    """
    host, port, attempt = place
    wait = _Wait(f"of {world_size} at {host}:{port}", check, longest_wait_s)
    # The store may live longer than these ranks, and keys of an earlier meeting must not count.
    prefix = f"sftctl/{attempt}/{next(_meetings)}"
    while True:
        store = _open(rank, world_size, place, wait)
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
            wait.go_on(["0"])  # this was rank 0's store of an earlier meeting, about to close
    store.set_timeout(timedelta(seconds=longest_wait_s))
    return prefixed


def _open(rank: int, world_size: int, place: tuple[str, int, str | None], wait: "_Wait") -> Store:
    """The store at `place`, once a process listens there."""
    host, port, attempt = place
    listens = rank == 0 and attempt is None
    while not listens and not _answers(host, port):
        wait.go_on(["0"])
    try:
        return TCPStore(
            host,
            port,
            world_size,
            listens,
            timedelta(seconds=_CONNECT_S),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except (RuntimeError, ValueError, TypeError) as problem:
        reason = str(problem).strip().splitlines()[0]
        raise RankAlone(
            f"rank {rank} can't meet the others at {host}:{port}: {reason}", _hint()
        ) from problem


def _answers(host: str, port: int) -> bool:
    """Whether a process listens there."""
    # UnicodeError: a name that can't be one of a host, such as `a..b`
    with suppress(OSError, UnicodeError), socket.create_connection((host, port), timeout=1.0):
        return True
    return False


class _Wait:
    """Waits for ranks: reports which ones, reacts to signals, and has a time limit."""

    def __init__(self, where: str, check: Callable[[], None], longest_s: float) -> None:
        self._where, self._check, self._longest_s = where, check, longest_s
        self._began = time.monotonic()
        self._speaks_at = self._began + _QUIET_S

    def go_on(self, missing: list[str]) -> None:
        """Wait a moment for these ranks; RankAlone if it has been too long."""
        self._check()
        now = time.monotonic()
        whom = f"rank {', '.join(missing[:8])}{', …' if len(missing) > 8 else ''} {self._where}"
        if now - self._began > self._longest_s:
            raise RankAlone(f"{whom} did not come within {self._longest_s:g} s", _hint())
        if now > self._speaks_at:
            self._speaks_at = now + _REPEAT_S
            with suppress(BrokenPipeError):
                text = f"waiting for {whom}, for at most {self._longest_s:g} s"
                print(text, file=sys.stderr, flush=True)
        time.sleep(_LOOK_S)

"""Work for every core: a function over items in child processes, results in the items' order."""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, TypeVar

from sftctl.environment import signal_when_the_parent_dies
from sftctl.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD_PER_WORKER = 2  # one in work, one waiting: more would only take memory

_work: Callable[[Any], Any]
"""In a child process: what it was forked to do."""


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], num_workers: int
) -> Iterator[Result]:
    """`work(item)` for each, by forks of this process; memory holds a few items, not all.

    What `work` raises is raised here; a child that was killed is a DataError. One worker, or one
    item, needs no other process.
    """
    items = iter(items)
    first = list(islice(items, 2))
    if num_workers < 2 or len(first) < 2:
        yield from map(work, chain(first, items))
        return
    # A fork shares the tokenizer that is loaded already; a fresh process would take seconds.
    executor = ProcessPoolExecutor(
        num_workers, multiprocessing.get_context("fork"), _become_a_worker, (work,)
    )
    pending: deque[Future[Result]] = deque()
    try:
        for item in chain(first, items):
            if len(pending) == num_workers * _AHEAD_PER_WORKER:
                yield pending.popleft().result()
            with _interrupts_held():  # the first one forks
                pending.append(executor.submit(_run, item))
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as problem:
        raise DataError(
            "a worker process died: killed, or out of memory", "try fewer --workers"
        ) from problem
    finally:
        executor.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits meanwhile; a process that is born now never hears it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _become_a_worker(work: Callable[[Any], Any]) -> None:
    """Ctrl-C reaches the whole process group: the parent alone answers it. Its death is ours."""
    global _work
    _work = work
    signal_when_the_parent_dies(signal.SIGKILL)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run(item: Any) -> Any:
    return _work(item)

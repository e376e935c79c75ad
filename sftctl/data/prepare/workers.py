"""Runs a function over items in child processes; results keep the items' order."""

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

_AHEAD_PER_WORKER = 2  # one running and one waiting; more would only take memory

_work: Callable[[Any], Any]
"""In a child process: the function that it runs."""


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], num_workers: int
) -> Iterator[Result]:
    """Yield `work(item)` for each item, computed by forks of this process, a few items ahead.

    An error of `work` is raised here. A killed child is a DataError. With one worker or one item,
    this process does the work itself.
    """
    items = iter(items)
    first = list(islice(items, 2))
    if num_workers < 2 or len(first) < 2:
        yield from map(work, chain(first, items))
        return
    # A fork shares the loaded tokenizer; a fresh process would take seconds to load it.
    executor = ProcessPoolExecutor(
        num_workers, multiprocessing.get_context("fork"), _become_a_worker, (work,)
    )
    pending: deque[Future[Result]] = deque()
    try:
        for item in chain(first, items):
            if len(pending) == num_workers * _AHEAD_PER_WORKER:
                yield pending.popleft().result()
            with _interrupts_held():  # the first submit() forks the workers
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
    """Block SIGINT in this block, so that a process forked in it starts with SIGINT blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _become_a_worker(work: Callable[[Any], Any]) -> None:
    """Leave Ctrl-C to the parent (it reaches all processes of the group), and die with it."""
    global _work
    _work = work
    signal_when_the_parent_dies(signal.SIGKILL)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run(item: Any) -> Any:
    return _work(item)

"""Runs a function over items in child processes. The results have the order of the items.

Chat templates run in these processes. A template is a foreign program that may never end. So the
parent watches each child process, and kills a process that stays inside a template.
"""

import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from mmap import mmap
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, SpawnContext
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from sftctl.errors import DataError
from sftctl.machine import processor_seconds
from sftctl.model.tokenizer.template_limits import SECONDS, Pulse
from sftctl.processes import become_a_worker, can_fork

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD_PER_WORKER = 2  # one running item and one waiting item; more would only need memory
_LOOK_S = 0.2  # a waiting parent checks its workers at this interval


def _give_up(item: Any, row: int) -> Any:
    raise DataError(
        f"a worker process hangs in row {row} of {item!r}", "look at this row, or remove it"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Work(Generic[Item, Result]):
    """What the workers do, and how the parent waits for them."""

    function: Callable[[Item, Pulse], Result]
    without_row: Callable[[Item, int], Item] = _give_up
    """(item, number of the row that hung) -> the item without this row."""
    while_waiting: Callable[[], None] = lambda: None
    """Called several times a second. Exceptions are passed on."""
    silence_s: float = 2 * SECONDS
    """A worker is killed after this processor time inside one rendering."""

    def in_order(self, items: Iterable[Item], num_workers: int) -> Iterator[Result]:
        """Yield the result of the function for each item, in order. Workers are a few items ahead.

        Raises the errors of the function, and DataError if a worker dies. A worker that hangs in a
        template is killed. Another worker then does the items again, without the row that hung.
        """
        pool = _Pool(self, num_workers)
        try:
            for item in items:
                while pool.is_full:
                    yield pool.next_result()
                pool.give(item)
            while pool.pending:
                yield pool.next_result()
        finally:
            pool.close()


@dataclass(slots=True, eq=False)
class _Task:
    """An item, and the answer of its worker: a result or an error."""

    item: Any
    answer: tuple[Any, Exception | None] | None = None


class _Worker:
    """A child process, and its unfinished tasks."""

    def __init__(self, work: Work[Any, Any]) -> None:
        # A fork shares the loaded tokenizer. A spawned process needs seconds to load it.
        context: ForkContext | SpawnContext = ForkContext() if can_fork() else SpawnContext()
        self.tasks: deque[_Task] = deque()
        # A spawned process does not inherit memory maps. A RawArray is in a file that it can open.
        shared = mmap(-1, 16) if can_fork() else context.RawArray("Q", 2)
        self.pulse = _as_pulse(shared)
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_run, args=(work.function, theirs, self.connection, shared), daemon=True
        )
        self._waiting: SimpleQueue[tuple[Any] | None] = SimpleQueue()
        self._sender = threading.Thread(
            target=_send_all, args=(self.connection, self._waiting), daemon=True
        )
        self._seen: tuple[list[int], float] = ([], 0.0)
        # A signal that arrives during a fork would be lost: the handler would raise in a function
        # that Python calls after a fork, and Python ignores exceptions there.
        with _signals_held():
            self.process.start()
            self._sender.start()
        theirs.close()

    def give(self, task: _Task) -> None:
        self.tasks.append(task)
        self._waiting.put((task.item,))

    def take_answer(self) -> None:
        """Receive the answer to the worker's oldest task. Raises DataError if the process died."""
        try:
            answer = self.connection.recv()
        except (EOFError, OSError) as problem:
            raise DataError(
                "a worker process died: killed, or out of memory", "try fewer --workers"
            ) from problem
        self.tasks.popleft().answer = answer

    def is_silent(self, for_s: float) -> bool:
        """Whether the worker has used more than `for_s` seconds of CPU time for one rendering."""
        assert self.process.pid is not None
        now, state = processor_seconds(self.process.pid), self.pulse.tolist()
        if state != self._seen[0]:
            self._seen = (state, now)
        is_rendering = bool(state[1] & 1)
        return bool(self.tasks) and is_rendering and now - self._seen[1] > for_s

    def end(self) -> None:
        """Kill the process. Other workers can do its tasks."""
        self._waiting.put(None)
        self.process.kill()
        self.process.join()
        self._sender.join()
        self.connection.close()


@dataclass(slots=True)
class _Pool:
    work: Work[Any, Any]
    num_workers: int
    pending: deque[_Task] = field(default_factory=deque)
    workers: list[_Worker] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        return len(self.pending) >= self.num_workers * _AHEAD_PER_WORKER

    def give(self, item: Any) -> None:
        """Give the item to the worker with the fewest tasks."""
        if len(self.workers) < self.num_workers and all(w.tasks for w in self.workers):
            self.workers.append(_Worker(self.work))
        task = _Task(item)
        self.pending.append(task)
        min(self.workers, key=lambda worker: len(worker.tasks)).give(task)

    def next_result(self) -> Any:
        """The result of the oldest item. Raises the error of the item, if there was one."""
        while self.pending[0].answer is None:
            self._wait()
        result, error = self.pending.popleft().answer or (None, None)
        if error is not None:
            raise error
        return result

    def _wait(self) -> None:
        """Receive the answers that have arrived. If there are none, look for workers that hang."""
        busy = {worker.connection: worker for worker in self.workers if worker.tasks}
        ready = wait(list(busy), _LOOK_S)
        for connection in ready:
            assert isinstance(connection, Connection)
            busy[connection].take_answer()
        if not ready:
            self.work.while_waiting()
            for worker in self.workers:
                if worker.is_silent(self.work.silence_s):
                    self._replace(worker)

    def _replace(self, silent: _Worker) -> None:
        """Kill a worker that hangs. A new worker gets its tasks, without the row that hung."""
        tasks, row = silent.tasks, silent.pulse[0]
        silent.end()
        self.workers.remove(silent)
        tasks[0].item = self.work.without_row(tasks[0].item, row)
        new = _Worker(self.work)
        self.workers.append(new)
        for task in tasks:
            new.give(task)

    def close(self) -> None:
        for worker in self.workers:
            worker.end()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Delay signals that end a command while a process or thread is made.

    The new process or thread starts with these signals blocked. Another thread can still receive
    such a signal, and Python then runs its handler in the main thread. So inside this context the
    handlers only record the signal.
    """
    ending = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    heard: list[int] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        known = {number: signal.getsignal(number) for number in ending}
        handlers = {n: one for n, one in known.items() if one not in (signal.SIG_IGN, None)}
    for number in handlers:
        signal.signal(number, lambda number, _: heard.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if heard:
            signal.raise_signal(heard[0])


def _send_all(connection: Connection, items: SimpleQueue[tuple[Any] | None]) -> None:
    """Send the items to a worker. A worker that hangs does not read its pipe, and sending then
    blocks. So this function runs in a thread."""
    with suppress(OSError):  # the worker was killed
        while (item := items.get()) is not None:
            connection.send(item[0])


def _as_pulse(shared: Any) -> Pulse:
    return memoryview(shared).cast("B").cast("Q")


def _run(
    function: Callable[[Any, Pulse], Any], connection: Connection, parents: Connection, shared: Any
) -> None:
    """The main function of a worker."""
    pulse = _as_pulse(shared)
    parents.close()
    signal.set_wakeup_fd(-1)
    become_a_worker()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # so that the parent can end it
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        answer: tuple[Any, Exception | None]
        try:
            answer = function(item, pulse), None
        except Exception as error:
            error.add_note(f"in a worker process:\n{traceback.format_exc()}")
            answer = None, error
        try:
            connection.send(answer)
        except (TypeError, AttributeError, ValueError) as problem:  # the answer can't be pickled
            connection.send((None, RuntimeError(f"{problem}: {answer[1]!r}")))

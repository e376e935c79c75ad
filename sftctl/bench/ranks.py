"""N processes that load at once, as the ranks of a run do; one that dies is started anew."""

import multiprocessing
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from sftctl.bench.measure import attempt, row_of
from sftctl.data.loader import LoaderSettings, StepShape
from sftctl.data.microbatch import Examples
from sftctl.environment import signal_when_the_parent_dies, usable_cores
from sftctl.metrics import LoaderResult
from sftctl.world import choose_device

_PATIENCE_S = 120.0  # beyond the time of a round: starting processes, the first batches
_WARM = "warm"

_SUMMED = {
    *("batches_per_s", "samples_per_s", "tokens_per_s"),
    *("rss_bytes", "pss_bytes", "shm_bytes", "open_files"),
}
_WORST = {"first_batch_s", "wait_p50_s", "wait_p99_s", "step_wait_s"}


class OtherRankFailed(Exception):
    """A setting broke on another rank, so that this one has nothing to measure."""


class Ranks:
    """One process per shape; they start with the first round and live until one of them dies."""

    def __init__(self, store: Examples, shapes: Sequence[StepShape], device: str) -> None:
        self._arguments = [(store, shape, device) for shape in shapes]
        self._ranks: list[tuple[SpawnProcess, Connection]] = []

    def measure(
        self, setting: LoaderSettings, seconds: float, step_time_s: float | None
    ) -> LoaderResult:
        """One round on all ranks at once: rates are summed, waits are the worst."""
        self._start()
        try:
            for _, connection in self._ranks:
                connection.send((setting, seconds, step_time_s))
            first = [self._answer(number, 0.0) for number in range(len(self._ranks))]
            failed = [answer for answer in first if answer != _WARM]
            for (_, connection), answer in zip(self._ranks, first, strict=True):
                if answer == _WARM:
                    connection.send(not failed)
            results = [
                self._answer(number, 4 * seconds) if answer == _WARM else answer
                for number, answer in enumerate(first)
            ]
        except (EOFError, OSError, TimeoutError) as problem:
            reason = str(problem) if isinstance(problem, TimeoutError) else self._death()
            self.close()
            return replace(row_of(setting), error=reason)
        return failed[0] if failed else together(results)

    def close(self) -> None:
        """End the processes, with their loader processes."""
        for process, connection in self._ranks:
            connection.close()  # a rank that waits for orders ends by itself
            process.join(5.0)
            if process.is_alive():
                process.kill()
                process.join()
        self._ranks = []

    def _start(self) -> None:
        if self._ranks:
            return
        context = multiprocessing.get_context("spawn")  # a fork can't use CUDA after its parent
        for store, shape, device in self._arguments:
            ours, theirs = context.Pipe()
            process = context.Process(target=_rank_main, args=(theirs, store, shape, device))
            process.start()
            theirs.close()
            self._ranks.append((process, ours))

    def _answer(self, number: int, seconds: float) -> Any:
        process, connection = self._ranks[number]
        # A loader process that outlives its rank holds the other end of the pipe open.
        if not wait([connection, process.sentinel], _PATIENCE_S + seconds):
            raise TimeoutError(f"no batch in {_PATIENCE_S:.0f} s")
        if not connection.poll():
            raise EOFError
        return connection.recv()

    def _death(self) -> str:
        """How the process that is gone has ended."""
        for process, _ in self._ranks:
            process.join(1.0)
            code = process.exitcode
            if code is not None and code < 0:
                return f"the loading process was killed by {signal.Signals(-code).name}"
            if code is not None:
                return f"the loading process ended with exit code {code}"
        return "the loading process does not answer"


@contextmanager
def loading_ranks(store: Examples, shapes: Sequence[StepShape], device: str) -> Iterator[Ranks]:
    """Ranks that are gone afterwards."""
    ranks = Ranks(store, shapes, device)
    try:
        yield ranks
    finally:
        ranks.close()


def together(results: Sequence[LoaderResult]) -> LoaderResult:
    """What ranks do together in the same seconds."""
    if len(results) == 1:
        return results[0]
    for result in results:
        if result.error is not None:
            return result
    values = {name: [getattr(result, name) for result in results] for name in (*_SUMMED, *_WORST)}
    known: dict[str, Any] = {name: each for name, each in values.items() if None not in each}
    return replace(
        results[0],
        **{name: sum(each) if name in _SUMMED else max(each) for name, each in known.items()},
    )


def _rank_main(connection: Connection, store: Examples, shape: StepShape, device: str) -> None:
    """What each process runs: a setting in, a result out, until the connection closes."""
    signal_when_the_parent_dies(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.filterwarnings("ignore", message=".*fork.*")
    torch.set_num_threads(max(1, usable_cores() // shape.world_size))
    here = choose_device(device, shape.rank)

    def ready() -> None:
        connection.send(_WARM)
        if not connection.recv():
            raise OtherRankFailed("a rank beside this one")

    with suppress(EOFError, OSError):
        while True:
            setting, seconds, step_time_s = connection.recv()
            connection.send(
                attempt(
                    store, shape, setting, here,
                    seconds=seconds, step_time_s=step_time_s, ready=ready,
                )
            )  # fmt: skip

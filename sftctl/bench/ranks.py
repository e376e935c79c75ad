"""Measure the loader in several processes at the same time, as the ranks of a run load."""

import multiprocessing
import signal
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from sftctl.bench.measure import failure_as_result, measure
from sftctl.bench.result import LoaderResult, over_ranks
from sftctl.data.loading.loader import LoaderSettings, StepLoader
from sftctl.data.loading.microbatch import Examples
from sftctl.data.mixture import Mixture
from sftctl.data.step_shape import StepShape
from sftctl.environment import usable_cores
from sftctl.processes import become_a_worker
from sftctl.world import choose_device

PATIENCE_S = 300.0  # additional time for starting processes and for the first batches
_LOOK_EVERY_S = 1.0  # how often to check that a rank is alive
_WARM = "warm"


class OtherRankFailed(Exception):
    """A setting failed on another rank, so this rank does not measure the setting."""


class Ranks:
    """One process for each shape.

    The processes start with the first round. If a process dies, all processes are started again for
    the next round. Call `close` to end them.
    """

    def __init__(
        self,
        store: Examples,
        shapes: Sequence[StepShape],
        device: str,
        patience_s: float = PATIENCE_S,
        mixture: Mixture | None = None,
    ) -> None:
        self._arguments = [(store, shape, device, mixture) for shape in shapes]
        self._patience_s = patience_s
        self._ranks: list[tuple[SpawnProcess, Connection]] = []

    def measure(
        self, settings: LoaderSettings, seconds: float, step_time_s: float | None
    ) -> LoaderResult:
        """Measure one round on all ranks at the same time. If it fails, the result has an error."""
        self._start()
        try:
            for _, connection in self._ranks:
                connection.send((settings, seconds, step_time_s))
            first = [self._answer(rank, 0.0) for rank in range(len(self._ranks))]
            failed = [answer for answer in first if answer != _WARM]
            for (_, connection), answer in zip(self._ranks, first, strict=True):
                if answer == _WARM:
                    connection.send(not failed)
            results = [
                self._answer(rank, 4 * seconds) if answer == _WARM else answer
                for rank, answer in enumerate(first)
            ]
        except (EOFError, OSError, TimeoutError) as problem:
            reason = str(problem) if isinstance(problem, TimeoutError) else self._death()
            self.close()
            return LoaderResult.of(settings, reason)
        return failed[0] if failed else over_ranks(results)

    def close(self) -> None:
        """End the processes and their loader processes."""
        for process, connection in self._ranks:
            connection.close()  # a rank that waits for its next setting then exits
            process.join(5.0)
            if process.is_alive():
                process.kill()
                process.join()
        self._ranks = []

    def _start(self) -> None:
        if self._ranks:
            return
        context = multiprocessing.get_context("spawn")  # forked processes can't use CUDA
        for arguments in self._arguments:
            ours, theirs = context.Pipe()
            process = context.Process(target=_rank_main, args=(theirs, *arguments))
            process.start()
            theirs.close()
            self._ranks.append((process, ours))

    def _answer(self, rank: int, seconds: float) -> Any:
        process, connection = self._ranks[rank]
        deadline = time.monotonic() + self._patience_s + seconds
        while not connection.poll(_LOOK_EVERY_S):
            # If a loader process lives longer than its rank, the pipe stays open. So check here.
            if not process.is_alive():
                raise EOFError
            if time.monotonic() > deadline:
                raise TimeoutError(f"no batch in {self._patience_s:.0f} s")
        return connection.recv()

    def _death(self) -> str:
        """A text that says how a process died."""
        for process, _ in self._ranks:
            process.join(1.0)
            code = process.exitcode
            if code is not None and code < 0:
                return f"the loading process was killed by {signal.Signals(-code).name}"
            if code is not None:
                return f"the loading process ended with exit code {code}"
        return "the loading process does not answer"


def _rank_main(
    connection: Connection,
    store: Examples,
    shape: StepShape,
    device: str,
    mixture: Mixture | None,
) -> None:
    """The main function of a process: receive settings, send results, until the pipe is closed."""
    become_a_worker()
    warnings.filterwarnings("ignore", message=".*fork.*")
    torch.set_num_threads(max(1, usable_cores() // shape.world_size))
    here = choose_device(device, shape.rank)

    def ready() -> None:
        connection.send(_WARM)
        if not connection.recv():
            raise OtherRankFailed("another rank failed")

    with suppress(EOFError, OSError):
        while True:
            settings, seconds, step_time_s = connection.recv()
            new_loader = partial(StepLoader, store, shape, settings, mixture)
            measured = partial(
                measure, new_loader, settings, here,
                seconds=seconds, step_time_s=step_time_s, ready=ready,
            )  # fmt: skip
            result = failure_as_result(settings, measured)
            connection.send(result)

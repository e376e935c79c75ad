"""Training processes to interrupt, forked in milliseconds from one that has imported everything."""

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from sftctl.config.schema import RunConfig
from sftctl.train.resume import ResumeRequest
from tests.toys.ports import free_port
from tests.toys.warm import WARM

PATIENCE_S = 600.0  # for a process to end by itself, on a busy machine


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes of one run, by rank, and the file with their output."""

    processes: tuple[BaseProcess, ...]
    log: Path

    @property
    def exit_codes(self) -> list[int | None]:
        return [process.exitcode for process in self.processes]

    @property
    def all_run(self) -> bool:
        return self.exit_codes == [None] * len(self.processes)

    def wait(self, timeout_s: float) -> None:
        """Wait until one of them has ended, or for the timeout."""
        wait([process.sentinel for process in self.processes], timeout_s)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all that are still running."""
        for process in self.processes:
            send(process.pid, number)

    def ended(self) -> list[int]:
        """Wait until all of them have ended; returns their exit codes."""
        deadline = time.monotonic() + PATIENCE_S
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [code for code in self.exit_codes if code is not None]
        assert len(codes) == len(self.processes), f"not ended in {PATIENCE_S} s: {self.printed()}"
        return codes

    def printed(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


@contextmanager
def forked(function: Callable[..., object], *arguments: object, ranks: int = 1) -> Iterator[Ranks]:
    """Call a function in one new process for each rank. Whatever is left at the end is killed."""
    with tempfile.TemporaryDirectory(prefix="sftctl-torture-") as folder:
        port, log = free_port(), Path(folder, "output.txt")
        given = [(log, rank, ranks, port, function, arguments) for rank in range(ranks)]
        processes = tuple(WARM.Process(target=_rank, args=each) for each in given)
        for process in processes:
            process.start()
        try:
            yield Ranks(processes, log)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _rank(
    log: Path,
    rank: int,
    num_ranks: int,
    port: int,
    function: Callable[..., object],
    arguments: tuple[object, ...],
) -> None:
    multiprocessing.set_start_method(None, force=True)  # start loader processes as a command does
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    if num_ranks > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    function(*arguments)


def train(config: RunConfig, request: ResumeRequest | None) -> None:
    """Train in this process: what a rank that is to be killed runs."""
    from sftctl.train.run import run_training

    run_training(config, request)


def sftctl(*arguments: str) -> None:
    """Run the command line in this process, which has everything imported."""
    from sftctl.cli.app import app

    app(list(arguments), prog_name="sftctl")


def fresh_sftctl(*arguments: str) -> None:
    """Run it as a user does: in a Python that has imported nothing yet."""
    os.execv(sys.executable, [sys.executable, "-m", "sftctl", *arguments])


def send(pid: int | None, number: signal.Signals) -> None:
    """Send a signal to a process, unless it has ended."""
    assert pid is not None
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def children(pid: int | None) -> list[int]:
    """The running processes that a process has started, oldest first."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(stat.parent.name))
    return sorted(found)


def loaders(pid: int | None) -> list[int]:
    """The loader processes of a trainer, which may have other children: its store's check."""
    found = []
    for child in children(pid):
        with suppress(OSError):  # it has just ended
            if Path(f"/proc/{child}/comm").read_text() == "pt_data_worker\n":
                found.append(child)
    return found


def is_gone(pid: int) -> bool:
    """Whether a process has ended. A zombie counts: its parent may not have noticed."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def descendants(pid: int | None) -> list[int]:
    """Its children, and their children."""
    return [each for child in children(pid) for each in (child, *descendants(child))]


def catches(pid: int | None, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False

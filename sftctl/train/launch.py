"""Start several ranks on this machine with torch's elastic agent, inside this process.

A terminal sends Ctrl-C to every process, but only the parent handles signals, so a Ctrl-C counts
once. The parent writes the signal's name into a file, which rank 0 reads between steps. A rank that
fails writes a report into a file, and the agent ends the other ranks.
"""

import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import torch

from sftctl.config.schema import RunConfig
from sftctl.environment import usable_cores
from sftctl.errors import EXIT_STOPPED, RankFailed, SftctlError, error_named
from sftctl.jsonio import dump_line, loads
from sftctl.metrics import RunSummary
from sftctl.openmp import threads_give_way
from sftctl.processes import has_ended_badly, signal_when_the_parent_dies
from sftctl.runs.directory import RunDir, new_run_path
from sftctl.tracking import status
from sftctl.train.resume import ResumeRequest
from sftctl.train.run import run_training
from sftctl.train.stop import SIGNALS, StopRequest
from sftctl.words import in_shell, printable

T = TypeVar("T")

STOP_FILE = "stop"
_GRACE_S = 3.0  # a rank that still runs this long after another rank failed is assumed to hang


def train_on_ranks(
    config: RunConfig,
    resume: ResumeRequest | None,
    num_ranks: int,
    max_restarts: int,
    stop: StopRequest,
    *,
    verify_data: bool = False,
) -> RunSummary:
    """Call `run_training` on `num_ranks` processes.

    If a rank dies, all ranks start again from the newest checkpoint, up to `max_restarts` times. An
    error that a restart can't fix is raised at once. Examples: a wrong configuration, damaged data,
    a loss that is not finite.
    """
    path = resume.run_dir if resume is not None else config.output_dir or new_run_path(config)
    config = replace(config, output_dir=path)
    train = partial(run_training, verify_data=verify_data)
    for number in range(1, max_restarts + 2):
        try:
            return run_on_ranks(num_ranks, train, config, resume, stop=stop)
        except RankFailed as failure:
            if number > max_restarts or stop.heard:
                raise RankFailed(failure.message, _how_to_continue(path)) from None
            with suppress(OSError):  # stderr may be closed
                print(
                    f"{printable(failure.message)}: restart {number} of {max_restarts}",
                    file=sys.stderr,
                )
        if RunDir(path).run_file.is_file():
            announce = resume.announce if resume is not None else None
            resume = resume or ResumeRequest(path, announce=announce)
    raise AssertionError("the last attempt returns or raises")


def _how_to_continue(path: Path) -> str:
    if RunDir(path).run_file.is_file():
        return f"`sftctl resume {in_shell(path)}` continues from the last checkpoint"
    return "out of memory? no step was trained: the same command starts the run again"


def run_on_ranks(
    num_ranks: int, function: Callable[..., T], *arguments: object, stop: StopRequest | None = None
) -> T:
    """Call `function(*arguments, stop=…)` on `num_ranks` processes; return rank 0's result.

    If a rank raises a SftctlError, the same error is raised here. Otherwise RankFailed is raised,
    with the last line of the first traceback.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("elastic", "launcher"):
        logging.getLogger(f"torch.distributed.{name}").setLevel(logging.CRITICAL)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.CRITICAL)
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",  # all ranks are here, and the host's own name may have no address
        max_restarts=0,  # train_on_ranks restarts; elastic's restart would find keys of dead ranks
        monitor_interval=0.05,
        signals_to_handle="SIGQUIT",
        shutdown_timeout=5,
    )
    with (
        tempfile.TemporaryDirectory(prefix="sftctl-") as folder,
        nullcontext(stop) if stop is not None else StopRequest() as listening,
        listening.relayed_into(Path(folder, STOP_FILE)),
        _watched(Path(folder), num_ranks) as watch,
    ):
        listening.check()
        status.doing("")  # from here on, only rank 0 writes to the screen
        try:
            results: dict[int, T] = elastic_launch(launch, _rank_main)(
                folder, num_ranks, function, arguments
            )
        except ChildFailedError as failure:
            raise _first_failure(Path(folder), num_ranks, failure, watch) from None
    return results[0]


def _rank_main(
    folder: str, num_ranks: int, function: Callable[..., T], arguments: tuple[object, ...]
) -> T:
    """The main function of each rank."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    with status.shown(), threads_give_way(), StopRequest(Path(folder, STOP_FILE)) as stop:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*SIGNALS} - {signal.SIGINT})
        signal_when_the_parent_dies(signal.SIGTERM)  # then the rank saves, exits and frees the lock
        torch.set_num_threads(max(1, usable_cores() // num_ranks))
        try:
            result = function(*arguments, stop=stop)
        except Exception as error:
            _report(Path(folder), error)
            raise SystemExit(getattr(error, "exit_code", 1)) from None
        finally:
            stop.outlive()
    if os.getppid() != parent:  # the parent is dead; elastic would wait until it takes the result
        os._exit(EXIT_STOPPED)
    return result


def _report(folder: Path, error: Exception) -> None:
    expected = isinstance(error, SftctlError)
    report = {
        "kind": type(error).__name__ if expected else RankFailed.__name__,
        "message": str(error) if expected else traceback.format_exc(),
        "hint": error.hint if isinstance(error, SftctlError) else None,
    }
    partial = folder / f"partial-{os.getpid()}"
    partial.write_bytes(dump_line(report))
    partial.rename(folder / f"failed-{os.getpid()}.json")


@dataclass(slots=True)
class _Watch:
    """What the thread of `_watched` has seen of the ranks."""

    ranks: set[BaseProcess] = field(default_factory=set)
    killed: set[BaseProcess] = field(default_factory=set)  # ranks that hung

    def exit_codes(self, num_ranks: int) -> dict[int, int | None]:
        """The exit code of each rank, without the ranks that the thread killed.

        {} if the thread has not seen all ranks. Ranks start one after the other, so the smallest
        process id belongs to rank 0.
        """
        if len(self.ranks) != num_ranks:
            return {}
        in_order = enumerate(sorted(self.ranks, key=lambda rank: rank.pid or 0))
        return {number: rank.exitcode for number, rank in in_order if rank not in self.killed}


def _first_failure(folder: Path, num_ranks: int, failure: Any, watch: _Watch) -> SftctlError:
    """The error that ended the run: an expected error, a killed rank, or the first traceback.

    If a rank dies, the other ranks fail in a collective. So tracebacks are used last. Elastic says
    which rank failed first, but on a busy machine it may name the wrong rank.
    """
    files = sorted(folder.glob("failed-*.json"), key=lambda path: path.stat().st_mtime_ns)
    reports = [loads(file.read_bytes()) for file in files]
    for report in reports:
        if report["kind"] != RankFailed.__name__:
            return error_named(report["kind"])(report["message"], report["hint"])
    codes = {rank: failed.exitcode for rank, failed in failure.failures.items()}
    for rank, code in (codes | watch.exit_codes(num_ranks)).items():
        if code is not None and code < 0 and code != -signal.SIGTERM:
            return RankFailed(f"rank {rank} was killed by {signal.Signals(-code).name}")
    if not reports:
        return RankFailed(f"ranks ended with exit codes {codes}")
    with suppress(OSError):
        print(printable(reports[0]["message"], keep="\n"), file=sys.stderr)
    return RankFailed(reports[0]["message"].strip().splitlines()[-1])


@contextmanager
def _watched(folder: Path, num_ranks: int) -> Iterator[_Watch]:
    """Protect the ranks from signals while they start, and kill ranks that hang after a failure.

    A signal to the process group (Ctrl-C) would kill a rank that is still loading torch. So the
    calling thread blocks signals while the context is open, and the ranks inherit its signal mask.
    The new thread does not block them, so this process still receives signals.

    After a failure, elastic waits 30 seconds for a rank that hangs. The new thread kills such a
    rank sooner.
    """
    over, watch = threading.Event(), _Watch()
    watching = (folder, num_ranks, over, watch)
    threading.Thread(target=_end_stragglers, args=watching, daemon=True).start()
    # If ranks are killed, the tracker removes their semaphores. Its warning would reach the screen.
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")
    # Python's resource tracker handles only some signals; SIGHUP or SIGUSR1 would end it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGUSR1})
    resource_tracker.ensure_running()  # before the next line: its start unblocks SIGINT and SIGTERM
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield watch
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        over.set()


def _end_stragglers(folder: Path, num_ranks: int, over: threading.Event, watch: _Watch) -> None:
    """Kill the remaining ranks `_GRACE_S` seconds after one rank has failed."""
    while not over.wait(0.1):
        if len(watch.ranks) < num_ranks:
            watch.ranks |= {*multiprocessing.active_children()}
        has_failed = any(folder.glob("failed-*.json")) or any(map(_has_failed, watch.ranks))
        if has_failed and not over.wait(_GRACE_S):
            watch.killed = {rank for rank in watch.ranks if not _has_failed(rank)}
            for rank in watch.ranks:
                rank.kill()
            return


def _has_failed(rank: BaseProcess) -> bool:
    """Whether a rank has ended with an error.

    This function does not call `waitpid`: elastic calls it, and only the first call gets the exit
    code.
    """
    assert rank.pid is not None  # the rank was started
    try:
        return has_ended_badly(rank.pid)
    except ChildProcessError:  # elastic already has the exit code
        return bool(rank.exitcode)

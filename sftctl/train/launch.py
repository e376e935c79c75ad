"""Several ranks on this machine, by torch's elastic agent inside this process.

The parent owns the signals: it writes the signal's name into a file that rank 0 reads between
steps, so that a Ctrl-C, which a terminal sends to every process, is heard once. A rank that fails
leaves a report, and the agent ends the others.
"""

import ctypes
import logging
import os
import signal
import sys
import tempfile
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from sftctl.environment import usable_cores
from sftctl.errors import RankFailed, SftctlError, error_named
from sftctl.jsonio import dump_line, loads
from sftctl.metrics import RunSummary
from sftctl.train.stop import SIGNALS

STOP_FILE = "stop"
_PR_SET_PDEATHSIG = 1  # of prctl(2)


def run_on_ranks(
    num_ranks: int, function: Callable[..., RunSummary], *arguments: object
) -> RunSummary:
    """`function(*arguments, stop_file=…)` on `num_ranks` processes; gives rank 0's summary.

    Raises what the first failing rank raised, or RankFailed with its traceback.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("elastic", "launcher"):
        logging.getLogger(f"torch.distributed.{name}").setLevel(logging.CRITICAL)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.CRITICAL)
    # Restarted ranks must not meet the keys that their predecessors left in a shared store.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.05,
        signals_to_handle="SIGQUIT",
        shutdown_timeout=5,
    )
    with tempfile.TemporaryDirectory(prefix="sftctl-") as folder, _signals_into(Path(folder)):
        try:
            results: dict[int, RunSummary] = elastic_launch(launch, _rank_main)(
                folder, num_ranks, function, arguments
            )
        except ChildFailedError as failure:
            raise _first_failure(Path(folder), failure) from None
    return results[0]


def _rank_main(
    folder: str, num_ranks: int, function: Callable[..., RunSummary], arguments: tuple[object, ...]
) -> RunSummary:
    """What each rank runs."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _stop_when_the_parent_dies()
    torch.set_num_threads(max(1, usable_cores() // num_ranks))
    try:
        return function(*arguments, stop_file=Path(folder, STOP_FILE))
    except Exception as error:
        _report(Path(folder), error)
        raise SystemExit(getattr(error, "exit_code", 1)) from None


def _stop_when_the_parent_dies() -> None:
    """A rank whose parent was killed gets SIGTERM: it saves and leaves, and the lock is free."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


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


def _first_failure(folder: Path, failure: Any) -> SftctlError:
    """What ended the run: an error of ours, a killed rank, or the first rank's traceback.

    A rank that dies makes the others fail in a collective, so their complaints come last.
    """
    files = sorted(folder.glob("failed-*.json"), key=lambda path: path.stat().st_mtime_ns)
    reports = [loads(file.read_bytes()) for file in files]
    for report in reports:
        if report["kind"] != RankFailed.__name__:
            return error_named(report["kind"])(report["message"], report["hint"])
    hint = "`sftctl resume RUN_DIR` goes on from the last checkpoint"
    codes = {rank: failed.exitcode for rank, failed in failure.failures.items()}
    for rank, code in codes.items():
        if code < 0 and code != -signal.SIGTERM:
            return RankFailed(f"rank {rank} was killed by {signal.Signals(-code).name}", hint)
    if not reports:
        return RankFailed(f"ranks ended with exit codes {codes}", hint)
    print(reports[0]["message"], file=sys.stderr)
    return RankFailed(reports[0]["message"].strip().splitlines()[-1], hint)


@contextmanager
def _signals_into(folder: Path) -> Iterator[None]:
    """While ranks run, a signal to this process becomes the stop file."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        partial = folder / "stop.partial"
        partial.write_text(signal.Signals(number).name)
        partial.rename(folder / STOP_FILE)

    previous = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

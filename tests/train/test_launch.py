"""How the parent watches its ranks."""

import multiprocessing
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sftctl.jsonio import dump_line
from sftctl.train.launch import _end_stragglers, _first_failure, _Watch


def _end(exit_code: int) -> None:
    time.sleep(0.3)
    os._exit(exit_code)


@pytest.mark.parametrize("exit_code", [0, 7])
def test_the_exit_code_of_a_rank_is_left_for_elastic(tmp_path: Path, exit_code: int) -> None:
    rank = multiprocessing.get_context("fork").Process(target=_end, args=(exit_code,))
    rank.start()
    assert rank.pid is not None
    over = threading.Event()
    watching = threading.Thread(target=_end_stragglers, args=(tmp_path, 1, over, _Watch()))
    watching.start()
    try:
        os.waitid(os.P_PID, rank.pid, os.WEXITED | os.WNOWAIT)  # it has ended
        time.sleep(0.5)  # the watching thread has looked
        pid, status = os.waitpid(rank.pid, os.WNOHANG)
        assert (pid, os.waitstatus_to_exitcode(status)) == (rank.pid, exit_code)
    finally:
        over.set()
        watching.join()
        # Collected here, not by multiprocessing, which would count it as alive in later tests.
        multiprocessing.process._children.discard(rank)  # type: ignore[attr-defined]


def test_a_rank_that_hangs_is_killed_some_time_after_another_has_failed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    failed = context.Process(target=_end, args=(1,))
    hanging = context.Process(target=time.sleep, args=(600,))
    failed.start()
    hanging.start()
    over, watch = threading.Event(), _Watch()
    watching = threading.Thread(target=_end_stragglers, args=(tmp_path, 2, over, watch))
    watching.start()
    try:
        hanging.join(300)
        assert hanging.exitcode == -9
        assert [rank.pid for rank in watch.killed] == [hanging.pid]
    finally:
        over.set()
        watching.join()
        hanging.kill()


@dataclass(frozen=True)
class Ended:
    """The attributes of a rank's process that are read."""

    pid: int
    exitcode: int


@pytest.mark.parametrize(
    ("killed_by_us", "message"),
    [(False, "rank 1 was killed by SIGKILL"), (True, "RuntimeError: connection closed")],
)
def test_a_killed_rank_is_named_although_another_was_seen_to_fail_first(
    tmp_path: Path, killed_by_us: bool, message: str
) -> None:
    """Unless it was killed because it hung."""
    report = {"kind": "RankFailed", "message": "Traceback\nRuntimeError: connection closed"}
    (tmp_path / "failed-7.json").write_bytes(dump_line(report | {"hint": None}))
    ranks = cast(Any, [Ended(7, 1), Ended(8, -9)])
    watch = _Watch(ranks={*ranks}, killed={ranks[1]} if killed_by_us else set())
    seen = SimpleNamespace(failures={0: SimpleNamespace(exitcode=1)})
    assert str(_first_failure(tmp_path, 2, seen, watch)) == message

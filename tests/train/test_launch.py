"""How the parent watches its ranks."""

import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from sftctl.train.launch import _end_stragglers


def _end(exit_code: int) -> None:
    time.sleep(0.3)
    os._exit(exit_code)


@pytest.mark.parametrize("exit_code", [0, 7])
def test_the_exit_code_of_a_rank_is_left_for_elastic(tmp_path: Path, exit_code: int) -> None:
    rank = multiprocessing.get_context("fork").Process(target=_end, args=(exit_code,))
    rank.start()
    assert rank.pid is not None
    over = threading.Event()
    watching = threading.Thread(target=_end_stragglers, args=(tmp_path, 1, over))
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
    over = threading.Event()
    watching = threading.Thread(target=_end_stragglers, args=(tmp_path, 2, over))
    watching.start()
    try:
        hanging.join(60)
        assert hanging.exitcode == -9
    finally:
        over.set()
        watching.join()
        hanging.kill()

"""A small part of tests/torture/test_crash_loop.py, and loader processes after a kill."""

import signal
import sys
import time
from pathlib import Path

import pytest

from tests.toys.runs import toy_config, whole_lines
from tests.toys.torture.crash_loop import Loop, crash_loop
from tests.toys.torture.processes import PATIENCE_S, children, forked, is_gone, loaders, send, train


def test_a_run_that_is_killed_and_resumed_ends_as_one_that_was_never_killed(tmp_path: Path) -> None:
    for seed in range(4, 24):  # on a busy machine a kill may miss the save
        folder = tmp_path / str(seed)
        folder.mkdir()
        tally = crash_loop(folder, Loop(num_kills=6, num_workers=1), seed)
        assert tally.kills == 6
        if tally.inside_a_save:
            return
    raise AssertionError("of 120 kills none came inside a save")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it looks for its parent by itself")
def test_a_loader_process_dies_with_its_trainer_even_when_it_hangs(tmp_path: Path) -> None:
    config = toy_config(tmp_path, train__epochs=100, data__num_workers=1)
    with forked(train, config, None) as ranks:
        while ranks.all_run and not whole_lines(tmp_path / "run/metrics.jsonl"):
            time.sleep(0.001)
        started = children(ranks.processes[0].pid)  # the check of the store may be among them
        (loader,) = loaders(ranks.processes[0].pid)
        send(loader, signal.SIGSTOP)
        ranks.signal(signal.SIGKILL)
        ranks.ended()
    deadline = time.monotonic() + PATIENCE_S
    try:
        while not all(map(is_gone, started)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        send(loader, signal.SIGKILL)

"""A closed terminal stops a run as SIGTERM does; a signal that was ignored stays ignored."""

import fcntl
import os
import pty
import signal
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.toys.runs import events_named, events_of, metrics_of
from tests.toys.warm import WarmCommand

RUN = ["train", "--model", "tiny", "--max-steps", "400", "--batch-size", "2"]
RUN += ["--save-interval", "0", "--log-interval", "1", "--output-dir", "run"]
STOPS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def wait_until(condition: Callable[[], bool], process: WarmCommand) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)


def num_steps() -> int:
    path = Path("run/metrics.jsonl")
    return path.read_bytes().count(b"\n") if path.exists() else 0


def take_the_terminal() -> None:
    """Make stdin the terminal of this process."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def ignore_signals() -> None:
    """Become like a background job of a script."""
    os.setsid()
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


@pytest.mark.parametrize("ranks", ["1", "2"])
def test_a_closed_terminal_lets_the_step_end_and_saves(ranks: str) -> None:
    """The kernel sends SIGHUP, and from then on every write to the terminal fails."""
    ours, theirs = pty.openpty()
    process = WarmCommand(
        *RUN, "--num-workers", "1", "--nproc-per-node", ranks,
        stdin=theirs, stdout=theirs, stderr=theirs, first=take_the_terminal,
    )  # fmt: skip
    os.close(theirs)
    os.set_blocking(ours, False)

    def has_trained() -> bool:
        with suppress(BlockingIOError):
            os.read(ours, 1 << 16)  # a terminal that nobody reads is full at some time
        return num_steps() > 2

    wait_until(has_trained, process)
    os.close(ours)
    assert process.wait(300) == 75
    run = Path("run")
    assert events_of(run)[-2:] == ["saved", "stopped"]
    assert events_named(run, "stopped")[0]["signal"] == "SIGHUP"
    assert events_named(run, "saved")[0]["step"] == num_steps() < 400


@pytest.mark.parametrize("ranks", ["1", "2"])
def test_signals_that_are_ignored_at_the_start_stay_ignored(ranks: str) -> None:
    """`nohup`, and the background jobs of a script."""
    quick = [word if word != "400" else "30" for word in RUN]
    words = (*quick, "--num-workers", "1", "--nproc-per-node", ranks)
    process = WarmCommand(*words, first=ignore_signals)
    wait_until(lambda: num_steps() > 2, process)
    for number in STOPS:
        os.killpg(process.pid, number)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr.decode()
    assert events_of(Path("run"))[-1] == "finished"
    assert len(metrics_of(Path("run"))) == 30

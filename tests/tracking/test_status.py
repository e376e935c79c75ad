"""Phases: a line that is replaced in place on a terminal, a line for a long phase in a pipe."""

import io
import os
import sys
import time

import pytest

from sftctl.tracking import status
from sftctl.tracking.status import Status


class Clock:
    """The clock of phases, which stands still until a test sets it."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(status, "time", clock)
    monkeypatch.setattr(status, "_LONG_S", 1.0)
    return clock


@pytest.fixture
def without_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is drawn again by itself."""
    monkeypatch.setattr(status, "_TICK_S", 1e6)


def test_on_a_terminal_a_phase_replaces_the_one_before_and_leaves_no_trace(
    without_ticks: None,
) -> None:
    stream = io.StringIO()
    shown = Status(stream, in_place=True)
    shown.doing("loading torch")
    shown.doing("validating 1/8")
    shown.close()
    assert stream.getvalue() == "\r\x1b[Kloading torch\r\x1b[Kvalidating 1/8\r\x1b[K"


def test_a_phase_that_is_wider_than_the_terminal_loses_its_middle(without_ticks: None) -> None:
    stream = io.StringIO()
    shown = Status(stream, in_place=True)
    shown.doing(f"loading {'/folder' * 20}/model")
    shown.close()
    text = stream.getvalue().strip("\r\x1b[K")
    assert text.startswith("loading ...") and text.endswith("/folder/model") and len(text) == 79


def test_in_a_pipe_only_a_long_phase_gets_a_line_and_only_one(clock: Clock) -> None:
    stream = io.StringIO()
    shown = Status(stream, in_place=False)
    shown.doing("loading torch")
    shown.doing("validating 1/8")
    clock.now = 2.0
    deadline = time.monotonic() + 300
    while not stream.getvalue():  # until a tick prints the phase
        assert time.monotonic() < deadline
        time.sleep(0.01)
    shown.doing("validating 2/8")
    shown.close()
    assert stream.getvalue() == "validating 1/8\n"


def test_another_line_does_not_share_a_line_with_a_phase(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, without_ticks: None
) -> None:
    from sftctl.cli import streams

    shown = Status(sys.stderr, in_place=True)
    monkeypatch.setattr("sftctl.tracking.status._status", shown)
    status.doing("loading torch")
    streams.tell("warning: something")
    status.doing("")
    shown.close()
    assert "\r\x1b[Kloading torch\r\x1b[Kwarning: something\n" in capfd.readouterr().err


def test_a_forked_process_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Status(io.StringIO(), in_place=True)
    monkeypatch.setattr("sftctl.tracking.status._status", shown)
    status.doing("training")
    if (child := os.fork()) == 0:
        os._exit(0 if status.phase() == "" else 1)
    assert os.waitpid(child, 0)[1] == 0
    shown.close()

"""The live panel on a terminal, and plain lines where there is none."""

import io
import os
import pty
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from sftctl.tracking.console import (
    Curve,
    LiveTracker,
    make_console_tracker,
    sparkline,
)
from tests.toys.metrics import run_shape, step_metrics

CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"

SESSION = """
import sys, threading
from contextlib import closing
from sftctl.tracking.console import make_console_tracker
from tests.toys.metrics import run_shape, step_metrics
tracker = make_console_tracker(run_shape())
with closing(tracker):
    tracker.event("evaluation", 0, validation_loss=7.6241, num_target_tokens=10)
    for step in range(1, 641):
        tracker.log(step_metrics(step, loss=5 - step / 160))
    print("a library's warning", file=sys.stderr)
    tracker.event("saved", 640, path="checkpoints/step-00000640", num_bytes=10**7, seconds=0.2)
    if "--crash" in sys.argv:
        raise OSError("the disk is gone")
print("result", threading.active_count())
"""


@pytest.fixture
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time passes for a panel, and nothing but steps and events draws it."""
    monkeypatch.setattr("sftctl.tracking.console._SECONDS_PER_TICK", 1e6)
    monkeypatch.setattr("sftctl.tracking.console.time", SimpleNamespace(monotonic=lambda: 100.0))


def run_session(
    stderr: int, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", SESSION, *arguments],
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"} | environment,
        cwd=Path(__file__).parents[2],
        timeout=600,
    )


def run_on_terminal(*arguments: str, **environment: str) -> tuple[str, str]:
    """What a session writes to stdout, and to the pseudo-terminal that is its stderr."""
    ours, theirs = pty.openpty()
    seen = bytearray()

    def read() -> None:
        try:
            while data := os.read(ours, 65536):
                seen.extend(data)
        except OSError:  # EIO: the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    try:
        done = run_session(theirs, *arguments, **environment)
    finally:
        os.close(theirs)
        reader.join()
        os.close(ours)
    return done.stdout.decode(), seen.decode()


def live_output(width: int = 80, num_steps: int = 640) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, color_system="truecolor")
    tracker = LiveTracker(run_shape(), console)
    tracker.event("evaluation", 0, validation_loss=7.6241)
    for step in range(1, num_steps + 1):
        tracker.log(step_metrics(step, loss=5 - step / 160))
    tracker.event("evaluation", num_steps, validation_loss=3.25)
    tracker.event("saved", num_steps, path="step-00000640", num_bytes=12345678, seconds=0.2)
    tracker.close()
    return stream.getvalue()


def last_panel(output: str) -> str:
    return CODES.sub("", output[output.rindex("╭") :])


def test_on_a_terminal_the_panel_is_live_and_restores_the_cursor() -> None:
    stdout, screen = run_on_terminal()
    assert stdout == "result 1\n"  # nothing of ours on stdout, and no thread left
    assert screen.count(HIDE_CURSOR) == screen.count(SHOW_CURSOR) == 1
    assert screen.rindex(SHOW_CURSOR) > screen.rindex("╰")
    assert "step 640/640" in last_panel(screen)
    assert "a library's warning" in screen


def test_on_a_terminal_a_crash_restores_the_cursor_before_the_traceback() -> None:
    stdout, screen = run_on_terminal("--crash")
    assert stdout == ""
    assert screen.index(SHOW_CURSOR) < screen.index("OSError: the disk is gone")


def test_a_terminal_is_redrawn_at_most_four_times_a_second() -> None:
    started = time.monotonic()
    _, screen = run_on_terminal()
    frames, seconds = screen.count("╭"), time.monotonic() - started
    assert frames < 10 + 4 * seconds and frames < 640  # steps


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines() -> None:
    _, screen = run_on_terminal(TERM="dumb")
    assert "\x1b" not in screen
    assert "step   640/640" in screen


def test_no_color_means_no_color() -> None:
    _, screen = run_on_terminal(NO_COLOR="1")
    styles = {
        code for group in re.findall(r"\x1b\[([0-9;]*)m", screen) for code in group.split(";")
    }
    assert "step 640/640" in last_panel(screen)
    assert styles <= {"", "0", "1", "2"}  # bold and dim


def test_a_terminal_of_another_encoding_gets_ascii() -> None:
    _, screen = run_on_terminal(LC_ALL="C", PYTHONUTF8="1", NO_COLOR="1")
    assert screen.isascii()
    assert "\\u" not in screen
    assert "@" in screen  # the sparkline
    assert re.search(r"\+- run - training -+\+", screen)


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}])
def test_a_pipe_gets_plain_lines_without_control_codes(environment: dict[str, str]) -> None:
    done = run_session(subprocess.PIPE, **environment)
    assert done.stdout == b"result 1\n"
    lines = done.stderr.decode().splitlines()
    assert b"\x1b" not in done.stderr
    assert b"\r" not in done.stderr
    assert lines[0] == "evaluation at step 0: validation loss 7.6241"
    assert lines[1].startswith("step    10/640  epoch 1  loss 4.9375")
    assert lines[64].startswith("step   640/640  epoch 2  loss 1.0000")
    assert lines[65:] == ["a library's warning", "saved step-00000640 (10.0 MB in 0.2 s)"]


def test_a_tracker_without_steps_and_events_writes_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    make_console_tracker(run_shape()).close()
    stream = io.StringIO()
    LiveTracker(run_shape(), Console(file=stream, force_terminal=True)).close()
    assert (stream.getvalue(), *capfd.readouterr()) == ("", "", "")


def test_the_panel_shows_the_state_of_the_run(stopped_clock: None) -> None:
    panel = last_panel(live_output(num_steps=400))
    for words in (
        "run · training",
        "step 400/640",
        "0:24 left",
        "loss   2.5594  █",  # of the last 20 steps
        "valid  7.6241 -> 3.2500 at step 400",
        "epoch  2 of 2            step 80 of 320    lr 9.1e-04        grad 0.83",
        "speed  5120 tok/s        waiting 1.0%      mfu 50%           memory 1.0 GB",
        "saved  step-00000640 (12.3 MB in 0.2 s), 0 s ago",
    ):
        assert words in panel


def test_a_longer_value_does_not_move_other_cells() -> None:
    short, long = last_panel(live_output(num_steps=9)), last_panel(live_output(num_steps=400))
    for word in ("lr ", "grad ", "mfu ", "memory "):
        assert columns_of(short, word) == columns_of(long, word)


def columns_of(panel: str, word: str) -> list[int]:
    """Where a word begins in the lines that have it."""
    return [line.index(word) for line in panel.splitlines() if word in line]


def test_the_answer_to_a_signal_is_a_line_above_and_a_word_in_the_panel() -> None:
    stream = io.StringIO()
    tracker = LiveTracker(run_shape(), Console(file=stream, force_terminal=True, width=80))
    tracker.log(step_metrics(1))
    thread = threading.Thread(target=tracker.stopping, args=("stopping: step 2 ends first.",))
    thread.start()
    thread.join()
    tracker.close()
    output = CODES.sub("", stream.getvalue())
    assert "stopping: step 2 ends first.\n╭" in output
    assert "run · stopping" in last_panel(output)


def test_the_panel_of_a_resumed_run_starts_at_its_step() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80)
    past: dict[str, Any] = {
        "past_losses": [4.0] * 40 + [2.0] * 40,
        "past_validation": (7.5, 3.25, 200),
    }
    tracker = LiveTracker(run_shape(first_step=300, **past), console)
    tracker.event("resumed", 300, checkpoint="step-00000300")
    tracker.close()
    panel = last_panel(stream.getvalue())
    for words in ("step 300/640", "loss   2.0000  ██", "valid  7.5000 -> 3.2500 at step 200"):
        assert words in panel


def test_an_event_stays_readable_above_the_panel() -> None:
    output = CODES.sub("", live_output())
    assert "evaluation at step 0: validation loss 7.6241" in output.splitlines()[0]


@pytest.mark.parametrize("width", [24, 40, 80, 200])
def test_the_panel_fits_its_terminal(width: int) -> None:
    lines = last_panel(live_output(width)).splitlines()
    assert max(cell_len(line) for line in lines) <= width
    assert any("640/640" in line for line in lines)


class Screen:
    """A terminal that wraps its lines again when it becomes narrower, as most do."""

    def __init__(self, width: int) -> None:
        self.rows, self._row, self._width = [""], 0, width

    def write(self, output: str) -> None:
        for code, letter in re.findall(r"(\x1b\[[0-9;?]*[A-Za-z])|([\s\S])", output):
            if code == "\x1b[1A":
                self._row -= 1
                assert self._row >= 0, "above the first line"
            elif code == "\x1b[2K":
                self.rows[self._row] = ""
            elif letter == "\n":
                self._down()
            elif letter and letter != "\r":
                if cell_len(self.rows[self._row]) == self._width:
                    self._down()
                self.rows[self._row] += letter

    def shrink(self, width: int) -> None:
        text = "\n".join(self.rows[: self._row + 1])
        self.rows, self._row, self._width = [""], 0, width
        self.write(text)

    def _down(self) -> None:
        self._row += 1
        self.rows += [""] * (self._row == len(self.rows))


@pytest.mark.parametrize("narrow", [79, 50, 26])
def test_a_terminal_that_becomes_narrower_keeps_no_part_of_the_old_panel(
    stopped_clock: None, narrow: int
) -> None:
    stream, screen = io.StringIO(), Screen(80)
    console = Console(file=stream, force_terminal=True, width=80, color_system=None)
    tracker = LiveTracker(run_shape(), console)
    tracker.event("evaluation", 0, validation_loss=7.6241)
    tracker.log(step_metrics(1))
    screen.write(stream.getvalue())
    assert sum("╭" in row for row in screen.rows) == 1
    screen.shrink(narrow)
    console.width, begin = narrow, stream.tell()
    tracker.event("warning", 1, message="narrow")
    tracker.close()
    screen.write(stream.getvalue()[begin:])
    assert screen.rows[0].startswith("evaluation at step 0")
    assert sum("╭" in row for row in screen.rows) == sum("╰" in row for row in screen.rows) == 0
    assert sum("warning: narrow" in row for row in screen.rows) == 1


def test_a_sparkline_goes_from_the_lowest_to_the_highest_bar() -> None:
    assert sparkline([1, 2, 4, 8, 16, 32, 64, 128]) == "▁▂▃▄▅▆▇█"  # of the logarithm
    assert sparkline([1, float("nan"), 2]) == "▁██"
    assert sparkline([2, 2]) == "▁▁"
    assert sparkline([]) == ""


def test_a_curve_of_any_length_stays_small_and_keeps_its_mean() -> None:
    curve = Curve(size=8)
    for value in range(1024):
        curve.add(value)
    assert len(curve.points) < 8
    assert curve.points == sorted(curve.points)
    assert sum(curve.points) / len(curve.points) == 511.5

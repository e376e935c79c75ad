"""A signal ends a command that has nothing to save with one line, and it leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sftctl.errors import EXIT_STOPPED
from sftctl.processes import EndedBySignal, ended_by_signals
from tests.toys.runs import toy_data

ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}{{ messages[0].content }}"
)


def test_prepare_data_ends_inside_a_template(tmp_path: Path) -> None:
    (tmp_path / "endless.jinja").write_text(ENDLESS)
    arguments = [str(toy_data(tmp_path)), "--output", "store", "--chat-template", "endless.jinja"]
    before = {path.name for path in tmp_path.iterdir()}
    command = [sys.executable, "-m", "sftctl", "prepare-data", *arguments]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while {path.name for path in tmp_path.iterdir()} == before:  # until its folder is there
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=300)
    assert process.returncode == EXIT_STOPPED
    assert printed.splitlines()[-2:] == [
        "stopped: by SIGTERM: nothing to save, nothing lost",
        "hint: run the same command again",
    ]
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_repeats_are_ignored_and_what_was_ignored_stays_ignored(number: signal.Signals) -> None:
    def signals_inside() -> None:
        with ended_by_signals():
            os.kill(os.getpid(), number)

    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(EndedBySignal, match=number.name), ended_by_signals():
            try:
                os.kill(os.getpid(), number)
            finally:
                os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # it is ignored until the process has ended
        signals_inside()
        assert signal.getsignal(number) == signal.SIG_IGN
        signal.signal(number, signal.SIG_DFL)
        with ended_by_signals():
            pass
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_fresh_fork_dies_of_the_signal(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with ended_by_signals():
            pid = os.fork()
            if pid == 0:
                try:
                    os.kill(os.getpid(), number)
                finally:
                    os._exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -number
    finally:
        signal.signal(number, before)

"""A command without a run answers a signal while its main thread is busy."""

import os
import signal
import time

import pytest

from sftctl.tracking import status
from sftctl.tracking.working import working


def test_a_signal_is_answered_once_while_the_main_thread_goes_on(
    capfd: pytest.CaptureFixture[str],
) -> None:
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    answer, printed = "stopping: nothing is kept, nothing is lost\n", ""
    with working("loading"):
        os.kill(os.getpid(), signal.SIGINT)
        deadline = time.monotonic() + 300
        while answer not in printed:
            assert time.monotonic() < deadline
            printed += capfd.readouterr().err
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)  # for a second answer, which must not come
    assert heard == [signal.SIGINT] * 2
    assert (printed + capfd.readouterr().err).count(answer) == 1


def test_a_signal_that_ends_the_command_at_once_is_left_to_its_last_line(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sftctl.tracking.working._PATIENCE_S", 600)  # this machine may be slow
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), working("loading"):
        status.doing("writing")
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert "stopping" not in capfd.readouterr().err


def test_ctrl_c_while_libraries_are_imported_ends_the_process(
    capfd: pytest.CaptureFixture[str],
) -> None:
    if (child := os.fork()) == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with working("loading"):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert "stopped: by SIGINT: nothing has begun\n" in capfd.readouterr().err

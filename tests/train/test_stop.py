"""StopRequest, and signals before and during a run."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sftctl.checkpoint.directory import list_checkpoints
from sftctl.data.prepare.prepare import prepare_store
from sftctl.errors import Stopped
from sftctl.train.resume import ResumeRequest
from sftctl.train.run import run_training
from sftctl.train.stop import _TOO_SOON, SIGNALS, StopRequest
from sftctl.world import ALONE
from tests.toys.runs import metrics_of, signal_in_call, toy_config


def test_a_stop_while_data_is_prepared_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stopping = signal_in_call(1, prepare_store)
    monkeypatch.setattr("sftctl.train.preflight.inputs.prepare_store", stopping)
    with pytest.raises(
        Stopped, match="by SIGTERM before training began: nothing to save"
    ) as raised:
        run_training(toy_config(tmp_path))
    assert raised.value.exit_code == 75
    assert raised.value.hint == "run the same command again"
    assert not (tmp_path / "run").exists()
    assert list((tmp_path / "cache").rglob("manifest.json")) == []


def test_a_stop_while_the_model_is_loaded_creates_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sftctl.model.adapter.base import initial_model

    monkeypatch.setattr("sftctl.train.opening.initial_model", signal_in_call(1, initial_model))
    with pytest.raises(Stopped):
        run_training(toy_config(tmp_path))
    assert not (tmp_path / "run").exists()


def test_a_stop_right_after_a_resume_saves_nothing_twice(tmp_path: Path) -> None:
    config = toy_config(tmp_path, checkpoint__save_interval=4)
    run_training(config)
    copy = shutil.copytree(tmp_path / "run", tmp_path / "copy")
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(Stopped):  # nothing is trained yet
            run_training(config, ResumeRequest(copy, step=4), stop=stop)
    assert len(list_checkpoints(copy / "checkpoints")) == 3
    assert len(metrics_of(copy)) == 12


def test_repeats_are_ignored_and_the_first_signal_is_named() -> None:
    with StopRequest() as stop:
        assert stop.requested(ALONE) is None
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stop.requested(ALONE) == "SIGUSR1"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("number", SIGNALS)
def test_what_was_ignored_before_stays_ignored_except_for_sigusr1(number: signal.Signals) -> None:
    """A job script ignores SIGUSR1 for torchrun: docs/distributed.md."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), number)
            assert stop.heard == ("SIGUSR1" if number == signal.SIGUSR1 else None)
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_ranks_learn_of_a_signal_that_came_before_they_started(tmp_path: Path) -> None:
    with StopRequest() as parent:
        os.kill(os.getpid(), signal.SIGINT)
        with parent.relayed_into(tmp_path / "stop"):
            rank = StopRequest(tmp_path / "stop")
            assert rank.requested(ALONE) == "SIGINT"


LISTENS = """
import ctypes, os, signal, sys, threading, time
from sftctl.train.stop import StopRequest
mutex, is_locked = ctypes.create_string_buffer(128), threading.Event()
def hold():  # until a line comes on stdin
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
    is_locked.set()
    sys.stdin.readline()
    ctypes.CDLL(None).pthread_mutex_unlock(mutex)
threading.Thread(target=hold, daemon=True).start()
is_locked.wait()
with StopRequest(may_leave="leave" in sys.argv) as stop:
    if "leave" not in sys.argv:
        stop.outlook = lambda: "step 3 ends in about 0:12, then it is saved (44.1 MB)"
    if "fork" in sys.argv:
        if (child := os.fork()) == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(0)
        os.waitpid(child, 0)
        time.sleep(0.2)  # for an answer, which must not come
    print("ready", flush=True)
    if "call" in sys.argv:  # one call of C code: no Python handler runs meanwhile
        ctypes.CDLL(None).pthread_mutex_lock(mutex)  # no signal ends it
        os.write(2, b"the call has ended\\n")
"""
ANSWER = (
    "stopping: step 3 ends in about 0:12, then it is saved (44.1 MB). "
    "Ctrl-C again leaves without saving.\n"
)


def listening(*words: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENS, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


REPEATS = """
import os, signal, threading
from types import SimpleNamespace
from sftctl.train import stop as module
now, looks = 100.0, threading.Semaphore(0)
def monotonic():  # called by the thread that answers
    seen = now
    looks.release()
    return seen
module.time = SimpleNamespace(monotonic=monotonic)
with module.StopRequest() as stop:
    stop.outlook = lambda: "step 3 ends in about 0:12, then it is saved (44.1 MB)"
    os.kill(os.getpid(), signal.SIGINT)
    looks.acquire()
    now += 0.9
    os.kill(os.getpid(), signal.SIGINT)
    looks.acquire()
    now += 0.2
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait()
"""


def test_a_second_ctrl_c_counts_a_second_after_the_answer() -> None:
    done = subprocess.run(
        [sys.executable, "-c", REPEATS], capture_output=True, text=True, timeout=300
    )
    ending = f"{_TOO_SOON}\nexited at a second SIGINT; nothing more is saved\n"
    assert (done.returncode, done.stderr) == (130, ANSWER + ending)


def test_the_answer_comes_while_the_main_thread_is_in_a_long_call() -> None:
    process = listening("call")
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None and process.stderr.readline() == ANSWER
    _, told = process.communicate("now end\n", timeout=300)
    assert (process.returncode, told) == (0, "the call has ended\n")


def test_a_process_with_nothing_to_save_is_ended_in_a_long_call() -> None:
    process = listening("call", "leave")
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 75
    _, told = process.communicate()
    assert (process.returncode, told.splitlines()) == (
        75,
        [
            "stopping: nothing is trained yet.",
            "stopped: by SIGINT before training began: nothing to save, nothing lost",
            "hint: run the same command again",
        ],
    )


def test_a_signal_to_a_forked_process_is_not_the_parent_s() -> None:
    process = listening("fork")
    _, told = process.communicate(timeout=300)
    assert (process.returncode, told) == (0, "")

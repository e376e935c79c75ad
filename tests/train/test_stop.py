"""StopRequest, and signals before and during a run."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sftctl.checkpoint.directory import list_checkpoints
from sftctl.data.prepare.prepare import prepare_store
from sftctl.errors import Stopped
from sftctl.train.resume import ResumeRequest
from sftctl.train.run import run_training
from sftctl.train.stop import StopRequest
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
    from sftctl.model.load import load_model

    monkeypatch.setattr("sftctl.train.session.load_model", signal_in_call(1, load_model))
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


def test_ranks_hear_of_a_signal_that_came_before_they_started(tmp_path: Path) -> None:
    with StopRequest() as parent:
        os.kill(os.getpid(), signal.SIGINT)
        with parent.relayed_into(tmp_path / "stop"):
            rank = StopRequest(tmp_path / "stop")
            assert rank.requested(ALONE) == "SIGINT"


LEAVES = """
import signal, sys, time
from sftctl.train.stop import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
"""


def test_a_second_ctrl_c_two_seconds_later_exits_at_once() -> None:
    process = subprocess.Popen([sys.executable, "-c", LEAVES], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(0.05)
    assert process.poll() is None
    time.sleep(2.1)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    process.stdout.close()

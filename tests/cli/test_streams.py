"""stdout or stderr may be closed or full: the command ends quietly, and a run finishes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.toys.runs import events_of
from tests.toys.warm import run_warm

TINY = ["train", "--model", "tiny", "--max-steps", "3", "--batch-size", "8"]


def run(
    *arguments: str, stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "sftctl", *arguments]
    return subprocess.run(command, stdout=stdout, stderr=stderr, timeout=300)


@pytest.fixture
def left() -> int:
    """A pipe whose reader has closed it."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["train", "--print-config"]]
)
def test_a_reader_who_closes_the_pipe_is_not_an_error(left: int, arguments: list[str]) -> None:
    done = run(*arguments, stdout=left)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_error_that_nobody_reads_keeps_its_exit_code(left: int) -> None:
    done = run("train", "none.toml", stderr=left)
    assert (done.returncode, done.stdout) == (2, b"")


def test_a_run_that_nobody_watches_is_finished_and_saved(left: int) -> None:
    done = run_warm(*TINY, "--output-dir", "run", stdout=left, stderr=left)
    assert done.returncode == 0
    assert events_of(Path("run"))[-1] == "finished"
    assert Path("run/final/model.safetensors").is_file()

    assert run_warm("resume", "run", stdout=left, stderr=left).returncode == 0
    done = run_warm("chat", "run", "--prompt", "Hello", stdout=left)
    assert (done.returncode, done.stderr) == (0, b"")
    done = run("inspect-ckpt", "run", "--json", stdout=left)
    assert (done.returncode, done.stderr) == (0, b"")


def test_damage_reported_to_a_closed_pipe_keeps_its_exit_code(left: int) -> None:
    assert run_warm(*TINY, "--output-dir", "run").returncode == 0
    next(Path("run/checkpoints").glob("*/*.safetensors")).write_bytes(b"cut")
    done = run("inspect-ckpt", "run", stdout=left)
    assert done.returncode == 4
    assert done.stderr.startswith(b"error: ")


def test_streams_that_are_closed_from_the_start_are_not_an_error() -> None:
    words = " ".join([sys.executable, "-m", "sftctl", *TINY, "--output-dir", "run"])
    done = subprocess.run(["sh", "-c", f"{words} <&- >&- 2>&-"], timeout=300)
    assert done.returncode == 0
    assert events_of(Path("run"))[-1] == "finished"


def test_a_full_disk_under_stdout_is_one_error_line() -> None:
    with open("/dev/full", "wb") as full:
        done = run_warm("train", "--dry-run", "--model", "tiny", "--json", stdout=full.fileno())
    assert done.returncode == 2
    lines = done.stderr.decode().splitlines()
    assert lines == [
        "error: stdout: can't be written: No space left on device",
        "hint: the command is done; free some space and run it again to see the result",
    ]


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["train", "--print-config"]])
def test_a_full_disk_under_a_help_text_is_one_error_line(words: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = run(*words, stdout=full.fileno())
    assert done.returncode == 2
    assert done.stderr.decode().splitlines() == [
        "error: stdout: can't be written: no space left on the device",
        "hint: free some space",
    ]


def test_full_disks_under_both_streams_keep_the_exit_code() -> None:
    with open("/dev/full", "wb") as full:
        number = full.fileno()
        assert run("--help", stdout=number, stderr=number).returncode == 2
        assert run_warm("runs", stdout=number, stderr=number).returncode == 2
        assert run_warm(*TINY, "--output-dir", "run", stderr=number).returncode == 0
        assert run_warm("train", "none.toml", stderr=number).returncode == 2
    assert events_of(Path("run"))[-1] == "finished"


def test_tables_in_a_pipe_have_no_trailing_blanks() -> None:
    done = run_warm("train", "--dry-run", "--model", "tiny")
    lines = done.stdout.decode().splitlines()
    assert len(lines) > 25
    for start in ("ok  disk", "checkpoint  ", "learning rate", "optim.learning_rate  "):
        assert any(line.startswith(start) for line in lines), start
    assert [line for line in lines if line != line.rstrip()] == []


def test_debug_shows_the_traceback_and_keeps_the_exit_code() -> None:
    command = [sys.executable, "-m", "sftctl", "train", "none.toml"]
    done = subprocess.run(
        command, env=os.environ | {"SFTCTL_DEBUG": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2
    assert "Traceback" in done.stderr and "in _read_toml" in done.stderr
    assert "\nerror: none.toml: No such file or directory\n" in done.stderr

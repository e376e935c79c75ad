"""Calls that only Linux has: each has a replacement, tested here with the call hidden."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sftctl import processes
from sftctl.data.storage.array_file import ArrayFile
from sftctl.environment import read_at, sync, usable_cores
from sftctl.errors import DataError
from sftctl.processes import has_ended_badly


def test_cores_without_affinity_are_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == os.cpu_count()


@pytest.mark.parametrize("has_preadv", [True, False])
def test_bytes_are_read_at_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_preadv: bool
) -> None:
    if not has_preadv:
        monkeypatch.delattr(os, "preadv")
    (tmp_path / "file").write_bytes(b"0123456789")
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        buffer = bytearray(b"....")
        assert read_at(descriptor, memoryview(buffer), 3) == 4 and buffer == b"3456"
        assert read_at(descriptor, memoryview(buffer), 8) == 2 and buffer == b"8956"
        assert read_at(descriptor, memoryview(buffer), 10) == 0
    finally:
        os.close(descriptor)


def test_a_store_is_read_without_preadv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", np.arange(1000, dtype=np.int32))
    monkeypatch.delattr(os, "preadv")
    file = ArrayFile(tmp_path / "a.npy", np.int32)
    assert file.read(10, 5).tolist() == [10, 11, 12, 13, 14]
    os.truncate(tmp_path / "a.npy", 200)
    with pytest.raises(DataError, match="became shorter while it was used"):
        file.read(900, 100)


def test_a_file_is_synced_through_the_disks_own_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[object]()
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("fsync"))
    sync(1)
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda descriptor, command: calls.append(command))
    sync(1)

    def refuse(descriptor: int, command: int) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    sync(1)
    assert calls == ["fsync", 51, "fsync"]


@pytest.mark.parametrize(("code", "badly"), [(0, False), (3, True)])
def test_a_child_is_looked_at_and_not_collected(code: int, badly: bool) -> None:
    child = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])
    deadline = time.monotonic() + 300
    while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert has_ended_badly(child.pid) is badly
    assert child.wait() == code


def test_without_waitid_no_child_is_said_to_have_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "waitid")
    assert has_ended_badly(os.getpid()) is False


def test_only_linux_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.can_fork()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not processes.can_fork()


PRINT_SPIN_COUNT = """
import os, sys
from sftctl.cli import app, train_commands
def show(*_, **__):
    assert "torch" not in sys.modules
    print(os.environ.get("GOMP_SPINCOUNT"), os.environ["TORCH_CPP_LOG_LEVEL"])
train_commands.print_config = show
app.app(["train", "--print-config"])
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "None ERROR"),
        ({"GOMP_SPINCOUNT": "7", "TORCH_CPP_LOG_LEVEL": "INFO"}, "7 INFO"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None ERROR"),
    ],
)
def test_a_command_sets_what_torch_reads_at_its_start_unless_the_user_has_decided(
    given: dict[str, str], expected: str
) -> None:
    ours = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "TORCH_CPP_LOG_LEVEL")
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        [sys.executable, "-c", PRINT_SPIN_COUNT],
        env=inherited | given,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{expected}\n"

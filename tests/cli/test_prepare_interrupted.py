"""A preparation that a signal ends leaves nothing that could be mistaken for a store."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_no_store_and_no_process(tmp_path: Path, number: int) -> None:
    rows = tmp_path / "rows.jsonl"
    row = {"instruction": "Tell me more", "output": "word " * 2000}
    rows.write_text((json.dumps(row) + "\n") * 2000)
    command = [sys.executable, "-m", "sftctl", "prepare-data", str(rows), "--workers", "2"]
    command += ["--output", str(tmp_path / "store"), "--engine", "hf"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    wait_for(lambda: len(family(process.pid)) == 2)
    workers = family(process.pid)
    os.killpg(process.pid, number)  # as a terminal does
    assert process.wait(300) != 0
    assert b"Traceback" not in process.communicate()[1]
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    left = {path.name for path in tmp_path.iterdir()} - {"rows.jsonl"}
    assert not (tmp_path / "store").exists()
    if number == signal.SIGINT:
        assert left == set()
    assert all(name.startswith(".tmp-store-") for name in left)
    assert list(tmp_path.rglob("manifest.json")) == []


def family(pid: int) -> list[int]:
    """The children of a process."""
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)

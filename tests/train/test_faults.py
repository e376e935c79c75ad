"""What a user sees when something breaks, and that no more than one interval is lost."""

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sftctl.checkpoint.damage import problems_of
from sftctl.checkpoint.directory import list_checkpoints
from sftctl.runs.directory import RunDir
from sftctl.train.resume import ResumeRequest
from sftctl.train.run import run_training
from tests.toys.runs import events_of, metrics_of, same_run, toy_config
from tests.toys.torture.processes import loaders
from tests.toys.warm import WarmCommand, run_warm

TRAIN = ["train", "--model", "tiny", "--max-steps", "30", "--batch-size", "4"]
TRAIN += ["--log-interval", "1000", "--output-dir", "run"]


def small_files() -> None:
    """From now on no file can grow beyond a megabyte."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))


def wait_for_steps(process: WarmCommand, count: int) -> None:
    metrics, deadline = Path("run/metrics.jsonl"), time.monotonic() + 300
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < count:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without a fault."""
    folder = tmp_path_factory.mktemp("reference")
    done = run_warm(*TRAIN[:-1], str(folder / "run"))
    assert done.returncode == 0, done.stderr
    return folder / "run"


def resumes_to(reference: Path) -> bool:
    done = run_warm("resume", "run")
    assert done.returncode == 0, done.stderr.decode()
    return same_run(metrics_of(Path("run"))) == same_run(metrics_of(reference))


def test_a_disk_that_takes_no_checkpoint_ends_the_run_after_three(reference: Path) -> None:
    done = run_warm(*TRAIN, "--save-interval", "5", first=small_files)
    assert done.returncode == 4
    stderr = done.stderr
    assert stderr.count(b"save failed at step ") == 3
    assert b"error: 3 saves in a row failed: can't write checkpoint step 15 in run/" in stderr
    assert b"File too large" in stderr and b"Traceback" not in stderr
    assert os.listdir("run/checkpoints") == []
    assert resumes_to(reference)


def test_a_killed_loader_process_is_one_error_and_the_run_can_be_resumed(reference: Path) -> None:
    process = WarmCommand(*TRAIN, "--save-interval", "5", "--num-workers", "1")
    wait_for_steps(process, 7)
    (loader,) = loaders(process.pid)
    os.kill(loader, signal.SIGKILL)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 1
    assert b"error: a loader process died: " in stderr and b"Traceback" not in stderr
    assert b"hint: out of memory? try --num-workers 0" in stderr
    assert list_checkpoints(Path("run/checkpoints"))
    assert resumes_to(reference)


def test_a_clock_that_jumps_back_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_training(toy_config(tmp_path, "whole", checkpoint__keep=2))
    now = iter(range(10**9, 0, -86_400))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    run_training(toy_config(tmp_path, checkpoint__keep=2, train__max_steps=7))
    run = tmp_path / "run"
    edited = (run / "config.toml").read_text().replace("max_steps = 7\n", "")
    (run / "config.toml").write_text(edited)
    for path in list_checkpoints(run / "checkpoints"):
        os.utime(path, (10**9 - int(path.name[5:]),) * 2)  # the newest has the oldest time
    run_training(RunDir.open(run).config(), ResumeRequest(run))
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == [
        "step-00000011",
        "step-00000012",
    ]
    rates = "learning_rate"  # the first seven steps belong to a shorter cosine
    assert metrics_of(run)[7:][0][rates] == metrics_of(tmp_path / "whole")[7:][0][rates]


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a folder read-only; for root that takes a mount."""
    if os.geteuid():
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)
        return
    if subprocess.run(["mount", "-t", "tmpfs", "none", str(folder)]).returncode:
        pytest.skip("this root may not mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir()
    with read_only(tmp_path / "locked"):
        done = run_warm(*TRAIN[:-1], "locked/run")
    assert done.returncode == 2
    assert b"error: locked/run: the run directory can't be made: " in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_damaged_newest_checkpoint_costs_one_interval_of_steps(tmp_path: Path) -> None:
    run_training(toy_config(tmp_path, checkpoint__save_interval=4))
    run, expected = tmp_path / "run", metrics_of(tmp_path / "run")
    newest = list_checkpoints(run / "checkpoints")[-1]
    (newest / "manifest.json.sha256").unlink()
    assert problems_of(newest, verify=False) == ["manifest.json.sha256: missing"]
    summary = run_training(RunDir.open(run).config(), ResumeRequest(run))
    assert summary.num_tokens == sum(line["num_tokens"] for line in expected[8:])
    assert same_run(metrics_of(run)) == same_run(expected)
    assert events_of(run)[-1] == "finished"

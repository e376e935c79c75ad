"""metrics.jsonl and events.jsonl: complete lines, cut where a checkpoint was saved."""

import os
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from sftctl.disk import Disk
from sftctl.errors import CheckpointError
from sftctl.jsonio import read_lines
from sftctl.runs.log import RunLog
from tests.toys.metrics import step_metrics


class SmallDisk(Disk):
    """Takes 7 bytes a call, and has room for `room` bytes in all."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.synced: list[int] = []

    def write(self, descriptor: int, data: memoryview) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        written = super().write(descriptor, data[: min(7, self.room)])
        self.room -= written
        return written

    def sync(self, descriptor: int) -> None:
        self.synced.append(os.fstat(descriptor).st_ino)


def steps_in(run_dir: Path) -> list[int]:
    return [line["step"] for line in read_lines(run_dir / "metrics.jsonl")]


def log_steps(run_dir: Path, keep_bytes: int | None, steps: range) -> int:
    log = RunLog(run_dir, keep_bytes)
    for step in steps:
        log.log(step_metrics(step))
    log.sync()
    num_bytes = log.metrics_bytes
    log.close()
    return num_bytes


def test_a_step_is_one_line_of_the_fields_of_its_metrics(tmp_path: Path) -> None:
    log_steps(tmp_path, 0, range(1, 3))
    lines = list(read_lines(tmp_path / "metrics.jsonl"))
    assert lines == [asdict(step_metrics(1)), asdict(step_metrics(2))]


def test_an_event_has_its_name_step_time_and_fields(tmp_path: Path) -> None:
    log, before = RunLog(tmp_path, 0), time.time()
    log.event("saved", 4, path=Path("checkpoints/step-00000004"), num_bytes=10, seconds=0.5)
    [line] = read_lines(tmp_path / "events.jsonl")
    log.close()
    assert before - 1 <= line.pop("time") <= time.time() + 1
    assert line == {
        "event": "saved",
        "step": 4,
        "path": "checkpoints/step-00000004",
        "num_bytes": 10,
        "seconds": 0.5,
    }


def test_a_line_can_be_read_as_soon_as_it_was_logged(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0)
    log.log(step_metrics(1))
    assert steps_in(tmp_path) == [1]
    log.close()


def test_sync_syncs_both_files(tmp_path: Path) -> None:
    disk = SmallDisk(room=10_000)
    log = RunLog(tmp_path, 0, disk)
    log.log(step_metrics(1))
    disk.synced.clear()
    log.sync()
    assert log.metrics_bytes == (tmp_path / "metrics.jsonl").stat().st_size > 0
    log.close()
    files = [tmp_path / "metrics.jsonl", tmp_path / "events.jsonl"]
    assert disk.synced == [file.stat().st_ino for file in files]


def test_a_resume_cuts_the_steps_beyond_its_checkpoint_and_keeps_the_events(tmp_path: Path) -> None:
    at_checkpoint = log_steps(tmp_path, 0, range(1, 4))
    log = RunLog(tmp_path, None)
    log.log(step_metrics(4))
    log.event("evaluation", 4, validation_loss=1.0)
    log.close()
    assert steps_in(tmp_path) == [1, 2, 3, 4]
    log_steps(tmp_path, at_checkpoint, range(4, 7))
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert len(list(read_lines(tmp_path / "events.jsonl"))) == 1


def test_a_new_run_starts_with_no_metrics(tmp_path: Path) -> None:
    log_steps(tmp_path, 0, range(1, 4))
    assert log_steps(tmp_path, 0, range(0)) == 0
    assert steps_in(tmp_path) == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl"])
@pytest.mark.parametrize(
    "torn",
    [b'{"step":4,"lo', b"x" * 200_000, b'{"step":4' + bytes(900), b'{"st\0\0\0\n{"step":5}\n'],
)
def test_a_line_cut_by_a_crash_is_removed_and_the_next_one_is_complete(
    tmp_path: Path, name: str, torn: bytes
) -> None:
    log_steps(tmp_path, 0, range(1, 4))
    with (tmp_path / name).open("ab") as file:
        file.write(torn)
    log = RunLog(tmp_path, None)
    log.log(step_metrics(4))
    log.event("resumed", 4)
    log.close()
    assert steps_in(tmp_path) == [1, 2, 3, 4]
    assert [line["event"] for line in read_lines(tmp_path / "events.jsonl")] == ["resumed"]


def test_metrics_shorter_than_at_the_checkpoint_are_refused(tmp_path: Path) -> None:
    size = log_steps(tmp_path, 0, range(1, 4))
    with pytest.raises(CheckpointError) as caught:
        RunLog(tmp_path, size + 1)
    assert caught.value.message == (
        f"{tmp_path}/metrics.jsonl: {size} bytes in complete lines,"
        f" but the checkpoint was made when there were {size + 1}"
    )
    assert steps_in(tmp_path) == [1, 2, 3]


def test_metrics_that_are_refused_are_left_as_they_are(tmp_path: Path) -> None:
    size = log_steps(tmp_path, 0, range(1, 4))
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(damaged := file.read_bytes()[:-9] + b"\0" * 9)
    with pytest.raises(CheckpointError, match="but the checkpoint was made"):
        RunLog(tmp_path, size)
    assert file.read_bytes() == damaged


def test_a_cut_inside_a_line_is_refused(tmp_path: Path) -> None:
    size = log_steps(tmp_path, 0, range(1, 4))
    with pytest.raises(CheckpointError) as caught:
        RunLog(tmp_path, size - 5)
    assert caught.value.message == (
        f"{tmp_path}/metrics.jsonl: no line ends at byte {size - 5}, where the checkpoint was made"
    )
    assert steps_in(tmp_path) == [1, 2, 3]


def test_a_full_disk_is_an_error_and_leaves_complete_lines(tmp_path: Path) -> None:
    size = log_steps(tmp_path, 0, range(1, 2))
    log = RunLog(tmp_path, None, disk := SmallDisk(room=size + 20))
    log.log(step_metrics(2))
    with pytest.raises(CheckpointError, match="can't be written: No space left"):
        log.log(step_metrics(3))
    assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"\n")
    disk.room = 10_000
    log.log(step_metrics(3))
    log.close()
    assert steps_in(tmp_path) == [1, 2, 3]


def test_an_incomplete_line_that_could_not_be_removed_is_removed_before_the_next(
    tmp_path: Path,
) -> None:
    class BrokenDisk(SmallDisk):
        def truncate(self, descriptor: int, num_bytes: int) -> None:
            if not self.room:
                raise OSError(5, "Input/output error")
            super().truncate(descriptor, num_bytes)

    log = RunLog(tmp_path, 0, disk := BrokenDisk(room=20))
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl: can't be written: "):
            log.log(step_metrics(1))
    assert (tmp_path / "metrics.jsonl").stat().st_size == 20
    disk.room = 10_000
    log.log(step_metrics(1))
    log.close()
    assert steps_in(tmp_path) == [1]


def test_after_a_failed_sync_no_later_sync_succeeds(tmp_path: Path) -> None:
    class FailsOnce(SmallDisk):
        def sync(self, descriptor: int) -> None:
            super().sync(descriptor)
            if len(self.synced) == 2:  # the first is of the folder
                raise OSError(5, "Input/output error")

    log = RunLog(tmp_path, 0, disk := FailsOnce(room=10_000))
    log.log(step_metrics(1))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: can't be written: Input/output"):
        log.sync()
    with pytest.raises(CheckpointError) as caught:
        log.sync()
    assert caught.value.message == (
        f"{tmp_path}/metrics.jsonl: an earlier sync failed; its bytes may be lost"
    )
    assert len(disk.synced) == 2
    log.close()


@pytest.mark.parametrize("call", ["open_to_append", "sync"])
def test_a_log_that_cannot_be_opened_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(disk := SmallDisk(0), call, fail)
    with pytest.raises(CheckpointError, match="can't be written: Read-only file system"):
        RunLog(tmp_path, 0, disk)


def test_a_log_that_fails_to_open_leaks_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    size = log_steps(tmp_path, 0, range(1, 4))
    with pytest.raises(CheckpointError):
        RunLog(tmp_path, size + 1)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_closed_log_takes_no_line(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0)
    log.close()
    with pytest.raises(ValueError, match=r"metrics\.jsonl: closed"):
        log.log(step_metrics(1))

"""Every disk call of a save and its retention fails, or is the last: what is left is old or new."""

import os
from pathlib import Path

import pytest

from sftctl.checkpoint.directory import clean_leftovers, list_checkpoints, newest_good, retire
from sftctl.checkpoint.load import load_tensors
from sftctl.disk import DISK, Disk
from sftctl.errors import CheckpointError
from tests.checkpoint.toys import (
    ALONE,
    CountingDisk,
    DyingDisk,
    FailingDisk,
    blank,
    equal,
    make_tensors,
    save_toy,
)


def save_and_retire(root: Path, step: int, disk: Disk = DISK) -> None:
    save_toy(root, step, disk)
    retire(root, 1, disk)


def num_disk_calls(root: Path) -> int:
    """Of the save of step 2 after step 1, and of the retirement of step 1."""
    save_toy(root, 1)
    disk = CountingDisk()
    save_and_retire(root, 2, disk)
    assert [path.name for path in list_checkpoints(root)] == ["step-00000002"]
    return disk.num_calls


def assert_old_or_new(root: Path) -> None:
    path, skipped = newest_good(root)
    assert path.name in ("step-00000001", "step-00000002") and skipped == []
    tensors = blank(make_tensors())
    load_tensors(path, tensors, ALONE)
    assert equal(tensors, make_tensors(int(path.name[-1])))
    visible = [entry.name for entry in root.iterdir() if not entry.name.startswith(".")]
    assert set(visible) <= {"step-00000001", "step-00000002"}


def assert_next_save_works(root: Path) -> None:
    clean_leftovers(root)
    save_and_retire(root, 3)
    assert [entry.name for entry in root.iterdir()] == ["step-00000003"]
    assert newest_good(root)[1] == []


def test_a_failed_call_leaves_the_old_or_the_new_checkpoint(tmp_path: Path) -> None:
    num_calls = num_disk_calls(tmp_path / "count")
    for at in range(1, num_calls + 1):
        root = tmp_path / f"once-{at}"
        save_toy(root, 1)
        with pytest.raises(CheckpointError, match="can't (write|delete) .*No space left") as caught:
            save_and_retire(root, 2, FailingDisk(at))
        if caught.value.message.startswith("can't write"):
            assert [path.name for path in list_checkpoints(root)] == ["step-00000001"]
        assert not [entry for entry in root.iterdir() if entry.name.startswith(".tmp-")]
        assert_old_or_new(root)
        assert_next_save_works(root)
    assert num_calls > 20


def test_a_disk_that_stays_full_leaves_the_old_or_the_new_checkpoint(tmp_path: Path) -> None:
    for at in range(1, num_disk_calls(tmp_path / "count") + 1):
        root = tmp_path / f"forever-{at}"
        save_toy(root, 1)
        with pytest.raises(CheckpointError):
            save_and_retire(root, 2, FailingDisk(at, forever=True))
        assert_old_or_new(root)
        assert_next_save_works(root)


def test_a_killed_process_leaves_the_old_or_the_new_checkpoint(tmp_path: Path) -> None:
    for at in range(1, num_disk_calls(tmp_path / "count") + 1):
        root = tmp_path / f"killed-{at}"
        save_toy(root, 1)
        child = os.fork()
        if child == 0:
            try:
                save_and_retire(root, 2, DyingDisk(at))
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert_old_or_new(root)
        assert_next_save_works(root)

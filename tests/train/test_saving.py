"""Saves run in the background; a failed one is reported, the third in a row ends the run."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sftctl import jsonio
from sftctl.checkpoint.background import BackgroundSaver
from sftctl.checkpoint.damage import problems_of
from sftctl.checkpoint.directory import list_checkpoints
from sftctl.checkpoint.load import load_tensors
from sftctl.disk import DISK, Disk
from sftctl.errors import CheckpointError
from sftctl.runs.directory import RunDir
from sftctl.train.preflight.dry_run import plan_run
from sftctl.train.preflight.findings import refuse_errors
from sftctl.train.resume import ResumeRequest
from sftctl.train.run import run_training
from sftctl.words import format_bytes
from sftctl.world import ALONE
from tests.toys.checkpoints import blank, equal, make_manifest, make_tensors
from tests.toys.runs import assert_same_tensors, events_of, metrics_of, stored_tensors, toy_config


class SlowDisk(Disk):
    """A disk that waits before the first write until the test lets it go on."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

    def create(self, path: Path) -> int:
        self.reached.set()
        assert self.go_on.wait(300)
        return super().create(path)


def test_a_checkpoint_holds_the_state_at_the_time_of_the_request(tmp_path: Path) -> None:
    tensors, disk = make_tensors(1), SlowDisk()
    saver = BackgroundSaver(tmp_path, 1, tensors, ALONE, disk)
    saver.start(make_manifest(1))
    assert disk.reached.wait(300)
    for tensor in tensors.values():
        tensor.zero_()
    assert saver.ended() is None and list_checkpoints(tmp_path) == []
    disk.go_on.set()
    outcome = saver.wait()
    assert outcome is not None and outcome.path is not None and outcome.error is None
    assert 0 <= outcome.wait_s <= outcome.seconds
    stored = blank(make_tensors())
    load_tensors(outcome.path, stored, ALONE)
    assert equal(stored, make_tensors(1))
    assert saver.wait() is None and saver.ended() is None


def test_the_copy_buffer_is_reused_and_old_checkpoints_are_deleted(tmp_path: Path) -> None:
    tensors = make_tensors(1)
    saver = BackgroundSaver(tmp_path, 1, tensors, ALONE)
    for step in (1, 2, 3):
        for name, tensor in make_tensors(step).items():
            tensors[name].copy_(tensor)
        saver.start(make_manifest(step))
        assert saver.wait() is not None
    (path,) = list_checkpoints(tmp_path)
    stored = blank(make_tensors())
    load_tensors(path, stored, ALONE)
    assert equal(stored, make_tensors(3))


def test_an_unexpected_error_in_the_saving_thread_is_raised_in_the_training_thread(
    tmp_path: Path,
) -> None:
    class Broken(Disk):
        def make_folder(self, path: Path) -> None:
            raise KeyboardInterrupt

    saver = BackgroundSaver(tmp_path, 1, make_tensors(), ALONE, Broken())
    saver.start(make_manifest(1))
    with pytest.raises(KeyboardInterrupt):
        saver.wait()


def test_an_old_checkpoint_that_can_not_be_deleted_is_a_warning(tmp_path: Path) -> None:
    class Sticky(Disk):
        def remove_tree(self, path: Path) -> None:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    saver = BackgroundSaver(tmp_path, 1, make_tensors(), ALONE, Sticky())
    for step in (1, 2):
        saver.start(make_manifest(step))
        outcome = saver.wait()
    assert outcome is not None and outcome.error is None
    assert outcome.warning is not None and "can't be deleted" in outcome.warning


def test_a_folder_that_vanishes_once_it_is_saved_ends_no_save(tmp_path: Path) -> None:
    class Vanishing(Disk):
        def rename(self, source: Path, target: Path) -> None:
            super().rename(source, target)
            self.remove_tree(target)

    saver = BackgroundSaver(tmp_path, 1, make_tensors(), ALONE, Vanishing())
    saver.start(make_manifest(1))
    outcome = saver.wait()
    assert outcome is not None and outcome.error is None and outcome.num_bytes == 0


def read_only_while(condition: Callable[[], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk that training uses fails to make a checkpoint's folder while `condition` holds."""
    make_folder = DISK.make_folder

    def failing(self: Disk, path: Path) -> None:
        if path.name.startswith(".tmp-step-") and condition():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        make_folder(path)

    monkeypatch.setattr(Disk, "make_folder", failing)


def test_after_a_failed_save_the_run_goes_on_and_saves_at_the_next_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = iter([True, True, False])
    read_only_while(lambda: next(tries, False), monkeypatch)
    summary = run_training(toy_config(tmp_path, checkpoint__save_interval=3))
    assert summary.status == "finished"
    events = [event for event in events_of(tmp_path / "run") if "save" in event]
    assert events == ["save_failed", "save_failed", "saved", "saved"]
    names = [path.name for path in list_checkpoints(tmp_path / "run/checkpoints")]
    assert names == ["step-00000009", "step-00000012"]


def test_three_failed_saves_in_a_row_end_the_run_and_keep_the_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    reference = run_training(toy_config(tmp_path, "whole"))
    read_only_while(lambda: bool(list_checkpoints(run / "checkpoints")), monkeypatch)
    with pytest.raises(CheckpointError) as raised:
        run_training(toy_config(tmp_path))
    assert raised.value.exit_code == 4
    assert raised.value.message == (
        "3 saves in a row failed: can't write checkpoint step 4 in "
        f"{run}/checkpoints: No space left on device"
    )
    assert events_of(run) == ["started", "data", "saved", *["save_failed"] * 3, "failed"]
    (path,) = list_checkpoints(run / "checkpoints")
    assert problems_of(path, verify=True) == []
    assert [entry.name for entry in (run / "checkpoints").iterdir()] == [path.name]
    monkeypatch.undo()
    resumed = run_training(RunDir.open(run).config(), ResumeRequest(run))
    assert resumed.status == "finished" and resumed.loss == reference.loss
    last = "checkpoints/step-00000012"
    assert_same_tensors(stored_tensors(run / last), stored_tensors(tmp_path / "whole" / last))


def test_a_last_save_that_fails_is_exit_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    read_only_while(lambda: True, monkeypatch)
    with pytest.raises(CheckpointError, match="can't write checkpoint step 12 .* No space left"):
        run_training(toy_config(tmp_path, checkpoint__save_interval=0))
    assert events_of(run) == ["started", "data", "save_failed", "failed"]
    assert len(metrics_of(run)) == 12 and not (run / "final").exists()


def test_no_manifest_is_written_before_the_metrics_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsynced(self: Disk, descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        if name == "metrics.jsonl":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.fsync(descriptor)

    monkeypatch.setattr(Disk, "sync", unsynced)
    with pytest.raises(CheckpointError, match="can't write checkpoint step 12 .*output error"):
        run_training(toy_config(tmp_path, checkpoint__save_interval=0))
    assert list_checkpoints(tmp_path / "run/checkpoints") == []


def test_a_disk_that_can_not_hold_the_checkpoints_is_refused_before_the_first_step(
    tmp_path: Path,
) -> None:
    config = toy_config(tmp_path, checkpoint__keep=10**8)
    with pytest.raises(CheckpointError) as raised:
        run_training(config)
    size = format_bytes(plan_run(toy_config(tmp_path)).checkpoint_bytes)
    assert raised.value.message.startswith(
        f"{tmp_path}/run/checkpoints: no space for checkpoints: 100000001 x {size} = "
    )
    assert not (tmp_path / "run").exists()
    with pytest.raises(CheckpointError, match="no space"):
        refuse_errors(plan_run(config).findings)


def test_the_planned_checkpoint_size_is_the_size_on_disk(tmp_path: Path) -> None:
    told = plan_run(toy_config(tmp_path)).checkpoint_bytes
    run_training(toy_config(tmp_path, checkpoint__save_interval=0))
    (path,) = list_checkpoints(tmp_path / "run/checkpoints")
    tensors = stored_tensors(path)
    assert told == pytest.approx(sum(t.numel() * t.element_size() for t in tensors.values()), 0.001)
    saved = [e for e in jsonio.read_lines(tmp_path / "run/events.jsonl") if e["event"] == "saved"]
    assert saved[0]["num_bytes"] == pytest.approx(told, rel=0.05)
    assert torch.tensor(saved[0]["wait_s"]) <= saved[0]["seconds"]

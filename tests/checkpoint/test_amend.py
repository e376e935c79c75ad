"""A manifest is replaced: after any failure the checkpoint is good."""

from dataclasses import replace
from pathlib import Path

import pytest

from sftctl.checkpoint.amend import amend_manifest
from sftctl.checkpoint.damage import problems_of, unknown_files
from sftctl.checkpoint.directory import newest_good
from sftctl.checkpoint.layout import read_manifest
from sftctl.disk import Disk
from sftctl.errors import CheckpointError
from tests.toys.checkpoints import CountingDisk, FailingDisk, save_toy

VALIDATION = {"first": 2.0, "best": 1.0, "last": 1.0, "step": 7}


class Killed(BaseException):
    """The process ends here."""


class DeadlyDisk(CountingDisk):
    """The process is killed at call number `at`."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def before(self, name: str, *args: object) -> None:
        super().before(name, *args)
        if self.num_calls == self.at:
            raise Killed


def amended(path: Path, disk: Disk) -> None:
    amend_manifest(path, replace(read_manifest(path), validation=VALIDATION), disk)


def test_a_manifest_is_replaced_together_with_its_hash(tmp_path: Path) -> None:
    path = save_toy(tmp_path, 7)
    before = read_manifest(path)
    amended(path, CountingDisk())
    assert read_manifest(path) == replace(before, validation=VALIDATION)
    assert len((path / "manifest.json.sha256").read_bytes().splitlines()) == 1
    assert problems_of(path, verify=True) == []


@pytest.mark.parametrize("kind", [FailingDisk, DeadlyDisk])
def test_after_any_failed_call_the_old_or_the_new_manifest_is_there(
    tmp_path: Path, kind: type[FailingDisk] | type[DeadlyDisk]
) -> None:
    calls = CountingDisk()
    amended(save_toy(tmp_path / "whole", 7), calls)
    for number in range(1, calls.num_calls + 1):
        path = save_toy(tmp_path / str(number), 7)
        old = read_manifest(path)
        with pytest.raises((CheckpointError, Killed)):
            amended(path, kind(number))
        found = newest_good(path.parent).manifest
        assert found in (old, replace(old, validation=VALIDATION))
        assert unknown_files(path, found) == []
        amended(path, CountingDisk())  # the next resume
        assert read_manifest(path).validation == VALIDATION
    assert calls.num_calls > 12


def test_a_hash_file_with_other_text_is_damage(tmp_path: Path) -> None:
    path = save_toy(tmp_path, 7)
    file = path / "manifest.json.sha256"
    line = file.read_bytes()
    for wrong in (line + b"more", line * 3, b"", line[:-1], line + line.replace(b"json", b"toml")):
        file.write_bytes(wrong)
        assert problems_of(path, verify=False) == [
            "manifest.json: its SHA-256 is not the one in manifest.json.sha256"
        ]

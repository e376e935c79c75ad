"""directory: list, check, choose, delete and move the checkpoints of a run."""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sftctl import jsonio
from sftctl.checkpoint.amend import amend_manifest
from sftctl.checkpoint.damage import problems_of, unknown_files
from sftctl.checkpoint.directory import (
    abandon_after,
    clean_leftovers,
    list_checkpoints,
    newest_good,
    require_room,
    retire,
)
from sftctl.checkpoint.layout import manifest_hash_line, read_manifest
from sftctl.checkpoint.load import load_tensors
from sftctl.disk import FileEntry
from sftctl.errors import CheckpointError, CorruptCheckpoint, IncompatibleCheckpoint, NoCheckpoint
from tests.toys.checkpoints import ALONE, FailingDisk, blank, equal, make_tensors, save_toy

SHARD = "shard-00001.safetensors"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Checkpoints at steps 100, 200 and 300."""
    for step in (100, 200, 300):
        save_toy(tmp_path, step)
    return tmp_path


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def flip_bit(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position // 8] ^= 1 << position % 8
    file.write_bytes(data)


def test_only_real_folders_with_exact_names_are_checkpoints(root: Path) -> None:
    (root / "old-step-00000009").mkdir()
    (root / "step-00000400").symlink_to(root / "step-00000100")
    (root / "step-00000500").write_text("a file")
    (root / "step-00000050").mkdir()
    assert [path.name for path in list_checkpoints(root)] == [
        "step-00000050",
        "step-00000100",
        "step-00000200",
        "step-00000300",
    ]
    assert list_checkpoints(root / "nowhere") == []


def test_a_fresh_checkpoint_has_no_problems(root: Path) -> None:
    assert problems_of(root / "step-00000300", verify=True) == []


@pytest.mark.parametrize("name", ["manifest.json", "manifest.json.sha256", SHARD])
def test_a_flipped_bit_is_found_wherever_it_is(root: Path, name: str) -> None:
    path = root / "step-00000300"
    num_bits = 8 * (path / name).stat().st_size
    for position in {*range(0, num_bits, 97), num_bits - 1}:
        flip_bit(path / name, position)
        [problem] = problems_of(path, verify=True)
        assert name in problem
        flip_bit(path / name, position)
    assert problems_of(path, verify=True) == []


@pytest.mark.parametrize("name", ["manifest.json", "manifest.json.sha256", SHARD])
def test_a_cut_longer_or_missing_file_is_found_without_hashing(root: Path, name: str) -> None:
    path = root / "step-00000300"
    whole = (path / name).read_bytes()
    for data in (b"", whole[:-1], whole + b"\0"):
        (path / name).write_bytes(data)
        [problem] = problems_of(path, verify=False)
        assert name in problem
    (path / name).unlink()
    assert problems_of(path, verify=False) == [f"{name}: missing"]


def test_problems_name_the_file_and_what_is_wrong_with_it(root: Path) -> None:
    path = root / "step-00000300"
    num_bytes = (path / SHARD).stat().st_size
    flip_bit(path / SHARD, 8 * num_bytes - 1)
    assert problems_of(path, verify=False) == []
    assert problems_of(path, verify=True) == [
        f"{SHARD}: its content was changed (different SHA-256)"
    ]
    os.truncate(path / SHARD, 10)
    assert problems_of(path, verify=False) == [
        f"{SHARD}: 10 bytes, the manifest says {num_bytes}",
    ]
    assert problems_of(path / "gone", verify=False) == ["no such checkpoint"]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda p: p.symlink_to("/etc/hostname")])
def test_a_shard_that_is_not_a_regular_file_is_refused_unread(
    root: Path, make: Callable[[Path], object]
) -> None:
    path = root / "step-00000300"
    (path / SHARD).unlink()
    make(path / SHARD)
    assert problems_of(path, verify=True) == [f"{SHARD}: not a regular file"]


SIDE_FILES = (
    ".DS_Store", "._shard-00001.safetensors", "._manifest.json", "Thumbs.db", "desktop.ini",
    "manifest.json~", ".manifest.json.swp", "#manifest.json#", ".#manifest.json", ".nfs00012af",
    ".fuse_hidden000001", ".~lock.manifest.json#", ".directory",
)  # fmt: skip


def test_what_the_manifest_does_not_list_is_not_read_and_not_damage(root: Path) -> None:
    path = root / "step-00000300"
    expected = tensors_in(path)
    for name in (*SIDE_FILES, "payload.pt", "more.safetensors", ".metadata"):
        (path / name).write_bytes(b"x")
    (path / "@eaDir").mkdir()
    assert problems_of(path, verify=True) == []
    assert unknown_files(path, read_manifest(path)) == [
        ".metadata",
        "more.safetensors",
        "payload.pt",
    ]
    assert newest_good(root).path == path
    assert equal(tensors_in(path), expected)


def tensors_in(path: Path) -> dict[str, torch.Tensor]:
    tensors = blank(make_tensors())
    load_tensors(path, tensors, ALONE)
    return tensors


def test_a_checkpoint_with_a_file_that_is_not_ours_is_never_deleted(root: Path) -> None:
    (root / "step-00000100" / "notes.txt").write_bytes(b"the best one")
    (root / "step-00000200" / ".DS_Store").write_bytes(b"x")
    assert retire(root, 1) == [root / "step-00000200"]


def chosen(root: Path, step: int | None = None) -> tuple[Path, object]:
    found = newest_good(root, step)
    return found.path, found.skipped


def test_the_newest_good_one_is_chosen_and_the_skipped_are_named(root: Path) -> None:
    assert chosen(root) == (root / "step-00000300", ())
    flip_bit(root / "step-00000300" / SHARD, 5000)
    (root / "step-00000200" / SHARD).unlink()
    assert chosen(root) == (
        root / "step-00000100",
        (
            (
                root / "step-00000300",
                [f"{SHARD}: its content was changed (different SHA-256)"],
            ),
            (root / "step-00000200", [f"{SHARD}: missing"]),
        ),
    )


def test_a_given_step_is_chosen(root: Path) -> None:
    assert chosen(root, 200) == (root / "step-00000200", ())


def test_the_manifest_of_the_newest_good_one_is_returned(root: Path) -> None:
    assert newest_good(root).manifest == read_manifest(root / "step-00000300")


def test_a_step_that_is_damaged_is_refused_and_the_others_named(root: Path) -> None:
    (root / "step-00000200" / SHARD).unlink()
    with pytest.raises(CorruptCheckpoint) as caught:
        newest_good(root, 200)
    assert caught.value.message == f"{root}: damaged: step-00000200: {SHARD}: missing"
    assert caught.value.hint == "complete checkpoints are at step 100, 300"


def test_of_many_problems_the_first_three_are_named(root: Path) -> None:
    path = root / "step-00000200"
    manifest = read_manifest(path)
    missing = {name: FileEntry(1, "0" * 64) for name in "abcd"}
    amend_manifest(path, replace(manifest, files=manifest.files | missing))
    with pytest.raises(CorruptCheckpoint) as caught:
        newest_good(root, 200)
    problems = "; ".join(f"{name}: missing" for name in "abc")
    assert caught.value.message == f"{root}: damaged: step-00000200: {problems}"


def test_a_missing_step_is_refused_and_the_others_named(root: Path) -> None:
    with pytest.raises(NoCheckpoint) as caught:
        newest_good(root, 250)
    assert caught.value.message == f"{root}: no checkpoint of step 250"
    assert caught.value.hint == "complete checkpoints are at step 100, 200, 300"


def test_no_checkpoint_and_no_good_checkpoint_are_different_errors(tmp_path: Path) -> None:
    with pytest.raises(NoCheckpoint) as caught:
        newest_good(tmp_path)
    assert caught.value.message == f"{tmp_path}: no checkpoint"
    assert (
        caught.value.hint == f"`sftctl resume {tmp_path.parent}` continues training and saves one"
    )
    (save_toy(tmp_path, 1) / SHARD).unlink()
    with pytest.raises(
        CorruptCheckpoint, match=f"no complete checkpoint: step-00000001: {SHARD}: missing"
    ):
        newest_good(tmp_path)


def test_a_newer_format_is_not_damage_so_no_older_checkpoint_is_tried(root: Path) -> None:
    path = root / "step-00000300"
    values = jsonio.loads((path / "manifest.json").read_bytes()) | {"format_version": 2}
    data = jsonio.dump_pretty(values)
    (path / "manifest.json").write_bytes(data)
    (path / "manifest.json.sha256").write_bytes(manifest_hash_line(data))
    with pytest.raises(IncompatibleCheckpoint, match="step-00000300: checkpoint format 2"):
        newest_good(root)


def test_old_checkpoints_are_deleted_and_the_newest_kept(root: Path) -> None:
    assert retire(root, keep=2) == [root / "step-00000100"]
    assert retire(root, keep=2) == []
    assert retire(root, keep=1) == [root / "step-00000200"]
    assert names(root) == ["step-00000300"]


def test_damaged_checkpoints_are_neither_counted_nor_deleted(root: Path) -> None:
    (root / "step-00000300" / SHARD).unlink()
    (root / "step-00000050").mkdir()
    (root / "old-step-00000009").mkdir()
    (root / "step-00000400").symlink_to(root / "step-00000100")
    before = names(root)
    assert retire(root, keep=2) == []
    assert names(root) == before
    assert retire(root, keep=1) == [root / "step-00000100"]
    assert "step-00000200" in names(root)


def test_a_checkpoint_that_cannot_be_deleted_is_named(root: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        retire(root, 2, FailingDisk(at=1))
    assert (
        caught.value.message == f"{root}/step-00000100: can't be deleted: No space left on device"
    )
    assert len(list_checkpoints(root)) == 3


def test_later_checkpoints_are_moved_damaged_or_not(root: Path) -> None:
    (root / "step-00000200" / SHARD).unlink()
    (root / "step-00000400").symlink_to("nowhere")
    moved = abandon_after(root, 100)
    folder = moved[0].parent
    assert re.fullmatch(r"abandoned-\d{8}-\d{6}", folder.name) and folder.parent == root
    assert [path.name for path in moved] == ["step-00000200", "step-00000300", "step-00000400"]
    assert names(folder) == [path.name for path in moved]
    assert names(root) == [folder.name, "step-00000100"]
    assert abandon_after(root, 100) == []
    assert abandon_after(root / "nowhere", 0) == []


def test_moving_twice_in_a_second_keeps_both(root: Path) -> None:
    first = abandon_after(root, 200)
    save_toy(root, 300)
    second = abandon_after(root, 200)
    assert first[0].exists() and second[0].exists() and first != second


def test_the_newest_is_moved_first_so_that_a_crash_leaves_no_gap(root: Path) -> None:
    rename_of_the_second = 5  # after make_folder, sync_folder with its sync, and a rename
    with pytest.raises(CheckpointError):
        abandon_after(root, 100, FailingDisk(at=rename_of_the_second))
    assert [path.name for path in list_checkpoints(root)] == ["step-00000100", "step-00000200"]


def test_checkpoints_that_cannot_be_moved_raise_an_error(root: Path) -> None:
    with pytest.raises(CheckpointError, match="can't move later checkpoints there: No space left"):
        abandon_after(root, 200, FailingDisk(at=2))
    assert len(list_checkpoints(root)) == 3


def test_only_leftovers_of_ours_are_deleted(root: Path) -> None:
    ours = [".tmp-step-00000400-0123abcd", ".trash-step-00000100-0123abcd"]
    ours += [".tmp-final-0123abcd", ".trash-final-0123abcd"]
    others = [".tmp-notes", ".trash-step-00000100", "abandoned-20260101-000000"]
    for name in ours + others:
        (root / name).mkdir()
        (root / name / "file").write_text("x")
    (root / ".tmp-step-00000500-0123abcd").symlink_to(root / "step-00000100")
    clean_leftovers(root)
    assert names(root) == sorted(
        [*others, ".tmp-step-00000500-0123abcd", *(f"step-00000{n}00" for n in (1, 2, 3))]
    )
    clean_leftovers(root / "nowhere")


def test_a_leftover_that_cannot_be_deleted_is_named(root: Path) -> None:
    (root / ".tmp-step-00000400-0123abcd").mkdir()
    with pytest.raises(CheckpointError, match="0123abcd: can't be deleted: No space left"):
        clean_leftovers(root, FailingDisk(at=1))


def test_a_checkpoint_may_be_copied_elsewhere(root: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(root / "step-00000300", tmp_path / "elsewhere" / "best")
    assert problems_of(Path(copy), verify=True) == []


def test_checkpoints_that_exist_need_no_more_room(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(CheckpointError, match="no space for checkpoints: 3 x "):
        require_room(tmp_path / "not" / "yet", free // 2, keep=2)
    for step in (1, 2):
        (tmp_path / f"step-{step:08d}").mkdir()
    require_room(tmp_path, free // 2, keep=2)


def test_more_checkpoints_than_are_kept_still_leave_room_for_one(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    for step in (1, 2, 3, 4):
        (tmp_path / f"step-{step:08d}").mkdir()
    with pytest.raises(CheckpointError, match="no space for checkpoints: 1 x "):
        require_room(tmp_path, 2 * free, keep=2)

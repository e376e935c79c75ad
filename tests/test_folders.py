"""folders: a new folder is durable, and a place where none can be made is refused."""

import os
from pathlib import Path

import pytest

from sftctl.disk import Disk
from sftctl.folders import new_folder, require_makeable


def test_a_place_where_nothing_can_be_made_is_refused_also_for_root(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        require_makeable(Path("/proc/x"))
    require_makeable(tmp_path / "new" / "deep")
    assert [*tmp_path.iterdir()] == []


class SyncedPaths(Disk):
    """Notes what is synced, and what a rename moves."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def sync(self, descriptor: int) -> None:
        self.calls.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        super().sync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self.calls.append(f"rename {target.name}")
        super().rename(source, target)


def test_a_new_folder_is_synced_with_all_that_is_in_it_before_it_gets_its_name(
    tmp_path: Path,
) -> None:
    disk = SyncedPaths()
    with new_folder(tmp_path / "target", disk, lambda: disk.calls.append("make way")) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_bytes(b"a")
    assert disk.calls == [
        *("sync inner", "sync file", "make way", f"sync {folder.name}"),
        *("rename target", f"sync {tmp_path.name}"),
    ]


def test_a_new_folder_that_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "target") as folder:
        (folder / "file").write_bytes(b"a")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []

"""Write folders that are complete or absent, even after a crash or a power cut.

Stores, checkpoints and exported models are folders. Each is filled under a temporary name next to
its target. Then all files are synced, the folder is synced and renamed, and its parent is synced.
"""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from sftctl.disk import DISK, TEMPORARY_PREFIX, Disk, sync_file, temporary_sibling

TRASH_PREFIX = ".trash-"


def require_makeable(path: Path) -> None:
    """Raise the OSError that creating a file or folder at `path` would raise. Leaves no file.

    So a long command can refuse its output before the work. A broken link counts as an existing
    file. A folder is created as a test, because permissions do not tell: for root, even /proc seems
    writable.
    """
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    nearest = next(above for above in path.absolute().parents if os.path.lexists(above))
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{nearest} is not a directory", str(path))
    probe = nearest / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex[:8]}"
    probe.mkdir()
    probe.rmdir()


def commit_folder(folder: Path, target: Path, disk: Disk = DISK) -> None:
    """Rename a complete, synced folder to `target`. After this, a power cut can't undo it."""
    disk.sync_folder(folder)
    try:
        disk.rename(folder, target)
    except OSError as problem:
        if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise FileExistsError(
            errno.EEXIST, "something else created it meanwhile", str(target)
        ) from problem
    try:
        disk.sync_folder(target.parent)
    except OSError:  # a power cut could lose the new name, so undo the rename
        disk.rename(target, folder)
        raise


def remove_folder(folder: Path, disk: Disk = DISK) -> None:
    """Delete a folder. It is renamed first, so that a crash leaves no folder that looks valid."""
    trash = folder.with_name(f"{TRASH_PREFIX}{folder.name}-{uuid.uuid4().hex[:8]}")
    disk.rename(folder, trash)
    disk.sync_folder(folder.parent)
    disk.remove_tree(trash)


def _nothing_to_remove() -> None:
    """Do nothing: the default for `make_way`, if the target does not exist."""


@contextlib.contextmanager
def new_folder(
    target: Path, disk: Disk = DISK, make_way: Callable[[], None] = _nothing_to_remove
) -> Iterator[Path]:
    """A temporary folder to fill. At the end it becomes `target`, completely or not at all.

    `make_way` is called directly before the rename, when all files are synced. It may remove an
    older `target`.
    """
    folder = temporary_sibling(target)
    disk.make_folder(folder)
    try:
        yield folder
        for path in sorted(folder.rglob("*")):
            if path.is_dir():
                disk.sync_folder(path)
            else:
                sync_file(path, disk)
        make_way()
        commit_folder(folder, target, disk)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise

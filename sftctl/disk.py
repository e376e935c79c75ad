"""Write files that survive a crash or a power cut, and turn errors of the system into SftctlErrors.

All calls that write a file durably go through `Disk`. So a test can make any call fail, or kill the
process there. To write a complete folder, use `folders`.
"""

import contextlib
import errno
import hashlib
import os
import pwd
import re
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sftctl.environment import sync
from sftctl.errors import SftctlError
from sftctl.words import in_shell

_RUST_ERROR = re.compile(r"\(os error (\d+)\)")  # in messages of libraries that are written in Rust
TEMPORARY_PREFIX = ".tmp-"
_CHUNK_BYTES = 1 << 24
FILES_OPEN = dict.fromkeys(
    (errno.EMFILE, errno.ENFILE), "close other programs, raise `ulimit -n` or use fewer workers"
)
"""The hint if no more files can be opened. It replaces any other hint."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """The size and hash of a file, as a manifest records them."""

    num_bytes: int
    sha256: str


@contextlib.contextmanager
def refusals(
    path: Path | str,
    error: type[SftctlError],
    hint: str | None = None,
    what: str = "can't be written",
) -> Iterator[None]:
    """Turn an OSError into `error`: "PATH: can't be written: No space left on device"."""
    try:
        yield
    except OSError as problem:
        hint = FILES_OPEN.get(problem.errno or 0, hint)
        raise error(f"{path}: {what}: {problem.strerror or problem}", hint) from problem


def who_may_not_read(path: Path) -> str | None:
    """Whose rights are missing: "user bob may not read x: its mode is -rw-------, its owner …".

    It names the first folder on the path that may not be entered, if there is one. None if the
    rights allow to read the path, or if it is not there.
    """
    place = path.absolute()
    try:
        closed = next((one for one in reversed(place.parents) if not _allows(one, os.X_OK)), None)
        found, verb = (place, "read") if closed is None else (closed, "enter")
        status = found.stat()
    except OSError:
        return None
    is_folder = stat.S_ISDIR(status.st_mode)
    if closed is None and _allows(place, os.R_OK | (os.X_OK if is_folder else 0)):
        return None
    return (
        f"user {_name_of_user(os.geteuid())} may not {verb} {found}: its mode is "
        f"{stat.filemode(status.st_mode)}, its owner {_name_of_user(status.st_uid)}; "
        f"`chmod {'+rx' if is_folder else '+r'} {in_shell(found)}` by its owner changes that"
    )


def _allows(path: Path, access: int) -> bool:
    return os.access(path, access, effective_ids=os.access in os.supports_effective_ids)


def _name_of_user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


@contextlib.contextmanager
def system_errors() -> Iterator[None]:
    """Turn errors of safetensors and tokenizers about a file into the OSError that caused them."""
    try:
        yield
    except UnicodeEncodeError as problem:
        raise OSError(errno.EILSEQ, "the name is not UTF-8") from problem
    except Exception as problem:
        found = _RUST_ERROR.search(str(problem))
        if found is None or isinstance(problem, OSError):
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number)) from problem


@contextlib.contextmanager
def read_refusals(
    path: Path, error: type[SftctlError], hint: str | None = None, missing: str | None = None
) -> Iterator[None]:
    """Turn an OSError into `error`: "PATH: Permission denied". The hint then says whose rights are
    missing.

    `missing` replaces the system's message for a file that does not exist.
    """
    try:
        yield
    except OSError as problem:
        reason = problem.strerror or problem
        if missing is not None and isinstance(problem, FileNotFoundError):
            reason = missing
        hint = FILES_OPEN.get(problem.errno or 0, hint)
        if isinstance(problem, PermissionError):
            hint = who_may_not_read(path) or hint
        raise error(f"{path}: {reason}", hint) from problem


def require_utf8(path: Path, error: type[SftctlError]) -> None:
    """Raise `error` for a path that is not UTF-8: safetensors and tokenizers can't open it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        hint = "use another name, or rename it: safetensors and tokenizers open only UTF-8 names"
        raise error(f"{path}: this name is not UTF-8", hint) from None


class Disk:
    """The calls to the system that write durably, one method for each. They raise OSError."""

    def make_folder(self, path: Path) -> None:
        """Create a folder that does not exist yet, with missing parents, and sync the parents."""
        missing = [parent for parent in path.parents if not parent.exists()]
        path.mkdir(parents=True)
        for parent in missing:
            self.sync_folder(parent.parent)

    def create(self, path: Path) -> int:
        """Create a file that does not exist yet.

        Returns its descriptor. The umask sets its mode.
        """
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def open_to_append(self, path: Path) -> int:
        """Open or create a file, to read it and to append to it. Returns its descriptor."""
        return open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write a part of `data`, or all. Returns the number of bytes that were written."""
        return os.write(descriptor, data)

    def truncate(self, descriptor: int, num_bytes: int) -> None:
        os.ftruncate(descriptor, num_bytes)

    def sync(self, descriptor: int) -> None:
        sync(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def sync_folder(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.sync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def remove_file(self, path: Path) -> None:
        path.unlink()

    def remove_tree(self, path: Path) -> None:
        shutil.rmtree(path)


DISK = Disk()


def open_regular(path: Path, flags: int) -> int:
    """os.open for a regular file. OSError for a link, a named pipe or a device.

    The kind is checked before the file is opened: opening a pipe would wait, and opening a device
    can have effects.
    """
    with contextlib.suppress(FileNotFoundError):
        _require_regular(path.lstat(), path)
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        _require_regular(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        what = "a link, which is not followed" if stat.S_ISLNK(status.st_mode) else "no file"
        raise OSError(errno.EINVAL, what, str(path))


def write_file(path: Path, pieces: Iterable[bytes | memoryview], disk: Disk = DISK) -> FileEntry:
    """Create `path` from `pieces` and sync it. Returns the size and hash of the written bytes."""
    digest, num_bytes = hashlib.sha256(), 0
    descriptor = disk.create(path)
    try:
        for piece in pieces:
            rest = memoryview(piece).cast("B")
            digest.update(rest)
            num_bytes += len(rest)
            while len(rest):  # a single call may write only a part
                rest = rest[disk.write(descriptor, rest[: 1 << 26]) :]
        disk.sync(descriptor)
    finally:
        disk.close(descriptor)
    return FileEntry(num_bytes, digest.hexdigest())


def replace_file(path: Path, data: bytes, disk: Disk = DISK) -> None:
    """Replace the content of `path` completely or not at all. Afterwards, a power cut can't undo
    this.
    """
    partial = temporary_sibling(path)
    try:
        write_file(partial, [data], disk)
        disk.rename(partial, path)
        disk.sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            disk.remove_file(partial)
        raise


def hash_file(path: Path) -> FileEntry:
    """The size and SHA-256 of a file, read from the disk."""
    digest, num_bytes = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            num_bytes += len(chunk)
    return FileEntry(num_bytes, digest.hexdigest())


def sync_file(path: Path, disk: Disk = DISK) -> None:
    """Sync a file that other code has written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        disk.sync(descriptor)
    finally:
        os.close(descriptor)


def temporary_sibling(target: Path) -> Path:
    """A new hidden name next to `target`.

    It is on the same file system, so a rename is possible.
    """
    return target.with_name(f"{TEMPORARY_PREFIX}{target.name}-{uuid.uuid4().hex[:8]}")

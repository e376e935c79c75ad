"""The run's own records: metrics.jsonl with a line per step, events.jsonl with one per event."""

import os
import stat
import time
from contextlib import ExitStack, suppress
from functools import lru_cache
from pathlib import Path

from sftctl.disk import DISK, Disk, read_refusals, refusals, replace_file, write_file
from sftctl.errors import CheckpointError
from sftctl.jsonio import JSONDecodeError, dump_line, loads
from sftctl.metrics import StepMetrics
from sftctl.runs.repair import Repair, damaged_files, is_intact, repair_of

_TAIL_BYTES = 1 << 16


class RunLog:
    """Appends lines to both files. When a call returns, its line is written completely; otherwise
    CheckpointError is raised.

    `keep_bytes` is how much of metrics.jsonl stays: the `metrics_bytes` of a checkpoint, 0 in a new
    run, or None for all complete lines. events.jsonl is never truncated. If `last_step` is given
    (the step of the checkpoint), damaged lines are moved to another file, and `repaired` says so.
    """

    def __init__(
        self,
        run_dir: Path,
        keep_bytes: int | None,
        disk: Disk = DISK,
        *,
        last_step: int | None = None,
    ) -> None:
        self.repaired: str | None = None
        if keep_bytes and last_step is not None:
            repair = _repair(run_dir, keep_bytes, last_step)
            if repair is not None:
                aside = _set_aside(run_dir, repair, disk)
                keep_bytes, self.repaired = len(repair.kept), repair.message(last_step, aside.name)
        with ExitStack() as opened:
            self._metrics = _LineFile(run_dir / "metrics.jsonl", keep_bytes, disk)
            opened.callback(self._metrics.close)
            self._events = _LineFile(run_dir / "events.jsonl", None, disk)
            opened.callback(self._events.close)
            with refusals(run_dir, CheckpointError, _REPAIR):
                disk.sync_folder(run_dir)
            self._opened = opened.pop_all()

    def log(self, metrics: StepMetrics) -> None:
        self._metrics.append(dump_line(metrics))

    def event(self, name: str, step: int, **fields: object) -> None:
        self._events.append(dump_line({"event": name, "step": step, "time": time.time()} | fields))

    @property
    def metrics_bytes(self) -> int:
        """The current length of metrics.jsonl, for a manifest."""
        return self._metrics.num_bytes

    def sync(self) -> None:
        """Make both files survive a power cut. Another thread may call this too."""
        self._metrics.sync()
        self._events.sync()

    def copy_into(self, run_dir: Path) -> None:
        """Write the content of both files into another run directory, also if they were deleted."""
        for file in (self._metrics, self._events):
            write_file(run_dir / file.name, [file.content()])

    def close(self) -> None:
        self._opened.close()


_REPAIR = "fix it, then `sftctl resume` continues from the last checkpoint"


class _LineFile:
    """A file of complete lines. Only a killed process can leave an incomplete last line.

    After a failed sync, earlier bytes may be lost, and a later sync would not report it. So every
    later sync fails too.
    """

    def __init__(self, path: Path, keep_bytes: int | None, disk: Disk) -> None:
        self._path, self._disk = path, disk
        self._is_torn = self._sync_failed = False
        with refusals(path, CheckpointError, _REPAIR):
            _break_hard_link(path, disk)
            self._descriptor: int | None = disk.open_to_append(path)
        try:
            self.num_bytes = _bytes_to_keep(path, self._descriptor, keep_bytes)
            self._cut_off_the_rest()
        except BaseException:
            self.close()
            raise

    def _cut_off_the_rest(self) -> None:
        """Truncate the file to `num_bytes`. This removes later steps and an incomplete line."""
        descriptor = self._open_descriptor()
        with refusals(self._path, CheckpointError, _REPAIR):
            if os.fstat(descriptor).st_size > self.num_bytes:
                self._disk.truncate(descriptor, self.num_bytes)
        self._is_torn = False

    def append(self, line: bytes) -> None:
        descriptor, rest = self._open_descriptor(), memoryview(line)
        if self._is_torn:
            self._cut_off_the_rest()
        self._is_torn = True
        try:
            with refusals(self._path, CheckpointError, _REPAIR):
                while len(rest):  # a single write may write only a part
                    rest = rest[self._disk.write(descriptor, rest) :]
        except CheckpointError:
            with suppress(CheckpointError):  # the next append tries again
                self._cut_off_the_rest()  # so that a full disk leaves only complete lines
            raise
        self._is_torn = False
        self.num_bytes += len(line)

    @property
    def name(self) -> str:
        return self._path.name

    def content(self) -> bytes:
        """All complete lines of the file."""
        data, descriptor = b"", self._open_descriptor()
        while more := os.pread(descriptor, self.num_bytes - len(data), len(data)):
            data += more
        return data

    def sync(self) -> None:
        if self._sync_failed:
            raise CheckpointError(f"{self._path}: an earlier sync failed; its bytes may be lost")
        self._sync_failed = True
        with refusals(self._path, CheckpointError, _REPAIR):
            self._disk.sync(self._open_descriptor())
        self._sync_failed = False

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with refusals(self._path, CheckpointError, _REPAIR):
                self._disk.close(descriptor)

    def _open_descriptor(self) -> int:
        if self._descriptor is None:
            raise ValueError(f"{self._path}: closed")
        return self._descriptor


def _break_hard_link(path: Path, disk: Disk) -> None:
    """Replace a file that has several names by a copy. (`cp -al` copies a run by hard links.)"""
    with suppress(FileNotFoundError):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            replace_file(path, path.read_bytes(), disk)


def last_step_of(run_dir: Path, name: str) -> int | None:
    """The step of the last event with this name in events.jsonl; None if there is none."""
    path, found = run_dir / "events.jsonl", None
    if not path.is_file():  # opening a named pipe would wait for a writer
        return None
    with suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            with suppress(JSONDecodeError):  # a crash left an incomplete line
                event = loads(line)
                if isinstance(event, dict) and event.get("event") == name:
                    found = event.get("step")
    return found


def _repair(run_dir: Path, keep_bytes: int, last_step: int) -> Repair | None:
    """How to repair metrics.jsonl; None if it is intact or does not exist."""
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        return None
    with read_refusals(path, CheckpointError, _REPAIR):
        found = path.stat()
        seen = found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
        if _is_intact_file(path, keep_bytes, last_step, seen):
            return None
        data = path.read_bytes()
    return repair_of(run_dir, data, last_step)


@lru_cache(maxsize=1)
def _is_intact_file(path: Path, keep_bytes: int, last_step: int, seen: tuple[int, ...]) -> bool:
    """Whether the first `keep_bytes` are intact (`is_intact`). `seen` changes if the file changes.

    The last result is cached: a resume calls this twice, and a million lines take three seconds.
    """
    with path.open("rb") as file:
        return is_intact(file, keep_bytes, last_step)


def _set_aside(run_dir: Path, repair: Repair, disk: Disk) -> Path:
    """Replace metrics.jsonl by the lines to keep. Returns the path of the damaged file."""
    path = run_dir / "metrics.jsonl"
    aside = next(file for file in damaged_files(run_dir) if not file.exists())
    with refusals(path, CheckpointError, _REPAIR):
        write_file(aside, [path.read_bytes()], disk)
        disk.sync_folder(run_dir)
        replace_file(path, repair.kept, disk)
    return aside


def require_metrics(run_dir: Path, keep_bytes: int, last_step: int | None = None) -> None:
    """Raise the CheckpointError that a RunLog would raise. Nothing is changed."""
    path = run_dir / "metrics.jsonl"
    if keep_bytes and last_step is not None and _repair(run_dir, keep_bytes, last_step):
        return
    if keep_bytes and not path.is_file():
        raise CheckpointError(
            f"{path}: missing; the checkpoint was made when it had {keep_bytes} bytes",
            hint="restore it, or start a new run",
        )
    if keep_bytes:
        with read_refusals(path, CheckpointError, _REPAIR), path.open("rb") as file:
            _bytes_to_keep(path, file.fileno(), keep_bytes)


def _bytes_to_keep(path: Path, descriptor: int, keep_bytes: int | None) -> int:
    """Check that a line ends at `keep_bytes`, and return it. None: the end of the last line."""
    num_bytes = _bytes_of_complete_lines(descriptor)
    if keep_bytes is None:
        return num_bytes
    if num_bytes < keep_bytes:
        raise CheckpointError(
            f"{path}: {num_bytes} bytes in complete lines, but the checkpoint was made"
            f" when there were {keep_bytes}",
            hint="the file was changed or lost; restore it, or start a new run",
        )
    if keep_bytes and os.pread(descriptor, 1, keep_bytes - 1) != b"\n":
        raise CheckpointError(
            f"{path}: no line ends at byte {keep_bytes}, where the checkpoint was made",
            hint="the file was changed; restore it, or start a new run",
        )
    return keep_bytes


def _bytes_of_complete_lines(descriptor: int) -> int:
    """The length of the file up to its last complete line. After it, a crash can leave a part of a
    line, or zeros.
    """
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - _TAIL_BYTES)
        text, _, _ = os.pread(descriptor, end - start, start).partition(b"\0")
        if (newline := text.rfind(b"\n")) >= 0:
            return start + newline + 1
        end = start
    return 0

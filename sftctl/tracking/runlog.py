"""The run's own record: metrics.jsonl, one line per step, and events.jsonl."""

import os
import time
from pathlib import Path

from sftctl.disk import DISK, Disk
from sftctl.errors import CheckpointError
from sftctl.jsonio import dump_line
from sftctl.metrics import StepMetrics

_TAIL_BYTES = 1 << 16


class RunLog:
    """Appends whole lines, each in the system's hands before the call returns; or CheckpointError.

    `keep_bytes` is what metrics.jsonl keeps of an earlier session: a checkpoint's `metrics_bytes`,
    0 for a fresh run, None for every whole line. Events are history and are never cut.
    """

    def __init__(self, run_dir: Path, keep_bytes: int | None, disk: Disk = DISK) -> None:
        self._metrics = _LineFile(run_dir / "metrics.jsonl", disk)
        self._events = _LineFile(run_dir / "events.jsonl", disk)
        try:
            if keep_bytes is not None:
                self._metrics.cut(keep_bytes)
            disk.sync_folder(run_dir)
        except BaseException:
            self.close()
            raise

    def log(self, metrics: StepMetrics) -> None:
        self._metrics.append(dump_line(metrics))

    def event(self, name: str, step: int, **fields: object) -> None:
        self._events.append(dump_line({"event": name, "step": step, "time": time.time()} | fields))

    @property
    def metrics_bytes(self) -> int:
        """The length of metrics.jsonl now, for a manifest."""
        return self._metrics.num_bytes

    def sync(self) -> None:
        """Make both files survive a power cut; a thread beside the one that appends may ask it."""
        self._metrics.sync()
        self._events.sync()

    def close(self) -> None:
        self._metrics.close()
        self._events.close()


class _LineFile:
    """A file that only ever holds whole lines, but for the last one when the process is killed."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path, self._disk = path, disk
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor: int | None = os.open(path, flags, 0o644)
        self.num_bytes = _bytes_of_whole_lines(self._descriptor)
        os.ftruncate(self._descriptor, self.num_bytes)

    def cut(self, keep_bytes: int) -> None:
        """Remove what lies beyond `keep_bytes`, the end of a line that must be there."""
        descriptor = self._open_descriptor()
        if self.num_bytes < keep_bytes:
            raise CheckpointError(
                f"{self._path}: {self.num_bytes} bytes in whole lines, but the checkpoint was made"
                f" when there were {keep_bytes}",
                hint="the file was changed or lost; restore it, or start a new run",
            )
        if keep_bytes and os.pread(descriptor, 1, keep_bytes - 1) != b"\n":
            raise CheckpointError(
                f"{self._path}: no line ends at byte {keep_bytes}, where the checkpoint was made",
                hint="the file was changed; restore it, or start a new run",
            )
        os.ftruncate(descriptor, keep_bytes)
        self.num_bytes = keep_bytes

    def append(self, line: bytes) -> None:
        descriptor, rest = self._open_descriptor(), memoryview(line)
        try:
            while len(rest):  # a write may take less than it was given
                rest = rest[self._disk.write(descriptor, rest) :]
        except OSError as problem:
            os.ftruncate(descriptor, self.num_bytes)  # a full disk leaves no half a line
            raise CheckpointError(
                f"{self._path}: can't be written: {problem.strerror}",
                hint="mend it, then `sftctl resume` goes on from the last checkpoint",
            ) from problem
        self.num_bytes += len(line)

    def sync(self) -> None:
        self._disk.sync(self._open_descriptor())

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self._disk.close(descriptor)

    def _open_descriptor(self) -> int:
        if self._descriptor is None:
            raise ValueError(f"{self._path}: closed")
        return self._descriptor


def _bytes_of_whole_lines(descriptor: int) -> int:
    """The size of a file without a last line that a crash cut short."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - _TAIL_BYTES)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0

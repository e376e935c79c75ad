"""A disk on which one call fails, writes only a part, or ends the process."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from sftctl.disk import Disk

DIED = 9


@dataclass(frozen=True)
class Fault:
    """What happens at a call, at the next one, and at all later ones.

    "": nothing. "EIO", "ENOSPC": this error, before anything is done. "die": the process ends.
    "part": only half of the data is written. "part, die": both.
    """

    name: str
    first: str
    second: str = ""
    later: str = ""

    @property
    def is_deadly(self) -> bool:
        return "die" in self.first + self.second

    @property
    def hits_clean_up(self) -> bool:
        """Whether the second fault is in the clean-up after a failed save."""
        return self.first == "EIO" and bool(self.second) and not self.later

    @property
    def reasons(self) -> list[str]:
        """Texts of which the reported error has one; empty for faults that are not errors."""
        names = {self.first, self.second} & {"EIO", "ENOSPC"}
        return [os.strerror(getattr(errno, name)) for name in names]


FAULTS = (
    Fault("death", "die"),
    Fault("death in the middle of a write", "part, die"),
    Fault("EIO, then death in the clean-up", "EIO", "die"),
    Fault("EIO, and again in the clean-up", "EIO", "EIO"),
    Fault("EIO once", "EIO"),
    Fault("EIO from then on", "EIO", "EIO", "EIO"),
    Fault("ENOSPC once", "ENOSPC"),
    Fault("ENOSPC from then on", "ENOSPC", "ENOSPC", "ENOSPC"),
    Fault("part of a write, then ENOSPC", "part", "ENOSPC"),
    Fault("part of a write, then ENOSPC from then on", "part", "ENOSPC", "ENOSPC"),
    Fault("a short write", "part"),
    Fault("short writes from then on", "part", "part", "part"),
)


class FaultyDisk(Disk):
    """Has `fault` at call number `at`; without a fault it only records the calls."""

    def __init__(self, fault: Fault | None = None, at: int = 0) -> None:
        self.fault, self.at = fault, at
        self.calls: list[str] = []

    def _call(self, name: str) -> str:
        """Record the call, and die or raise if it is due; returns what the caller has to do."""
        self.calls.append(name)
        since = len(self.calls) - self.at
        if self.fault is None or since < 0:
            return ""
        effect = (self.fault.first, self.fault.second, self.fault.later)[min(since, 2)]
        if effect == "die":
            os._exit(DIED)
        if effect in ("EIO", "ENOSPC"):
            number = getattr(errno, effect)
            raise OSError(number, os.strerror(number))
        return effect

    def write(self, descriptor: int, data: memoryview) -> int:
        effect = self._call("write")
        if not effect:
            return super().write(descriptor, data)
        written = super().write(descriptor, data[: max(1, len(data) // 2)])
        if effect == "part, die":
            os._exit(DIED)
        return written

    def make_folder(self, path: Path) -> None:
        self._call("make_folder")
        super().make_folder(path)

    def create(self, path: Path) -> int:
        self._call("create")
        return super().create(path)

    def open_to_append(self, path: Path) -> int:
        self._call("open_to_append")
        return super().open_to_append(path)

    def truncate(self, descriptor: int, num_bytes: int) -> None:
        self._call("truncate")
        super().truncate(descriptor, num_bytes)

    def sync(self, descriptor: int) -> None:  # of folders too
        self._call("sync")
        super().sync(descriptor)

    def close(self, descriptor: int) -> None:
        super().close(descriptor)  # it is closed even if an error is reported
        self._call("close")

    def rename(self, source: Path, target: Path) -> None:
        self._call("rename")
        super().rename(source, target)

    def remove_file(self, path: Path) -> None:
        self._call("remove_file")
        super().remove_file(path)

    def remove_tree(self, path: Path) -> None:
        """Entry by entry, so that a tree can be left half deleted."""
        for entry in [*sorted(path.rglob("*"), reverse=True), path]:
            self._call("remove")
            entry.rmdir() if entry.is_dir() else entry.unlink()

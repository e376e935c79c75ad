"""Follow a run directory that is moved, and find parts of it that are links."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from sftctl.errors import CheckpointError
from sftctl.machine import path_of_open


class RunPlace:
    """Identifies a directory by an open descriptor, not by its name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def is_here(self) -> bool:
        """Whether the directory is still at its path."""
        try:
            there = os.stat(self._path)
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(self._descriptor))

    def moved_to(self) -> Path | None:
        """The current path of the directory; None if it was deleted, or if the path is unknown."""
        return path_of_open(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


_WRITTEN_FILES = ("config.toml", "run.json", "metrics.jsonl", "events.jsonl", ".lock")
_WRITTEN_FOLDERS = ("checkpoints", "model", "final", "wandb", "tensorboard", "answers")


def foreign_parts(run_dir: Path) -> Iterator[CheckpointError]:
    """For each part of a run that is a link or has the wrong kind, an error.

    If a part is a link, a session would write, truncate or delete the file that it points to.
    """
    for names, is_right, kind in (
        (_WRITTEN_FILES, stat.S_ISREG, "file"),
        (_WRITTEN_FOLDERS, stat.S_ISDIR, "folder"),
    ):
        for path in (run_dir / name for name in names):
            try:
                mode = path.lstat().st_mode
            except OSError:  # the code that needs a part reports that it is missing
                continue
            if not is_right(mode):
                what = "a link" if stat.S_ISLNK(mode) else f"not a {kind}"
                yield CheckpointError(
                    f"{path}: {what}: a run is written only in its own directory",
                    hint=f"put a {kind} in its place; the run directory itself may be a link",
                )

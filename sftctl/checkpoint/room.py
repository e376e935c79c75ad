"""Whether a disk can hold the checkpoints of a run; asked before the first step."""

import shutil
from pathlib import Path

from sftctl.checkpoint.directory import list_checkpoints
from sftctl.errors import CheckpointError


def require_room(root: Path, num_bytes: int, keep: int) -> None:
    """Refuse a disk that can't hold `keep` checkpoints of `num_bytes` and the next one.

    Those that are there count as held. Raises CheckpointError with the numbers.
    """
    there = min(len(list_checkpoints(root)), keep)
    needed = (keep + 1 - there) * num_bytes
    folder = next(path for path in (root, *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{root}: no room for checkpoints: {keep + 1 - there} x {_megabytes(num_bytes)} = "
            f"{_megabytes(needed)} are needed, {_megabytes(free)} are free",
            hint="--keep (checkpoint.keep) says how many stay; one more is held while it is saved",
        )


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"

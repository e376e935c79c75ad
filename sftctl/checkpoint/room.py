"""Whether a disk can hold the checkpoints of a run; asked before the first step."""

import shutil
from pathlib import Path

from sftctl.checkpoint.directory import list_checkpoints
from sftctl.errors import CheckpointError
from sftctl.words import format_bytes


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
            f"{root}: no room for checkpoints: {keep + 1 - there} x {format_bytes(num_bytes)} = "
            f"{format_bytes(needed)} are needed, {format_bytes(free)} are free",
            hint="--keep (checkpoint.keep) says how many stay; one more is held while it is saved",
        )

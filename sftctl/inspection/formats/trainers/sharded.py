"""Names of `.distcp` files. Several tools save such files in their own folders."""

import re
from pathlib import Path

METADATA_NAME = ".metadata"
_SHARD = re.compile(r"__(\d+)_(\d+)\.distcp")


def shards_in(folder: Path) -> list[str]:
    """The names of the `.distcp` files in a folder."""
    if not folder.is_dir():
        return []
    return sorted(file.name for file in folder.iterdir() if _SHARD.fullmatch(file.name))


def ranks_of(names: list[str]) -> set[int]:
    """The ranks that wrote the files with these names."""
    return {int(match[1]) for name in names if (match := _SHARD.fullmatch(name))}


def no_metadata() -> str:
    """The problem of a folder whose save was interrupted."""
    return f"{METADATA_NAME}: missing; rank 0 writes it last, so the save was not finished"

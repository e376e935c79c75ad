"""Checks of a folder of `.distcp` files that several tools save inside their own."""

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
    """The ranks that wrote these files."""
    return {int(match[1]) for name in names if (match := _SHARD.fullmatch(name))}


def distcp_problems(folder: Path) -> list[str]:
    """Problems: files missing from a folder of `.distcp` files, named from the folder above."""
    names = shards_in(folder)
    if not names and not (folder / METADATA_NAME).is_file():
        return []
    lost = [] if (folder / METADATA_NAME).is_file() else [f"{folder.name}/{no_metadata()}"]
    ranks = ranks_of(names)
    gaps = sorted({*range(max(ranks, default=-1) + 1)} - ranks)
    return [*lost, *(f"{folder.name}/__{rank}_0.distcp: missing" for rank in gaps)]


def no_metadata() -> str:
    """The problem of a folder whose save did not end."""
    return f"{METADATA_NAME}: missing; rank 0 writes it last, so the save was not finished"

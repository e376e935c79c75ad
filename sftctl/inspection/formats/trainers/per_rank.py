"""Folders with one torch file for each rank: FSDP's local states."""

import re
from dataclasses import replace
from pathlib import Path

from sftctl.inspection.formats.files import OTHER_TOOL, Files
from sftctl.inspection.formats.trainers.sharded import shards_in
from sftctl.inspection.inspection import Inspection, weights_dtype
from sftctl.words import in_shell

_ANY = re.compile(r"(.+?)[._-]rank[._-]?(\d+)((?:\.(?:pt|pth|bin|ckpt))?)")


def is_per_rank(path: Path) -> bool:
    """Whether this folder has torch files whose names differ only in the number of a rank."""
    return path.is_dir() and not shards_in(path) and bool(_groups(path))


def _groups(path: Path) -> dict[tuple[str, str], set[int]]:
    """(text before the rank's number, text after it) -> the ranks that have such a file."""
    groups: dict[tuple[str, str], set[int]] = {}
    for file in path.iterdir():
        if file.is_file() and (match := _ANY.fullmatch(file.name)):
            groups.setdefault((match[1], match[3]), set()).add(int(match[2]))
    return {key: ranks for key, ranks in groups.items() if key[1] and not _is_state(key[0])}


def _is_state(name: str) -> bool:
    return name.startswith(("rng_state", "random_states"))


def inspect_per_rank(path: Path) -> Inspection:
    """FSDP's local states, one file for each rank. A missing file is a problem."""
    files = Files.of(path)
    groups = _groups(path)
    world = max(max(ranks) + 1 for ranks in groups.values())
    names = {file.name for file in path.iterdir()}
    first = ""
    for (before, after), ranks in sorted(groups.items()):
        sample = next(m for n in sorted(names) if (m := _ANY.fullmatch(n)) and m[1] == before)
        for rank in sorted({*range(world)} - ranks):
            name = sample[0][: sample.start(2)] + str(rank) + after
            files.problems.append(f"{name}: missing")
        first = first or sample[0]
    found = files.read_torch(first)
    tensors = {f"model.{name}": tensor for name, tensor in found.tensors.items()}
    steps = [int(digits) for before, _ in groups for digits in re.findall(r"(\d+)$", before)]
    return replace(
        files.inspection(
            "one torch file for each rank (FSDP's local states)",
            tensors,
            f"`sftctl inspect-ckpt {in_shell(path / first)}` shows one rank's file",
        ),
        facts={
            "step": max(steps, default=None),
            "world_size": world,
            "dtype": weights_dtype(tensors),
        },
        step_counts="the number in the files' names" if steps else None,
        obstacles=[OTHER_TOOL],
        notes=["only the parameters of one rank are shown; the trainer can join all"],
    )

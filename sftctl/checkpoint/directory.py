"""The folder `RUN/checkpoints`: list, check, delete and move its checkpoints. Does not load torch.

Only names of the form step-00000300 are checkpoints. Everything else is ignored and never changed.
"""

import itertools
import math
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from sftctl.checkpoint.damage import (
    is_complete,
    problems_in_files,
    unknown_files,
    without_path,
)
from sftctl.checkpoint.layout import (
    CheckpointManifest,
    checkpoint_name,
    read_manifest,
    step_of,
)
from sftctl.config.evaluation import LOSS, Goal
from sftctl.disk import DISK, TEMPORARY_PREFIX, Disk, refusals
from sftctl.errors import CheckpointError, CorruptCheckpoint, NoCheckpoint
from sftctl.folders import TRASH_PREFIX, remove_folder
from sftctl.words import format_bytes, in_shell

_LEFTOVER = re.compile(
    rf"({re.escape(TEMPORARY_PREFIX)}|{re.escape(TRASH_PREFIX)})"
    r"(step-[0-9]{8,}|final)-[0-9a-f]{8}"
)


def list_checkpoints(root: Path) -> list[Path]:
    """The folders with the name of a checkpoint, by step, also damaged ones. No links."""
    return _by_step(root, _folder_names(root))


def named_checkpoints(root: Path) -> list[Path]:
    """Everything with the name of a checkpoint, by step: folders, and also links and files."""
    return _by_step(root, os.listdir(root) if root.is_dir() else [])


def _folder_names(root: Path) -> list[str]:
    try:
        with os.scandir(root) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _by_step(root: Path, names: list[str]) -> list[Path]:
    steps = [step for name in names if (step := step_of(name)) is not None]
    return [root / checkpoint_name(step) for step in sorted(steps)]


@dataclass(frozen=True, slots=True)
class GoodCheckpoint:
    """A checkpoint in which every byte was verified."""

    path: Path
    manifest: CheckpointManifest
    skipped: tuple[tuple[Path, list[str]], ...]  # newer, damaged checkpoints and their problems


def newest_good(root: Path, step: int | None = None) -> GoodCheckpoint:
    """The newest checkpoint in which every byte is right, or the checkpoint of `step`.

    Raises NoCheckpoint if there is none, and CorruptCheckpoint if all are damaged. Raises
    IncompatibleCheckpoint for a format that is newer than this version. A newer format is not
    damage, so older checkpoints are not tried then.
    """
    folders, candidates = set(list_checkpoints(root)), named_checkpoints(root)
    if step is not None:
        candidates = [path for path in candidates if step_of(path.name) == step]
    skipped: list[tuple[Path, list[str]]] = []
    for path in reversed(candidates):
        if path not in folders:
            skipped.append((path, ["a link or a file, not a folder"]))
            continue
        try:
            manifest = read_manifest(path)
        except CorruptCheckpoint as error:
            skipped.append((path, [without_path(path, error)]))
            continue
        problems = problems_in_files(path, manifest.files, verify=True)
        if not problems:
            return GoodCheckpoint(path, manifest, tuple(skipped))
        skipped.append((path, problems))
    if skipped:
        damage = [f"{path.name}: {'; '.join(problems[:3])}" for path, problems in skipped]
        what = "no complete checkpoint" if step is None else "damaged"
        raise CorruptCheckpoint(
            f"{root}: {what}: {'; '.join(damage)}",
            hint=_complete_steps(root) or "put one back from a copy, or start a new run",
        )
    asked = "" if step is None else f" of step {step}"
    begin = f"`sftctl resume {in_shell(root.parent)}` continues training and saves one"
    raise NoCheckpoint(f"{root}: no checkpoint{asked}", hint=_complete_steps(root) or begin)


def _complete_steps(root: Path) -> str | None:
    steps = [str(step_of(path.name)) for path in list_checkpoints(root) if is_complete(path)]
    return f"complete checkpoints are at step {', '.join(steps)}" if steps else None


def require_room(root: Path, num_bytes: int, keep: int) -> None:
    """CheckpointError if the disk lacks space for `keep` + 1 checkpoints of `num_bytes`.

    Checkpoints that already exist need no more space.
    """
    present = min(len(list_checkpoints(root)), keep)
    missing = keep + 1 - present
    needed = missing * num_bytes
    folder = next(path for path in (root, *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{root}: no space for checkpoints: {missing} x {format_bytes(num_bytes)} = "
            f"{format_bytes(needed)} are needed, {format_bytes(free)} are free",
            hint="--keep (checkpoint.keep) sets how many are kept; a save needs space for one more",
        )


@dataclass(frozen=True, slots=True)
class KeepBest:
    """How many of the best checkpoints are kept in addition, and the goal that ranks them."""

    number: int = 0
    goal: str = str(LOSS)


def ranked_checkpoints(root: Path, goal: str = str(LOSS)) -> list[Path]:
    """The complete checkpoints whose step was evaluated for the `goal`, the best first.

    Step 0 and values that are not finite are excluded. Of equal values, the earlier step is first.
    """
    ranked = []
    sign = -1 if Goal.parsed(goal).direction == "max" else 1
    for path in filter(is_complete, list_checkpoints(root)):
        manifest = read_manifest(path)
        validation = manifest.validation or {}
        value = validation.get("value", validation.get("last"))
        is_same = validation.get("goal", str(LOSS)) == goal
        if not isinstance(value, (int, float)) or not math.isfinite(value) or not is_same:
            continue
        if validation.get("step") == manifest.step > 0:
            ranked.append((sign * value, manifest.step, path))
    return [path for _, _, path in sorted(ranked)]


def retire(
    root: Path,
    keep: int,
    disk: Disk = DISK,
    *,
    best: KeepBest = KeepBest(),
    protected_step: int | None = None,
) -> list[Path]:
    """Delete complete checkpoints except the newest `keep` (at least 1). Returns the deleted ones.

    Also keeps the `best` checkpoints, and the checkpoint of `protected_step`. A checkpoint with a
    missing or truncated file is not counted, and not deleted: it may be the only one left. A
    checkpoint with an unknown file is counted, but not deleted.
    """
    complete = [path for path in list_checkpoints(root) if is_complete(path)]
    ranked = ranked_checkpoints(root, best.goal)[: best.number] if best.number else []
    kept = {*ranked, *(path for path in complete if step_of(path.name) == protected_step)}
    old = [path for path in complete[:-keep] if path not in kept]
    old = [path for path in old if not unknown_files(path, read_manifest(path))]
    for path in old:
        with refusals(path, CheckpointError, what="can't be deleted"):
            remove_folder(path, disk)
    return old


def abandon_after(root: Path, step: int, disk: Disk = DISK) -> list[Path]:
    """Move everything with the name of a later checkpoint into root/abandoned-TIME.

    Returns the new paths. The newest checkpoint is moved first. So after a crash, only the newest
    checkpoints are gone from `root`.
    """
    later = [path.name for path in named_checkpoints(root) if (step_of(path.name) or 0) > step]
    if not later:
        return []
    stamp = time.strftime("abandoned-%Y%m%d-%H%M%S")
    tries = (root / f"{stamp}{suffix}" for suffix in _suffixes())
    folder = next(path for path in tries if not path.exists())
    with refusals(folder, CheckpointError, what="can't move later checkpoints there"):
        disk.make_folder(folder)
        disk.sync_folder(root)  # else a power cut could lose the folder with a checkpoint in it
        for name in reversed(later):
            disk.rename(root / name, folder / name)
        disk.sync_folder(folder)
        disk.sync_folder(root)
    return [folder / name for name in later]


def _suffixes() -> itertools.chain[str]:
    return itertools.chain([""], (f"-{number}" for number in itertools.count(2)))


def clean_leftovers(root: Path, disk: Disk = DISK) -> None:
    """Delete temporary folders that a killed save or deletion has left in `root`.

    The caller must hold the run's lock.
    """
    for name in filter(_LEFTOVER.fullmatch, _folder_names(root)):
        with refusals(root / name, CheckpointError, what="can't be deleted"):
            disk.remove_tree(root / name)

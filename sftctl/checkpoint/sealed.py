"""A sealed folder: `final/`, with a manifest of its step and of the hashes of its files.

The manifest and its hash file have the same names and form as in a checkpoint. Does not load torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sftctl.checkpoint.damage import problems_in_files
from sftctl.checkpoint.layout import (
    FORMAT_VERSION,
    MANIFEST_HASH_NAME,
    MANIFEST_NAME,
    CheckpointManifest,
    decoded_files,
    manifest_hash_line,
    read_hashed_object,
)
from sftctl.disk import FileEntry, hash_file
from sftctl.errors import CheckpointError, CorruptCheckpoint
from sftctl.jsonio import dump_pretty


@dataclass(frozen=True, slots=True)
class Seal:
    """The content of the manifest of a sealed folder."""

    step: int  # the step of the checkpoint that the weights come from
    files: Mapping[str, FileEntry]
    last_step: int  # the step of the run's last checkpoint when this was written
    choice: str = "last"  # train.final: best or last
    run_id: str | None = None  # None, here and below: an older version wrote the folder
    checkpoint_files: Mapping[str, FileEntry] | None = None  # the files of the checkpoint of `step`
    base: dict[str, Any] | None = None  # an adapter's base, copied from the checkpoint's manifest


def seal(
    folder: Path, origin: CheckpointManifest, run_id: str, last_step: int, choice: str
) -> None:
    """Write the manifest of a folder whose other files are complete. Nothing is synced here.

    `origin` is the manifest of the checkpoint that the weights come from.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): hash_file(path) for path in paths}
    found = Seal(origin.step, files, last_step, choice, run_id, origin.files, origin.base)
    data = dump_pretty({"format_version": FORMAT_VERSION, **asdict(found)})
    (folder / MANIFEST_NAME).write_bytes(data)
    (folder / MANIFEST_HASH_NAME).write_bytes(manifest_hash_line(data))


def is_sealed(folder: Path) -> bool:
    """Whether a folder has such a manifest, also a damaged one. Older versions wrote none."""
    return (folder / MANIFEST_HASH_NAME).exists() or (folder / MANIFEST_NAME).exists()


def read_seal(folder: Path) -> Seal:
    """The manifest of a sealed folder. Raises CheckpointError."""
    values = read_hashed_object(folder)
    step = values.get("step")
    # An older version wrote only `step`, which was the last step.
    last_step = values.get("last_step", step)
    choice = "best" if values.get("choice") == "best" else "last"
    run_id, of_origin = values.get("run_id"), values.get("checkpoint_files")
    base = values.get("base")
    if not isinstance(run_id, str | None):
        raise CorruptCheckpoint(f"{folder / MANIFEST_NAME}: run_id: {run_id!r} is not a text")
    if not isinstance(base, dict | None):
        raise CorruptCheckpoint(f"{folder / MANIFEST_NAME}: base: not the record of a base")
    return Seal(
        step=_step(folder, step),
        files=decoded_files(folder, values.get("files"), with_folders=True),
        last_step=_step(folder, last_step),
        choice=choice,
        run_id=run_id,
        checkpoint_files=None if of_origin is None else decoded_files(folder, of_origin),
        base=base,
    )


def _step(folder: Path, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise CorruptCheckpoint(f"{folder / MANIFEST_NAME}: step: {value!r} is not a step")
    return value


def problems_of_sealed(folder: Path, step: int | None = None, *, verify: bool = True) -> list[str]:
    """The problems of a folder, one for each file; [] if it has no manifest.

    `step` is the step of the run's last checkpoint. It is a problem if the folder was written after
    a checkpoint of another step.
    """
    if not is_sealed(folder):
        return []
    try:
        found = read_seal(folder)
    except CheckpointError as error:
        return [error.message.removeprefix(f"{folder}/")]
    problems = problems_in_files(folder, found.files, verify)
    if step not in (None, found.last_step):
        what = "the best until" if found.choice == "best" else "of"
        problems.append(f"{what} step {found.last_step}, and the last checkpoint is of step {step}")
    return problems

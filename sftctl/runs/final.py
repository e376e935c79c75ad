"""The problems of a final model, also compared with its run if it is in one.

Nothing here loads torch.
"""

from contextlib import suppress
from pathlib import Path

from sftctl.checkpoint.directory import list_checkpoints
from sftctl.checkpoint.layout import CheckpointManifest, checkpoint_name, read_manifest
from sftctl.checkpoint.sealed import Seal, is_sealed, problems_of_sealed, read_seal
from sftctl.errors import CheckpointError, CorruptCheckpoint
from sftctl.runs.directory import RunDir

CARD_NAME = "README.md"
"""The model card in a directory of weights."""

SOUND_HINT = (
    "`sftctl resume RUN` writes the final model of a run again; if you changed it yourself, remove "
    "its manifest.json and manifest.json.sha256"
)
"""What to do about a final model that is damaged or was changed."""


def last_manifest(run: RunDir) -> CheckpointManifest | None:
    """The manifest of the last checkpoint, after which `final/` was written; None: unreadable."""
    for checkpoint in list_checkpoints(run.checkpoints)[-1:]:
        with suppress(CheckpointError):
            return read_manifest(checkpoint)
    return None


def problems_of_final(
    folder: Path, last: CheckpointManifest | None = None, *, verify: bool = True
) -> list[str]:
    """The problems of a model directory that has a manifest of its own, file by file.

    A `final/` in a run must also belong to this run and to its end, and have the weights of the
    checkpoint that it names. `last` is the manifest of the last checkpoint; None: it is read here.
    """
    run = RunDir(folder.absolute().parent)
    if run.final != folder.absolute() or not run.run_file.is_file():
        return problems_of_sealed(folder, verify=verify)
    last = last or last_manifest(run)
    problems = problems_of_sealed(folder, last.step if last else None, verify=verify)
    with suppress(CheckpointError):  # a damaged manifest or run.json says so itself
        if is_sealed(folder):
            problems += _of_another_origin(read_seal(folder), run, last)
    return problems


def _of_another_origin(seal: Seal, run: RunDir, last: CheckpointManifest | None) -> list[str]:
    """How the final model does not fit this run. Facts that an older manifest lacks are not
    compared."""
    run_id = run.facts()["run_id"]
    if seal.run_id not in (None, run_id):
        return [f"of another run (run_id {seal.run_id}, and run.json says {run_id})"]
    checkpoint = run.checkpoints / checkpoint_name(seal.step)
    if seal.checkpoint_files is None or not checkpoint.is_dir():
        return []
    origin = last if last and last.step == seal.step else read_manifest(checkpoint)
    is_same = seal.checkpoint_files == origin.files
    return [] if is_same else [f"its weights are not those of {checkpoint.name} (other hashes)"]


def require_sound(folder: Path) -> None:
    """CorruptCheckpoint if `folder` is a final model that `problems_of_final` finds wrong."""
    if problems := problems_of_final(folder):
        raise CorruptCheckpoint(
            f"{folder}: {'; '.join(problems[:3])}",
            hint=SOUND_HINT,
        )

"""Find the problems of a final model. If it is inside its run, it is compared with the run too.

Does not load torch.
"""

from contextlib import suppress
from pathlib import Path

from sftctl.checkpoint.directory import list_checkpoints
from sftctl.checkpoint.layout import CheckpointManifest, checkpoint_name, read_manifest
from sftctl.checkpoint.sealed import Seal, is_sealed, problems_of_sealed, read_seal
from sftctl.errors import CheckpointError, CorruptCheckpoint
from sftctl.runs.directory import RunDir

CARD_NAME = "README.md"
"""The file name of the model card."""

SOUND_HINT = (
    "`sftctl resume RUN` writes the final model of a run again; if you changed it yourself, remove "
    "its manifest.json and manifest.json.sha256"
)
"""The hint for a final model that is damaged or was changed."""


def last_manifest(run: RunDir) -> CheckpointManifest | None:
    """The manifest of the run's last checkpoint; None if it can't be read or does not exist."""
    for checkpoint in list_checkpoints(run.checkpoints)[-1:]:
        with suppress(CheckpointError):
            return read_manifest(checkpoint)
    return None


def problems_of_final(
    folder: Path, last: CheckpointManifest | None = None, *, verify: bool = True
) -> list[str]:
    """The problems of a model directory that has a manifest, one for each file.

    If the directory is the `final/` of a run, it must also belong to this run and to its last
    checkpoint. Its weights must be those of the checkpoint that it names. With `last`, the last
    checkpoint's manifest is not read again.
    """
    run = RunDir(folder.absolute().parent)
    if run.final != folder.absolute() or not run.run_file.is_file():
        return problems_of_sealed(folder, verify=verify)
    last = last or last_manifest(run)
    problems = problems_of_sealed(folder, last.step if last else None, verify=verify)
    with suppress(CheckpointError):  # a damaged manifest or run.json is reported elsewhere
        if is_sealed(folder):
            problems += _of_another_origin(read_seal(folder), run, last)
    return problems


def _of_another_origin(seal: Seal, run: RunDir, last: CheckpointManifest | None) -> list[str]:
    """How the final model contradicts its run. Facts that an older manifest lacks are skipped."""
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
    """CorruptCheckpoint if `problems_of_final` finds a problem."""
    if problems := problems_of_final(folder):
        raise CorruptCheckpoint(
            f"{folder}: {'; '.join(problems[:3])}",
            hint=SOUND_HINT,
        )

"""Find out whether a checkpoint in a run's folder was copied there from another run."""

from pathlib import Path

from sftctl.checkpoint.layout import CheckpointManifest
from sftctl.errors import IncompatibleCheckpoint
from sftctl.runs.directory import RunDir


def of_another_run(
    run: RunDir, checkpoint: Path, manifest: CheckpointManifest
) -> IncompatibleCheckpoint | None:
    """The error if a checkpoint was copied from another run; else None.

    A checkpoint of an older version has no id, and is accepted.
    """
    if manifest.run_id is None or manifest.run_id == (run_id := run.facts()["run_id"]):
        return None
    return IncompatibleCheckpoint(
        f"{checkpoint}: of another run (run_id {manifest.run_id}, and run.json says {run_id})",
        hint=f"move it out of {run.checkpoints}; its own run can resume, chat and export it",
    )

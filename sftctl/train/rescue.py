"""If the run directory was moved or deleted during the training, save the state somewhere else."""

from pathlib import Path

from sftctl.checkpoint.layout import CheckpointManifest, checkpoint_name
from sftctl.checkpoint.save import save_checkpoint
from sftctl.disk import refusals
from sftctl.errors import CheckpointError
from sftctl.model.load import save_architecture
from sftctl.runs.directory import RunDir, create_run
from sftctl.runs.log import RunLog
from sftctl.runs.place import RunPlace
from sftctl.train.session import Session
from sftctl.words import in_shell


def rescue(
    session: Session,
    place: RunPlace | None,
    log: RunLog | None,
    manifest: CheckpointManifest,
    facts: dict[str, object],
) -> CheckpointError:
    """Save the state in the moved directory, or in a new one. Returns the error that ends the run.

    All ranks call this together. `place` and `log` are None except on rank 0. A new directory gets
    the configuration, the metrics and events so far, and this one checkpoint. Raises
    CheckpointError if the state can't be saved.
    """
    assert session.world.is_main == (place is not None)

    def refuge() -> tuple[Path, bool]:
        moved = place.moved_to() if place is not None else None
        return (moved, True) if moved is not None else (_new_directory(session, log, facts), False)

    path, is_moved = session.world.on_main(refuge)
    step, root = manifest.step, RunDir(path).checkpoints
    if not session.world.on_main((root / checkpoint_name(step)).is_dir):
        save_checkpoint(root, session.state.tensors(), manifest, session.world)
    what = f"moved to {path}" if is_moved else "deleted"
    where = "there" if is_moved else f"in {path}, without its other checkpoints"
    return CheckpointError(
        f"{session.run.path}: the run directory was {what} while it trained; step {step} is saved "
        f"{where}",
        hint=f"`sftctl resume {in_shell(path)}` continues it",
    )


def _new_directory(session: Session, log: RunLog | None, facts: dict[str, object]) -> Path:
    """Create a new run directory and return its path.

    The path is that of the lost directory, or a name such as `run-rescued-40` if something is
    there.
    """
    old, step = session.run.path, session.state.progress.step
    names = (old, *(old.with_name(f"{old.name}-rescued-{step}{end}") for end in ("", "-2", "-3")))
    path = next((name for name in names if not name.exists()), names[-1])
    model, tokenizer = session.state.loss_module.model, session.inputs.tokenizer
    lost = f"it was deleted while it trained, and step {step} can't be saved"
    with refusals(path, CheckpointError, what=lost):
        create_run(
            path, session.config, tokenizer, lambda folder: save_architecture(model, folder), facts
        )
        if log is not None:
            log.copy_into(path)
    return path

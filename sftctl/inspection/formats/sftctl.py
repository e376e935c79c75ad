"""sftctl's own runs and checkpoints, read from JSON and safetensors headers without torch."""

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from sftctl import jsonio
from sftctl.checkpoint.damage import problems_of, unknown_files
from sftctl.checkpoint.directory import list_checkpoints, named_checkpoints, newest_good
from sftctl.checkpoint.layout import (
    MANIFEST_HASH_NAME,
    MANIFEST_NAME,
    CheckpointManifest,
    read_manifest,
    step_of,
)
from sftctl.checkpoint.sealed import is_sealed, read_seal
from sftctl.checkpoint.tensor_index import StoredTensor, stored_tensors
from sftctl.config.load import config_from_dict
from sftctl.config.schedule import get_lr
from sftctl.errors import (
    CheckpointError,
    ConfigError,
    CorruptCheckpoint,
    IncompatibleCheckpoint,
    NoCheckpoint,
)
from sftctl.inspection.inspection import MANIFEST_KEYS, Inspection
from sftctl.inspection.readiness import judge
from sftctl.runs.directory import RunDir
from sftctl.runs.final import problems_of_final
from sftctl.runs.resumable import require_nothing_saved
from sftctl.words import in_shell

_FORMAT = "sftctl checkpoint"
_LONGEST_LINE_BYTES = 1 << 16  # in metrics.jsonl


def is_run(path: Path) -> bool:
    """Whether this is a run directory."""
    return RunDir(path).run_file.is_file()


def is_checkpoint(path: Path) -> bool:
    """Whether this is a checkpoint folder, also a damaged one."""
    name = Path(os.path.abspath(path)).name  # resolves the path `.`, which has no name
    return path.is_dir() and (step_of(name) is not None or (path / MANIFEST_HASH_NAME).exists())


def inspect_run(path: Path) -> Inspection:
    """The newest checkpoint of a run, with all checkpoints in `checkpoints`.

    Raises NoCheckpoint.
    """
    run = RunDir(path)
    found = list_checkpoints(run.checkpoints)
    if not found and not named_checkpoints(run.checkpoints):
        require_nothing_saved(run)
        raise NoCheckpoint(
            f"{path}: the run has no checkpoint yet",
            hint=f"`sftctl resume {in_shell(path)}` starts it at step 0",
        )
    if not found:
        newest_good(run.checkpoints)  # raises an error about these links or files
    checkpoints = [inspect_checkpoint(checkpoint) for checkpoint in found]
    return replace(checkpoints[-1], checkpoints=checkpoints, final=_final(run))


def _final(run: RunDir) -> dict[str, Any] | None:
    """Facts about the run's final model, without hashing its files; None: it has none.

    The step is None if the model has no manifest.
    """
    if not run.final.is_dir():
        return None
    problems = problems_of_final(run.final, verify=False)
    step, choice = None, None
    with suppress(CheckpointError):  # an unreadable manifest is already among the problems
        if is_sealed(run.final):
            seal = read_seal(run.final)
            step, choice = seal.step, seal.choice
    found = {"path": str(run.final), "step": step, "choice": choice}
    return {**found, "verified": None, "problems": problems}


def inspect_checkpoint(path: Path) -> Inspection:
    """A checkpoint, without hashing its files. Damage is reported in the result."""
    manifest, tensors = None, dict[str, StoredTensor]()
    problems = problems_of(path, verify=False)
    try:
        manifest = read_manifest(path)
        tensors = stored_tensors(path, manifest.files)
        problems += [
            f"{name}: a part of it is missing"
            for name, tensor in tensors.items()
            if not tensor.is_whole
        ]
    except CorruptCheckpoint as error:
        problem = error.message.removeprefix(f"{path}/")
        problems += [problem] if problem not in problems else []
    except IncompatibleCheckpoint as error:
        return _of_newer_format(path, error)
    found = Inspection(
        path=path,
        format=_FORMAT,
        facts={"step": step_of(path.name)},
        tensors=tensors,
        complete=not problems,
        problems=problems,
        num_bytes=_bytes_in(path),
    )
    if manifest is None:
        return _judged(found, manifest)
    judged = _judged(_with_manifest(found, manifest), manifest)
    unknown = [f"{name}: not in the manifest, not read" for name in unknown_files(path, manifest)]
    return replace(judged, notes=[*judged.notes, *unknown])


def verify_checkpoint(inspection: Inspection) -> Inspection:
    """The inspection after hashing every file."""
    if not inspection.files:  # the manifest can't be read, so no hash is known
        return replace(inspection, verified=False if inspection.problems else None)
    known = inspection.problems
    changed = [text for text in problems_of(inspection.path, verify=True) if text not in known]
    verified = replace(inspection, problems=[*known, *changed], verified=not (known or changed))
    return _judged(verified, None) if changed else verified


def _judged(inspection: Inspection, manifest: CheckpointManifest | None) -> Inspection:
    """Add to the inspection whether `sftctl resume` can continue from the checkpoint."""
    readiness = judge(inspection.path, manifest, is_damaged=bool(inspection.problems))
    return replace(
        inspection,
        advice=readiness.advice,
        obstacles=readiness.obstacles,
        data_store=readiness.data_store,
        notes=readiness.notes,
    )


def _of_newer_format(path: Path, error: IncompatibleCheckpoint) -> Inspection:
    """The inspection of a checkpoint that is not damaged, but has a newer format than
    this version.
    """
    return Inspection(
        path=path,
        format=_FORMAT,
        facts={"step": step_of(path.name)},
        complete=False,
        obstacles=[error.message.removeprefix(f"{path}: ")],
        advice=error.hint,
        num_bytes=_bytes_in(path),
    )


def _bytes_in(path: Path) -> int:
    with os.scandir(path) as entries:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)


def _with_manifest(inspection: Inspection, manifest: CheckpointManifest) -> Inspection:
    path = inspection.path
    return replace(
        inspection,
        facts={key: getattr(manifest, key) for key in MANIFEST_KEYS},
        files={
            name: {"num_bytes": entry.num_bytes, "sha256": entry.sha256}
            for name, entry in manifest.files.items()
        },
        aliases=manifest.aliases,
        saved_at=(path / MANIFEST_NAME).stat().st_mtime,
        step_counts="optimizer updates",
        epoch_counts="from 0",
        next_learning_rate=_next_learning_rate(manifest),
        rng={
            "scheme": "a function of seed, step and micro-batch; no state",
            "seed": manifest.config.get("train", {}).get("seed"),
        },
        loss=_loss(path.absolute().parent.parent / "metrics.jsonl", manifest),
    )


def _next_learning_rate(manifest: CheckpointManifest) -> float | None:
    try:
        optim = config_from_dict(manifest.config).optim
    except ConfigError:  # written by another version
        return None
    if manifest.step >= manifest.total_steps or optim.learning_rate == "auto":
        return None
    return get_lr(manifest.step + 1, manifest.total_steps, optim)


def _loss(metrics: Path, manifest: CheckpointManifest) -> float | None:
    """The loss of the checkpoint's step, from the last line that `metrics` had at the save."""
    if not metrics.is_file():  # opening a named pipe would wait for a writer
        return None
    try:
        with metrics.open("rb") as file:
            begin = max(0, manifest.metrics_bytes - _LONGEST_LINE_BYTES)
            file.seek(begin)
            lines = file.read(manifest.metrics_bytes - begin).splitlines()
        line = jsonio.loads(lines[-1]) if lines else None
    except (OSError, jsonio.JSONDecodeError):
        return None
    if not isinstance(line, dict) or line.get("step") != manifest.step:
        return None
    return line.get("loss")

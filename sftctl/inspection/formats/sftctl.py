"""Our own runs and checkpoints, from JSON and headers: no torch, no tensor, no code."""

import os
from pathlib import Path
from typing import Any

from sftctl import jsonio
from sftctl.checkpoint.directory import list_checkpoints, problems_of
from sftctl.checkpoint.layout import (
    MANIFEST_HASH_NAME,
    MANIFEST_NAME,
    CheckpointManifest,
    read_manifest,
    step_of,
)
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
from sftctl.inspection.readiness import judge
from sftctl.inspection.report import MANIFEST_KEYS, Report
from sftctl.runs.directory import RunDir

FORMAT = "sftctl checkpoint"
_LONGEST_LINE_BYTES = 1 << 16  # of metrics.jsonl


def is_run(path: Path) -> bool:
    """Whether this is the directory of a run of ours."""
    return RunDir(path).run_file.is_file()


def is_checkpoint(path: Path) -> bool:
    """Whether this is a checkpoint of ours, whatever its state."""
    name = Path(os.path.abspath(path)).name  # of `.` too
    return path.is_dir() and (step_of(name) is not None or (path / MANIFEST_HASH_NAME).exists())


def inspect_run(path: Path, verify: bool) -> Report:
    """The newest checkpoint, with `checkpoints` of all; raises NoCheckpoint where there is none."""
    found = list_checkpoints(RunDir(path).checkpoints)
    if not found:
        raise NoCheckpoint(
            f"{path}: the run has no checkpoint yet",
            hint=f"`sftctl resume {path}` starts it at step 0",
        )
    reports = [inspect_checkpoint(checkpoint, verify) for checkpoint in found]
    newest = inspect_checkpoint(found[-1], verify=False)
    newest.verified, newest.problems = reports[-1].verified, reports[-1].problems
    newest.advice = reports[-1].advice
    newest.checkpoints = reports
    return newest


def inspect_checkpoint(path: Path, verify: bool) -> Report:
    """Judge one checkpoint; `verify` hashes every byte. Damage is reported, not raised."""
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
    except IncompatibleCheckpoint as error:  # a newer format is no damage
        return Report(
            path=path,
            format=FORMAT,
            facts={"step": step_of(path.name)},
            complete=False,
            obstacles=[error.message.removeprefix(f"{path}: ")],
            advice=error.hint,
            num_bytes=_bytes_in(path),
        )
    except CheckpointError:
        pass  # what is no folder: among the problems already
    complete = not problems
    if verify:
        problems += [p for p in problems_of(path, verify=True) if p not in problems]
    report = Report(
        path=path,
        format=FORMAT,
        facts={"step": step_of(path.name)},
        tensors=tensors,
        complete=complete,
        verified=not problems if verify else None,
        problems=problems,
        num_bytes=_bytes_in(path),
    )
    if manifest is not None:
        _tell(report, manifest)
    readiness = judge(path, manifest, is_damaged=bool(problems))
    report.advice, report.obstacles = readiness.advice, readiness.obstacles
    report.data_store, report.notes = readiness.data_store, readiness.notes
    return report


def _bytes_in(path: Path) -> int:
    with os.scandir(path) as entries:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)


def _tell(report: Report, manifest: CheckpointManifest) -> None:
    report.facts = {key: getattr(manifest, key) for key in MANIFEST_KEYS}
    report.files = {
        name: {"num_bytes": entry.num_bytes, "sha256": entry.sha256}
        for name, entry in manifest.files.items()
    }
    report.aliases = manifest.aliases
    report.saved_at = (report.path / MANIFEST_NAME).stat().st_mtime
    report.step_counts = "optimizer updates"
    report.epoch_counts = "from 0; after an epoch's last step the next one begins"
    report.next_learning_rate = _next_learning_rate(manifest)
    report.rng = _rng(manifest.config)
    report.loss = _loss(report.path.absolute().parent.parent / "metrics.jsonl", manifest)


def _rng(config: dict[str, Any]) -> dict[str, Any]:
    """Randomness is a function of seed, step and micro-batch: there is no state of it."""
    seed = config.get("train", {}).get("seed")
    return {"scheme": "a function of seed, step and micro-batch; no state", "seed": seed}


def _next_learning_rate(manifest: CheckpointManifest) -> float | None:
    try:
        optim = config_from_dict(manifest.config).optim
    except ConfigError:  # of another version
        return None
    if manifest.step >= manifest.total_steps or optim.learning_rate == "auto":
        return None
    return get_lr(manifest.step + 1, manifest.total_steps, optim)


def _loss(metrics: Path, manifest: CheckpointManifest) -> float | None:
    """The loss of the checkpoint's step: in the last line that the manifest vouches for."""
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

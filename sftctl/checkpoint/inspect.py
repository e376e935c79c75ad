"""Judge a run's checkpoints without loading torch, a tensor, or code."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sftctl.checkpoint.directory import list_checkpoints, problems_of
from sftctl.checkpoint.headers import StoredTensor, stored_tensors
from sftctl.checkpoint.layout import (
    MANIFEST_HASH_NAME,
    CheckpointManifest,
    read_manifest,
    step_of,
)
from sftctl.errors import CheckpointError, CorruptCheckpoint, NoCheckpoint

RUN_FILE = "run.json"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """One checkpoint, and its siblings where a run was asked for."""

    path: Path
    manifest: CheckpointManifest | None  # None: it can't be read
    complete: bool  # every file there, of the right size
    verified: bool | None  # every byte hashed and right; None: not asked
    problems: list[str]  # "file: what"
    num_bytes: int  # on disk
    tensors: dict[str, StoredTensor]
    checkpoints: "list[CheckpointReport] | None" = None  # of a run, by step

    @property
    def resumable(self) -> bool:
        return not self.problems

    @property
    def damage(self) -> list[str]:
        """Every problem of everything in the report, with its path."""
        seen = self.checkpoints if self.checkpoints is not None else [self]
        return [f"{report.path}/{problem}" for report in seen for problem in report.problems]

    @property
    def num_parameters(self) -> int:
        """Elements of the model's tensors, tied ones once."""
        return sum(t.num_elements for name, t in self.tensors.items() if name.startswith("model."))

    @property
    def tensors_by_group(self) -> dict[str, dict[str, int]]:
        """Tensors and bytes by the first part of the name: model, optimizer."""
        groups: dict[str, dict[str, int]] = {}
        for name, tensor in self.tensors.items():
            group = groups.setdefault(name.partition(".")[0], {"num_tensors": 0, "num_bytes": 0})
            group["num_tensors"] += 1
            group["num_bytes"] += tensor.num_bytes
        return groups

    def summary(self) -> dict[str, Any]:
        """One row of a run's list."""
        shown = ("step", "epoch", "learning_rate", "examples_seen")
        return {
            "name": self.path.name,
            **{key: getattr(self.manifest, key, None) for key in shown},
            "step": step_of(self.path.name) if self.manifest is None else self.manifest.step,
            "num_bytes": self.num_bytes,
            "complete": self.complete,
            "verified": self.verified,
            "resumable": self.resumable,
            "problems": self.problems,
        }

    def to_json(self) -> dict[str, Any]:
        """The manifest's keys (null where it can't be read), and what was found."""
        report: dict[str, Any] = {
            item.name: getattr(self.manifest, item.name, None)
            for item in fields(CheckpointManifest)
        }
        report |= {
            "path": str(self.path),
            "complete": self.complete,
            "verified": self.verified,
            "resumable": self.resumable,
            "problems": self.problems,
            "num_parameters": self.num_parameters,
            "tensors_by_group": self.tensors_by_group,
            "num_bytes": self.num_bytes,
        }
        if self.checkpoints is not None:
            report["checkpoints"] = [checkpoint.summary() for checkpoint in self.checkpoints]
        return report


def inspect_path(path: Path, verify: bool) -> CheckpointReport:
    """The report of a checkpoint, or of a run's newest one with `checkpoints` of all.

    `verify` hashes every byte. Damage is reported, not raised; raises NoCheckpoint.
    """
    if (path / RUN_FILE).is_file():
        reports = [_inspect(found, verify) for found in list_checkpoints(path / CHECKPOINTS)]
        if not reports:
            raise NoCheckpoint(f"{path}: the run has no checkpoint yet")
        newest = reports[-1]
        values = {item.name: getattr(newest, item.name) for item in fields(CheckpointReport)}
        return CheckpointReport(**values | {"checkpoints": reports})
    name = Path(os.path.abspath(path)).name  # of `.` too
    if not path.is_dir() or (step_of(name) is None and not (path / MANIFEST_HASH_NAME).exists()):
        raise NoCheckpoint(
            f"{path}: neither a run nor a checkpoint",
            hint=f"a run holds {RUN_FILE}; its checkpoints are in {CHECKPOINTS}/step-…",
        )
    return _inspect(path, verify)


def _inspect(path: Path, verify: bool) -> CheckpointReport:
    manifest, tensors = None, {}
    problems = problems_of(path, verify=False)
    try:
        manifest = read_manifest(path)
        tensors = stored_tensors(path, manifest.files)
    except CorruptCheckpoint as error:
        problem = error.message.removeprefix(f"{path}/")
        problems += [problem] if problem not in problems else []
    except CheckpointError:
        pass  # a newer format: among the problems already
    complete = not problems
    if verify:
        problems += [p for p in problems_of(path, verify=True) if p not in problems]
    with os.scandir(path) as entries:
        num_bytes = sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    return CheckpointReport(
        path=path,
        manifest=manifest,
        complete=complete,
        verified=not problems if verify else None,
        problems=problems,
        num_bytes=num_bytes,
        tensors=tensors,
    )

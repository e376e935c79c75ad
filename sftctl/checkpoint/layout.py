"""The format of a checkpoint folder: names, and a manifest with the size and SHA-256 of each file.

docs/checkpoint-format.md describes the format. Does not load torch.
"""

import hashlib
import re
import stat
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from sftctl import jsonio
from sftctl.disk import FileEntry, read_refusals
from sftctl.errors import CorruptCheckpoint, IncompatibleCheckpoint, NoCheckpoint

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
MANIFEST_HASH_NAME = "manifest.json.sha256"
_MAX_MANIFEST_BYTES = 1 << 26
_STEP_NAME = re.compile(r"step-([0-9]{8,})")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NAME_IN_FOLDERS = re.compile(rf"({_PLAIN_NAME.pattern}/)*{_PLAIN_NAME.pattern}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HASH_LINE = re.compile(rb"[0-9a-f]{64}  manifest\.json\n")


def checkpoint_name(step: int) -> str:
    """The name of the folder for a step, such as `step-00000300`."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step in the name of a checkpoint's folder; None for any other name."""
    match = _STEP_NAME.fullmatch(name)
    step = int(match[1]) if match else None
    return step if step is not None and checkpoint_name(step) == name else None


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointManifest:
    """All that a resume needs, except tensors. Counts are totals over all steps and ranks."""

    format_version: int = FORMAT_VERSION
    step: int  # number of updates so far
    epoch: int  # from 0; the last step of an epoch has (epoch + 1, 0)
    step_in_epoch: int
    total_steps: int
    steps_per_epoch: int
    examples_seen: int
    tokens_seen: int  # padding not counted
    learning_rate: float  # of the last update
    global_batch_size: int  # examples per step
    micro_batch_tokens: int
    cut_for_ranks: int  # world size at the start of the run
    num_threads: int  # torch's threads on each rank
    world_size: int  # the number of ranks that wrote the checkpoint
    dtype: str  # in which the model computes; stored weights are float32
    scaler: dict[str, Any] | None  # state of the GradScaler; None: there is none
    data_fingerprint: str
    config: dict[str, Any]  # resolved
    versions: dict[str, Any]
    wandb_run_id: str | None
    metrics_bytes: int  # a resume truncates metrics.jsonl to this length
    validation: dict[str, Any] | None  # made by runs.choosing.with_evaluation
    aliases: dict[str, str] = field(default_factory=dict)  # name of a tied tensor -> stored name
    files: dict[str, FileEntry] = field(default_factory=dict)
    # If a field below is empty, its key is not written.
    numbers: dict[str, Any] = field(default_factory=dict)  # values of other Stateful objects
    base: dict[str, Any] | None = None  # an adapter's frozen base (runs/base.py)
    source_fingerprints: dict[str, str] = field(default_factory=dict)  # source -> its store's
    sources_seen: dict[str, Any] = field(default_factory=dict)  # source -> what was trained so far
    run_id: str | None = None  # as in run.json; None: written by an older version
    set_fingerprints: dict[str, str] = field(default_factory=dict)  # evaluation set -> its store's


_LEFT_OUT_IF_EMPTY: dict[str, Any] = {
    "numbers": {},
    "base": None,
    "source_fingerprints": {},
    "sources_seen": {},
    "run_id": None,
    "set_fingerprints": {},
}
_HINTS = get_type_hints(CheckpointManifest)


def manifest_bytes(manifest: CheckpointManifest) -> bytes:
    """The content of manifest.json."""
    values = {item.name: getattr(manifest, item.name) for item in fields(manifest)}
    for name in _LEFT_OUT_IF_EMPTY:
        if not values[name]:
            del values[name]
    return jsonio.dump_pretty(values)


def manifest_hash_line(data: bytes) -> bytes:
    """The content of manifest.json.sha256, as `sha256sum -c` reads it."""
    return f"{hashlib.sha256(data).hexdigest()}  {MANIFEST_NAME}\n".encode()


def read_manifest(path: Path) -> CheckpointManifest:
    """Read the manifest of the checkpoint in `path`, and check its hash.

    Raises CorruptCheckpoint, or IncompatibleCheckpoint for a newer format.
    """
    if not path.is_dir():
        raise NoCheckpoint(f"{path}: no such checkpoint")
    manifest = _decode(path, read_hashed_object(path))
    if step_of(path.name) not in (None, manifest.step):
        raise _bad(path, f"its step is {manifest.step}, but the folder's name says another step")
    return manifest


def read_hashed_object(path: Path) -> dict[str, Any]:
    """Read manifest.json in a folder, and check its hash and its format version.

    Raises CorruptCheckpoint, or IncompatibleCheckpoint for a newer format.
    """
    data = _read_small_file(path / MANIFEST_NAME)
    if not _is_hash_of(data, _read_small_file(path / MANIFEST_HASH_NAME)):
        raise _bad(path, f"its SHA-256 is not the one in {MANIFEST_HASH_NAME}")
    values = jsonio.parse_object(path / MANIFEST_NAME, data, CorruptCheckpoint)
    version = values.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise _bad(path, f"format_version: {version!r} is not a version")
    if version > FORMAT_VERSION:
        raise IncompatibleCheckpoint(
            f"{path}: checkpoint format {version}; this sftctl reads up to {FORMAT_VERSION}",
            hint="use the sftctl that wrote it, or a newer one",
        )
    return values


def _is_hash_of(data: bytes, hashes: bytes) -> bool:
    """Whether the hash file has the hash of the manifest.

    While `amend_manifest` replaces a manifest, the hash file has two lines, for the old and the new
    manifest.
    """
    lines = hashes.splitlines(keepends=True)
    are_hashes = all(_HASH_LINE.fullmatch(line) for line in lines) and len(lines) <= 2
    return are_hashes and manifest_hash_line(data) in lines


def _bad(path: Path, problem: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(f"{path / MANIFEST_NAME}: {problem}")


def _read_small_file(file: Path) -> bytes:
    """The bytes of a regular file. A link is not followed, and no pipe is opened."""
    with read_refusals(file, CorruptCheckpoint, missing="missing"):
        status = file.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise CorruptCheckpoint(f"{file}: not a regular file")
        if status.st_size > _MAX_MANIFEST_BYTES:
            raise CorruptCheckpoint(f"{file}: too long ({status.st_size} bytes)")
        return file.read_bytes()


def _decode(path: Path, values: dict[str, Any]) -> CheckpointManifest:
    known, values = {}, _LEFT_OUT_IF_EMPTY | values
    for name in (item.name for item in fields(CheckpointManifest)):
        if name not in values:
            raise _bad(path, f"{name}: missing")
        if name != "files" and not _fits(values[name], _HINTS[name]):
            raise _bad(path, f"{name}: {type(values[name]).__name__} is the wrong type")
        if isinstance(values[name], int) and values[name] < 0:
            raise _bad(path, f"{name}: {values[name]} is negative")
        known[name] = values[name]
    return CheckpointManifest(**known | {"files": decoded_files(path, values["files"])})


def decoded_files(
    path: Path, values: object, *, with_folders: bool = False
) -> dict[str, FileEntry]:
    """The `files` of the manifest in `path`. `with_folders` allows names such as `a/b.json`."""
    plain = _NAME_IN_FOLDERS if with_folders else _PLAIN_NAME
    if not isinstance(values, dict):
        raise _bad(path, f"files: {type(values).__name__} is the wrong type")
    files = {}
    for name, entry in values.items():
        if not plain.fullmatch(name) or name in (MANIFEST_NAME, MANIFEST_HASH_NAME):
            raise _bad(path, f"files: {name!r} is not a plain name of a data file")
        match entry:
            case {"num_bytes": int(num_bytes), "sha256": str(sha256)} if _SHA256.fullmatch(sha256):
                files[name] = FileEntry(num_bytes, sha256)
            case _:
                raise _bad(path, f"files: {name}: not a size and a SHA-256")
    return files


def _fits(value: object, hint: Any) -> bool:
    """Whether a JSON value has the type that a field is annotated with."""
    if get_origin(hint) is UnionType:
        return any(_fits(value, choice) for choice in get_args(hint))
    if get_origin(hint) is dict:
        of = get_args(hint)[1]
        return isinstance(value, dict) and (of is Any or all(_fits(v, of) for v in value.values()))
    if hint is NoneType:
        return value is None
    types = (int, float) if hint is float else hint
    return isinstance(value, types) and not isinstance(value, bool)

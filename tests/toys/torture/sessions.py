"""Make the run directory of a scenario, and run its session: disk calls only, no training."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from sftctl.checkpoint.directory import abandon_after, clean_leftovers, retire
from sftctl.checkpoint.layout import checkpoint_name
from sftctl.checkpoint.load import load_tensors
from sftctl.checkpoint.save import save_checkpoint
from sftctl.config.schema import RunConfig
from sftctl.disk import DISK, Disk
from sftctl.errors import CheckpointError
from sftctl.runs.directory import RunDir
from sftctl.runs.log import RunLog
from tests.toys.checkpoints import ALONE, blank, equal
from tests.toys.torture.scenarios import (
    Scenario,
    Version,
    manifest_of,
    metrics_of,
    resumed_version,
    tensors_of,
)

LEFTOVERS = (".tmp-step-00000090-0123abcd", ".trash-step-00000005-89abcdef")
FOREIGN = ".tmp-notes"
SHARD = "shard-00001.safetensors"
OLD_CONFIG = RunConfig()
NEW_CONFIG = replace(OLD_CONFIG, train=replace(OLD_CONFIG.train, epochs=3))

Mark = tuple[str, int]
"""A progress mark of a session: an act that begins or is done, and its step."""

OnMark = Callable[[str, int], None]
"""Called with each mark: before an act begins, and after it is done."""


def ignore_mark(name: str, step: int) -> None:
    """For a session whose progress does not matter."""


@dataclass
class Record:
    """What a scenario's session writes, recorded from a run of it without a fault."""

    versions: dict[bytes, Version] = field(default_factory=dict)  # by fingerprint
    metrics: dict[Version | None, bytes] = field(default_factory=lambda: {None: b""})
    """Content of metrics.jsonl when this version was saved."""
    marks: list[Mark] = field(default_factory=list)

    def version_in(self, folder: Path) -> Version | None:
        """The version that a folder is, byte for byte; None for anything else."""
        return self.versions.get(fingerprint(folder))


def fingerprint(folder: Path) -> bytes:
    """A hash of the names and bytes of a folder's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        data = path.read_bytes() if path.is_file() else b"no file"
        digest.update(f"{path.name} {len(data)} ".encode() + data)
    return digest.digest()


def run_session(
    run: Path, scenario: Scenario, keep_bytes: int, disk: Disk = DISK, on_mark: OnMark = ignore_mark
) -> None:
    """The disk calls of a session, in the order of train/opening.py and train/run.py.

    `keep_bytes` is the length to which metrics.jsonl is cut.
    """
    root = run / "checkpoints"
    clean_leftovers(root, disk)
    RunDir(run).write_config(NEW_CONFIG, disk)
    on_mark("abandoning", scenario.resume_step)
    if scenario.resume_step:
        abandon_after(root, scenario.resume_step, disk)
    on_mark("abandoned", scenario.resume_step)
    with closing(RunLog(run, keep_bytes, disk)) as log:
        log.event("resumed", scenario.resume_step, time=0.0)
        for step in scenario.new_steps:
            _save(run, scenario, Version(step, "new"), log, disk, on_mark)
            on_mark("retiring", step)
            retire(root, scenario.keep, disk)
            on_mark("retired", step)


def _save(
    run: Path, scenario: Scenario, version: Version, log: RunLog, disk: Disk, on_mark: OnMark
) -> None:
    for metrics in metrics_of(version):
        log.log(metrics)
    log.event("evaluation", version.step, time=0.0)
    manifest = replace(manifest_of(scenario, version.step), metrics_bytes=log.metrics_bytes)
    tensors = tensors_of(scenario, version)
    on_mark("saving", version.step)
    try:
        path = save_checkpoint(run / "checkpoints", tensors, manifest, ALONE, disk, before=log.sync)
    except CheckpointError as error:
        log.event("save_failed", version.step, error=error.message)
        raise
    on_mark("saved", version.step)
    log.event("saved", version.step, path=path.name, time=0.0)


def make_run(run: Path, scenario: Scenario) -> Record:
    """Make the run directory as the session finds it."""
    record, root = Record(), run / "checkpoints"
    root.mkdir(parents=True)
    RunDir(run).write_config(OLD_CONFIG)
    if scenario.old_steps:
        with closing(RunLog(run, 0)) as log:
            for step in scenario.old_steps:
                _save(run, scenario, Version(step, "old"), log, DISK, ignore_mark)
                _record_version(run, scenario, _damage(run, scenario, step), record)
    if scenario.has_leftovers:
        for name in (*LEFTOVERS, FOREIGN):
            (root / name).mkdir()
            (root / name / SHARD).write_bytes(b"half of a shard")
            (root / name / "manifest.json").write_bytes(b"{")
    return record


def _damage(run: Path, scenario: Scenario, step: int) -> Version:
    """Damage a checkpoint as the scenario says; returns the version that it is now."""
    shard = run / "checkpoints" / checkpoint_name(step) / SHARD
    data = shard.read_bytes()
    if step in scenario.cut_steps:
        shard.write_bytes(data[:-5])
        return Version(step, "cut")
    if step in scenario.flipped_steps:
        shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        return Version(step, "flipped")
    return Version(step, "old")


def _record_version(run: Path, scenario: Scenario, version: Version, record: Record) -> None:
    path = run / "checkpoints" / checkpoint_name(version.step)
    if version.is_good:
        tensors = blank(tensors_of(scenario, version))
        load_tensors(path, tensors, ALONE)
        assert equal(tensors, tensors_of(scenario, version))
    record.versions[fingerprint(path)] = version
    record.metrics[version] = (run / "metrics.jsonl").read_bytes()


def record_session(
    run: Path, scenario: Scenario, record: Record, disk: Disk, on_mark: OnMark = ignore_mark
) -> None:
    """Run the session without a fault; its new versions and its marks go into the record."""

    def on_each(name: str, step: int) -> None:
        on_mark(name, step)
        record.marks.append((name, step))
        if name == "saved":
            _record_version(run, scenario, Version(step, "new"), record)

    run_session(run, scenario, len(record.metrics[resumed_version(scenario)]), disk, on_each)


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A temporary folder, in memory if possible: thousands of states are made and deleted."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="sftctl-torture-", dir=memory if memory.is_dir() else None
    ) as folder:
        yield Path(folder)


def copied(source: Path, target: Path) -> Path:
    """A copy of a folder; returns `target`."""
    shutil.copytree(source, target)
    return target

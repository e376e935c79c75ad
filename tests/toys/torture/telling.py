"""A run's directory, reduced to what must survive: its past is made, its session told."""

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
from tests.toys.checkpoints import ALONE, blank, equal, make_manifest
from tests.toys.torture.stories import Copy, Story, metrics_of, start_of, tensors_of

LEFTOVERS = (".tmp-step-00000090-0123abcd", ".trash-step-00000005-89abcdef")
FOREIGN = ".tmp-notes"
SHARD = "shard-00001.safetensors"
OLD_CONFIG = RunConfig()
NEW_CONFIG = replace(OLD_CONFIG, train=replace(OLD_CONFIG.train, epochs=3))

Mark = Callable[[str, int], None]
"""Told how far a session is: each act before it begins and after it is done."""


@dataclass
class Book:
    """What is known of a story from telling it once without a fault."""

    copies: dict[bytes, Copy] = field(default_factory=dict)  # by fingerprint
    metrics: dict[Copy | None, bytes] = field(default_factory=lambda: {None: b""})  # at its save
    marks: list[tuple[str, int]] = field(default_factory=list)

    def read(self, folder: Path) -> Copy | None:
        """Which checkpoint a folder is, byte for byte; None for anything else."""
        return self.copies.get(fingerprint(folder))


def fingerprint(folder: Path) -> bytes:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        data = path.read_bytes() if path.is_file() else b"no file"
        digest.update(f"{path.name} {len(data)} ".encode() + data)
    return digest.digest()


def session(
    run: Path, story: Story, keep_bytes: int, disk: Disk = DISK, mark: Mark = lambda *_: None
) -> None:
    """The disk's part of a session, in the order of session._take_over and run._save."""
    root = run / "checkpoints"
    clean_leftovers(root, disk)
    RunDir(run).write_config(NEW_CONFIG, disk)
    mark("abandoning", story.start)
    if story.start:
        abandon_after(root, story.start, disk)
    mark("abandoned", story.start)
    with closing(RunLog(run, keep_bytes, disk)) as log:
        log.event("resumed", story.start, time=0.0)
        for step in story.new:
            save(run, story, Copy(step, "new"), log, disk, mark)
            mark("retiring", step)
            retire(root, story.keep, disk)
            mark("retired", step)


def save(run: Path, story: Story, copy: Copy, log: RunLog, disk: Disk, mark: Mark) -> None:
    for metrics in metrics_of(copy):
        log.log(metrics)
    log.event("evaluation", copy.step, time=0.0)
    manifest = replace(make_manifest(copy.step), metrics_bytes=log.metrics_bytes)
    mark("saving", copy.step)
    try:
        path = save_checkpoint(
            run / "checkpoints", tensors_of(story, copy), manifest, ALONE, disk, before=log.sync
        )
    except CheckpointError as error:
        log.event("save_failed", copy.step, error=error.message)
        raise
    mark("saved", copy.step)
    log.event("saved", copy.step, path=path.name, time=0.0)


def write_past(run: Path, story: Story) -> Book:
    """Make the run's directory as the session finds it."""
    book, root = Book(), run / "checkpoints"
    root.mkdir(parents=True)
    RunDir(run).write_config(OLD_CONFIG)
    if story.older:
        with closing(RunLog(run, 0)) as log:
            for step in story.older:
                save(run, story, Copy(step, "old"), log, DISK, lambda *_: None)
                remember(run, story, damaged(run, story, step), book)
    if story.leftovers:
        for name in (*LEFTOVERS, FOREIGN):
            (root / name).mkdir()
            (root / name / SHARD).write_bytes(b"half of a shard")
            (root / name / "manifest.json").write_bytes(b"{")
    return book


def damaged(run: Path, story: Story, step: int) -> Copy:
    """The checkpoint of a step, after what has befallen it."""
    shard = run / "checkpoints" / checkpoint_name(step) / SHARD
    whole = shard.read_bytes()
    if step in story.cut:
        shard.write_bytes(whole[:-5])
        return Copy(step, "cut")
    if step in story.flipped:
        shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        return Copy(step, "flipped")
    return Copy(step, "old")


def remember(run: Path, story: Story, copy: Copy, book: Book) -> None:
    path = run / "checkpoints" / checkpoint_name(copy.step)
    if copy.is_good:
        tensors = blank(tensors_of(story, copy))
        load_tensors(path, tensors, ALONE)
        assert equal(tensors, tensors_of(story, copy))
    book.copies[fingerprint(path)] = copy
    book.metrics[copy] = (run / "metrics.jsonl").read_bytes()


def tell(run: Path, story: Story, book: Book, disk: Disk, also: Mark = lambda *_: None) -> None:
    """The session without a fault; the book learns what it makes, and how far it comes when."""

    def mark(name: str, step: int) -> None:
        also(name, step)
        book.marks.append((name, step))
        if name == "saved":
            remember(run, story, Copy(step, "new"), book)

    session(run, story, len(book.metrics[start_of(story)]), disk, mark)


@contextmanager
def fast_folder() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of states are made and thrown away."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="sftctl-torture-", dir=memory if memory.is_dir() else None
    ) as folder:
        yield Path(folder)


def copy_of(base: Path, target: Path) -> Path:
    shutil.copytree(base, target)
    return target

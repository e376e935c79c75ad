"""What must hold of a run's directory after any crash, told as a list of what does not."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from sftctl.checkpoint.directory import newest_good
from sftctl.checkpoint.layout import checkpoint_name, step_of
from sftctl.config.load import config_to_toml
from sftctl.errors import CheckpointError, CorruptCheckpoint, NoCheckpoint
from sftctl.jsonio import read_lines
from tests.toys.torture.stories import Copy, Story, lines_of, start_of
from tests.toys.torture.telling import FOREIGN, NEW_CONFIG, OLD_CONFIG, Book, session

OLD_TEXT, NEW_TEXT = config_to_toml(OLD_CONFIG), config_to_toml(NEW_CONFIG)


@dataclass
class Promise:
    """Where each checkpoint may be when a session was interrupted at a mark."""

    here: set[Copy]
    moving: set[Copy] = field(default_factory=set)  # here, or set aside
    aside: set[Copy] = field(default_factory=set)
    going: set[Copy] = field(default_factory=set)  # here, or deleted
    coming: set[Copy] = field(default_factory=set)  # here, or not yet
    newest: set[Copy | None] = field(default_factory=set)
    configs: tuple[str, ...] = (NEW_TEXT,)


def promise(story: Story, marks: list[tuple[str, int]]) -> Promise:
    """What a session that came as far as `marks` owes."""
    kinds = {step: "old" for step in story.older}
    kinds |= {step: "cut" for step in story.cut} | {step: "flipped" for step in story.flipped}
    it = Promise({Copy(step, kind) for step, kind in kinds.items()})
    it.newest = {best(it.here)}
    if not marks:
        it.configs = (OLD_TEXT, NEW_TEXT)
    for name, step in marks:
        match name:
            case "abandoning":
                it.moving = {copy for copy in it.here if copy.step > step > 0}
                it.here -= it.moving
                it.newest = {best(it.here)} | {copy for copy in it.moving if copy.is_good}
            case "abandoned":
                it.aside, it.moving, it.newest = it.moving, set(), {start_of(story)}
            case "saving":
                it.coming = {Copy(step, "new")}
                it.newest = it.newest | it.coming
            case "saved":
                it.here, it.newest, it.coming = it.here | it.coming, {*it.coming}, set()
            case "retiring":
                whole = sorted(copy for copy in it.here if copy.kind != "cut")
                it.going = set(whole[: -story.keep])
                it.here = it.here - it.going
            case "retired":
                it.going = set()
    return it


def best(copies: set[Copy]) -> Copy | None:
    return max((copy for copy in copies if copy.is_good), default=None)


def checkpoints_in(folder: Path, book: Book) -> dict[str, Copy | None]:
    names = (path for path in folder.iterdir() if step_of(path.name) is not None)
    return {path.name: book.read(path) for path in names}


def all_violations(run: Path, story: Story, book: Book, marks: list[tuple[str, int]]) -> list[str]:
    """What the directory left by a session that came as far as `marks` does not keep."""
    newest = newest_copy(run / "checkpoints", book)
    found = violations(run, book, promise(story, marks), newest)
    return found + next_session_violations(run, story, book, newest)


def violations(run: Path, book: Book, owed: Promise, newest: Copy | None) -> list[str]:
    """What does not hold of a directory as it is."""
    here = checkpoints_in(run / "checkpoints", book)
    aside: dict[str, Copy | None] = {}
    for folder in run.glob("checkpoints/abandoned-*"):
        aside |= checkpoints_in(folder, book)
    found = [
        f"{name} is half-made, changed or of another step: {copy}"
        for name, copy in (here | aside).items()
        if copy is None or name != checkpoint_name(copy.step)
    ]
    seen = {copy for copy in here.values() if copy is not None}
    found += misplaced(seen, set(aside.values()), owed)
    if newest != best(seen):
        found.append(f"newest_good gives {newest}, there are {sorted(here)}")
    if newest not in owed.newest:
        found.append(f"the newest good one is {newest}, not one of {owed.newest}")
    elif not bytes_of(run / "metrics.jsonl").startswith(book.metrics[newest]):
        found.append(f"metrics.jsonl lacks lines of {newest}")
    if (run / "config.toml").read_text() not in owed.configs:
        found.append("config.toml is not the one that was written, nor the one before")
    return found


def bytes_of(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""


def misplaced(here: set[Copy], aside: set[Copy | None], owed: Promise) -> list[str]:
    found = [f"{copy} is lost" for copy in owed.here - here]
    found += [f"{copy} is lost between its places" for copy in owed.moving - here - aside]
    found += [f"{copy} is not set aside" for copy in owed.aside - aside]
    allowed = owed.here | owed.moving | owed.going | owed.coming
    return found + [f"{copy} should not be there" for copy in here - allowed]


def newest_copy(root: Path, book: Book) -> Copy | None:
    try:
        return book.read(newest_good(root).path)
    except (NoCheckpoint, CorruptCheckpoint):
        return None


def next_session_violations(run: Path, story: Story, book: Book, newest: Copy | None) -> list[str]:
    """Go on from what is there: it must work, and clean up."""
    root = run / "checkpoints"
    step = newest.step if newest is not None else 0
    again = replace(story, start=step, new=(step + 5,), tensors="few")
    try:
        session(run, again, len(book.metrics[newest]))
        last = newest_good(root)
        events = [line["event"] for line in read_lines(run / "events.jsonl")]
    except (CheckpointError, ValueError) as error:
        return [f"the next session: {error}"]
    found = []
    if last.manifest.step != step + 5 or last.skipped:
        found.append(f"the next session saved, the newest good one is {last.path.name}")
    if events[-3:] != ["resumed", "evaluation", "saved"]:
        found.append(f"events.jsonl ends with {events[-3:]}")
    lines = book.metrics[newest] + b"".join(lines_of(Copy(step + 5, "new")))
    if (run / "metrics.jsonl").read_bytes() != lines:
        found.append("metrics.jsonl is not the checkpoint's lines and the new ones")
    hidden = {path.name for path in root.iterdir() if path.name.startswith(".")}
    if hidden != ({FOREIGN} if story.leftovers else set()):
        found.append(f"left over: {sorted(hidden)}")
    return found


def has_whole_lines(file: Path) -> bool:
    """Whether every line of a file is one JSON object, and the last one is ended."""
    text = file.read_bytes()
    whole = re.fullmatch(rb'(\{"[^\n\0]*\}\n)*', text) is not None
    return whole and all(isinstance(line, dict) for line in read_lines(file))

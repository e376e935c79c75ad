"""The rules for a run directory after any crash; returns the list of those that are broken."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from sftctl.checkpoint.directory import newest_good
from sftctl.checkpoint.layout import checkpoint_name, step_of
from sftctl.config.load import config_to_toml
from sftctl.errors import CheckpointError, CorruptCheckpoint, NoCheckpoint
from sftctl.jsonio import read_lines
from tests.toys.torture.scenarios import Scenario, Version, lines_of, resumed_version
from tests.toys.torture.sessions import FOREIGN, NEW_CONFIG, OLD_CONFIG, Mark, Record, run_session

OLD_TEXT, NEW_TEXT = config_to_toml(OLD_CONFIG), config_to_toml(NEW_CONFIG)


@dataclass
class Expected:
    """The places where each version may be after a session was interrupted."""

    present: set[Version]
    present_or_aside: set[Version] = field(default_factory=set)
    aside: set[Version] = field(default_factory=set)
    present_or_deleted: set[Version] = field(default_factory=set)
    present_or_not_yet: set[Version] = field(default_factory=set)
    newest: set[Version | None] = field(default_factory=set)  # one of these is the newest good one
    configs: tuple[str, ...] = (NEW_TEXT,)


def expected_after(scenario: Scenario, marks: list[Mark]) -> Expected:
    """What is expected when a session was interrupted after its first `marks`."""
    kinds = {step: "old" for step in scenario.old_steps}
    kinds |= {step: "cut" for step in scenario.cut_steps}
    kinds |= {step: "flipped" for step in scenario.flipped_steps}
    it = Expected({Version(step, kind) for step, kind in kinds.items()})
    it.newest = {newest_good_of(it.present)}
    if not marks:
        it.configs = (OLD_TEXT, NEW_TEXT)
    for name, step in marks:
        match name:
            case "abandoning":
                later = {version for version in it.present if version.step > step > 0}
                it.present, it.present_or_aside = it.present - later, later
                it.newest = {newest_good_of(it.present)} | {v for v in later if v.is_good}
            case "abandoned":
                it.aside, it.present_or_aside = it.present_or_aside, set()
                it.newest = {resumed_version(scenario)}
            case "saving":
                it.present_or_not_yet = {Version(step, "new")}
                it.newest = it.newest | it.present_or_not_yet
            case "saved":
                it.present |= it.present_or_not_yet
                it.newest, it.present_or_not_yet = {*it.present_or_not_yet}, set()
            case "retiring":
                complete = sorted(version for version in it.present if version.kind != "cut")
                it.present_or_deleted = set(complete[: -scenario.keep])
                it.present -= it.present_or_deleted
            case "retired":
                it.present_or_deleted = set()
    return it


def newest_good_of(versions: set[Version]) -> Version | None:
    """The newest good version; None if there is none."""
    return max((version for version in versions if version.is_good), default=None)


def all_violations(run: Path, scenario: Scenario, record: Record, marks: list[Mark]) -> list[str]:
    """The violations after a session that was interrupted after `marks`, and after the next one."""
    newest = newest_good_in(run / "checkpoints", record)
    found = violations(run, record, expected_after(scenario, marks), newest)
    return found + next_session_violations(run, scenario, record, newest)


def violations(run: Path, record: Record, expected: Expected, newest: Version | None) -> list[str]:
    """The violations in a run directory as it is."""
    present = versions_in(run / "checkpoints", record)
    aside: dict[str, Version | None] = {}
    for folder in run.glob("checkpoints/abandoned-*"):
        aside |= versions_in(folder, record)
    found = [
        f"{name} is half-made, changed or of another step: {version}"
        for name, version in (present | aside).items()
        if version is None or name != checkpoint_name(version.step)
    ]
    seen = {version for version in present.values() if version is not None}
    found += misplaced(seen, set(aside.values()), expected)
    if newest != newest_good_of(seen):
        found.append(f"newest_good returns {newest}, there are {sorted(present)}")
    if newest not in expected.newest:
        found.append(f"the newest good one is {newest}, not one of {expected.newest}")
    elif not bytes_of(run / "metrics.jsonl").startswith(record.metrics[newest]):
        found.append(f"metrics.jsonl lacks lines of {newest}")
    if (run / "config.toml").read_text() not in expected.configs:
        found.append("config.toml is neither the one that was written nor the one before")
    return found


def versions_in(folder: Path, record: Record) -> dict[str, Version | None]:
    """The checkpoints in a folder: name -> version, None for one that is not known."""
    names = (path for path in folder.iterdir() if step_of(path.name) is not None)
    return {path.name: record.version_in(path) for path in names}


def bytes_of(file: Path) -> bytes:
    """A file's content; empty if it does not exist."""
    return file.read_bytes() if file.exists() else b""


def misplaced(present: set[Version], aside: set[Version | None], expected: Expected) -> list[str]:
    """The versions that are missing, or where they should not be."""
    found = [f"{version} is lost" for version in expected.present - present]
    moved = expected.present_or_aside - present - aside
    found += [f"{version} is neither in its place nor set aside" for version in moved]
    found += [f"{version} is not set aside" for version in expected.aside - aside]
    may_be = expected.present_or_aside | expected.present_or_deleted | expected.present_or_not_yet
    unexpected = present - expected.present - may_be
    return found + [f"{version} should not be there" for version in unexpected]


def newest_good_in(root: Path, record: Record) -> Version | None:
    """The version that `newest_good` finds; None if it finds none."""
    try:
        return record.version_in(newest_good(root).path)
    except (NoCheckpoint, CorruptCheckpoint):
        return None


def next_session_violations(
    run: Path, scenario: Scenario, record: Record, newest: Version | None
) -> list[str]:
    """Run another session from what is there: it must work, and remove what was left over."""
    root = run / "checkpoints"
    step = newest.step if newest is not None else 0
    again = replace(scenario, resume_step=step, new_steps=(step + 5,), tensors="few")
    try:
        run_session(run, again, len(record.metrics[newest]))
        last = newest_good(root)
        events = [line["event"] for line in read_lines(run / "events.jsonl")]
    except (CheckpointError, ValueError) as error:
        return [f"the next session: {error}"]
    found = []
    if last.manifest.step != step + 5 or last.skipped:
        found.append(f"the next session saved, but the newest good one is {last.path.name}")
    if events[-3:] != ["resumed", "evaluation", "saved"]:
        found.append(f"events.jsonl ends with {events[-3:]}")
    lines = record.metrics[newest] + b"".join(lines_of(Version(step + 5, "new")))
    if (run / "metrics.jsonl").read_bytes() != lines:
        found.append("metrics.jsonl is not the checkpoint's lines and the new ones")
    hidden = {path.name for path in root.iterdir() if path.name.startswith(".")}
    if hidden != ({FOREIGN} if scenario.has_leftovers else set()):
        found.append(f"left over: {sorted(hidden)}")
    return found


def has_complete_lines(file: Path) -> bool:
    """Whether every line of a file is one JSON object and ends with a newline."""
    text = file.read_bytes()
    is_complete = re.fullmatch(rb'(\{"[^\n\0]*\}\n)*', text) is not None
    return is_complete and all(isinstance(line, dict) for line in read_lines(file))

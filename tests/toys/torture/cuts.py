"""Power cuts at every operation of a session: each legal state is put on a disk and examined."""

import os
import random
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path

from tests.toys.torture.checks import all_violations
from tests.toys.torture.recording import RecordingDisk, Said, Sync
from tests.toys.torture.states import legal_states, materialise, state_hash
from tests.toys.torture.stories import Story
from tests.toys.torture.telling import copy_of, fast_folder, tell, write_past


@dataclass
class Examined:
    """What came out of a story's power cuts."""

    states: set[bytes] = field(default_factory=set)  # the distinct ones
    problems: list[str] = field(default_factory=list)


def cut_everywhere(
    story: Story, drawn: int, make_disk: type[RecordingDisk] = RecordingDisk
) -> Examined:
    """Every corner, and `drawn` states more, of a cut before each operation of the session."""
    with fast_folder() as folder:
        return _cut_everywhere(story, folder, drawn, make_disk)


def _cut_everywhere(
    story: Story, folder: Path, drawn: int, make_disk: type[RecordingDisk]
) -> Examined:
    book = write_past(folder / "past", story)
    run = copy_of(folder / "past", folder / "told")
    disk = make_disk(run)
    tell(run, story, book, disk, disk.said)
    rng, done, it = random.Random(repr(story)), set(), Examined()
    for until in range(len(disk.log) + 1):
        marks = [op.mark for op in disk.log[:until] if isinstance(op, Said)]
        for state in legal_states(disk, until, drawn, rng):
            key = state_hash(state)
            if (key, len(marks)) in done:
                continue
            done.add((key, len(marks)))
            it.states.add(key)
            work = folder / "work"
            materialise(state, work)
            found = all_violations(work, story, book, marks)
            shutil.rmtree(work)
            it.problems += [f"{story}: cut before operation {until}: {each}" for each in found]
    return it


class NeverSyncsFiles(RecordingDisk):
    """A recipe to catch: the data of a file is left to the system."""

    def sync(self, descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            super().sync(descriptor)


class NeverSyncsFolders(RecordingDisk):
    """A recipe to catch: names are left to the system."""

    def sync(self, descriptor: int) -> None:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            super().sync(descriptor)


class RenamesFirst(RecordingDisk):
    """A recipe to catch: files are synced once they have their names."""

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        self._late: list[Sync] = []

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            self._late.append(self.log.pop())  # type: ignore[arg-type]

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self.log += self._late
        self._late.clear()

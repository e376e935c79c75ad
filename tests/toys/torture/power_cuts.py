"""Simulated power cuts at every disk operation of a session; each legal disk state is checked."""

import os
import random
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path

from tests.toys.torture.checks import all_violations
from tests.toys.torture.recording import MarkReached, RecordingDisk, Sync
from tests.toys.torture.scenarios import Scenario
from tests.toys.torture.sessions import Record, copied, make_run, memory_folder, record_session
from tests.toys.torture.states import legal_states, materialise, state_hash


@dataclass
class CutResults:
    """The result of a scenario's power cuts."""

    states: set[bytes] = field(default_factory=set)  # hashes of the distinct ones
    problems: list[str] = field(default_factory=list)


def cut_everywhere(
    scenario: Scenario, drawn: int, make_disk: type[RecordingDisk] = RecordingDisk
) -> CutResults:
    """For a cut before each disk operation, check the extreme states and `drawn` random ones."""
    with memory_folder() as folder:
        record = make_run(folder / "before", scenario)
        run = copied(folder / "before", folder / "run")
        disk = make_disk(run)
        record_session(run, scenario, record, disk, disk.on_mark)
        return _check_all(scenario, record, disk, folder / "work", drawn)


def _check_all(
    scenario: Scenario, record: Record, disk: RecordingDisk, work: Path, drawn: int
) -> CutResults:
    rng, results = random.Random(repr(scenario)), CutResults()
    checked: set[tuple[bytes, int]] = set()
    for until in range(len(disk.log) + 1):
        marks = [op.mark for op in disk.log[:until] if isinstance(op, MarkReached)]
        for state in legal_states(disk, until, drawn, rng):
            key = state_hash(state)
            if (key, len(marks)) in checked:
                continue
            checked.add((key, len(marks)))
            results.states.add(key)
            materialise(state, work)
            found = all_violations(work, scenario, record, marks)
            shutil.rmtree(work)
            where = f"{scenario}: cut before operation {until}"
            results.problems += [f"{where}: {problem}" for problem in found]
    return results


class NeverSyncsFiles(RecordingDisk):
    """A wrong way to save: the data of files is never synced."""

    def sync(self, descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            super().sync(descriptor)


class NeverSyncsFolders(RecordingDisk):
    """A wrong way to save: names are never synced."""

    def sync(self, descriptor: int) -> None:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            super().sync(descriptor)


class RenamesFirst(RecordingDisk):
    """A wrong way to save: files are synced after the rename."""

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

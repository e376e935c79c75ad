"""Run a session with one fault at one disk call, and check what it leaves."""

import gc
import mmap
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sftctl.disk import Disk
from sftctl.errors import SftctlError
from tests.toys.torture.checks import all_violations, has_complete_lines
from tests.toys.torture.faults import DIED, FAULTS, Fault, FaultyDisk
from tests.toys.torture.scenarios import Scenario, resumed_version
from tests.toys.torture.sessions import (
    Record,
    copied,
    make_run,
    memory_folder,
    record_session,
    run_session,
)

FaultAt = tuple[Fault, int]
"""A fault, and the number of the disk call that has it, from 1."""


@dataclass(frozen=True)
class Recorded:
    """A scenario in a folder, after a run of its session without a fault."""

    scenario: Scenario
    folder: Path
    record: Record
    calls: list[str]
    save_calls: set[int]  # numbers of the calls that a save makes

    @classmethod
    def make(cls, scenario: Scenario, folder: Path) -> "Recorded":
        """Make the run in `folder`/before, and run the session on a copy."""
        record, disk = make_run(folder / "before", scenario), FaultyDisk()
        first, save_calls = 0, set[int]()

        def on_mark(name: str, _: int) -> None:
            nonlocal first
            if name == "saved":
                save_calls.update(range(first, len(disk.calls) + 1))
            first = len(disk.calls) + 1

        run = copied(folder / "before", folder / "without-fault")
        record_session(run, scenario, record, disk, on_mark)
        return cls(scenario, folder, record, disk.calls, save_calls)

    def all_faults(self) -> Iterator[FaultAt]:
        """Every call with every fault that it can have.

        Faults of a clean-up are tried with one value of `keep`, which does not change it.
        """
        for fault in FAULTS:
            for number, call in enumerate(self.calls, start=1):
                if fault.first.startswith("part") and call != "write":
                    continue
                is_tried = number in self.save_calls and self.scenario.keep == 1
                if fault.hits_clean_up and not is_tried:
                    continue
                yield fault, number


def try_fault(it: Recorded, fault: Fault, at: int) -> list[str]:
    """Run the session with the fault at call `at`; returns what is wrong with what it leaves."""
    run = copied(it.folder / "before", it.folder / "work")
    num_marks = mmap.mmap(-1, 1)  # shared with the child process that dies
    disk = FaultyDisk(fault, at)
    if fault.is_deadly:
        found = _in_a_child(it, run, disk, num_marks)
    else:
        found = _in_this_process(it, run, disk, num_marks, fault)
    found += all_violations(run, it.scenario, it.record, it.record.marks[: num_marks[0]])
    shutil.rmtree(run)
    where = f"{it.scenario}: {fault.name} at call {at} ({it.calls[at - 1]})"
    return [f"{where}: {problem}" for problem in found]


@dataclass(frozen=True)
class FaultResults:
    """The result of all faults of a scenario."""

    num_faults: int
    problems: list[str]


def try_all_faults(scenario: Scenario) -> FaultResults:
    """Every fault at every disk call of a scenario's session."""
    with memory_folder() as folder:
        it = Recorded.make(scenario, folder)
        gc.freeze()  # a collection in a child would copy all memory of the parent
        faults = list(it.all_faults())
        problems = [problem for fault, at in faults for problem in try_fault(it, fault, at)]
    return FaultResults(len(faults), problems)


def _run(it: Recorded, run: Path, disk: Disk, num_marks: mmap.mmap) -> None:
    """Run the session, and count its marks."""

    def on_mark(name: str, step: int) -> None:
        assert it.record.marks[num_marks[0]] == (name, step)
        num_marks[0] += 1

    keep_bytes = len(it.record.metrics[resumed_version(it.scenario)])
    run_session(run, it.scenario, keep_bytes, disk, on_mark)


def _in_a_child(it: Recorded, run: Path, disk: Disk, num_marks: mmap.mmap) -> list[str]:
    child = os.fork()
    if child == 0:
        try:
            _run(it, run, disk, num_marks)
        finally:
            os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return [] if code == DIED else [f"the child ended with {code}"]


def _in_this_process(
    it: Recorded, run: Path, disk: Disk, num_marks: mmap.mmap, fault: Fault
) -> list[str]:
    try:
        _run(it, run, disk, num_marks)
    except SftctlError as error:
        cleaned_up = not (fault.later or fault.hits_clean_up)
        found = _left_by_failure(run, error) if cleaned_up else []
        if not any(reason in error.message for reason in fault.reasons):
            found.append(f"the error does not say why: {error}")
        return found
    except OSError as error:
        return [f"not reported as an SftctlError: {error!r}"]
    return ["the error was not reported"] if fault.reasons else []


def _left_by_failure(run: Path, error: SftctlError) -> list[str]:
    """What a failed session left behind. After a single failure everything can be cleaned up."""
    names = [path.name for path in run.glob(".tmp-*")]
    if failed_save := re.match(r"can't write checkpoint step ([0-9]+) ", error.message):
        failed = f"step-{failed_save[1]:0>8}"
        names += [path.name for path in (run / "checkpoints").iterdir() if failed in path.name]
    found = [f"{name} was left" for name in names]
    for name in ("metrics.jsonl", "events.jsonl"):
        if (run / name).exists() and not has_complete_lines(run / name):
            found.append(f"{name} holds half a line")
    return found

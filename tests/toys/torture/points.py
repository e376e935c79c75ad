"""Every disk call of a session, with every fault that it can have: what it leaves is examined."""

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
from tests.toys.torture.checks import all_violations, has_whole_lines
from tests.toys.torture.faults import DIED, FAULTS, Fault, FaultyDisk
from tests.toys.torture.stories import Story, start_of
from tests.toys.torture.telling import Book, copy_of, fast_folder, session, tell, write_past


@dataclass(frozen=True)
class Rehearsed:
    """A story in a folder, told once without a fault."""

    story: Story
    folder: Path
    book: Book
    calls: list[str]
    of_saves: set[int]  # numbers of those calls that a save makes

    @classmethod
    def make(cls, story: Story, folder: Path) -> "Rehearsed":
        book, disk = write_past(folder / "past", story), FaultyDisk()
        begins, of_saves = 0, set[int]()

        def mark(name: str, _: int) -> None:
            nonlocal begins
            if name == "saved":
                of_saves.update(range(begins, len(disk.calls) + 1))
            begins = len(disk.calls) + 1

        tell(copy_of(folder / "past", folder / "told"), story, book, disk, mark)
        return cls(story, folder, book, disk.calls, of_saves)

    def points(self) -> Iterator[tuple[Fault, int]]:
        """Every call with every fault that it can have; `keep` changes nothing in a clean-up."""
        for fault in FAULTS:
            for number, call in enumerate(self.calls, start=1):
                if fault.first.startswith("part") and call != "write":
                    continue
                if fault.is_of_clean_up and (number not in self.of_saves or self.story.keep > 1):
                    continue
                yield fault, number


def try_point(it: Rehearsed, fault: Fault, at: int) -> list[str]:
    """Tell the story with the fault at call `at`; gives what is wrong with what it leaves."""
    run = copy_of(it.folder / "past", it.folder / "work")
    num_marks = mmap.mmap(-1, 1)  # shared with the child that dies
    disk = FaultyDisk(fault, at)
    if fault.is_deadly:
        found = _in_a_child(it, run, disk, num_marks)
    else:
        found = _in_this_process(it, run, disk, num_marks, fault)
    found += all_violations(run, it.story, it.book, it.book.marks[: num_marks[0]])
    shutil.rmtree(run)
    where = f"{it.story}: {fault.name} at call {at} ({it.calls[at - 1]})"
    return [f"{where}: {problem}" for problem in found]


@dataclass(frozen=True)
class Tried:
    """What came out of a story's points."""

    num_points: int
    problems: list[str]


def try_all_points(story: Story) -> Tried:
    """Every fault at every disk call of a story."""
    with fast_folder() as folder:
        it = Rehearsed.make(story, folder)
        gc.freeze()  # a child that collects what the parent holds would copy it all
        points = list(it.points())
        problems = [problem for point in points for problem in try_point(it, *point)]
    return Tried(len(points), problems)


def _tell(it: Rehearsed, run: Path, disk: Disk, num_marks: mmap.mmap) -> None:
    def mark(name: str, step: int) -> None:
        assert it.book.marks[num_marks[0]] == (name, step)
        num_marks[0] += 1

    session(run, it.story, len(it.book.metrics[start_of(it.story)]), disk, mark)


def _in_a_child(it: Rehearsed, run: Path, disk: Disk, num_marks: mmap.mmap) -> list[str]:
    child = os.fork()
    if child == 0:
        try:
            _tell(it, run, disk, num_marks)
        finally:
            os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return [] if code == DIED else [f"the child ended with {code}"]


def _in_this_process(
    it: Rehearsed, run: Path, disk: Disk, num_marks: mmap.mmap, fault: Fault
) -> list[str]:
    try:
        _tell(it, run, disk, num_marks)
    except SftctlError as error:
        cleaned_up = not (fault.later or fault.is_of_clean_up)
        found = _traces_of_the_attempt(run, error) if cleaned_up else []
        if not any(reason in error.message for reason in fault.reasons):
            found.append(f"the error does not say why: {error}")
        return found
    except OSError as error:
        return [f"not told as an error for people: {error!r}"]
    return ["nothing told of the error"] if fault.reasons else []


def _traces_of_the_attempt(run: Path, error: SftctlError) -> list[str]:
    """A disk that failed once lets everything be cleaned up."""
    names = [path.name for path in run.glob(".tmp-*")]
    if attempt := re.match(r"can't write checkpoint step ([0-9]+) ", error.message):
        failed = f"step-{attempt[1]:0>8}"
        names += [path.name for path in (run / "checkpoints").iterdir() if failed in path.name]
    found = [f"{name} was left" for name in names]
    for name in ("metrics.jsonl", "events.jsonl"):
        if (run / name).exists() and not has_whole_lines(run / name):
            found.append(f"{name} holds half a line")
    return found

"""`make mutants`: does a test fail if the code is changed? A seeded sample, in copies of the tree.

Prints a table by room and writes the diffs of the survivors into .mutants/. Not in CI: it takes
hours. A session that was interrupted is continued by the same command.
"""

import argparse
import difflib
import os
import random
import tempfile
import tomllib
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkItem, WorkResult

from tests.mutants.drawing import ROOMS, draw
from tests.mutants.trial import copy_of_the_tree, mutated, try_mutant, warm_up

FOLDER = Path(".mutants")
EQUIVALENT = Path(__file__).with_name("equivalent.toml")
OUTCOMES = ("killed", "survived", "equivalent", "unknown")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--num", type=int, default=100, help="mutants in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--room", choices=[*ROOMS, "all"], default="all")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--without", default="", help="patterns of files to leave out")
    parser.add_argument("--narrow", action="store_true", help="only tests that import the module")
    parser.add_argument("--seconds", type=float, default=900, help="limit for one run of tests")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    FOLDER.mkdir(exist_ok=True)
    file = FOLDER / f"{options.room}-{options.num}-{options.seed}.sqlite"
    rooms = ROOMS if options.room == "all" else (options.room,)
    with use_db(file) as session:
        if not session.pending_work_items:
            draw(session, rooms, options.num, options.seed, options.without)
        pending = sorted(session.pending_work_items, key=place)
    random.Random(options.seed).shuffle(pending)  # so a run that is cut short tried all packages
    warm_up()
    workers = []
    for nth in range(options.jobs):
        workers.append(os.fork())
        if workers[-1] == 0:
            try_all(file, pending[nth :: options.jobs], not options.narrow, options.seconds)
            os._exit(0)
    for worker in workers:
        os.waitpid(worker, 0)
    with use_db(file) as session:
        report(session, rooms, file.with_suffix(".diff"))


def try_all(file: Path, pending: list[WorkItem], wide: bool, seconds: float) -> None:
    """Try these mutants in a copy of the tree and store each result at once."""
    prefix = "sftctl-mutants-"
    with use_db(file) as session, tempfile.TemporaryDirectory(prefix=prefix) as folder:
        tree = copy_of_the_tree(Path(folder))
        for number, item in enumerate(pending, start=1):
            (mutation,) = item.mutations
            with mutated(tree, mutation) as (before, after):
                diff = diff_of(mutation, before, after)
            known = is_equivalent(mutation, diff)
            words = "equivalent" if known else try_mutant(tree, mutation, wide, seconds)
            test = TestOutcome.KILLED if words.startswith("killed") else TestOutcome.SURVIVED
            result = WorkResult(WorkerOutcome.NORMAL, output=words, test_outcome=test, diff=diff)
            session.set_result(item.job_id, result)
            print(f"{number}/{len(pending)} {place(item)} {words}", flush=True)


def place(item: WorkItem) -> str:
    (mutation,) = item.mutations
    line, column = mutation.start_pos
    return f"{mutation.module_path}:{line:03}:{column:02} {mutation.operator_name[5:]}"


def diff_of(mutation: MutationSpec, before: str, after: str) -> str:
    lines = (before.splitlines(), after.splitlines())
    return "\n".join(difflib.unified_diff(*lines, str(mutation.module_path), "mutant", lineterm=""))


def is_equivalent(mutation: MutationSpec, diff: str) -> bool:
    """Whether equivalent.toml lists it, by file and code: line numbers change."""
    lines = diff.splitlines()[2:]
    removed = "\n".join(line[1:] for line in lines if line.startswith("-"))
    added = "\n".join(line[1:] for line in lines if line.startswith("+"))
    return any(
        fnmatch(str(mutation.module_path), known["file"])
        and known["before"] in removed
        and removed.replace(known["before"], known["after"], 1) == added
        for known in tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))["mutant"]
    )


def report(session: WorkDB, rooms: tuple[str, ...], path: Path) -> None:
    """Print the table; write the diffs of all that were not killed."""
    done = sorted((place(item), result) for item, result in session.completed_work_items)
    counts = Counter((name.split("/")[1], result.output.split()[0]) for name, result in done)
    print("\n| room | mutants | " + " | ".join(OUTCOMES) + " |\n|---|" + "---|" * 5)
    for room in rooms:
        numbers = [counts[room, outcome] for outcome in OUTCOMES]
        print(f"| {room} | {sum(numbers)} | " + " | ".join(map(str, numbers)) + " |")
    alive = [result for _, result in done if result.output.startswith(("survived", "unknown"))]
    path.write_text("\n\n".join(f"{result.output}\n{result.diff}" for result in alive))
    print(f"\nThe diffs of those that were not killed: {path}")


if __name__ == "__main__":
    main()

"""Which mutants are tried: cosmic-ray lists all, a seeded sample is drawn from the list."""

import ast
import random
from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from cosmic_ray.commands.init import init
from cosmic_ray.work_db import WorkDB
from cosmic_ray.work_item import MutationSpec, WorkItem

ROOMS = ("data", "train", "checkpoint", "inspection")
Position = tuple[int, int]  # line, column


def draw(session: WorkDB, rooms: tuple[str, ...], number: int, seed: int, without: str) -> None:
    """Fill the session with `number` mutants, as many from each room.

    Places in the code are drawn first, then one mutation for each place: a `+` has eleven
    mutations and a `not` has one, and both should be as likely. `without` lists patterns of
    files to leave out, separated by spaces.
    """
    rng = random.Random(seed)
    drawn: list[WorkItem] = []
    for nth, room in enumerate(rooms):
        files = [path for path in sorted(Path("sftctl", room).rglob("*.py")) if path.stat().st_size]
        files = [path for path in files if not any(fnmatch(str(path), p) for p in without.split())]
        places = mutations_by_place(session, files)
        share = number // len(rooms) + (nth < number % len(rooms))
        chosen = rng.sample(sorted(places), min(share, len(places)))
        drawn.extend(rng.choice(places[place]) for place in chosen)
    session.clear()
    session.add_work_items(drawn)


def mutations_by_place(
    session: WorkDB, files: list[Path]
) -> dict[tuple[str, Position], list[WorkItem]]:
    """Every mutation that could be a mistake, by file and position, each list in a fixed order."""
    init(files, session, {})
    annotations = {str(path): set(annotated(path)) for path in files}
    places: dict[tuple[str, Position], list[WorkItem]] = defaultdict(list)
    for item in session.work_items:
        (mutation,) = item.mutations
        file = str(mutation.module_path)
        if mutation.start_pos not in annotations[file] and could_be_a_mistake(mutation):
            places[file, mutation.start_pos].append(item)
    for items in places.values():
        items.sort(key=lambda item: (item.mutations[0].operator_name, item.mutations[0].occurrence))
    return places


def could_be_a_mistake(mutation: MutationSpec) -> bool:
    """False for the empty mutation, and for `==` that becomes `is` or the reverse.

    `is` between small numbers is the same as `==`, and `None < 3` raises: nothing is learned.
    """
    name = str(mutation.operator_name).removeprefix("core/")
    if not name.startswith("ReplaceComparisonOperator"):
        return name != "NoOp"
    before, after = name.split("_")[1:]
    return before.startswith("Is") == after.startswith("Is")


def annotated(path: Path) -> Iterator[Position]:
    """Positions of operators and numbers within type annotations, which change no behaviour."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.arg(annotation=ast.expr() as part) | ast.AnnAssign(annotation=part):
                pass
            case ast.FunctionDef(returns=ast.expr() as part):
                pass
            case _:
                continue
        for line in range(part.lineno, (part.end_lineno or part.lineno) + 1):
            first = part.col_offset if line == part.lineno else 0
            last = part.end_col_offset if line == part.end_lineno else len(lines[line - 1])
            yield from ((line, column) for column in range(first, last or 0))

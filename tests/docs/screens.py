"""Write docs/measured/screens.md: `python -m tests.docs.screens`.

Each screen is shown as a terminal of 80 columns has it. The table says what it becomes elsewhere.
The commands are forked from a process that has imported torch, so that all screens take a minute
or two. Without that, importing took most of the time, and on a busy machine nobody saw the end.
"""

import fcntl
import os
import pty
import re
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from select import select

from sftctl.words import num_cells
from tests.toys.warm import WarmCommand, spawn_warm

PAGE = Path(__file__).parents[2] / "docs/measured/screens.md"
TOKENS = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\r|\n|[^\x1b]")
COLOURS = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")
PATIENCE_S = 120
SHOWN = 20  # lines of a picture


@dataclass(frozen=True, slots=True)
class Scene:
    """A command, the criticism of its screen before, and the keys that are typed into it."""

    words: str
    before: str
    typed: str = ""


SCENES = [
    Scene("train --help",
          "the help had eight boxes and a column of types, but no example and no short option"),
    Scene("prepare-data rows.jsonl -o store", "a loss of 60% of the rows looked like a loss of 0%"),
    Scene("train --data store --model tiny --dry-run",
          "the results of the checks came after 44 lines of settings"),
    Scene("train --data rows.jsonl --model tiny -o new --max-steps 2",
          "rows were dropped without a message, and nothing was printed until the first step"),
    Scene("resume run --max-steps 9 --dry-run", "the plan was two long lines, broken inside words"),
    Scene("resume run",
          "the command printed `finished already: step 8 of 8`, and advice that did not work"),
    Scene("inspect-ckpt run",
          "25 lines, none more visible than the others, and column names such as `s…` and `ep…`"),
    Scene("runs .", "the command did not exist"),
    Scene("report run", "the last lines of a run did not name the report"),
    Scene("bench-loader --data store --workers 0 --seconds 0.1",
          "the column names were `work… pin pref…`"),
    Scene("export run -o hf", "`exported to exported`, after 19 seconds without output"),
    Scene("chat run --max-new-tokens 8", "`/help` was sent to the model as a question",
          "/help\n/x\nHi\n/exit\n"),
    Scene("init rows.jsonl", "the command did not exist"),
    Scene("train --data rows.jsonl --warmup-steps 3", "`No such option: --warmup-steps (Possible "
          "options: --accumulation-steps, --max-steps)`"),
    Scene("resume runs/missing", "the hint did not name the existing runs"),
]  # fmt: skip
PLACES: dict[str, tuple[int | None, dict[str, str]]] = {
    "80 columns": (80, {}),
    "120 columns": (120, {}),
    "a pipe": (None, {}),
    "NO_COLOR": (80, {"NO_COLOR": "1"}),
    "without UTF-8": (80, {"LC_ALL": "C"}),
}


def in_utf8() -> None:
    """Before a command: what it spawns is warm too."""
    spawn_warm()


def in_ascii() -> None:
    """Before a command: its streams are those of a terminal without UTF-8."""
    spawn_warm()
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        assert isinstance(stream, TextIOWrapper)
        stream.reconfigure(encoding="ascii", errors="backslashreplace")


def shown(words: str, columns: int | None, environment: dict[str, str], typed: str = "") -> str:
    """Everything that `sftctl` writes, on a terminal of so many columns or into a pipe."""
    first = in_ascii if "LC_ALL" in environment else in_utf8
    if columns is None:
        return _in_a_pipe(words, typed, first)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    before = dict(os.environ)
    os.environ.update({"TERM": "xterm-256color"} | environment)
    command = WarmCommand(*words.split(), stdin=theirs, stdout=theirs, stderr=theirs, first=first)
    os.environ.clear()
    os.environ.update(before)
    seen, end = bytearray(), time.monotonic() + PATIENCE_S
    for line in typed.splitlines(keepends=True):
        os.write(ours, line.encode())
    while time.monotonic() < end:
        if select([ours], [], [], 0.1)[0]:
            seen += os.read(ours, 1 << 16)
        elif command.poll() is not None:
            break
    command.kill()
    os.close(theirs)
    os.close(ours)
    return seen.decode(errors="replace")


def _in_a_pipe(words: str, typed: str, first: Callable[[], None]) -> str:
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as taken:
        given.write(typed.encode())
        given.seek(0)
        streams = {"stdout": taken.fileno(), "stderr": taken.fileno()}
        WarmCommand(*words.split(), stdin=given.fileno(), **streams, first=first).wait(PATIENCE_S)
        taken.seek(0)
        return taken.read().decode(errors="replace")


def settled(text: str, columns: int | None) -> list[str]:
    """The lines that stay on a terminal: it erases, moves up, and breaks lines where they end."""
    lines, row, column = [[""]], 0, 0
    for found in TOKENS.finditer(text):
        number = int(found[1]) if (found[1] or "").isdecimal() else None
        if found[0] == "\r":
            column = 0
        elif found[0] == "\n":
            row, column = row + 1, 0 if columns is None else column
        elif found[2] == "A":
            row = max(0, row - (number or 1))
        elif found[2] == "K":
            lines[row][0 if number == 2 else column :] = []
        elif found[2] is None:
            if columns is not None and column >= columns:
                row, column = row + 1, 0
            _extend(lines, row)
            line = lines[row]
            line += [" "] * (column - len(line))
            line[column : column + 1] = [found[0], *[""] * (num_cells(found[0]) - 1)]
            column += num_cells(found[0])
        _extend(lines, row)
    kept = ["".join(line).rstrip() for line in lines]
    while kept and not kept[-1]:
        kept.pop()
    return kept


def _extend(lines: list[list[str]], row: int) -> None:
    while len(lines) <= row:
        lines.append([])


def facts(text: str, columns: int | None) -> str:
    """How many lines stay, the widest, and whether there are colours or letters outside ASCII."""
    lines = settled(text, columns)
    widest = max(map(len, lines), default=0)
    colours = ", colours" if COLOURS.search(text) else ""
    codes = ", no codes" if "\x1b" not in text else ""
    ascii_only = ", ASCII" if text.isascii() else ""
    return f"{len(lines)} × {widest}{colours}{codes}{ascii_only}"


def prepare() -> None:
    """Rows of which one is broken, and a finished run."""
    rows = [f'{{"instruction": "Say {n}.", "output": "It is {n}."}}\n' for n in range(30)]
    Path("rows.jsonl").write_text("".join(rows[:20]) + "{broken\n" + "".join(rows[20:]))
    words = "train --data rows.jsonl --model tiny -o run -b 8 --max-steps 6 --save-interval 3"
    shown(words + " --set data.val_fraction=0.2", None, {})


def picture(scene: Scene) -> tuple[list[str], str]:
    """The row of the table, and the part of the page."""
    row = [f"`{scene.words}`"]
    lines: list[str] = []
    for columns, environment in PLACES.values():
        os.system("rm -rf new hf run.toml")
        text = shown(scene.words, columns, environment, scene.typed)
        if "Traceback" in text:  # no command ends so: this Python lacks a package, or it is a bug
            raise SystemExit(text)
        row.append(facts(text, columns))
        lines = lines or settled(text, columns)
    kept = [*lines[:SHOWN], "…"] if len(lines) > SHOWN + 2 else lines
    text = "\n".join(["```", *kept, "```"]).replace(str(Path.cwd()), "~")
    text = text.replace(str(PAGE.parents[2]), "~/sftctl")
    text = re.sub(r"stores/[0-9a-f]{32}", "stores/FINGERPRINT", text)
    return row, f"### {scene.words}\n\nBefore: {scene.before}.\n\n{text}\n"


def main() -> None:
    parts, rows, began = [], [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="s") as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        os.chdir(name)
        prepare()
        for scene in SCENES:
            row, part = picture(scene)
            print(f"{time.monotonic() - began:4.0f} s  {scene.words}", flush=True)
            rows.append(row)
            parts.append(part)
        os.chdir("/")
    head = ["| screen |", *(f" {place} |" for place in PLACES)]
    table = ["".join(head), "|---" * (len(PLACES) + 1) + "|"]
    table += [f"| {' | '.join(row)} |" for row in rows]
    first = PAGE.read_text().partition("<!-- screens -->")[0]
    PAGE.write_text(f"{first}<!-- screens -->\n\n" + "\n".join([*table, "", *parts]))


if __name__ == "__main__":
    main()

"""Write docs/measured/screens.md: `python -m tests.docs.screens`.

Each screen is shown as a terminal of 80 columns has it. The table says what it becomes elsewhere.
"""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/measured/screens.md"
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOURS = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@dataclass(frozen=True, slots=True)
class Scene:
    """A command, what was said of its screen before, and what is typed into it."""

    words: str
    before: str
    typed: str = ""


SCENES = [
    Scene("train --help", "eight boxes, a column of types, no example, no short option"),
    Scene("prepare-data rows.jsonl -o store", "a loss of 60% looked like a loss of 0%"),
    Scene("train --data store --model tiny --dry-run", "44 lines of settings hid the checks"),
    Scene("train --data rows.jsonl --model tiny -o new --max-steps 2",
          "dropped rows without a word; silent until the first step"),
    Scene("resume run --max-steps 9 --dry-run", "two long lines, broken inside words"),
    Scene("inspect-ckpt run", "25 lines of equal weight; heads such as `s…` and `ep…`"),
    Scene("runs .", "there was none"),
    Scene("report run", "the last line of a run did not name it"),
    Scene("bench-loader --data store --workers 0,1 --seconds 0.3", "heads `work… pin pref…`"),
    Scene("export run -o hf", "`exported to exported` after 19 silent seconds"),
    Scene("chat run", "`/help` went to the model as a question", "/help\n/x\n/exit\n"),
    Scene("init rows.jsonl", "there was none"),
]  # fmt: skip
PLACES: dict[str, tuple[int | None, dict[str, str]]] = {
    "80 columns": (80, {}),
    "120 columns": (120, {}),
    "a pipe": (None, {}),
    "NO_COLOR": (80, {"NO_COLOR": "1"}),
    "without UTF-8": (80, ASCII),
}


def shown(scene: Scene, columns: int | None, environment: dict[str, str], folder: Path) -> str:
    """Everything that the command writes, on a terminal of so many columns or into a pipe."""
    subprocess.run(["rm", "-rf", *(folder / name for name in ("new", "hf", "run.toml"))])
    command = [sys.executable, "-m", "sftctl", *scene.words.split()]
    known = os.environ | {"TERM": "xterm-256color"} | environment
    if columns is None:
        done = subprocess.run(
            command, input=scene.typed, cwd=folder, env=known, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.stdout
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=known
    )
    os.close(theirs)
    os.write(ours, scene.typed.encode())
    seen = bytearray()
    try:
        while data := os.read(ours, 1 << 16):
            seen += data
    except OSError:  # EIO: the program has left
        pass
    os.close(ours)
    process.wait()
    return seen.decode(errors="replace").replace("\r\n", "\n")


def settled(text: str, folder: Path) -> list[str]:
    """The lines that stay on the screen: without what is erased or replaced."""
    text = re.sub(r"╭[^╰]*╰[^\n]*\n?", "", CODES.sub("", re.sub(r"[^\n]*\r\x1b\[K", "", text)))
    lines = [line.rpartition("\r")[2].rstrip() for line in text.splitlines()]
    return [line.replace(str(folder), "~") for line in lines]


def facts(text: str, folder: Path) -> str:
    """Its widest line, and whether there are colours and other letters than ASCII in it."""
    widest = max(map(len, settled(text, folder)), default=0)
    colours = "colours" if COLOURS.search(text) else "no colours"
    codes = "" if "\x1b" in text else ", no codes"
    return f"{widest} wide, {colours}{codes}{', ASCII' if CODES.sub('', text).isascii() else ''}"


def prepare(folder: Path) -> None:
    """Rows of which one is broken, and a finished run."""
    rows = [f'{{"instruction": "Say {n}.", "output": "It is {n}."}}\n' for n in range(60)]
    (folder / "rows.jsonl").write_text("".join(rows[:40]) + "{broken\n" + "".join(rows[40:]))
    words = "train --data rows.jsonl --model tiny -o run --max-steps 6 --save-interval 3"
    shown(Scene(words, ""), None, {}, folder)


def main() -> None:
    parts, rows = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        prepare(folder)
        for scene in SCENES:
            texts = {place: shown(scene, *how, folder) for place, how in PLACES.items()}
            print(scene.words, flush=True)
            rows.append([f"`{scene.words}`", *(facts(text, folder) for text in texts.values())])
            lines = settled(texts["80 columns"], folder)
            kept = [*lines[:16], "…"] if len(lines) > 18 else lines
            screen = "\n".join(["```", *kept, "```"])
            parts.append(f"## {scene.words}\n\nBefore: {scene.before}.\n\n{screen}\n")
    head = ["| screen |", *(f" {place} |" for place in PLACES)]
    table = ["".join(head), "|---" * (len(PLACES) + 1) + "|"]
    table += [f"| {' | '.join(row)} |" for row in rows]
    first = PAGE.read_text().partition("<!-- screens -->")[0]
    PAGE.write_text(f"{first}<!-- screens -->\n\n" + "\n".join([*table, "", *parts]))


if __name__ == "__main__":
    main()

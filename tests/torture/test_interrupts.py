"""Ctrl-C at each moment of each command: how soon the screen answers, and that nothing is lost.

`python -m tests.torture.test_interrupts` prints the table of docs/measured/screens.md.
"""

import os
import pty
import re
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sftctl import jsonio
from sftctl.checkpoint.directory import list_checkpoints
from sftctl.checkpoint.layout import step_of
from tests.toys.runs import half_made

pytestmark = pytest.mark.torture

CTRL_C, CTRL_D = b"\x03", b"\x04"
PATIENCE_S = 180
ANSWER_S = 1.5  # on a busy machine; the table says what it was
ANSWER = re.compile(rb"stopping: |stopped: |exited| \xe2\x80\xa6|stops an answer")
CODES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Moment:
    """When Ctrl-C is pressed, in which command, and how the command may end."""

    name: str
    words: str
    seen: str | float  # a text on the screen; `file:` and a pattern; or seconds after the start
    then_s: float = 0.0
    trains: bool = False  # a step is being trained, or was
    exits: tuple[int, ...] = (75, 130)
    typed: bytes = b""  # before the text is waited for
    last: bytes = b""  # after the answer


TRAIN = "train --output-dir new --model "
TINY = TRAIN + "tiny --max-steps 4000 "
MANY = "--set data.val_fraction=0.6 --data many.jsonl "
MOMENTS = [
    Moment("starting Python", TINY, 0.04, exits=(75, 130, -signal.SIGINT)),
    Moment("importing the command line", TINY, 0.25),
    Moment("importing torch", TINY, "loading torch", 0.2),
    Moment("importing transformers", TINY, "loading torch", 1.5),
    Moment("preparing a file", TINY + "--data many.jsonl", "preparing"),
    Moment("checking the model", TINY, "checking model"),
    Moment("loading the model", TINY, "loading tiny"),
    Moment("trying the largest micro-batch", TRAIN + "small --batch-size 512", "trying"),
    Moment("evaluating before step 1", TRAIN + "small " + MANY, "validating", 1.0, True),
    Moment("in a long step", TRAIN + "small -b 256 --data many.jsonl", "speed", 2.0, True),
    Moment("in a short step", TINY + "-b 2", "speed", 0.5, True),
    Moment("sampling", TRAIN + "small -b 8 --set tracking.samples=30", "sampling", 0.5, True),
    Moment("saving", TRAIN + "small -b 2 --save-interval 1", "saving|saved  step", 0.0, True),
    Moment("writing final/", TRAIN + "small -b 8 --max-steps 1", "writing final", 0.0, True,
           exits=(75, 130, 0)),
    Moment("in a step on two ranks", TINY + "-b 2 --nproc-per-node 2", "speed", 0.5, True),
    Moment("two ranks, importing torch", TINY + "--nproc-per-node 2", "loading torch", 4.0),
    Moment("dry run", TINY + "--dry-run", "checking model"),
    Moment("resume: loading the checkpoint", "resume half --max-steps 9000", "loading the ch"),
    Moment("resume: in a step", "resume half --max-steps 9000", "speed", 0.5, True),
    Moment("replay", "resume half --verify-replay", "loading the ch|training again", 0.0),
    Moment("prepare-data, in the workers", "prepare-data many.jsonl -o store --workers 2",
           "file:.tmp-store*"),
    Moment("prepare-data, at an open stdin", "prepare-data - -o store", 2.0),
    Moment("export: loading", "export half -o hf", "output:|loading", 0.5),
    Moment("export: writing", "export half -o hf", "file:.tmp-hf*"),
    Moment("export: writing GGUF", "export half -o gg --format gguf", "file:.tmp-gg*"),
    Moment("chat: loading", "chat half", "loading", 0.5),
    Moment("chat: in an answer", "chat half --max-new-tokens 3500 --temperature 9", "> ", 0.3,
           exits=(0,), typed=b"Tell me\n", last=CTRL_D),
    Moment("chat: one question", "chat half --max-new-tokens 400 --prompt Hi", "file:seen:8", 0.3),
    Moment("report", "report half", "loading torch", 0.5),
    Moment("inspect-ckpt, verifying", "inspect-ckpt half --verify", "verifying", 0.0),
    Moment("bench-loader", "bench-loader --model tiny --seconds 20", 3.0),
    Moment("init: reading", "init many.jsonl", "reading|looking|prepar|loading", 0.3),
    Moment("doctor: measuring", "doctor", "measuring", 1.0),
    Moment("doctor: its runs", "doctor", "measuring", 9.0),
]  # fmt: skip


class Screen:
    """`sftctl` on a pseudo-terminal of its own, and what it showed."""

    def __init__(self, words: str, folder: Path) -> None:
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.environ["TERM"] = "xterm"
            os.execv(sys.executable, [sys.executable, "-m", "sftctl", *words.split()])
        self._started, self._is_open = time.monotonic(), True
        self.shown = b""

    def type(self, keys: bytes) -> None:
        os.write(self._descriptor, keys)

    def look(self, seconds: float = 0.02) -> None:
        """Read what is shown in the meantime."""
        if self._is_open and select.select([self._descriptor], [], [], seconds)[0]:
            try:
                self.shown += os.read(self._descriptor, 1 << 16)
            except OSError:  # EIO: the program has left
                self._is_open = False

    def wait(self, condition: Callable[[], object]) -> float:
        """Look until a condition holds; how many seconds that took, or AssertionError."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < PATIENCE_S, self.text[-2000:]
            assert self._is_open or condition(), self.text[-2000:]
            self.look()
        return time.monotonic() - began

    def rest(self, seconds: float) -> None:
        """Look for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._is_open:
            self.look()

    def end(self) -> int:
        """Look until the program has left; its exit code."""
        end = time.monotonic() + PATIENCE_S
        while self._is_open and time.monotonic() < end:
            self.look()
        if self._is_open:
            os.kill(self.pid, 9)
        os.close(self._descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    @property
    def text(self) -> str:
        """What was shown, without control codes."""
        return CODES.sub(b"", self.shown).decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Answered:
    """How a command answered Ctrl-C."""

    answer_s: float
    end_s: float
    exit_code: int
    line: str


def press(moment: Moment, folder: Path) -> Answered:
    """Run the command in `folder`, press Ctrl-C at the moment, and follow it to its end."""
    screen = Screen(moment.words, folder)
    if moment.typed:
        screen.wait(lambda: b"> " in screen.shown)
        screen.type(moment.typed)
        screen.shown = b""
        screen.wait(lambda: len(screen.shown) > 40)
    elif isinstance(moment.seen, float):
        screen.rest(moment.seen)
    elif moment.seen.startswith("file:seen:"):
        screen.wait(lambda: len(screen.shown) > int(moment.seen[10:]))  # type: ignore[index]
    elif moment.seen.startswith("file:"):
        pattern = moment.seen.removeprefix("file:")
        screen.wait(lambda: any(folder.glob(pattern)))
    else:
        screen.wait(lambda: re.search(str(moment.seen), screen.text))
    screen.rest(moment.then_s)
    before = len(screen.shown)
    pressed = time.monotonic()
    screen.type(CTRL_C)
    answered = None
    while screen._is_open and time.monotonic() - pressed < PATIENCE_S:
        screen.look()
        if ANSWER.search(screen.shown[before:]):
            answered = time.monotonic()
            break
    ended = screen._is_open and moment.last
    if ended:
        screen.rest(1.0)  # until the line is read again
        screen.type(moment.last)
    code = screen.end()
    now = time.monotonic()
    found = ANSWER.search(screen.shown[before:])
    line = ""
    if found is not None:
        rest = CODES.sub(b"", screen.shown[before + found.start() :]).decode(errors="replace")
        line = rest.splitlines()[0].strip()
    return Answered((answered or now) - pressed, now - pressed, code, line)


def check(moment: Moment, answered: Answered, folder: Path) -> list[str]:
    """What is wrong with an answer, and with what is left behind."""
    wrong = []
    if answered.answer_s > ANSWER_S:
        wrong.append(f"answered after {answered.answer_s:.2f} s")
    if not answered.line and answered.exit_code != -signal.SIGINT:  # Python did not listen yet
        wrong.append("no answer on the screen")
    if answered.exit_code not in moment.exits:
        wrong.append(f"exit code {answered.exit_code}")
    run = folder / ("half" if moment.words.startswith("resume") else "new")
    if moment.trains and run.is_dir():
        steps = [step_of(one.name) for one in list_checkpoints(run / "checkpoints")]
        trained = list(jsonio.read_lines(run / "events.jsonl"))[-1]
        if trained["event"] not in ("stopped", "finished") or trained["step"] not in steps:
            wrong.append(f"{trained}, saved {steps}")
    if not moment.trains and (folder / "new").exists():
        wrong.append("a run directory is left")
    if left := {*half_made(folder), *half_made(folder / "new")}:
        wrong.append(f"left behind: {left}")
    return wrong


def rows(path: Path, number: int) -> None:
    """A file of conversations."""
    words = [f"word{number}" for number in range(17)]
    with path.open("wb") as file:
        for row in range(number):
            answer = " ".join(words[(row * step) % len(words)] for step in range(3, 33))
            line = {"instruction": f"Say something about {row}.", "output": answer}
            file.write(jsonio.dump_line(line))


def prepared(folder: Path) -> None:
    """`many.jsonl`, and `half`, a run with two checkpoints."""
    rows(folder / "many.jsonl", 12_000)
    words = "train --model small -b 8 --max-steps 4 --save-interval 2 --output-dir half"
    assert Screen(words, folder).end() == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupts")
    prepared(folder)
    return folder


def cleaned(folder: Path) -> None:
    """Remove what a command has left."""
    os.system(f"cd '{folder}' && rm -rf new store hf gg .tmp-* run.toml runs")


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.name.replace(" ", "-"))
def test_ctrl_c_is_answered_at_once_and_nothing_is_lost(moment: Moment, place: Path) -> None:
    cleaned(place)
    assert check(moment, press(moment, place), place) == []


def main(names: list[str]) -> None:
    """Print a line of the table for each moment."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        prepared(folder)
        print("| moment | answered after | left after | exit | the line |\n|---|---|---|---|---|")
        for moment in MOMENTS:
            if names and not any(one in moment.name for one in names):
                continue
            cleaned(folder)
            try:
                found = press(moment, folder)
            except AssertionError as problem:
                print(f"| {moment.name} | not reached: {str(problem)[-80:]!r} |", flush=True)
                continue
            wrong = "; ".join(check(moment, found, folder))
            print(
                f"| {moment.name} | {found.answer_s:.2f} s | {found.end_s:.2f} s "
                f"| {found.exit_code} | {found.line[:110]} {wrong and f'**{wrong}**'} |",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])

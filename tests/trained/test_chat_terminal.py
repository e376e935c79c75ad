"""Chat at a real terminal, with Ctrl-C, and one question in a pipe."""

import io
import locale
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sftctl.model.sampling import Sampling
from sftctl.trained.chat import ChatSession
from sftctl.trained.chat_terminal import converse, edit_lines
from tests.toys.commands import without_phases
from tests.toys.warm import run_warm

CTRL_C, CTRL_D = b"\x03", b"\x04"
PATIENCE_S = 600


class Terminal:
    """`sftctl chat` on a pseudo-terminal."""

    def __init__(self, *arguments: object) -> None:
        self._pid, self._descriptor = pty.fork()
        if self._pid == 0:
            words = [sys.executable, "-m", "sftctl", "chat", *map(str, arguments)]
            os.execvp(sys.executable, words)
        self.seen = b""

    def type(self, keys: bytes) -> None:
        os.write(self._descriptor, keys)

    def type_until(self, keys: bytes, text: bytes) -> None:
        """Type `keys` every few seconds until `text` shows.

        Python's readline loses a Ctrl-C that comes after it showed a letter and before it waits.
        """
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            self.type(keys)
            again = time.monotonic() + 5
            while text not in self.seen and time.monotonic() < again:
                self._look()
        self.wait_for(text)

    def wait_for(self, text: bytes) -> bytes:
        """Wait for `text`; return the output up to it, and remove that from the output."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            self._look()
        before, _, self.seen = self.seen.partition(text)
        return before

    def wait_for_more(self, num_bytes: int) -> None:
        """Wait until there are `num_bytes` more of output."""
        deadline = time.monotonic() + PATIENCE_S
        while len(self.seen) < num_bytes:
            assert time.monotonic() < deadline, self.seen
            self._look()

    def _look(self) -> None:
        if select.select([self._descriptor], [], [], 1)[0]:
            self.seen += os.read(self._descriptor, 4096)

    def exit_code(self) -> int:
        _, status = os.waitpid(self._pid, 0)
        os.close(self._descriptor)
        self._pid = 0
        return os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        if self._pid:
            os.kill(self._pid, 9)
            self.exit_code()


@pytest.fixture
def terminal(run: Path) -> Iterator[Terminal]:
    """Answers of a model that never ends by itself, as long as its positions allow."""
    one = Terminal(run, "--max-new-tokens", 3500)
    yield one
    one.kill()


def test_ctrl_c_stops_an_answer_and_not_the_session(terminal: Terminal) -> None:
    terminal.wait_for(b"> ")
    terminal.type(b"Count to 5.\r")
    terminal.wait_for(b"Count to 5.")
    terminal.wait_for(b"\n")
    terminal.wait_for_more(10)  # it has begun to answer
    terminal.type(CTRL_C)
    terminal.wait_for(" …".encode())
    terminal.wait_for(b"> ")
    terminal.type(b"half a line")
    terminal.wait_for(b"half a line")
    terminal.type_until(CTRL_C, b"Ctrl-C stops an answer")
    terminal.wait_for(b"> ")
    terminal.type(b"/clear\r")
    terminal.wait_for(b"> ")
    terminal.type(b"/exit\r")
    assert terminal.exit_code() == 0


def test_ctrl_d_leaves_and_a_prompt_too_long_is_one_line(terminal: Terminal) -> None:
    terminal.wait_for(b"> ")
    terminal.type(b"word " * 700 + b"\r")
    terminal.wait_for(b"error: the prompt has ")
    terminal.wait_for(b"hint: shorten it")
    terminal.wait_for(b"> ")
    terminal.type(CTRL_D)
    assert terminal.exit_code() == 0


def test_no_line_editor_under_a_locale_that_is_not_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding, is_loaded in (("ANSI_X3.4-1968", False), ("UTF-8", True)):
        monkeypatch.setattr(locale, "getencoding", lambda encoding=encoding: encoding)
        monkeypatch.delitem(sys.modules, "readline", raising=False)
        edit_lines()
        assert ("readline" in sys.modules) == is_loaded


def test_the_first_line_of_a_chat_is_ascii_where_letters_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Session:
        about = "runs/x · tiny · greedy"

    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(locale, "getencoding", lambda: "ANSI_X3.4-1968")
    converse(Session())  # type: ignore[arg-type]
    assert "runs/x - tiny - greedy\n" in capsys.readouterr().err


def chat_in_a_pipe(run: Path, given: bytes) -> "subprocess.CompletedProcess[bytes]":
    reading, writing = os.pipe()
    os.write(writing, given)
    os.close(writing)
    try:
        return run_warm("chat", str(run), "--max-new-tokens", "40", stdin=reading)
    finally:
        os.close(reading)


def test_a_question_in_a_pipe_is_answered_on_stdout_alone(run: Path) -> None:
    done = chat_in_a_pipe(run, b"Two lines,\nand half a letter: \xe4\xbd.\n")
    session = ChatSession.open(run, Sampling(max_new_tokens=40))
    expected = session.answer("Two lines,\nand half a letter: \ufffd.")
    assert (done.returncode, done.stdout.decode()) == (0, expected + "\n")
    assert without_phases(done.stderr.decode()) == [
        "warning: stdin: line 2, byte 20: not UTF-8, read as \ufffd"
    ]


def test_a_question_that_is_text_is_answered_without_other_output(run: Path) -> None:
    done = chat_in_a_pipe(run, "Grüße 世界\n".encode())
    answered = [] if done.stdout.strip() else ["(the answer is empty: the model ended it at once)"]
    assert without_phases(done.stderr.decode()) == answered


def test_an_empty_pipe_asks_nothing(run: Path) -> None:
    done = chat_in_a_pipe(run, b" \n")
    assert (done.returncode, done.stdout) == (2, b"")
    assert without_phases(done.stderr.decode())[0] == "error: the prompt is empty"

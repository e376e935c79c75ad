"""Chat in a terminal, or answer one question. Only answers are written to stdout."""

import shutil
import sys
from contextlib import suppress
from io import TextIOWrapper
from typing import TYPE_CHECKING

from sftctl import environment
from sftctl.errors import ConfigError, DataError
from sftctl.tracking.status import fitted
from sftctl.trained.wrapping import WordWrap
from sftctl.words import printable

if TYPE_CHECKING:
    from sftctl.trained.chat import ChatSession

_PROMPT = "> "
_WELCOME = "/help shows the commands, /exit or Ctrl-D ends the chat, Ctrl-C stops an answer"
_EMPTY = "(the answer is empty: the model ended it at once)"
_HELP = """/clear          forget the conversation
/temperature T  sample with this temperature; 0: always the most likely token
/exit           end the chat, like Ctrl-D; Ctrl-C stops an answer
To ask a question that begins with /, type a space before it."""


def question_given(prompt: str | None) -> str | None:
    """The single question to answer: `prompt`, or all of a piped stdin; None in a terminal."""
    if prompt is None and sys.stdin.isatty():
        return None
    _take_any_bytes()
    question = prompt if prompt is not None else _readable(sys.stdin.read()).strip()
    if not question.strip():
        raise ConfigError(
            "the prompt is empty",
            hint='use `--prompt "…"`, or pipe a question into stdin',
        )
    return question


def answer_once(session: "ChatSession", question: str) -> None:
    """Print the answer piece by piece. Nothing else is written to stdout."""
    try:
        answer = session.answer(question, _print_piece)
    finally:
        print(flush=True)
    if not answer.strip():
        print(_EMPTY, file=sys.stderr)


def converse(session: "ChatSession") -> None:
    """Read questions and answer them until /exit or the end of the input.

    Ctrl-C during an answer stops the answer and keeps its text so far. Ctrl-C at the prompt
    discards the line.
    """
    edit_lines()
    _take_any_bytes()
    about = printable(session.about)
    if not environment.shows_unicode(sys.stderr):
        about = about.replace(" · ", " - ")
    print(fitted(f"{about}\n{_WELCOME}"), file=sys.stderr)
    while True:
        try:
            line = _readable(_ask()).rstrip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print(f"\n{_WELCOME}", file=sys.stderr)
            continue
        if line in ("/exit", "/quit"):
            return
        if line.startswith("/"):
            print(fitted(_obeyed(session, *line.split(maxsplit=1))), file=sys.stderr)
        elif line.strip():
            _answer(session, line.strip())


def _obeyed(session: "ChatSession", command: str, value: str = "") -> str:
    """Run a command of the chat, such as /clear. Returns the line to show."""
    if command == "/help":
        return _HELP
    if command == "/clear":
        session.clear()
        return "(forgotten)"
    if command == "/temperature":
        try:
            session.sample_with(float(value or "nan"))
        except (ValueError, ConfigError):
            return f"/temperature: expected a number from 0 up, got {printable(value)!r}"
        return f"({session.sampling.described})"
    return f"{printable(command)}: no such command; /help shows those that exist"


def _ask() -> str:
    """Read a line. If stdout is not a terminal, the prompt goes to stderr."""
    if sys.stdout.isatty():
        return input(_PROMPT)
    print(_PROMPT, end="", file=sys.stderr, flush=True)
    return input()


def _answer(session: "ChatSession", line: str) -> None:
    lines = WordWrap(_width(), _print_piece)
    try:
        answer = session.answer(line, lines.add)
        lines.flush()
        if not answer.strip():
            print(_EMPTY, file=sys.stderr)
            return
    except KeyboardInterrupt:
        lines.flush()
        print(" …", end="")
    except DataError as problem:  # too long, or refused by the template: report it and continue
        hint = problem.hint or "/clear"
        text = f"error: {printable(problem.message)}\nhint: {printable(hint)}"
        print(fitted(text), file=sys.stderr)
    print(flush=True)


def _width() -> int:
    """The columns of the terminal. If stdout is not a terminal, lines are never broken."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize


def _print_piece(piece: str) -> None:
    print(printable(piece, keep="\n\t"), end="", flush=True)


def _readable(text: str) -> str:
    """Replace bytes that are not UTF-8 by \ufffd, and warn. Tokenizers accept only valid text."""
    raw = text.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as problem:
        before = raw[: problem.start]
        line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
        where = f"line {line}, byte {column}"
        print(f"warning: stdin: {where}: not UTF-8, read as \ufffd", file=sys.stderr)
        return raw.decode("utf-8", "replace")


def _take_any_bytes() -> None:
    """Make stdin accept bytes that are not UTF-8. `_readable` replaces them."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def edit_lines() -> None:
    """Turn on arrow keys and history, if Python has readline and the locale is UTF-8.

    In another locale, readline would read bytes of letters as commands.
    """
    if not environment.has_utf8_locale():
        return
    with suppress(ImportError):
        import readline  # noqa: F401

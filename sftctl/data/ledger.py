"""The reasons why rows are dropped or changed, the error BadRow, and the file ledger.jsonl.

docs/data.md documents every reason.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import BinaryIO, Literal

from sftctl import jsonio
from sftctl.errors import DataError
from sftctl.words import counted

Reason = Literal[
    "broken_json",
    "invalid_utf8",
    "cut_off",
    "oversized",
    "bad_shape",
    "bad_role",
    "empty",
    "not_text",
    "preference",
    "special_text",
    "no_target",
    "template_refused",
    "tools_not_rendered",
    "message_not_rendered",
    "duplicate_bos",
    "mask_not_exact",
    "in_validation",
    "too_long_dropped",
    "truncated",
    "split",
]

KEPT: frozenset[Reason] = frozenset({"truncated", "split"})
"""Reasons with which a row is kept, cut or split. A row with any other reason is dropped."""

TooLong = Literal["truncated", "too_long_dropped", "no_target"]
_TOO_LONG: dict[TooLong, str] = {
    "truncated": "truncated to the maximum length",
    "too_long_dropped": "longer than the maximum length",
    "no_target": "no target token within the maximum length",
}
_RAISE = "raise --max-seq-len"
_STRICT_HINT = "without --strict such a row is skipped and recorded in ledger.jsonl"


@dataclass(frozen=True, slots=True)
class SourceLine:
    """Where a row begins. Lines are numbered from 1, elements of an array from 0."""

    file: str
    line: int
    row: int | None = None  # the index of an element of a JSON array
    shares_line: bool = False  # True: other rows are in this line too, so messages name the index

    def __str__(self) -> str:
        return f"{self.file}[{self.row}]" if self.shares_line else f"{self.file}:{self.line}"


class BadRow(DataError):
    """A row that can't be kept. It is recorded in the ledger. With --strict it ends the command."""

    def __init__(
        self, reason: Reason, message: str, hint: str | None = None, tokens_lost: int = 0
    ) -> None:
        super().__init__(message, hint)
        self.reason: Reason = reason
        self.tokens_lost = tokens_lost

    def __reduce__(self) -> tuple[type["BadRow"], tuple[Reason, str, str | None, int]]:  # type: ignore[override]
        return type(self), (self.reason, self.message, self.hint, self.tokens_lost)


class OutOfTimeRow(BadRow):
    """A row for which the chat template took too long."""


@dataclass(frozen=True, slots=True)
class Note:
    """Why a row was dropped or changed. A note can be sent to another process."""

    source: SourceLine
    reason: Reason
    tokens_lost: int
    message: str  # with file and line at the beginning
    hint: str | None = None

    @classmethod
    def of(cls, problem: BadRow, source: SourceLine) -> "Note":
        """The note for a row that can't be kept."""
        return cls(source, problem.reason, problem.tokens_lost, problem.message, problem.hint)

    @classmethod
    def too_long(cls, source: SourceLine, reason: TooLong, tokens_lost: int) -> "Note":
        """The note for a row that is longer than the maximum length."""
        message = f"{source}: {_TOO_LONG[reason]}: {_lost(tokens_lost)}"
        return cls(source, reason, tokens_lost, message, _RAISE)

    @classmethod
    def split(cls, source: SourceLine, num_examples: int, tokens_lost: int) -> "Note":
        """The note for a row that became several examples.

        `tokens_lost` counts exchanges that are too long, or have no target token.
        """
        message = f"{source}: split into {counted(num_examples, 'example')}"
        if tokens_lost:
            message += f": {_lost(tokens_lost)}"
        return cls(source, "split", tokens_lost, message, _RAISE)


def _lost(num_tokens: int) -> str:
    return f"{counted(num_tokens, 'token')} {'is' if num_tokens == 1 else 'are'} lost"


class Ledger:
    """Writes ledger.jsonl, one line for each note, and counts rows and tokens by reason."""

    def __init__(self, file: BinaryIO, strict: bool) -> None:
        self._file = file
        self._strict = strict
        self._rows: Counter[Reason] = Counter()
        self._tokens: Counter[Reason] = Counter()
        self._first_dropped: dict[str, Note] = {}  # by file
        self._first: dict[Reason, SourceLine] = {}

    def write(self, note: Note) -> None:
        """Record one row. In a strict preparation, raise a DataError instead."""
        if self._strict:
            hint = f"{_RAISE}, or prepare without --strict" if note.hint == _RAISE else note.hint
            raise DataError(note.message, hint or _STRICT_HINT)
        source = note.source
        entry = {
            "file": source.file,
            "line": source.line,
            **({} if source.row is None else {"row": source.row}),
            "reason": note.reason,
            "tokens_lost": note.tokens_lost,
            "detail": note.message.removeprefix(f"{source}: "),
        }
        self._file.write(jsonio.dump_line(entry))
        self._rows[note.reason] += 1
        self._tokens[note.reason] += note.tokens_lost
        self._first.setdefault(note.reason, source)
        if note.reason not in KEPT:
            self._first_dropped.setdefault(source.file, note)

    def first_dropped_in(self, files: Collection[str]) -> Note | None:
        """The note of the first dropped row in these files; None if no row was dropped."""
        return next((n for file, n in self._first_dropped.items() if file in files), None)

    @property
    def rows_truncated(self) -> int:
        """Number of rows that were truncated."""
        return self._rows["truncated"]

    @property
    def rows_split(self) -> int:
        """Number of rows that were split into several examples."""
        return self._rows["split"]

    @property
    def rows_dropped(self) -> dict[str, int]:
        """Number of dropped rows, by reason."""
        return {reason: rows for reason, rows in self._rows.items() if reason not in KEPT}

    @property
    def first_rows(self) -> dict[str, str]:
        """Reason -> the place of the first row with this reason."""
        return {reason: str(source) for reason, source in self._first.items()}

    @property
    def tokens_lost(self) -> dict[str, int]:
        """Number of lost tokens, by reason. Rows that can't be read or rendered count 0 tokens."""
        return {reason: tokens for reason, tokens in self._tokens.items()}

"""The ledger: a line for every row that was not kept as it came."""

from collections import Counter
from dataclasses import dataclass
from typing import BinaryIO

from sftctl import jsonio
from sftctl.data.conversations.conversation import SourceLine
from sftctl.data.reasons import KEPT, BadRow, Reason
from sftctl.errors import DataError
from sftctl.words import counted

_LENIENT = "without --strict such a row is left out, and told in the store's ledger.jsonl"


def _beyond(tokens_lost: int) -> str:
    verb = "is" if tokens_lost == 1 else "are"
    return f"{counted(tokens_lost, 'token')} {verb} lost to the maximum length"


@dataclass(frozen=True, slots=True)
class Note:
    """A row that was not kept as it came: a plain value, which any process can send."""

    source: SourceLine
    reason: Reason
    tokens_lost: int
    message: str  # with file and line
    hint: str | None = None

    @classmethod
    def of(cls, problem: BadRow, source: SourceLine) -> "Note":
        """A row that can't be kept."""
        return cls(source, problem.reason, problem.tokens_lost, problem.message, problem.hint)

    @classmethod
    def too_long(cls, source: SourceLine, reason: Reason, tokens_lost: int) -> "Note":
        """A row of which the maximum length leaves less than all."""
        message = f"{source}: {reason}: {_beyond(tokens_lost)}"
        hint = "raise --max-seq-len, or prepare without --strict"
        return cls(source, reason, tokens_lost, message, hint)

    @classmethod
    def split(cls, source: SourceLine, num_examples: int, tokens_lost: int) -> "Note":
        """A row that became several examples; what of a turn does not fit into one is lost."""
        message = f"{source}: split: into {counted(num_examples, 'example')}"
        if tokens_lost:
            message += f"; {_beyond(tokens_lost)}"
        return cls(source, "split", tokens_lost, message, "raise --max-seq-len")


class Ledger:
    """Writes ledger.jsonl and counts its reasons."""

    def __init__(self, file: BinaryIO, strict: bool) -> None:
        self._file = file
        self._strict = strict
        self._rows: Counter[Reason] = Counter()
        self._tokens: Counter[Reason] = Counter()
        self.first_dropped: Note | None = None

    def write(self, note: Note) -> None:
        """One row; a DataError where strictness allows none."""
        if self._strict:
            raise DataError(note.message, note.hint or _LENIENT)
        source = note.source
        entry = {"file": source.file, "line": source.line, "reason": note.reason}
        detail = note.message.removeprefix(f"{source}: ")
        self._file.write(
            jsonio.dump_line(entry | {"tokens_lost": note.tokens_lost, "detail": detail})
        )
        self._rows[note.reason] += 1
        self._tokens[note.reason] += note.tokens_lost
        if note.reason not in KEPT and self.first_dropped is None:
            self.first_dropped = note

    @property
    def rows_truncated(self) -> int:
        """Rows kept in part."""
        return self._rows["truncated"]

    @property
    def rows_split(self) -> int:
        """Rows kept in pieces."""
        return self._rows["split"]

    @property
    def rows_dropped(self) -> dict[str, int]:
        """Rows not kept, by reason."""
        return {reason: rows for reason, rows in self._rows.items() if reason not in KEPT}

    @property
    def tokens_lost(self) -> dict[str, int]:
        """Tokens lost, by reason; rows that could not be read or rendered had none."""
        return {reason: tokens for reason, tokens in self._tokens.items()}

"""The ledger: a line for every row that was not kept as it came."""

from collections import Counter
from dataclasses import dataclass
from typing import BinaryIO, Literal

from sftctl import jsonio
from sftctl.data.conversation import SourceLine
from sftctl.errors import DataError

Reason = Literal["truncated", "too_long_dropped", "no_target"]


@dataclass(frozen=True, slots=True)
class Note:
    """A row that was not kept as it came: a plain value, which any process can send."""

    source: SourceLine
    reason: Reason
    tokens_lost: int


class Ledger:
    """Writes ledger.jsonl and counts its reasons."""

    def __init__(self, file: BinaryIO, strict: bool) -> None:
        self._file = file
        self._strict = strict
        self._rows: Counter[Reason] = Counter()

    def write(self, note: Note) -> None:
        """One row; a DataError where strictness allows none."""
        source, reason, tokens_lost = note.source, note.reason, note.tokens_lost
        if self._strict:
            raise DataError(
                f"{source}: {reason}: {tokens_lost} tokens are lost to the maximum length",
                "raise --max-seq-len, or prepare without --strict",
            )
        entry = {"file": source.file, "line": source.line, "reason": reason}
        self._file.write(jsonio.dump_line(entry | {"tokens_lost": tokens_lost}))
        self._rows[reason] += 1

    @property
    def rows_truncated(self) -> int:
        """Rows kept in part."""
        return self._rows["truncated"]

    @property
    def rows_dropped(self) -> dict[str, int]:
        """Rows not kept, by reason."""
        return {reason: rows for reason, rows in self._rows.items() if reason != "truncated"}
